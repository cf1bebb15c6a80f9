"""How far an output is, from its receipts and its latest run; reads no data and no manifest."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.lease import is_held
from batchgen.dataset.progress import read_receipts
from batchgen.dataset.runs import latest_run, standing
from batchgen.errors import printable
from batchgen.report.display import duration
from batchgen.rows import Receipt
from batchgen.storage import open_store

__all__ = ["OutputStatus", "follow", "read_status", "status_table"]

WATCH_EVERY = 2.0  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputStatus:
    """Where an output stands; done + failed + left = rows of the latest run's manifest."""

    output: str
    running: bool
    outcome: str  # of the latest run: running, finished, limit reached, killed, or what stopped it
    rows: int
    done: int
    failed: int
    left: int
    shards: int
    images_a_second: float | None  # of the latest run, over its whole time so far
    seconds_left: float | None
    failures: Mapping[str, int]  # by error class


def read_status(uri: str, storage_options: Mapping[str, Any] | None = None) -> OutputStatus:
    """The status of the output at a path or URI.

    Args:
        uri: the output.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        InputError: there is no output.
    """
    store = open_store(uri, storage_options, quick=True)
    dataset = Dataset.open(store)
    record = latest_run(store)
    running = is_held(store)
    receipts = list(read_receipts(dataset, repair=False, damaged=lambda _: None))
    failures = _failures(receipts)
    if record is None:
        done = sum(receipt.done for receipt in receipts)
        rows, failed, rate = done + failures.total(), failures.total(), None
        outcome = "running" if running else "no row was begun"
    else:
        now = standing(store, record, receipts)
        rows, done, failed, outcome = now.rows, now.done, now.failed, now.outcome
        finished = (receipt.finished for receipt in receipts if receipt.run == record.run)
        until = time.time() if running else max(finished, default=record.started)
        rate = now.made / (until - record.started) if now.made else None
    left = rows - done - failed
    return OutputStatus(
        output=uri,
        running=running,
        outcome=outcome,
        rows=rows,
        done=done,
        failed=failed,
        left=left,
        shards=len(receipts),
        images_a_second=rate,
        seconds_left=left / rate if rate else None,
        failures=dict(failures.most_common()),
    )


def _failures(receipts: list[Receipt]) -> Counter[str]:
    """Failed rows by class; one that two shards failed to make counts once."""
    failed = {(row.id, row.fingerprint): row.error_class for receipt in receipts for row in receipt.failures}
    return Counter(failed.values())


def status_table(status: OutputStatus) -> Table:
    """A status as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    percent = f" ({100 * status.done / status.rows:.0f} %)" if status.rows else ""
    for name, value in (
        ("output", status.output),
        ("run", "running" if status.running else status.outcome),
        ("rows", f"{status.rows:,}"),
        ("done", f"{status.done:,}{percent}"),
        ("failed", f"{status.failed:,}"),
        ("left", f"{status.left:,}"),
        ("shards", f"{status.shards:,}"),
        ("rate", "unknown" if status.images_a_second is None else f"{status.images_a_second:.2f} images/s"),
        ("time to go", duration(status.seconds_left) if status.left and status.seconds_left is not None else "-"),
        *((f"  {error_class}", f"{count:,}") for error_class, count in status.failures.items()),
    ):
        table.add_row(printable(name), Text(printable(value)))  # brackets in paths and errors are no markup of rich
    return table


def follow(uri: str, console: Console, storage_options: Mapping[str, Any] | None = None) -> None:
    """Print the status again and again until no run holds the output."""
    status = read_status(uri, storage_options)
    with Live(status_table(status), console=console, auto_refresh=False) as live:
        while status.running and status.left:
            time.sleep(WATCH_EVERY)
            status = read_status(uri, storage_options)
            live.update(status_table(status), refresh=True)
