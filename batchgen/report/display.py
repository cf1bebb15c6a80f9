"""What a person sees while a run goes on: a live bar on a terminal, a line a shard elsewhere. All of it on stderr."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from batchgen.errors import printable
from batchgen.estimate import PlanSummary
from batchgen.index import Counts
from batchgen.rows import Receipt
from batchgen.scores import ScoreSummary
from batchgen.sweeps import SweepSummary

__all__ = ["RunDisplay", "duration", "plan_table", "scores_table", "size", "sweep_table"]


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 7 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as a person says them: 740 KiB, 12.1 MiB, 3.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit in ("bytes", "KiB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class RunDisplay:
    """Tells how a run goes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._begun = 0.0
        self._to_make = self._done = self._failed = 0

    def notice(self, line: str) -> None:
        """Something worth a line."""
        self._console.print(printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)

    def begin(self, counts: Counts, to_make: int, workers: int, device: str) -> None:
        """Workers are starting."""
        known = f", {counts.done:,} done before" if counts.done else ""
        plural = "" if workers == 1 else "s"
        self.notice(f"{to_make:,} of {counts.total:,} rows to make{known}; {workers} worker{plural} on {device}")
        self._begun, self._to_make = time.monotonic(), to_make
        if self._live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
            self._task = self._progress.add_task("starting workers", total=to_make, rate="")

    def committed(self, receipt: Receipt) -> None:
        """A shard is in the dataset."""
        self._done += receipt.done
        self._failed += receipt.failed
        ended = self._done + self._failed
        rate = self._done / max(time.monotonic() - self._begun, 1e-9)
        failed = f", {self._failed:,} failed" if self._failed else ""
        if self._progress is not None:
            self._progress.update(
                self._task, completed=ended, description=f"images{failed}", rate=f"{rate:.2f} images/s"
            )
            return
        left = duration((self._to_make - ended) / rate) if rate else "?"
        self.notice(
            f"shard {receipt.shard}: {receipt.done} images in {receipt.seconds:.1f} s on {receipt.device}; "
            f"{ended:,}/{self._to_make:,}{failed}, {rate:.2f} images/s, {left} left"
        )

    def end(self) -> None:
        """No more will come."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def sweep_table(sweep: SweepSummary) -> Table:
    """A sweep's axes as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, takes in sweep.axes.items():
        table.add_row(f"axis {name}", Text(takes))
    table.add_row("cells", f"{sweep.cells:,}")
    return table


def scores_table(summary: ScoreSummary) -> Table:
    """What the scores of an output are like, a line a column."""
    table = Table("score", "rows", "mean", "least", "most", box=None, pad_edge=False)
    for name, column in summary.scores.items():
        numbers = ("" if value is None else f"{value:.4g}" for value in (column.mean, column.min, column.max))
        table.add_row(name, f"{column.count:,}", *numbers)
    return table


def plan_table(plan: PlanSummary) -> Table:
    """A plan as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    unknown = "unknown; the first run over this output measures it"
    work = unknown if plan.device_seconds is None else duration(plan.device_seconds)
    wait = unknown if plan.seconds is None else duration(plan.seconds)
    for name, value in (
        ("rows", f"{plan.rows:,}"),
        ("done already", f"{plan.done:,}"),
        ("failed before", f"{plan.failed:,}"),
        ("to make", f"{plan.pending:,}"),
        ("metadata to update", f"{plan.outdated:,}"),
        ("batch keys", f"{plan.keys:,}"),
        ("shards", f"{plan.shards:,}"),
        ("micro-batches", f"{plan.micro_batches:,} ({plan.padded:,} padded images)"),
        ("model switches", f"{plan.model_switches:,}"),
        ("objects to write", f"{plan.objects:,}"),
        ("bytes to write", f"about {size(plan.bytes)}"),
        ("device time", work),
        ("time", wait),
    ):
        table.add_row(name, value)
    return table
