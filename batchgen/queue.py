"""What runs next, and what happens to a shard that failed: retry with backoff, halve, record, or give up. Pure.

Transient trouble is retried. A shard that keeps breaking its worker is halved until the rows that do it stand alone,
and those are recorded as failed. A store or a model that keeps failing ends the run: no row is to blame.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from batchgen.errors import ClusterError, InfrastructureError, ModelLoadError, StoreError
from batchgen.plan import split_shard
from batchgen.rows import Shard

__all__ = ["Cause", "Failure", "ShardQueue", "ShardTry"]


class Cause(StrEnum):
    """Whose fault a failed attempt looks like."""

    WORKER = "worker"  # the process died
    GENERATION = "generation"  # the pipeline raised
    STORE = "store"
    MODEL = "model"


_TRIES = {Cause.WORKER: 3, Cause.GENERATION: 2, Cause.STORE: 5, Cause.MODEL: 2}
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
    """A shard to run, and how often that was tried before."""

    shard: Shard
    failures: int = 0


class ShardQueue:
    """Hands out shards one at a time; those to be tried again come before new ones, once their pause is over."""

    def __init__(self, shards: Iterator[Shard]) -> None:
        self._shards = shards
        self._next = next(shards, None)
        self._again: list[tuple[float, int, ShardTry]] = []
        self._serial = 0

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
        """Decide what becomes of a shard whose attempt failed; a shard that comes back is a row to record as failed.

        Raises:
            InfrastructureError: trying on is pointless.
        """
        failures = tried.failures + 1
        if failures < _TRIES[failure.cause]:
            pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
            self._put(ShardTry(shard=tried.shard, failures=failures), now + pause)
            return None
        if failure.cause in _FATAL:
            raise _FATAL[failure.cause](f"{failure.message} (tried {failures} times)")
        halves = split_shard(tried.shard)
        if not halves:
            return tried.shard
        for half in halves:
            # a part of a shard that failed has used up its tries but one
            self._put(ShardTry(shard=half, failures=_TRIES[failure.cause] - 1), now)
        return None

    def _put(self, again: ShardTry, when: float) -> None:
        self._serial += 1
        heapq.heappush(self._again, (when, self._serial, again))


def give_up(deaths: int, message: str) -> ClusterError:
    """The error that ends a run whose workers die before they are ready."""
    return ClusterError(f"{deaths} workers in a row died while starting: {message}")
