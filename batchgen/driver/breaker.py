"""Ends a run of which nothing can be made, before all of its rows are recorded as failed."""

from collections import Counter
from dataclasses import dataclass, field

from batchgen.engine.loop import Control
from batchgen.rows import Receipt

__all__ = ["Breaker"]


@dataclass(kw_only=True, slots=True)
class Breaker:
    """Counts rows that failed in one way, until one image is made: a run that makes some goes on to its end."""

    most: int  # such rows; 0 is no bound
    control: Control  # is told to stop
    _failures: Counter[str] = field(default_factory=Counter)
    _made: bool = False

    def see(self, receipt: Receipt) -> None:
        """A shard has ended."""
        self._made = self._made or receipt.done > 0
        if self._made or not self.most:
            return
        self._failures.update(row.error_class for row in receipt.failures)
        worst = max(self._failures.values(), default=0)
        if worst >= self.most and self.control.pointless is None:
            last = next(row for row in reversed(receipt.failures) if self._failures[row.error_class] == worst)
            self.control.pointless = (
                f"{worst:,} rows failed in one way and not one was made: {last.error_class}, {last.error} ([limits] "
                f"max_failures is {self.most})"
            )
