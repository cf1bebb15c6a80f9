"""What `status` says of an output, and what it costs on a large one."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN
from test_commit import attempt, make_format, make_shard
from test_plan import key_of, make_row

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.receipts import RECEIPTS, receipt_to_json
from batchgen.dataset.runs import RunRecord, write_run
from batchgen.errors import ErrorClass
from batchgen.report.status import read_status
from batchgen.rows import Receipt, failed_row
from batchgen.storage import open_store

BENCH = Path(__file__).parents[1] / "jobs" / "bench"
RUN = "20261127T120000-000"


def make_record(**changed: Any) -> RunRecord:
    settings: dict[str, Any] = {
        "run": RUN, "source": "m.csv", "started": time.time() - 1000, "host": "here", "model": {}, "device": "cpu",
        "dtype": "float32", "workers": 1, "rows": 0, "done_before": 0, "failed_before": 0, "outcome": "finished",
    }  # fmt: skip
    return RunRecord(**{**settings, **changed})


def test_failures_by_class(tmp_path: Path) -> None:
    """By class, the most frequent first; a row that failed in two shards, as after two runs at once, counts once."""
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    attempt(dataset, make_shard(4, "a" * 16), failed=(1, 2))
    attempt(dataset, make_shard(4, "b" * 16), failed=(1, 3))
    write_run(dataset.store, make_record(run="run-1", rows=9, done_before=1))
    status = read_status(dataset.uri)
    assert status.failures == {"nan": 3}
    assert (status.rows, status.done, status.failed, status.left, status.shards) == (9, 5, 3, 1, 2)


def measured(output: Path) -> dict[str, Any]:
    """Seconds, peak memory and output of `batchgen status`, by a process small enough not to count for its child's."""
    script = (
        f"import dataclasses, json, sys; sys.path.insert(0, {str(BENCH)!r}); import planning; "
        f"cost = planning.measure([{str(BIN / 'batchgen')!r}, 'status', '--json', {str(output)!r}]); "
        "print(json.dumps(dataclasses.asdict(cost)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    cost: dict[str, Any] = json.loads(done.stdout)
    return cost


@pytest.mark.slow
def test_status_of_a_million_rows_is_quick_and_small(tmp_path: Path) -> None:
    """Under 200 MiB, and no more time than its start again, for 10^6 rows in 1,000 shards.

    When receipts named every row: 7.5 s and 457 MiB. The best of five, since the machine may be busy.
    """
    Dataset.begin(open_store(str(tmp_path / "empty")), make_format(), create=True)
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    write_run(dataset.store, make_record(rows=1_001_000))
    receipts = tmp_path / "out" / RECEIPTS
    receipts.mkdir(parents=True)
    for number in range(1000):
        shard = f"{number:016x}"
        (tmp_path / "out" / "data" / shard).mkdir(parents=True)
        receipt = Receipt(
            shard=shard,
            attempt="01234567",
            run=RUN,
            done=1000,
            failures=[failed_row(make_row(number), ErrorClass("nan"), "not a number")],
            key=key_of(make_row(1)),
            device="cpu",
            seconds=100.0,
            finished=time.time(),
            images=1000,
            bytes=1 << 30,
        )
        (receipts / f"{shard}.json").write_text(receipt_to_json(receipt))
    start = whole = math.inf
    for _ in range(5):
        start = min(start, measured(tmp_path / "empty")["seconds"])
        cost = measured(tmp_path / "out")
        if (whole := min(whole, cost["seconds"])) < 2 * start:
            break
    said = json.loads(cost["stdout"])
    assert (said["rows"], said["done"], said["failed"], said["left"]) == (1_001_000, 1_000_000, 1000, 0)
    assert whole < 2 * start
    assert cost["peak_mib"] < 200
