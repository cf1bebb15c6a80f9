"""How far an output is, from its receipts, its latest run and what that says of itself; reads no data, no manifest."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.lease import live_holder
from batchgen.dataset.progress import Damages, read_receipts
from batchgen.dataset.runs import FAILED, FINISHED, KILLED, LIMIT_REACHED, RUNNING, RunRecord, latest_run, standing
from batchgen.errors import InfrastructureError, Interrupted, RunDied
from batchgen.estimate import Measured
from batchgen.report.display import time_left
from batchgen.rows import Receipt
from batchgen.storage import open_store
from batchgen.tally import LiveProgress

__all__ = ["OutputStatus", "follow", "raise_for_end", "read_status", "status_table"]

WATCH_EVERY = 2.0  # seconds
NOT_BEGUN = "no row was begun"


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputStatus:
    """Where an output stands; done + failed + left = rows of the latest run's manifest."""

    output: str
    running: bool
    outcome: str  # of the latest run: running, finished, limit reached, killed, or what stopped it
    rows: int
    done: int  # committed
    failed: int
    left: int
    made: int  # done, and images that a live run has made in shards that are not committed yet
    shards: int
    workers: int | None  # of a live run, that are up; None where none says
    images_a_second: float | None  # of the latest run, while all its workers make images
    seconds_left: float | None  # until a live run ends
    estimated: bool  # that time is scaled from images of other sizes or steps
    failures: Mapping[str, int]  # by error class
    damages: Sequence[str]  # what could not be read, a line each


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
    holder = live_holder(store)
    damages = Damages()
    record = latest_run(store, damages)
    live = LiveProgress.read(holder["said"]) if holder and record and holder["run"] == record.run else None
    receipts = list(read_receipts(dataset, repair=False, damages=damages))
    failed_rows = {(row.id, row.fingerprint): row for receipt in receipts for row in receipt.failures}
    failures = Counter(row.error_class for row in failed_rows.values())
    if record is None:
        done = sum(receipt.done for receipt in receipts)
        rows, failed, before = done + failures.total(), failures.total(), done
        outcome = NOT_BEGUN if holder is None else RUNNING
    else:
        now = standing(record, receipts, held=holder is not None)
        rows, done, failed, outcome, before = now.rows, now.done, now.failed, now.outcome, record.done_before or 0
        if record.failed_rows is not None:  # else it is not known which of them are of the manifest
            failures = Counter(row.error_class for row in now.failures)
    rate, seconds = _pace(record, receipts), None
    if holder is not None and live is not None:
        rate = live.images_a_second
        if live.seconds_left is not None:
            seconds = max(0.0, live.seconds_left - max(0.0, time.time() - holder["renewed"]))
    return OutputStatus(
        output=uri,
        running=holder is not None,
        outcome=outcome,
        rows=rows,
        done=done,
        failed=failed,
        left=rows - done - failed,
        made=done if live is None else max(done, before + live.made),
        shards=len(receipts),
        workers=None if live is None else live.workers,
        images_a_second=rate,
        seconds_left=seconds,
        estimated=live is not None and live.estimated,
        failures=dict(failures.most_common()),
        damages=list(damages.notices()),
    )


def _pace(record: RunRecord | None, receipts: list[Receipt]) -> float | None:
    """Images a second of a run, by its receipts."""
    if record is None:
        return None
    measured = Measured(record.device)
    for receipt in receipts:
        if receipt.run == record.run:
            measured.add(receipt)
    return measured.images_a_second(record.run, record.workers)


def status_table(status: OutputStatus) -> Table:
    """A status as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False)
    percent = f" ({100 * status.done / status.rows:.0f} %)" if status.rows else ""
    ahead = f", {status.made - status.done:,} more made and not committed" if status.made > status.done else ""
    how = status.outcome
    if status.running:
        workers = status.workers
        up = "" if workers is None else f", {workers} worker{'s' * (workers != 1)}" if workers else ", starting workers"
        how = RUNNING + up
    for name, value in (
        ("output", status.output),
        ("run", how),
        ("rows", f"{status.rows:,}"),
        ("done", f"{status.done:,}{percent}{ahead}"),
        ("failed", f"{status.failed:,}"),
        ("left", f"{status.left:,}"),
        ("shards", f"{status.shards:,}"),
        ("rate", "unknown" if status.images_a_second is None else f"{status.images_a_second:.2f} images/s"),
        ("time to go", time_left(status.seconds_left, status.estimated) if status.running else "-"),
        *((f"  {error_class}", f"{count:,}") for error_class, count in status.failures.items()),
        *(("damaged", line) for line in status.damages),
    ):
        table.add_row(name, value)
    return table


def follow(uri: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[OutputStatus]:
    """The status every few seconds, until no run holds the output; that is the last one."""
    while (status := read_status(uri, storage_options)).running:
        yield status
        time.sleep(WATCH_EVERY)
    yield status


def raise_for_end(status: OutputStatus) -> None:
    """Tell how a run ended that did not come to its end.

    Raises:
        RunDied: it was killed, or its machine was lost.
        Interrupted: somebody or a limit stopped it.
        InfrastructureError: it failed.
    """
    if status.outcome == KILLED:
        raise RunDied(
            f"the run died with {status.left:,} of {status.rows:,} rows left: its process was killed, or its machine "
            "lost; the same command goes on"
        )
    if status.outcome.startswith(FAILED):
        raise InfrastructureError(f"the run {status.outcome}")
    if status.outcome not in (RUNNING, FINISHED, LIMIT_REACHED, NOT_BEGUN):
        raise Interrupted(f"the run was {status.outcome}; the same command goes on")
