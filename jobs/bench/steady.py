"""The steady rate of a run, from its receipts. Pure.

A receipt says when its shard was finished and how many seconds the device worked on it, so a shard is an interval of
one worker's time. The first shard of a worker contains the loading of the model (its `seconds` do, too), the last ones
are made while other workers have nothing left. Steady is what lies between:

- from the end of the slowest worker's first shard: until then some worker is still loading;
- to the earliest of the workers' last ends: after it, some worker is idle, and the others have its share of the
  machine. `with_tail` goes on to the very last commit instead, and charges that idleness to the run.

A shard that reaches over an end of the window counts with the part of its interval that lies within, so that the
result does not depend on where in a neighbour's shard the window happens to open. Time between shards counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Interval", "Steady", "chains", "steady"]

CLOSE = 0.25  # of the shortest shard's time; a worker begins its next shard within that of the end of its last


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A committed shard: when it was in work, Unix seconds, and its images."""

    started: float
    finished: float
    images: int

    def share(self, start: float, end: float) -> float:
        """Images of the part that lies in a window."""
        inside = max(0.0, min(end, self.finished) - max(start, self.started))
        return self.images * inside / (self.finished - self.started)


@dataclass(frozen=True, kw_only=True, slots=True)
class Steady:
    """Rates of a run, images a second over all workers."""

    workers: int
    shards: tuple[int, ...]  # of each worker
    window: float  # seconds in which all workers were in their steady state
    rate: float  # in that window
    with_tail: float  # from the same start to the last commit
    busy: float  # 0 to 1; part of the workers' time in the window that the pipeline took


def steady(intervals: Sequence[Interval], workers: int) -> Steady:
    """The steady state of a run.

    Args:
        intervals: all shards of the run.
        workers: how many the run had.

    Raises:
        ValueError: the shards are too few to have a steady state.
    """
    found = chains(intervals, workers)
    if len(found) < workers or min(len(chain) for chain in found) < 3:
        raise ValueError(f"{workers} workers made {[len(chain) for chain in found]} shards; each must make 3 at least")
    start = max(chain[0].finished for chain in found)
    end = min(chain[-1].finished for chain in found)
    last = max(chain[-1].finished for chain in found)
    if end <= start:
        raise ValueError("one worker had ended before another had begun; take more rows")
    worked = sum(max(0.0, min(end, one.finished) - max(start, one.started)) for one in intervals)
    return Steady(
        workers=workers,
        shards=tuple(len(chain) for chain in found),
        window=end - start,
        rate=sum(one.share(start, end) for one in intervals) / (end - start),
        with_tail=sum(one.share(start, last) for one in intervals) / (last - start),
        busy=worked / (end - start) / workers,
    )


def chains(intervals: Sequence[Interval], workers: int) -> list[list[Interval]]:
    """Each worker's shards in order; receipts do not name the worker.

    A worker works on one shard at a time, so a shard belongs to the worker whose last one ended nearest to its start.
    Where two had ended at the same moment the choice is free, and changes nothing in the rates.
    """
    found: list[list[Interval]] = []
    # Commits take a little more or less, so that ends may overlap. Of the shortest: a first shard is long by loading.
    slack = CLOSE * min(one.finished - one.started for one in intervals)
    for interval in sorted(intervals, key=lambda one: one.started):
        free = [chain for chain in found if chain[-1].finished <= interval.started + slack]
        if len(found) == workers:  # no other is left, however far a commit's delay has pushed the ends apart
            free = free or found
        distance = {id(chain): abs(interval.started - chain[-1].finished) for chain in free}
        nearest = min(free, key=lambda chain: distance[id(chain)], default=None)
        if nearest is None or (len(found) < workers and distance[id(nearest)] > slack):
            found.append([interval])
        else:
            nearest.append(interval)
    return found
