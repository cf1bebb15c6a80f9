"""What a person sees while a run goes on: a live bar on a terminal, a line a shard elsewhere. All of it on stderr."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from batchgen.errors import printable
from batchgen.estimate import PlanSummary
from batchgen.index import Counts
from batchgen.rows import Receipt
from batchgen.scoring.metrics import METRICS
from batchgen.tally import RunProgress

if TYPE_CHECKING:  # `status` is quick because what makes these is not read for it
    from batchgen.scores import ScoreSummary
    from batchgen.sweeps import SweepSummary

__all__ = ["PlainConsole", "RunDisplay", "duration", "plan_table", "print_scores", "size", "sweep_table", "time_left"]

LINE_EVERY = 60.0  # seconds between lines of a log while no shard is committed


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 7 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def time_left(seconds: float | None, estimated: bool) -> str:
    """A time to go, which says so where it is scaled from images of other sizes or steps."""
    if seconds is None:
        return "unknown"
    return f"about {duration(seconds)} (estimated)" if estimated else duration(seconds)


def size(count: float) -> str:
    """Bytes as a person says them: 740 KiB, 12.1 MiB, 3.4 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit in ("bytes", "KiB") else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class PlainConsole(Console):
    """A console to which text is text, whoever wrote it: brackets are no markup, and control characters are spelt out.

    All that is drawn with rich goes through one, so that no caller has to think of it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a cell, a heading or a line, as it is."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


class RunDisplay:
    """Tells how a run goes."""

    def __init__(self, console: PlainConsole) -> None:
        self._console = console
        self._live = console.is_terminal
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._spoke = 0.0  # when the last line of a log was printed, of time.monotonic()

    def notice(self, line: str) -> None:
        """Something worth a line."""
        self._console.print(line, soft_wrap=True)

    def begin(self, counts: Counts, to_make: int, workers: int, device: str) -> None:
        """Workers are starting."""
        known = f", {counts.done:,} done before" if counts.done else ""
        plural = "" if workers == 1 else "s"
        self.notice(f"{to_make:,} of {counts.total:,} rows to make{known}; {workers} worker{plural} on {device}")
        self._spoke = time.monotonic()
        if self._live:
            self._progress = Progress(
                BarColumn(bar_width=20), TextColumn("{task.description}", markup=False), console=self._console
            )
            self._progress.start()
            self._task = self._progress.add_task("starting workers", total=to_make)

    def progressed(self, progress: RunProgress) -> None:
        """Time has passed, and images may have been made."""
        said = _said(progress)
        if self._progress is not None:
            self._progress.update(self._task, completed=progress.made + progress.failed, description=said)
        elif progress.workers and time.monotonic() - self._spoke >= LINE_EVERY:
            self._spoke = time.monotonic()
            self.notice(said)

    def committed(self, receipt: Receipt, progress: RunProgress) -> None:
        """A shard is in the dataset."""
        self.progressed(progress)
        if self._progress is None:
            self._spoke = time.monotonic()
            self.notice(
                f"shard {receipt.shard}: {receipt.done} images in {receipt.seconds:.1f} s on {receipt.device}; "
                f"{_said(progress)}"
            )

    def end(self) -> None:
        """No more will come."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def sweep_table(sweep: "SweepSummary") -> Table:
    """A sweep's axes as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, takes in sweep.axes.items():
        table.add_row(f"axis {name}", takes)
    table.add_row("cells", f"{sweep.cells:,}")
    return table


def print_scores(summary: "ScoreSummary", console: Console) -> None:
    """What the scores of an output are like, and those of groups."""
    if summary.scores:
        console.print(_scores_table(summary))
    for table in _group_tables(summary):
        console.print(table)


def _scores_table(summary: "ScoreSummary") -> Table:
    """What the scores of an output are like, a line a column."""
    table = Table("score", "rows", "mean", "least", "most", box=None, pad_edge=False)
    for name, column in summary.scores.items():
        numbers = ("" if value is None else f"{value:.4g}" for value in (column.mean, column.min, column.max))
        table.add_row(name, f"{column.count:,}", *numbers)
    return table


def _group_tables(summary: "ScoreSummary") -> Iterator[Table]:
    """What metrics of sets say of each group, a table a metric."""
    for found in summary.groups:
        names = [name for group in found.groups[:1] for name in group.values]
        models, images = found.about["model_names"], found.about["reference_images"]
        title = f"{found.metric} from {images:,} images of {models['reference']}, by {models['features']}"
        columns = METRICS[found.metric].columns
        table = Table(*names, "images", *columns, "", title=title, title_justify="left", box=None, pad_edge=False)
        for group in found.groups:
            numbers = (f"{group.scores[name]:.4g}" if name in group.scores else "" for name in columns)
            table.add_row(*map(Text, group.values.values()), f"{group.rows:,}", *numbers, group.error or "")
        yield table


def _said(progress: RunProgress) -> str:
    """How far a run is: what is made may not be committed yet, and a kill loses it."""
    rate, estimate = progress.images_a_second, progress.estimate
    if not (progress.workers or progress.made):
        parts = ["starting workers"]
    else:
        parts = [f"{progress.made:,}/{progress.to_make:,} made", f"{progress.committed:,} committed"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if rate is not None:
        parts.append(f"{rate:.2f} images/s")
    if estimate is not None:
        parts.append(f"{time_left(estimate.seconds, not estimate.is_measured)} to go")
    return ", ".join(parts)


def plan_table(plan: PlanSummary) -> Table:
    """A plan as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    unknown = "unknown; the first run over this output measures it"
    work = unknown if plan.device_seconds is None else time_left(plan.device_seconds, plan.estimated)
    wait = unknown if plan.seconds is None else time_left(plan.seconds, plan.estimated)
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
