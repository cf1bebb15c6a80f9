"""The runs over an output, a record each: what a run was asked for, how it ended, and how far its manifest is made."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from batchgen.errors import StoreError
from batchgen.rows import Receipt
from batchgen.storage import Store, read_json
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
    "latest_run",
    "new_run_name",
    "standing",
    "write_run",
]

RUNS = ".batchgen/runs"
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


def write_run(store: Store, record: RunRecord) -> None:
    """Store what a run was asked for and how it ended."""
    store.write(f"{RUNS}/{record.run}/run.json", json.dumps(asdict(record), indent=2).encode())


def latest_run(store: Store) -> RunRecord | None:
    """The run that started last; run names sort by time."""
    names = store.names(RUNS)
    if not names:
        return None
    key = f"{RUNS}/{names[-1]}/run.json"
    try:
        return RunRecord(**read_json(store, key))
    except TypeError as error:
        raise StoreError(f"{store.uri}/{key} is damaged: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far the manifest of a run is made; done + failed + left = rows."""

    outcome: str
    rows: int
    done: int
    failed: int
    made: int  # by the run itself

    @property
    def left(self) -> int:
        return self.rows - self.done - self.failed


def standing(record: RunRecord, receipts: Iterable[Receipt], *, held: bool) -> Standing:
    """How far a run came, or has come by now.

    Args:
        record: of the latest run.
        receipts: of all shards; those of other runs do not count.
        held: whether a live run held the output's lease, looked at before the record was read: a run records its
            end before it lets go.
    """
    made = failed = 0
    for receipt in receipts:
        if receipt.run == record.run or record.done_before is None:
            made += receipt.done
            failed += receipt.failed
    if record.done_before is None:  # shards may hold rows that the manifest no longer names
        made = min(made, record.rows)
        failed = min(failed, record.rows - made)
    return Standing(
        outcome=KILLED if record.outcome == RUNNING and not held else record.outcome,
        rows=record.rows,
        done=(record.done_before or 0) + made,
        failed=(record.failed_before or 0) + failed,
        made=made,
    )


def new_run_name(now: float) -> str:
    """A name that sorts by time and differs between runs of the same second."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}"
