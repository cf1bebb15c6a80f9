"""The runs over an output, a record each: what a run was asked for, and how it ended."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from batchgen.errors import StoreError
from batchgen.storage import Store, read_json
from batchgen.version import __version__

__all__ = ["RunRecord", "latest_run", "new_run_name", "write_run"]

RUNS = ".batchgen/runs"


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
    done_before: int
    failed_before: int
    # what older records lack has a default
    dtypes: Mapping[str, str] = field(default_factory=dict)  # of components that have another
    memory: str = "normal"
    safety: str = "off"
    batchgen: str = __version__
    finished: float | None = None
    outcome: str = "running"


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


def new_run_name(now: float) -> str:
    """A name that sorts by time and differs between runs of the same second."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}"
