"""What the engine knows of any kind of work: units, workers, failures. Knows nothing of images, Ray or stores.

The error model, in four rules:

1. A failure that belongs to a thing inside a unit (a row) is data: the worker puts it into the receipt.
2. A failure that leaves a worker as an exception belongs to the unit. What its class says decides: a permanent one is
   recorded at once, a transient one is tried again after a pause, and a bounded number of times.
3. A unit whose worker is lost is tried again alone, and then cut, until what breaks workers stands by itself. While no
   unit that needs the same model has shown progress, workers that are lost are the model's doing, and three are enough.
4. Where trying on is pointless for every unit (a store), the run ends, at once where the failure is fatal; where it is
   for those that need one model, it ends after the others.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

from batchgen.errors import (
    CanaryDied,
    ErrorClass,
    InputError,
    ModelLoadError,
    OutOfDeviceMemory,
    Stopped,
    StoreError,
    StoreRefused,
    one_line,
)

__all__ = ["Failure", "FailureKind", "Stoppable", "Unit", "Work", "Worker", "failure_of", "lost"]


class FailureKind(StrEnum):
    """What a failed attempt at a unit says of the next one."""

    PERMANENT = "permanent"  # the next would fail alike
    TRANSIENT = "transient"  # the next may succeed
    FATAL = "fatal"  # the next of any unit would fail alike, until somebody does something about it
    LOST = "lost"  # the worker died or is out of reach; what caused it is not known


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt at a unit failed."""

    kind: FailureKind
    error_class: ErrorClass
    message: str
    worker: str = ""  # names the worker that was lost, with all that it had in work


_MEANING: Mapping[type[Exception], tuple[FailureKind, ErrorClass]] = {
    StoreRefused: (FailureKind.FATAL, ErrorClass.STORE),
    StoreError: (FailureKind.TRANSIENT, ErrorClass.STORE),
    ModelLoadError: (FailureKind.TRANSIENT, ErrorClass.MODEL),
    CanaryDied: (FailureKind.TRANSIENT, ErrorClass.GENERATION),
    OutOfDeviceMemory: (FailureKind.TRANSIENT, ErrorClass.MEMORY),
    InputError: (FailureKind.PERMANENT, ErrorClass.INPUT),
}


def failure_of(error: Exception) -> Failure:
    """The failure that an exception stands for; one that nobody foresaw may pass, and is named in the message."""
    for known, (kind, error_class) in _MEANING.items():
        if isinstance(error, known):
            return Failure(kind=kind, error_class=error_class, message=str(error))
    message = f"{type(error).__name__}: {one_line(error)}"
    return Failure(kind=FailureKind.TRANSIENT, error_class=ErrorClass.GENERATION, message=message)


def lost(message: str, worker: str = "") -> Failure:
    """The failure of a unit whose worker died, hangs or is out of reach."""
    return Failure(kind=FailureKind.LOST, error_class=ErrorClass.WORKER, message=message, worker=worker)


class Unit(Protocol):
    """A piece of work that is handed out, tried again and committed as a whole; travels to workers, so it is small."""

    @property
    def id(self) -> str:
        """Names the unit by its content."""

    @property
    def needs(self) -> str:
        """What a worker must have read before it can begin, a model: without it all who need it fail; or empty."""

    @property
    def key(self) -> str:
        """Units of one key take about as long for their size."""

    def split(self) -> Sequence[Self]:
        """Smaller units that make up this one; none where it cannot be cut."""


class Worker(Protocol):
    """Turns units into receipts; may be called from as many threads as `Work.at_once` and `Work.spool` say."""

    def ready(self, node: str, /) -> None:
        """Make sure, before the first unit, that this node, which has that id, reaches what the work needs.

        Raises:
            InputError: it does not, and will not.
        """

    def run(self, unit: Any, /) -> Any:
        """Do a unit and commit it; returns its receipt, which is small.

        Raises:
            DeviceLost: the process cannot go on.
            Exception: the unit could not be done.
        """

    def progress(self) -> Mapping[str, Any]:
        """How far each unit is that it has in work, by the unit's id: small, quickly said, called beside `run`.

        What is said of a unit is false until it is on its way, and another thing whenever it is further.
        """

    def stop(self) -> None:
        """Commit nothing more, where the process lives on; what is in work fails after the call in hand."""

    def stored(self) -> Collection[str]:
        """Ids of the units in work that wait for nothing but the store, as long as there is memory for others."""


class Stoppable:
    """What workers of every kind have in common: once stopped, they go no further."""

    _stopped = False

    def stop(self) -> None:
        """Commit nothing more; see `Worker`."""
        self._stopped = True

    def require_run(self) -> None:
        """To be called before each step and each commit.

        Raises:
            Stopped: the run was stopped.
        """
        if self._stopped:
            raise Stopped("the run was stopped")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A kind of work, as a pool is handed it.

    `make_worker` is called once in each worker's process and must be picklable: a function at the top of a module, a
    method of a value.
    """

    make_worker: Callable[[], Worker]
    at_once: int = 2  # units that a worker holds: one in work, the next one fetched or the last one stored beside it
    spool: int = 0  # further ones, in the place of as many that wait for nothing but the store
    on_gpu: bool = False  # each worker wants a GPU for itself
