"""What runs next, and what happens to a unit that failed: retry with backoff, cut, record, or end the run. Pure."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from batchgen.errors import ErrorClass, InfrastructureError, ModelLoadError, StoreError
from batchgen.work import Failure, FailureKind, Unit

__all__ = ["Finished", "Try", "WorkQueue"]

_Unit = TypeVar("_Unit", bound=Unit)

# Attempts that fail in one class before something else happens than a retry. The first loss of a worker may be the
# doing of the unit beside; from then on a unit runs alone, and is the cause.
_TRIES: Mapping[ErrorClass, int] = {ErrorClass.WORKER: 3, ErrorClass.STORE: 5}
_TRIES_ELSE = 2
_ENDS_RUN: Mapping[ErrorClass, type[InfrastructureError]] = {
    ErrorClass.STORE: StoreError,
    ErrorClass.MODEL: ModelLoadError,
}
_FIRST_PAUSE = 1.0  # seconds before the second try, doubled for each further one
_LONGEST_PAUSE = 30.0  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Try(Generic[_Unit]):
    """A unit to run, how often that failed before, by class, and whether it wants a worker for itself."""

    unit: _Unit
    failures: Mapping[ErrorClass, int] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Generic[_Unit]):
    """An attempt at a unit that ended: with a receipt, or a failure."""

    tried: Try[_Unit]
    result: Any


class WorkQueue(Generic[_Unit]):
    """Hands out units one at a time; those to be tried again come before new ones, once their pause is over."""

    def __init__(self, units: Iterator[_Unit]) -> None:
        self._units = units
        self._next = next(units, None)
        self._again: list[tuple[float, int, Try[_Unit]]] = []
        self._serial = 0

    def peek(self, now: float) -> Try[_Unit] | None:
        """What `take` would give at the time `now`; None where nothing is ready."""
        if self._again and self._again[0][0] <= now:
            return self._again[0][2]
        return None if self._next is None else Try(unit=self._next)

    def take(self, now: float) -> Try[_Unit] | None:
        """The next unit to run at the time `now` (seconds of any clock); None where nothing is ready."""
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        unit, self._next = self._next, next(self._units, None)
        return None if unit is None else Try(unit=unit)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to hand out, now or after a pause."""
        return self._next is None and not self._again

    def failed(self, tried: Try[_Unit], failure: Failure, now: float) -> _Unit | None:
        """Decide what becomes of a unit whose attempt failed.

        Returns:
            The unit, if it is to be recorded as failed; None where all of it will be tried again.

        Raises:
            InfrastructureError: trying on is pointless.
        """
        if failure.kind is FailureKind.PERMANENT:
            return tried.unit
        error_class = failure.error_class
        failures = {**tried.failures, error_class: tried.failures.get(error_class, 0) + 1}
        alone = tried.alone or failure.kind is FailureKind.LOST
        tries = _TRIES.get(error_class, _TRIES_ELSE)
        if failures[error_class] < tries:
            pause = min(_FIRST_PAUSE * 2 ** (failures[error_class] - 1), _LONGEST_PAUSE)
            self._put(Try(unit=tried.unit, failures=failures, alone=alone), now + pause)
            return None
        if error_class in _ENDS_RUN:
            raise _ENDS_RUN[error_class](f"{failure.message} (tried {failures[error_class]} times)")
        parts = tried.unit.split() if failure.kind is FailureKind.LOST else ()
        for part in parts:
            # one try for a part that can be cut further, two for one that cannot: what is recorded failed twice alone
            left = 1 if part.split() else 2
            self._put(Try(unit=part, failures={error_class: tries - left}, alone=alone), now)
        return None if parts else tried.unit

    def _put(self, again: Try[_Unit], when: float) -> None:
        self._serial += 1
        heapq.heappush(self._again, (when, self._serial, again))
