"""A pool of Ray actors that each hold a worker, fed one unit of work at a time.

Units go in as specifications of a few KiB, receipts come out; what is made never passes through Ray. An actor that dies
is replaced, and its units come back as failures. Knows nothing of what the work is.
"""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from batchgen.engine.actor import WorkerActor
from batchgen.engine.capacity import described
from batchgen.engine.cluster import Nodes, free, never_fits, waits_for_room
from batchgen.engine.patience import Patience
from batchgen.engine.queue import Finished, Try, has_room
from batchgen.errors import ClusterError, InputError, printable
from batchgen.job import WorkerResources
from batchgen.version import own_build
from batchgen.work import FailureKind, Work, lost

__all__ = ["Pool", "reserved"]

_DEATH = "the worker process died (killed, out of memory, or with its node)"
STARTS_IN_A_ROW = 3  # rounds of workers that die before they are ready; more of the same would not help
_LONGEST_WAIT = 60.0  # minutes without any worker; cloud nodes with GPUs come within 10, where there are any
_LOOK = 3.0  # seconds between looks at the nodes, each of some milliseconds
ASK_EVERY = 1.0  # seconds between questions to a worker how far it is
_LATELY = 60.0  # seconds; a node is known to be dead a few after its workers are
_NOTICE = 60.0  # seconds between lines about workers that are not up
_ABSENT = 5.0  # seconds without a look at the workers; the driver looks several times a second
_SILENCE = (
    300.0  # seconds without an answer: a process that is stopped, or swaps; reading a model may block it for some
)


@dataclass(kw_only=True, slots=True)
class _Place:
    """A worker's place in the pool: its actor, whether that is up, and what it has in work."""

    actor: Any
    starting: Any  # the reference that is ready when the actor is; None afterwards
    since: float  # of time.monotonic(); when it was asked for
    node: str = ""  # id of the node that the actor is up on
    leaving: bool = False  # the node is going away: what is in work is finished, nothing more is taken
    running: dict[Any, Try[Any]] = field(default_factory=dict)
    asked: Any = None  # the reference of a question how far it is
    asked_at: float = 0.0  # of time.monotonic()
    said: Mapping[str, Any] = field(default_factory=dict)  # by unit
    stored: Collection[str] = ()  # units of which it said that they wait for the store alone
    moved_at: float = 0.0  # of time.monotonic(); when a unit last got further, or the first one came

    def has_room(self, tried: Try[Any], work: Work) -> bool:
        """Whether the worker is up and could take a unit."""
        up = self.starting is None and not self.leaving
        return up and has_room(tried, self.running.values(), self.stored, work)


def reserved(work: Work, resources: WorkerResources) -> dict[str, float]:
    """What Ray reserves for one worker, under Ray's names; memory in bytes."""
    gpus = 1.0 if work.on_gpu else 0.0
    wanted = {
        "CPU": 1.0 if resources.num_cpus is None else resources.num_cpus,
        "GPU": gpus if resources.num_gpus is None else resources.num_gpus,
        "memory": float(int((resources.memory_gib or 0.0) * 2**30)),
    }
    return {name: amount for name, amount in wanted.items() if amount}


