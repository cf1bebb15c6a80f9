"""What runs next, and what happens to a unit that failed: retry with backoff, cut, record, or end the run. Pure."""

import heapq
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Generic, TypeVar

from batchgen.errors import ErrorClass, InfrastructureError, ModelLoadError, StoreError, StoreRefused
from batchgen.work import Failure, FailureKind, Unit, Work

__all__ = ["Fate", "Finished", "Try", "WorkQueue", "has_room"]

_Unit = TypeVar("_Unit", bound=Unit)

# Attempts that fail in one class before something else happens than a retry. The first loss of a worker may be the
# doing of the unit beside; from then on a unit runs alone, and is the cause.
_TRIES: Mapping[ErrorClass, int] = {ErrorClass.WORKER: 3, ErrorClass.STORE: 5}
_TRIES_ELSE = 2
_DEATHS = 3  # workers that one model may take with it, by two units or more, before any has shown progress with it
_FIRST_PAUSE = 1.0  # seconds before the second try, doubled for each further one
_LONGEST_PAUSE = 30.0  # seconds


class Fate(Enum):
    """What becomes of a unit whose attempt failed."""

    AGAIN = auto()  # all of it will be tried again
    RECORD = auto()  # it is to be recorded as failed
    LEFT = auto()  # it is left for another run, as all that need what it needs


@dataclass(frozen=True, kw_only=True, slots=True)
class Try(Generic[_Unit]):
    """A unit to run, how often that failed before, by class, and whether it wants a worker for itself."""

    unit: _Unit
    failures: Mapping[ErrorClass, int] = field(default_factory=dict)
    alone: bool = False
    within: frozenset[str] = frozenset()  # ids of the units that it was cut from


def has_room(tried: Try[Any], running: Collection[Try[Any]], stored: Collection[str], work: Work) -> bool:
    """Whether a worker could take a unit.

    Args:
        tried: the unit, which may want the worker for itself.
        running: what the worker has in work; one that runs a unit alone takes none beside.
        stored: ids of the units of which it says that they wait for nothing but the store.
        work: how many it may hold.
    """
    if any(other.alone for other in running):
        return False
    if tried.alone:
        return not running
    waiting = sum(other.unit.id in stored for other in running)
    return len(running) - min(waiting, work.spool) < work.at_once


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Generic[_Unit]):
    """An attempt at a unit that ended: with a receipt, or a failure."""

    tried: Try[_Unit]
    result: Any


@dataclass(kw_only=True, slots=True)
class _Deaths:
    """Workers that were lost with units that need one model, and those units; none of them is a part of another."""

    workers: set[str] = field(default_factory=set)
    units: set[str] = field(default_factory=set)


class WorkQueue(Generic[_Unit]):
    """Hands out units one at a time; those to be tried again come before new ones, once their pause is over.

    Units that need what was given up (a model that cannot be loaded, or kills its workers) are passed over; `close`
    says so, once the others are done.
    """

    def __init__(self, units: Iterator[_Unit]) -> None:
        self._units = units
        self._given_up: dict[str, InfrastructureError] = {}  # by what units need
        self._proved: set[str] = set()  # what some unit has shown progress with
        self._deaths: dict[str, _Deaths] = {}
        self._again: list[tuple[float, int, Try[_Unit]]] = []
        self._serial = 0
        self._next = next(units, None)

    def peek(self, now: float) -> Try[_Unit] | None:
        """What `take` would give at the time `now`; None where nothing is ready."""
        if self._again and self._again[0][0] <= now:
            return self._again[0][2]
        return None if self._next is None else Try(unit=self._next)

    def take(self, now: float) -> Try[_Unit] | None:
        """The next unit to run at the time `now` (seconds of any clock); None where nothing is ready."""
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        unit, self._next = self._next, self._following()
        return None if unit is None else Try(unit=unit)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to hand out, now or after a pause."""
        return self._next is None and not self._again

    def progressed(self, unit: _Unit) -> None:
        """Note that a worker has got somewhere with a unit: what it needs can be used."""
        self._proved.add(unit.needs)

    def failed(self, tried: Try[_Unit], failure: Failure, now: float) -> Fate:
        """Decide what becomes of a unit whose attempt failed.

        Raises:
            InfrastructureError: trying on is pointless for every unit.
        """
        if failure.kind is FailureKind.PERMANENT:
            return Fate.RECORD
        if failure.kind is FailureKind.FATAL:
            raise StoreRefused(failure.message)
        unit, error_class = tried.unit, failure.error_class
        if unit.needs in self._given_up:
            return Fate.LEFT
        failures = {**tried.failures, error_class: tried.failures.get(error_class, 0) + 1}
        is_lost, tries = failure.kind is FailureKind.LOST, _TRIES.get(error_class, _TRIES_ELSE)
        unproved = is_lost and bool(unit.needs) and unit.needs not in self._proved
        if unproved and self._killed(tried, failure):
            workers = len(self._deaths[unit.needs].workers)
            said = f"{workers} workers were lost before one got anywhere with {unit.needs}: {failure.message}"
            return self._give_up(unit.needs, ModelLoadError(said))
        # two times each may be the model's doing or the rows': halves tell, and sooner than the same rows once more
        parts = unit.split() if unproved and tried.alone else ()
        if failures[error_class] < tries and not parts:
            pause = min(_FIRST_PAUSE * 2 ** (failures[error_class] - 1), _LONGEST_PAUSE)
            again = Try(unit=unit, failures=failures, alone=tried.alone or is_lost, within=tried.within)
            self._put(again, now + pause)
            return Fate.AGAIN
        said = f"{failure.message} (tried {failures[error_class]} times)"
        if error_class is ErrorClass.STORE:
            raise StoreError(said)
        if error_class is ErrorClass.MODEL:
            return self._give_up(unit.needs, ModelLoadError(said))
        parts = parts or (unit.split() if is_lost else ())
        for part in parts:
            # one try for a part that can be cut further, two for one that cannot: what is recorded failed twice alone
            left = 1 if part.split() else 2
            within = tried.within | {unit.id}
            self._put(Try(unit=part, failures={error_class: tries - left}, alone=True, within=within), now)
        return Fate.AGAIN if parts else Fate.RECORD

    def close(self) -> None:
        """To be called when nothing is left.

        Raises:
            InfrastructureError: units were passed over; says why, of each thing that they need.
        """
        if self._given_up:
            errors = list(self._given_up.values())
            raise type(errors[0])("; ".join(map(str, errors)))

    def _killed(self, tried: Try[_Unit], failure: Failure) -> bool:
        """Whether what a unit needs is what kills workers."""
        deaths = self._deaths.setdefault(tried.unit.needs, _Deaths())
        self._serial += 1
        deaths.workers.add(failure.worker or str(self._serial))
        deaths.units = (deaths.units - tried.within) | {tried.unit.id}
        return len(deaths.workers) >= _DEATHS and len(deaths.units) > 1

    def _give_up(self, needs: str, error: InfrastructureError) -> Fate:
        self._given_up[needs] = error
        self._again = [again for again in self._again if again[2].unit.needs != needs]
        heapq.heapify(self._again)
        if self._next is not None and self._next.needs == needs:
            self._next = self._following()
        return Fate.LEFT

    def _following(self) -> _Unit | None:
        return next((unit for unit in self._units if unit.needs not in self._given_up), None)

    def _put(self, again: Try[_Unit], when: float) -> None:
        self._serial += 1
        heapq.heappush(self._again, (when, self._serial, again))
