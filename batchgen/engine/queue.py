"""What runs next, and what happens to a shard that failed: retry with backoff, halve, record, or give up. Pure.

Transient trouble is retried. A shard that keeps breaking its worker is halved until the rows that do it stand alone,
and those are recorded as failed. A store or a model that keeps failing ends the run: no row is to blame.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from batchgen.errors import ClusterError, InfrastructureError, ModelLoadError, StoreError
from batchgen.plan import split_shard
from batchgen.rows import Receipt, Shard

__all__ = ["Cause", "Failure", "Finished", "ShardQueue", "ShardTry", "give_up"]


class Cause(StrEnum):
    """Whose fault a failed attempt looks like."""

    WORKER = "worker"  # the process died
    GENERATION = "generation"  # the pipeline raised
    MEMORY = "memory"  # the micro-batch does not fit on the device
    STORE = "store"
    MODEL = "model"


# Of one cause. A worker's first death may be its other shard's doing; from then on a shard runs alone, and is to blame.
_TRIES = {Cause.WORKER: 3, Cause.GENERATION: 2, Cause.MEMORY: 2, Cause.STORE: 5, Cause.MODEL: 2}
_FATAL: dict[Cause, type[InfrastructureError]] = {Cause.STORE: StoreError, Cause.MODEL: ModelLoadError}
_FIRST_PAUSE = 1.0  # seconds before the second try, doubled for each further one
_LONGEST_PAUSE = 30.0  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why an attempt at a shard failed: whose fault it looks like, the error's class and its text."""

    cause: Cause
    error_class: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTry:
    """A shard to run, how often that failed before, by cause, and whether it wants a worker for itself."""

    shard: Shard
    failures: Mapping[Cause, int] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """An attempt at a shard that ended, one way or the other."""

    tried: ShardTry
    result: Receipt | Failure


class ShardQueue:
    """Hands out shards one at a time; those to be tried again come before new ones, once their pause is over."""

    def __init__(self, shards: Iterator[Shard]) -> None:
        self._shards = shards
        self._next = next(shards, None)
        self._again: list[tuple[float, int, ShardTry]] = []
        self._serial = 0

    def peek(self, now: float) -> ShardTry | None:
        """What `take` would give at the time `now`; None where nothing is ready."""
        if self._again and self._again[0][0] <= now:
            return self._again[0][2]
        return None if self._next is None else ShardTry(shard=self._next)

    def take(self, now: float) -> ShardTry | None:
        """The next shard to run at the time `now` (seconds of any clock); None where nothing is ready."""
        if self._again and self._again[0][0] <= now:
            return heapq.heappop(self._again)[2]
        shard, self._next = self._next, next(self._shards, None)
        return None if shard is None else ShardTry(shard=shard)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to hand out, now or after a pause."""
        return self._next is None and not self._again

    def failed(self, tried: ShardTry, failure: Failure, now: float) -> Shard | None:
        """Decide what becomes of a shard whose attempt failed.

        Returns:
            A shard whose rows are to be recorded as failed; None where all of it will be tried again.

        Raises:
            InfrastructureError: trying on is pointless.
        """
        cause = failure.cause
        failures = {**tried.failures, cause: tried.failures.get(cause, 0) + 1}
        alone = tried.alone or cause is Cause.WORKER
        if failures[cause] < _TRIES[cause]:
            pause = min(_FIRST_PAUSE * 2 ** (failures[cause] - 1), _LONGEST_PAUSE)
            self._put(ShardTry(shard=tried.shard, failures=failures, alone=alone), now + pause)
            return None
        if cause in _FATAL:
            raise _FATAL[cause](f"{failure.message} (tried {failures[cause]} times)")
        # a padded micro-batch of one row takes as much memory as a full one: cutting would not help
        parts = [] if cause is Cause.MEMORY else split_shard(tried.shard)
        if not parts:
            return tried.shard
        for part in parts:
            # one try for a part that can be cut further, two for a row: what is recorded failed twice by itself
            left = 1 if len(part.rows) > 1 else 2
            self._put(ShardTry(shard=part, failures={cause: _TRIES[cause] - left}, alone=alone), now)
        return None

    def _put(self, again: ShardTry, when: float) -> None:
        self._serial += 1
        heapq.heappush(self._again, (when, self._serial, again))


def give_up(deaths: int, message: str) -> ClusterError:
    """The error that ends a run whose workers die before they are ready."""
    return ClusterError(f"{deaths} workers in a row died while starting: {message}")