class Pool:
    """A fixed number of places for workers; units go to the one with least in work.

    Workers that have no node yet are waited for: with a line a minute, for an hour without any worker, or for
    `WorkerResources.wait_minutes`.
    """

    def __init__(
        self,
        work: Work,
        workers: int,
        resources: WorkerResources,
        notice: Callable[[str], None],
        arrived: Callable[[str], None] = lambda _node: None,
    ) -> None:
        """Ask for the workers.

        Args:
            work: what they do.
            workers: how many are wanted.
            resources: what each wants, and how long to wait for it.
            notice: takes lines about nodes and workers.
            arrived: called with the node's id when a worker is up, before it is given work; raises InputError where
                it must have none.

        Raises:
            ClusterError: no node can hold one, and none will come.
        """
        self._work = work
        self._packed = ray.cloudpickle.dumps(work)
        self._notice = notice
        self._arrived = arrived
        self._wanted = reserved(work, resources)
        self._wait_minutes = resources.wait_minutes
        self._patience = Patience(resources.hang_minutes)
        self._nodes = Nodes()
        self._nodes.look()
        if not self._nodes.places(self._wanted):
            if not waits_for_room(resources):
                raise self._no_place()
            notice(f"no node of the cluster can hold a worker now ({described(self._wanted)}); waiting for one")
        self._actor_class = ray.remote(
            max_restarts=0,
            max_concurrency=work.at_once + work.spool + 1,  # one thread to say how far the units are
            num_cpus=self._wanted.get("CPU", 0),
            num_gpus=self._wanted.get("GPU", 0),
            memory=int(self._wanted.get("memory", 0)) or None,
        )(WorkerActor)
        self._deaths_in_a_row = 0
        self._last_death = 0.0  # of a worker that was starting, on the clock of the next line
        self._losses: list[tuple[float, str]] = []  # when and on which nodes workers were lost
        self._last_placed = self._last_notice = time.monotonic()  # when a worker had a node
        self._next_look = self._last_placed + _LOOK
        self._waited = self._last_placed  # when `wait` returned last
        self._places = [self._start() for _ in range(workers)]

    @property
    def uses(self) -> str:
        """How much of the cluster as it is now the workers take, for people."""
        fit = min(self._nodes.places(self._wanted), len(self._places))
        taken = described({name: fit * amount for name, amount in self._wanted.items()}) if fit else "nothing yet"
        waiting = f", {len(self._places) - fit} more wait for room" if fit < len(self._places) else ""
        return f"{fit} worker{'' if fit == 1 else 's'} take{'s' if fit == 1 else ''} {taken}{waiting}"

    @property
    def in_work(self) -> int:
        """Units that were given out and have not come back."""
        return sum(len(place.running) for place in self._places)

    def has_room(self, tried: Try[Any]) -> bool:
        """Whether a worker that is up could take a unit."""
        return any(place.has_room(tried, self._work) for place in self._places)

    def submit(self, tried: Try[Any]) -> None:
        """Give a unit to the worker with least in work; only when `has_room`."""
        place = min((p for p in self._places if p.has_room(tried, self._work)), key=lambda place: len(place.running))
        if not place.running:
            place.moved_at = time.monotonic()
        place.running[place.actor.run.remote(tried.unit)] = tried

    def in_progress(self) -> list[list[tuple[Any, Any]]]:
        """For each worker that is up, its units in work, and what it said last of each; None until it does."""
        up = [place for place in self._places if place.starting is None]
        return [[(tried.unit, place.said.get(tried.unit.id)) for tried in place.running.values()] for place in up]

    def wait(self, seconds: float) -> list[Finished[Any]]:
        """Attempts that ended within `seconds`; returns earlier when there are some, or a worker came up.

        Raises:
            ClusterError: workers keep dying before they are up, or there has been none for too long.
            InputError: a node does not reach what the work needs.
        """
        self._forgive(time.monotonic() - self._waited)
        try:
            return self._wait(seconds)
        finally:
            self._waited = time.monotonic()

    def _wait(self, seconds: float) -> list[Finished[Any]]:
        if time.monotonic() > self._next_look:
            self._look()
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
                finished += self._replace(number, _DEATH)
            elif (why := self._hangs(place)) is not None:
                self._notice(f"a worker on {self._nodes.name(place.node)} {why}; it is ended and replaced")
                finished += self._replace(number, f"the worker process {why}")
            elif place.leaving and not place.running:
                ray.kill(place.actor)
                self._places[number] = self._start()
        return finished

    def close(self) -> None:
        """Stop all workers at once; what they have in work is lost and was not committed."""
        for place in self._places:
            ray.kill(place.actor)

    def _replace(self, number: int, why: str) -> list[Finished[Any]]:
        """Put another worker in the place of one that is lost; returns what that had in work."""
        place = self._places[number]
        ray.kill(place.actor)  # it may only have been out of reach, and must not commit later
        self._losses.append((time.monotonic(), place.node))
        self._places[number] = self._start()
        failure = lost(why, worker=f"{number} since {place.since}")
        return [Finished(tried=tried, result=failure) for tried in place.running.values()]

    def _forgive(self, absent: float) -> None:
        """Where the driver itself was away, stopped or held up by a store, workers had nobody to answer."""
        if absent > _ABSENT:
            for place in self._places:
                place.moved_at += absent
                place.asked_at += absent

    def _hangs(self, place: _Place) -> str | None:
        """Why a worker is to be given up; None while it answers, and gets further with what it has in work."""
        if not place.running:
            return None
        self._ask(place)  # an answer may be there
        now = time.monotonic()
        if place.asked is not None and now - place.asked_at > _SILENCE:
            return f"has not answered for {_SILENCE / 60:g} minutes"
        patience = self._patience.seconds({tried.unit.key for tried in place.running.values()})
        return f"got no further in {patience / 60:.3g} minutes" if now - place.moved_at > patience else None

    def _moved(self, place: _Place, unit: Any) -> None:
        now = time.monotonic()
        self._patience.learn(unit.key, now - place.moved_at)
        place.moved_at = now

    def _ask(self, place: _Place) -> None:
        """Take a worker's answer if it is there, and ask again where it is time; waits for nothing."""
        if place.asked is not None and ray.wait([place.asked], timeout=0)[0]:
            with suppress(RayError):  # a worker that died is found by its units
                said, place.stored = ray.get(place.asked)
                for unit in (tried.unit for tried in place.running.values()):
                    if said.get(unit.id) and said[unit.id] != place.said.get(unit.id):
                        self._moved(place, unit)
                place.said = said
            place.asked = None
        if place.asked is None and place.running and time.monotonic() - place.asked_at >= ASK_EVERY:
            place.asked, place.asked_at = place.actor.progress.remote(), time.monotonic()

    def _start(self) -> _Place:
        actor = self._actor_class.remote(own_build(), self._packed)
        starting = actor.ready.remote()
        return _Place(actor=actor, starting=starting, since=time.monotonic())

    def _came_up(self, place: _Place) -> bool:
        """Take in a worker that is up; whether it is.

        Raises:
            InputError: its node does not reach what the work needs.
            ClusterError: workers keep dying before they are up.
        """
        try:
            place.node, failure = ray.get(place.starting)
            if failure is None:
                self._arrived(place.node)
        except RayError as error:
            self._note_death(place, printable(str(error).strip().splitlines()[-1]))
            return False
        except InputError as error:
            raise InputError(f"{self._nodes.name(place.node)}: {error}") from error
        if failure is not None and failure.kind is FailureKind.PERMANENT:
            raise InputError(f"{self._nodes.name(place.node)}: {failure.message}")
        if failure is not None:
            ray.kill(place.actor)
            self._note_death(place, failure.message)
            return False
        self._deaths_in_a_row = 0
        place.starting = None
        return True

    def _note_death(self, place: _Place, reason: str) -> None:
        if place.since < self._last_death:
            return  # one of many that ended together, perhaps with their node
        self._last_death = time.monotonic()
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= STARTS_IN_A_ROW:
            raise ClusterError(f"{self._deaths_in_a_row} times in a row workers died while starting: {reason}")

    def _look(self) -> None:
        """Name nodes that died, say what is waited for, and give up where that is for nothing.

        Raises:
            ClusterError: no worker has a node, and none will have one.
        """
        now = time.monotonic()
        self._next_look = now + _LOOK
        for node, name in self._nodes.look().items():
            held = [place.node for place in self._places if place.starting is None]
            held += [where for when, where in self._losses if now - when < _LATELY]
            count = held.count(node)
            self._notice(f"{name} died" + (f" with {count} worker{'s' * (count > 1)}, to be replaced" if count else ""))
        draining = self._nodes.draining()
        for place in self._places:
            if place.starting is None and not place.leaving and place.node in draining:
                place.leaving = True
                name = self._nodes.name(place.node)
                self._notice(f"{name} is going away: its worker finishes what it has in work, and is replaced")
        missing = [place.actor for place in self._places if place.starting is not None]
        if len(missing) < len(self._places) or any(map(self._nodes.holds, missing)):
            self._last_placed = now
        elif self._wait_minutes is None and not self._nodes.places(self._wanted) and never_fits(self._wanted):
            raise self._no_place()
        minutes = _LONGEST_WAIT if self._wait_minutes is None else self._wait_minutes
        room = f"each wants {described(self._wanted)}, and the cluster has {free(self._wanted)} free"
        if now - self._last_placed > 60 * minutes:
            raise ClusterError(f"no room for workers in {minutes:g} minutes: {room}; add nodes, or change [worker]")
        if not missing:
            self._last_notice = now
        elif now - self._last_notice > _NOTICE:
            self._last_notice = now
            starting = sum(map(self._nodes.holds, missing))
            self._notice(
                f"waiting for {len(missing)} of {len(self._places)} workers ({starting} starting, "
                f"{len(missing) - starting} without room): {room}"
            )

    def _no_place(self) -> ClusterError:
        return ClusterError(
            f"no node of the cluster can hold a worker that wants {described(self._wanted)}; change [worker], or add "
            "nodes"
        )

    def _result(self, place: _Place, reference: Any) -> Finished[Any] | None:
        """What an attempt returned; None, with the unit left in `place`, where the worker died."""
        try:
            result = ray.get(reference)
        except RayActorError:
            return None
        except RayError as error:  # the result could not be sent or stored
            result = lost(printable(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"))
        tried = place.running.pop(reference)
        self._moved(place, tried.unit)
        return Finished(tried=tried, result=result)
