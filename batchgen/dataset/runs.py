"""The runs over an output, a record each: what a run was asked for, how it ended, and how far its manifest is made."""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from batchgen.dataset.progress import Damages
from batchgen.dataset.records import Count, RecordKind, encode_record, read_record
from batchgen.errors import Damaged, NotFound
from batchgen.rows import FailedRow, Receipt
from batchgen.storage import Store
from batchgen.version import __version__

__all__ = [
    "FAILED",
    "FINISHED",
    "KILLED",
    "LIMIT_REACHED",
    "RUNNING",
    "RUNS",
    "RunRecord",
    "Standing",
    "failure_print",
    "latest_run",
    "new_run_name",
    "read_run",
    "run_key",
    "run_names",
    "standing",
    "write_run",
]

RUNS = ".batchgen/runs"
VERSION = 1
RUNNING, FINISHED, LIMIT_REACHED, KILLED = "running", "finished", "limit reached", "killed"
FAILED = "failed"  # with a colon and why; other outcomes are what stopped a run


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run over an output, written when it starts and again when it ends."""

    run: str
    source: str
    started: float  # Unix time
    host: str
    model: Mapping[str, str]  # fingerprints by name
    device: str
    dtype: str
    workers: int
    rows: int
    done_before: int | None  # None in a run that failed before it knew
    failed_before: int | None
    # what older records lack has a default
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of components that have another
    memory: str = "normal"
    safety: str = "off"
    nodes: int = 0  # of the cluster, and their cores and GPUs, when the run began
    cpus: int = 0
    gpus: int = 0
    batchgen: str = __version__
    paces: Mapping[str, float] = field(default_factory=dict)  # by which shards were cut: `sharding.settle_paces`
    batches: Mapping[str, int] | None = None  # of the output: `sharding.settle_batches`; None in outputs begun without
    finished: float | None = None
    outcome: str = RUNNING
    # rows of the manifest that were done when this was written, by shard, and prints of those that had failed; None in
    # records of earlier code, which say their numbers alone
    done_by_shard: Mapping[str, Count] | None = None
    failed_rows: Sequence[str] | None = None
    settled: bool = False  # these two are all; else what the run itself committed comes on top
    version: Count = VERSION


_KIND = RecordKind(RunRecord, VERSION)


def failure_print(id_: str, fingerprint: str) -> str:
    """A failed row in 16 digits."""
    return hashlib.blake2b(f"{fingerprint}{id_}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def run_key(run: str) -> str:
    """Where the record of a run lies."""
    return f"{RUNS}/{run}/run.json"


def write_run(store: Store, record: RunRecord) -> None:
    """Store what a run was asked for and how it ended."""
    store.write(run_key(record.run), encode_record(record, indent=2))


def read_run(store: Store, run: str) -> RunRecord:
    """The record of a run.

    Raises:
        NotFound: there is none.
        LaterVersion, Damaged: it cannot be read.
    """
    return read_record(store, run_key(run), _KIND)


def run_names(store: Store) -> list[str]:
    """Names of the runs that are on record, the latest first; they sort by time."""
    return [name for name in reversed(store.names(RUNS)) if not name.startswith(".")]


def latest_run(store: Store, damages: Damages | None = None) -> RunRecord | None:
    """The run that started last, of those whose records can be read.

    Args:
        store: the output.
        damages: takes note of records that cannot be read.

    Raises:
        Damaged: the last one cannot be read, and there are no `damages`.
    """
    for name in run_names(store):
        try:
            return read_run(store, name)
        except NotFound:
            continue  # a run that died before its first word
        except Damaged as error:
            if damages is None:
                raise
            damages.lines.append(str(error))
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far the manifest of a run is made; done + failed + left = rows."""

    outcome: str
    rows: int
    done: int
    failed: int
    made: int  # by the run itself
    failures: Sequence[FailedRow]  # those that failed, as far as they are known one by one

    @property
    def left(self) -> int:
        return max(0, self.rows - self.done - self.failed)


def standing(record: RunRecord, receipts: Iterable[Receipt], *, held: bool) -> Standing:
    """How far a run came, or has come by now.

    Args:
        record: of the latest run.
        receipts: of all shards; those of other runs do not count.
        held: whether a live run held the output's lease, looked at before the record was read: a run records its
            end before it lets go.
    """
    made = done = held_rows = 0
    unknown = record.done_before is None  # it ended before it looked; shards may hold rows that its manifest has not
    failures: dict[tuple[str, str], FailedRow] = {}  # one that two shards failed to make counts once
    before = None if record.failed_rows is None else set(record.failed_rows)
    for receipt in receipts:
        is_own = receipt.run == record.run
        made += receipt.done if is_own else 0
        held_rows += receipt.done
        is_new = (is_own and not record.settled) or unknown
        done += min((record.done_by_shard or {}).get(receipt.shard, receipt.done if is_new else 0), receipt.done)
        for row in receipt.failures:
            if is_new or (before is not None and failure_print(row.id, row.fingerprint) in before):
                failures[row.id, row.fingerprint] = row
    if unknown:
        done = min(held_rows, record.rows)
    elif record.done_by_shard is None:
        done = (record.done_before or 0) + made
    failed = len(failures) + (record.failed_before or 0 if before is None else 0)
    return Standing(
        outcome=KILLED if record.outcome == RUNNING and not held else record.outcome,
        rows=record.rows,
        done=done,
        failed=min(failed, record.rows - done) if unknown else failed,
        made=made,
        failures=list(failures.values()),
    )


def new_run_name(now: float) -> str:
    """A name that sorts by time and differs between runs of the same second."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}"
