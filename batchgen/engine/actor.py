"""What runs in a process of the pool: a worker, behind an actor of Ray."""

import gc
import os
from collections.abc import Collection, Mapping
from typing import Any

import ray

from batchgen.errors import DeviceLost, InputError
from batchgen.version import own_build
from batchgen.work import Failure, failure_of

__all__ = ["WorkerActor"]


class WorkerActor:
    """A worker whose failures come back as values, since Ray's own wrapping loses their class."""

    def __init__(self, build: str, work: bytes) -> None:
        """Load the worker's libraries, or nothing where what the driver packed may mean something else here.

        Args:
            build: of the driver.
            work: the pickled `Work`.
        """
        self._other = build if build != own_build() else None
        if self._other is not None:
            return
        gc.disable()  # nothing of the libraries that are loaded here, which the driver never does, is garbage
        self._worker = ray.cloudpickle.loads(work).make_worker()
        gc.freeze()  # nor will it be: later collections pass over it
        gc.enable()

    def ready(self) -> tuple[str, Failure | None]:
        """Returns once the process is up and the libraries are loaded: the id of its node, and why it cannot work."""
        node: str = ray.get_runtime_context().get_node_id()
        try:
            if self._other is not None:
                raise InputError(
                    f"its batchgen is {own_build()}, that of the run {self._other}; install the same on all nodes"
                )
            self._worker.ready(node)
        except Exception as error:  # as of a unit
            return node, failure_of(error)
        return node, None

    def run(self, unit: Any) -> Any:
        """The unit's receipt, or a `Failure`."""
        try:
            return self._worker.run(unit)
        except DeviceLost:
            os._exit(1)  # every later call would fail too; a new process gets the device anew
        except Exception as error:  # it belongs to the unit, and must not end the worker
            return failure_of(error)

    def progress(self) -> tuple[Mapping[str, Any], Collection[str]]:
        """What the worker says of the units it has in work, and which of them wait for the store alone."""
        return self._worker.progress(), self._worker.stored()
