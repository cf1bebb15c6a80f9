"""The door to Ray: a pool of actors that each hold a worker, fed one unit of work at a time.

Units go in as specifications of a few KiB, receipts come out; what is made never passes through Ray. An actor that dies
is replaced, and its units come back as failures. Knows nothing of what the work is.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError

from batchgen.engine.queue import Finished, Try
from batchgen.errors import ClusterError, DeviceLost
from batchgen.job import WorkerResources
from batchgen.machine import cores
from batchgen.options import Device
from batchgen.work import Work, failure_of, lost

__all__ = ["Capacity", "Pool", "cluster"]

OBJECT_STORE_BYTES = 100 * 2**20  # nothing of ours goes through it; Ray's least is 75 MiB
ANSWER_TIMEOUT = 5.0  # seconds; for a cluster's head to accept a connection
ASK_EVERY = 1.0  # seconds between questions to a worker how far it is
_DEATH = "the worker process died (killed, or out of memory)"
STARTS_IN_A_ROW = 3  # workers that die before they are ready; more of the same would not help


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What a cluster offers: cores and GPUs over all nodes."""

    cpus: int
    gpus: int

    def device(self, wanted: Device) -> Literal["cpu", "cuda"]:
        """Where workers will compute.

        Raises:
            ClusterError: CUDA is asked for and there is no GPU.
        """
        if wanted is Device.CUDA and not self.gpus:
            raise ClusterError(
                "device 'cuda' was asked for, but Ray sees no GPU; use --device cpu, or check the driver"
            )
        return "cuda" if self.gpus and wanted is not Device.CPU else "cpu"

    def workers(self, device: str) -> int:
        """One worker a GPU, or one a core."""
        return max(1, self.gpus if device == "cuda" else self.cpus)


@contextmanager
def cluster(address: str | None, workers: int | None) -> Iterator[Capacity]:
    """Connect to a cluster, or start a local Ray and stop it afterwards.

    Args:
        address: of a running cluster ("auto" for the one this machine belongs to); None starts a local one.
        workers: how many will be asked for; a local Ray has as many places, even on fewer cores.

    Raises:
        ClusterError: Ray does not start, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            places = max(cores(), workers or 1)
            ray.init(
                address="local",
                num_cpus=places,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
        else:
            _require_answer(address)
            ray.init(address=address, **quiet)
    except SystemExit:  # Ray's own answer to a SIGTERM while it starts
        raise KeyboardInterrupt from None
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if address is None:
            raise ClusterError(f"Ray did not start: {reason}") from error
        raise ClusterError(
            f"no Ray cluster answers at {address!r}: {reason}; is it up, and does it want RAY_AUTH_MODE=token?"
        ) from error
    try:
        offered = ray.cluster_resources()
        cpus = int(offered.get("CPU", 1)) if address is not None else cores()
        # Ray prints a paragraph about every worker that dies on stdout, which is for data; the run says it in a line
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield Capacity(cpus=cpus, gpus=int(offered.get("GPU", 0)))
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """See whether anything listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT).close()


class _Actor:
    """What runs in a worker process: failures come back as values, since Ray's own wrapping loses their class."""

    def __init__(self, work: Work) -> None:
        self._worker = work.make_worker()  # loads the libraries of the work, which the driver never does

    def ready(self) -> None:
        """Returns once the process is up and the libraries are loaded."""

    def run(self, unit: Any) -> Any:
        """The unit's receipt, or a `Failure`."""
        try:
            return self._worker.run(unit)
        except DeviceLost:
            os._exit(1)  # every later call would fail too; a new process gets the device anew
        except Exception as error:  # it belongs to the unit, and must not end the worker
            return failure_of(error)

    def progress(self) -> Mapping[str, Any]:
        """What the worker says of the units it has in work."""
        return self._worker.progress()


@dataclass(kw_only=True, slots=True)
class _Place:
    """A worker's place in the pool: its actor, whether that is up, and what it has in work."""

    actor: Any
    starting: Any  # the reference that is ready when the actor is; None afterwards
    running: dict[Any, Try[Any]] = field(default_factory=dict)
    at_once: int = 1
    asked: Any = None  # the reference of a question how far it is
    asked_at: float = 0.0  # of time.monotonic()
    said: Mapping[str, Any] = field(default_factory=dict)  # by unit

    def has_room(self, tried: Try[Any]) -> bool:
        """Whether the worker is up and free; one that runs a unit alone is not."""
        if self.starting is not None or any(other.alone for other in self.running.values()):
            return False
        return len(self.running) < (1 if tried.alone else self.at_once)


