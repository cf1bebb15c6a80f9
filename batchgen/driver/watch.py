"""Follows a run that goes on: what is told of it, to whom, and whether it may still go on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from batchgen.dataset.lease import Lease
from batchgen.driver.breaker import Breaker
from batchgen.index import Counts
from batchgen.rows import Receipt, Shard, ShardProgress
from batchgen.tally import RunProgress, Tally

__all__ = ["Reporter", "Watch"]

TELL_EVERY = 1.0  # seconds


class Reporter(Protocol):
    """Reports how a run goes."""

    def notice(self, line: str) -> None:
        """Something worth a line."""

    def begin(self, counts: Counts, to_make: int, workers: int, device: str) -> None:
        """Workers are starting."""

    def progressed(self, progress: RunProgress) -> None:
        """Time has passed, about a second, and images may have been made."""

    def committed(self, receipt: Receipt, progress: RunProgress) -> None:
        """A shard is in the dataset."""

    def end(self) -> None:
        """No more will come."""


@dataclass(slots=True)
class Watch:
    """Follows a run, and tells about once a second how far it is: the reporter, and who reads the lease."""

    tally: Tally
    reporter: Reporter
    lease: Lease
    breaker: Breaker
    _told: float = 0.0  # of time.monotonic()

    def progressed(self, held: Sequence[Sequence[tuple[Shard, ShardProgress | None]]]) -> None:
        """Workers hold these shards and said how far each is.

        Raises:
            LeaseLost, OutputGone: there is no going on.
        """
        self.lease.require()
        self.tally.hold(held)
        if time.monotonic() - self._told >= TELL_EVERY:
            self.reporter.progressed(self._tell())

    def committed(self, shard: Shard, receipt: Receipt) -> None:
        """A shard is in the dataset."""
        self.tally.commit(shard, receipt)
        self.breaker.see(receipt)
        self.reporter.committed(receipt, self._tell())

    def _tell(self) -> RunProgress:
        self._told = time.monotonic()
        progress = self.tally.progress()
        self.lease.said = self.tally.live(progress).content()
        return progress
