"""What has become of a shard's rows while a worker makes them. Knows nothing of how they are made."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from batchgen.errors import ErrorClass
from batchgen.rows import FailedRow, Row, ShardProgress, failed_row
from batchgen.work import Failure, FailureKind

__all__ = ["Made", "ShardWork"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A finished row: its cells of the metadata and the size of its encoded image in bytes."""

    cells: Mapping[str, Any]
    size: int


@dataclass(kw_only=True, slots=True)
class ShardWork:
    """What has become of a shard's rows so far, by id."""

    rows: Sequence[Row]
    pending: dict[str, Future[Made]] = field(default_factory=dict)
    failed: dict[str, FailedRow] = field(default_factory=dict)
    seconds: float = 0.0
    computed: int = 0  # rows that went through the device
    held: int = 0  # bytes of images, as pixels
    made_at: float | None = None  # of time.monotonic(); since when it wants nothing of the device
    last_failure: Failure | None = None  # of a row in a call of its own
    alike: int = 0  # rows that failed so, one after the other
    key_failure: Failure | None = None  # of all rows of the batch key

    def left(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows of which nothing has become yet."""
        return [row for row in rows if row.id not in self.pending and row.id not in self.failed]

    def sample(self, count: int) -> list[Row]:
        """At most so many rows that are left, spread evenly over them, with the last one."""
        left = self.left(self.rows)
        count = min(count, len(left))
        return [left[(number + 1) * len(left) // count - 1] for number in range(count)]

    def progress(self) -> ShardProgress:
        """How far the shard is; may be asked from another thread than those that work on it."""
        ended = [future for future in list(self.pending.values()) if future.done()]
        made = sum(not future.cancelled() and future.exception() is None for future in ended)
        return ShardProgress(made=made, computed=self.computed, seconds=self.seconds)

    def fail(self, row: Row, error_class: ErrorClass, error: str) -> None:
        self.failed[row.id] = failed_row(row, error_class, error)

    def fail_alone(self, row: Row, failure: Failure) -> None:
        """Record a row that failed in a call of its own."""
        self.fail(row, failure.error_class, failure.message)
        is_the_keys = failure.kind is FailureKind.PERMANENT  # of what nobody foresaw each row has a try of its own
        self.alike = 0 if not is_the_keys else self.alike + 1 if failure == self.last_failure else 1
        self.last_failure = failure