def require_place(work: Work, resources: WorkerResources) -> None:
    """Make sure that some node of the cluster can hold a worker at all; Ray would wait for one without a word.

    Raises:
        ClusterError: none can, as the cluster is now.
    """
    wanted = {name: amount for name, amount in _resources(work, resources).items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        asked = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        raise ClusterError(
            f"no node of the cluster can hold a worker that wants {asked}; change [worker], or add nodes"
        )


def _resources(work: Work, resources: WorkerResources) -> dict[str, float]:
    """What Ray reserves for one worker, under Ray's names."""
    gpus = 1.0 if work.on_gpu else 0.0
    return {
        "CPU": 1.0 if resources.num_cpus is None else resources.num_cpus,
        "GPU": gpus if resources.num_gpus is None else resources.num_gpus,
        "memory": (resources.memory_gib or 0.0) * 2**30,
    }


class Pool:
    """A fixed number of places for workers; units go to the one with least in work."""

    def __init__(self, work: Work, workers: int, resources: WorkerResources) -> None:
        self._work = work
        require_place(work, resources)
        reserved = _resources(work, resources)
        self._actor_class = ray.remote(
            max_restarts=0,
            max_concurrency=work.at_once + 1,  # one thread to say how far the units are
            num_cpus=reserved["CPU"],
            num_gpus=reserved["GPU"],
            memory=int(reserved["memory"]) or None,
        )(_Actor)
        self._deaths_in_a_row = 0
        self._places = [self._start() for _ in range(workers)]

    @property
    def in_work(self) -> int:
        """Units that were given out and have not come back."""
        return sum(len(place.running) for place in self._places)

    def has_room(self, tried: Try[Any]) -> bool:
        """Whether a worker that is up could take a unit."""
        return any(place.has_room(tried) for place in self._places)

    def submit(self, tried: Try[Any]) -> None:
        """Give a unit to the worker with least in work; only when `has_room`."""
        place = min((p for p in self._places if p.has_room(tried)), key=lambda place: len(place.running))
        place.running[place.actor.run.remote(tried.unit)] = tried

    def in_progress(self) -> list[list[tuple[Any, Any]]]:
        """For each worker that is up, its units in work, and what it said last of each; None until it does."""
        up = [place for place in self._places if place.starting is None]
        for place in up:
            self._ask(place)
        return [[(tried.unit, place.said.get(tried.unit.id)) for tried in place.running.values()] for place in up]

    def wait(self, seconds: float) -> list[Finished[Any]]:
        """Attempts that ended within `seconds`; returns earlier when there are some, or a worker came up.

        Raises:
            ClusterError: workers keep dying before they are up.
        """
        references = [ref for place in self._places for ref in (place.starting, *place.running) if ref is not None]
        if not references:  # all units are paused; Ray would answer at once
            time.sleep(seconds)
            return []
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
        if ready:  # take whatever else is there, too
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        finished: list[Finished[Any]] = []
        for number, place in enumerate(self._places):
            if place.starting in ready and not self._came_up(place):
                self._places[number] = self._start()
                continue
            results = [self._result(place, ref) for ref in list(place.running) if ref in ready]
            finished += [found for found in results if found is not None]
            if len(results) > sum(found is not None for found in results):
                ray.kill(place.actor)  # it may only have been out of reach, and must not commit later
                finished += [Finished(tried=tried, result=lost(_DEATH)) for tried in place.running.values()]
                self._places[number] = self._start()
        return finished

    def close(self) -> None:
        """Stop all workers at once; what they have in work is lost and was not committed."""
        for place in self._places:
            ray.kill(place.actor)

    def _ask(self, place: _Place) -> None:
        """Take a worker's answer if it is there, and ask again where it is time; waits for nothing."""
        if place.asked is not None and ray.wait([place.asked], timeout=0)[0]:
            with suppress(RayError):  # a worker that died is found by its units
                place.said = ray.get(place.asked)
            place.asked = None
        if place.asked is None and place.running and time.monotonic() - place.asked_at >= ASK_EVERY:
            place.asked, place.asked_at = place.actor.progress.remote(), time.monotonic()

    def _start(self) -> _Place:
        actor = self._actor_class.remote(self._work)
        return _Place(actor=actor, starting=actor.ready.remote(), at_once=self._work.at_once)

    def _came_up(self, place: _Place) -> bool:
        try:
            ray.get(place.starting)
        except RayError as error:
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row >= STARTS_IN_A_ROW:
                reason = str(error).strip().splitlines()[-1]
                raise ClusterError(f"{self._deaths_in_a_row} workers in a row died while starting: {reason}") from error
            return False
        self._deaths_in_a_row = 0
        place.starting = None
        return True

    def _result(self, place: _Place, reference: Any) -> Finished[Any] | None:
        """What an attempt returned; None, with the unit left in `place`, where the worker died."""
        try:
            result = ray.get(reference)
        except RayActorError:
            return None
        except RayError as error:  # the result could not be sent or stored
            result = lost(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")
        return Finished(tried=place.running.pop(reference), result=result)
