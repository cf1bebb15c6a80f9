"""What a run has made so far and how long the rest takes: what its display shows and its heartbeat tells others.

Counts images when workers have made them, not when their shards are committed. Knows nothing of terminals or stores.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from batchgen.dataset.records import shaped
from batchgen.estimate import Estimate, Measured, Remaining
from batchgen.rows import Receipt, Shard, ShardProgress
from batchgen.sharding import Kind, key_kind

__all__ = ["LiveProgress", "RunProgress", "Tally"]

_NOTHING = ShardProgress(made=0, computed=0, seconds=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """How far a run is."""

    workers: int  # that are up
    to_make: int
    made: int  # images that are encoded and, where the layout has image objects, stored; the committed ones included
    committed: int  # images of committed shards
    failed: int  # rows of committed shards
    images_a_second: float | None  # of the workers that have something to do
    estimate: Estimate | None  # of what is left


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveProgress:
    """What a live run says of itself to `status` and `plan`, at the rhythm of its heartbeat."""

    workers: int  # that are up
    made: int  # images of this run, the committed ones included
    images_a_second: float | None
    seconds_left: float | None  # until the run ends
    estimated: bool
    in_work: Sequence[tuple[Kind, int, float]]  # rows that the device is through with, uncommitted, and its seconds

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Self | None:
        """What was said; None where it is nothing that this code understands."""
        try:
            return shaped(said, cls)
        except ValueError:
            return None

    def content(self) -> dict[str, Any]:
        """What `read` reads, for JSON."""
        return asdict(self)


class Tally:
    """Follows one run."""

    def __init__(self, run: str, to_make: Iterable[tuple[str, int]], workers: int, measured: Measured) -> None:
        """Begin with nothing made.

        Args:
            run: its name.
            to_make: batch keys, and how many rows the run is to make of each.
            workers: that it is to have.
            measured: what earlier runs took; what this one takes is added.
        """
        self._run = run
        self._left: Counter[Kind] = Counter()  # rows that no committed shard has
        for key, rows in to_make:
            self._left[key_kind(key)] += rows
        self._to_make = self._left.total()
        self._workers, self._measured = workers, measured
        self._committed = self._failed = 0
        self._held: Sequence[Sequence[tuple[Shard, ShardProgress]]] = ()
        self._counted: dict[str, ShardProgress] = {}  # by shard: what of it is in `measured` already

    def hold(self, held: Sequence[Sequence[tuple[Shard, ShardProgress | None]]]) -> None:
        """Take note of the shards in work, by worker that is up, and of how far each is."""
        self._held = [[(shard, said or _NOTHING) for shard, said in shards] for shards in held]
        for shards in self._held:
            for shard, said in shards:
                self._measure(shard, said.computed, said.seconds)

    def commit(self, shard: Shard, receipt: Receipt) -> None:
        """Take note of a shard that is committed, by whichever run."""
        self._left[key_kind(shard.key)] -= len(shard.rows)
        self._committed += receipt.done
        self._failed += receipt.failed
        self._held = [[pair for pair in shards if pair[0].id != shard.id] for shards in self._held]
        if receipt.run == self._run:
            self._measure(shard, receipt.done, receipt.seconds)
        self._counted.pop(shard.id, None)

    def _measure(self, shard: Shard, images: int, seconds: float) -> None:
        """Count what is new of a shard into the measured times; another attempt at it begins anew."""
        before = self._counted.get(shard.id, _NOTHING)
        if seconds < before.seconds:
            before = _NOTHING
        if seconds > before.seconds:
            self._measured.count(self._run, key_kind(shard.key), images - before.computed, seconds - before.seconds)
            self._counted[shard.id] = ShardProgress(made=0, computed=images, seconds=seconds)

    def progress(self) -> RunProgress:
        """How far the run is."""
        remaining, scratch = Remaining(self._measured), Remaining(self._measured)
        computed = self._computed()
        for kind, rows in self._left.items():
            remaining.add(kind, rows - computed[kind])
        alone = [
            sum(scratch.add(key_kind(shard.key), len(shard.rows) - said.computed) for shard, said in shards)
            for shards in self._held
        ]
        busy = sum(bool(shards) for shards in self._held)
        made = sum(said.made for shards in self._held for _, said in shards)
        return RunProgress(
            workers=len(self._held),
            to_make=self._to_make,
            made=self._committed + made,
            committed=self._committed,
            failed=self._failed,
            images_a_second=self._measured.images_a_second(self._run, max(busy, 1)),
            estimate=remaining.estimate(self._workers, max(alone, default=0.0)),
        )

    def live(self, progress: RunProgress) -> LiveProgress:
        """What to tell others."""
        seconds: Counter[Kind] = Counter()
        for shards in self._held:
            for shard, said in shards:
                seconds[key_kind(shard.key)] += said.seconds  # type: ignore[assignment]
        estimate = progress.estimate
        return LiveProgress(
            workers=progress.workers,
            made=progress.made,
            images_a_second=progress.images_a_second,
            seconds_left=None if estimate is None else estimate.seconds,
            estimated=estimate is not None and not estimate.is_measured,
            in_work=[(kind, rows, seconds[kind]) for kind, rows in self._computed().items() if rows],
        )

    def _computed(self) -> Counter[Kind]:
        """Rows in work that went through the device."""
        computed: Counter[Kind] = Counter()
        for shards in self._held:
            for shard, said in shards:
                computed[key_kind(shard.key)] += said.computed
        return computed
