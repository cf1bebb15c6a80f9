"""What an output remembers, when somebody meddled with it, or died at a bad moment."""

import io
import json
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, WriteManifest
from PIL import Image
from test_commit import attempt, make_format, make_shard
from test_plan import key_of, make_row

from batchgen.dataset import lease, progress
from batchgen.dataset.commit import drop_rows
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.lease import Lease
from batchgen.dataset.progress import fold_receipts, read_done, read_receipts
from batchgen.dataset.receipts import RECEIPTS, write_books
from batchgen.dataset.snapshots import list_snapshots
from batchgen.driver import retry
from batchgen.engine.queue import Fate, WorkQueue
from batchgen.errors import ClusterError, ErrorClass, ImageError, InputError, OutOfDeviceMemory, OutputBusy
from batchgen.images import decode, fit
from batchgen.index import Committed, Index
from batchgen.rows import Status
from batchgen.storage import Store, open_store
from batchgen.work import failure_of


def test_a_folder_with_other_things_is_no_output(tmp_path: Path) -> None:
    """Incident: `--output .` in a repository replaced its README by a dataset card."""
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"README\.md"):
        Dataset.begin(open_store(str(tmp_path)), make_format(), create=False)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b"\xff\xfe"])
def test_a_damaged_receipt_is_rebuilt(begun: Dataset, content: bytes) -> None:
    """Incident: one broken receipt ended every command with a traceback."""
    whole = attempt(begun, make_shard(), failed=(2,))
    begun.store.write(f"{RECEIPTS}/{whole.shard}.json", content)
    (found,) = read_receipts(begun, repair=True)
    assert (found.done, found.failures) == (3, whole.failures)
    assert json.loads(begun.store.read(f"{RECEIPTS}/{whole.shard}.json"))["shard"] == whole.shard


def test_retry_takes_known_error_classes(begun: Dataset) -> None:
    """A class of the closed set, or one that an earlier version recorded here; a misspelt one is no silent nothing."""
    whole = attempt(begun, make_shard(), failed=(1, 2))
    first, second = whole.failures
    older = [replace(first, error_class="OSError"), replace(second, error_class="nan")]
    write_books(begun, replace(whole, failures=older))
    with pytest.raises(InputError, match=r"no error class 'OsError'; known are .*out-of-memory.*, OSError$"):
        retry(begun.uri, ["nan", "OsError"])
    assert retry(begun.uri, [ErrorClass.BLANK]) == 0
    assert retry(begun.uri, ["OSError"]) == 1
    (left,) = read_receipts(begun, repair=False)
    assert [row.error_class for row in left.failures] == ["nan"]
    assert retry(begun.uri, []) == 1


def test_a_removed_shard_can_be_made_again(begun: Dataset, tmp_path: Path) -> None:
    """A receipt is an index, not the truth: without the shard's folder its rows are not done."""
    receipt = attempt(begun, make_shard())
    subprocess.run(["rm", "-r", tmp_path / "out" / "data" / receipt.shard], check=True)
    assert list(read_receipts(begun, repair=True)) == []
    assert [found.shard for found in read_receipts(begun, repair=False, missing=True)] == [receipt.shard]


def test_the_newest_of_several_folds_counts(begun: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: after two folds the first one's receipt won, and dropped rows came back."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    shard = make_shard()
    receipt = attempt(begun, shard)
    fold_receipts(begun)
    drop_rows(begun, receipt, {(shard.rows[0].id, shard.rows[0].fingerprint)})
    fold_receipts(begun)
    assert len(list_snapshots(begun.store)) == 2 and begun.store.names(RECEIPTS) == []
    ((found, rows),) = read_done(begun, repair=False)
    assert [row.id for row in rows] == [row.id for row in shard.rows[1:]] and found.done == 3


def test_a_row_in_two_shards_counts_once_and_is_dropped_from_one() -> None:
    """Two runs that did not see each other's lease and cut their shards differently."""
    row = make_row(1)
    with Index() as index:
        index.add(key_of(row), row)
        index.mark(
            Committed(id=row.id, fingerprint=row.fingerprint, shard=shard, status=Status.DONE) for shard in ("b", "a")
        )
        assert (index.counts().done, index.counts().pending, index.images()) == (1, 0, 1)
        (late,) = index.superseded()
        assert late.shard == "b"
        index.forget([late])
        assert list(index.superseded()) == [] and index.counts().done == 1


def test_what_does_not_fit_on_the_device_is_not_cut() -> None:
    """A padded micro-batch of one row takes the memory of a full one: its rows are recorded after a second try."""
    shard = make_shard(rows=8)
    queue = WorkQueue(iter([shard]))
    failure = failure_of(OutOfDeviceMemory("does not fit"))
    first = queue.take(0.0)
    assert first is not None and queue.failed(first, failure, 0.0) is Fate.AGAIN
    second = queue.take(3600.0)
    assert second is not None and queue.failed(second, failure, 3600.0) is Fate.RECORD
    assert queue.empty


def elsewhere(renewed: float) -> bytes:
    holder = {"run": "r", "host": "elsewhere", "boot": "", "pid": 1, "process_started": "1", "released": False}
    return json.dumps({**holder, "renewed": renewed}).encode()


def test_a_dead_holder_with_a_fast_clock_is_outlived(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: a holder whose clock was a day ahead kept everybody waiting for a day, without a word."""
    monkeypatch.setattr(lease, "EXPIRES_AFTER", 0.5)
    monkeypatch.setattr(lease, "WATCH_EVERY", 0.1)
    local.write(lease.KEY, elsewhere(time.time() + 86400))
    lines: list[str] = []
    with Lease(local, "mine", progress=lines.append):
        assert json.loads(local.read(lease.KEY))["run"] == "mine"
    assert "elsewhere" in lines[0]


def test_a_live_holder_elsewhere_is_left_alone(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows its life by renewing."""
    monkeypatch.setattr(lease, "WATCH_EVERY", 0.1)
    local.write(lease.KEY, elsewhere(time.time()))
    renewal = threading.Timer(0.3, lambda: local.write(lease.KEY, elsewhere(time.time() + 1)))
    renewal.start()
    with pytest.raises(OutputBusy, match="elsewhere"), Lease(local, "mine"):
        pass
    renewal.join()


@pytest.mark.parametrize("content", [b"{}", b"nonsense", b""])
def test_a_lease_that_nobody_can_read_holds_nobody_up(local: Store, content: bytes) -> None:
    """It is advice."""
    local.write(lease.KEY, content)
    assert lease.live_holder(local) is None
    with Lease(local, "mine"):
        assert lease.live_holder(local) is not None


def test_sixteen_bits_become_eight() -> None:
    """Incident: 16-bit PNGs turned white, and as masks repainted everything."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    levels = np.asarray(fit(decode(stream.getvalue()), "L", 8, 8))
    assert levels.min() == 0 and levels.max() == 255 and abs(levels.mean() - 127.5) < 1
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(stream, "TIFF")
    with pytest.raises(ImageError, match="floating-point"):
        decode(stream.getvalue())


def test_a_cluster_that_does_not_answer_is_said_within_seconds() -> None:
    """Ray itself would try for minutes."""
    from batchgen.engine.cluster import cluster

    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1"), cluster("127.0.0.1:1", 1, print):
        pass
    assert time.monotonic() - started < 10


def test_a_worker_that_no_node_can_hold_is_said(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, ray_address: str, tmp_path: Path
) -> None:
    """Incident: a worker that wanted more memory than any node had was waited for without a word."""
    write_manifest("rows.csv", [{"prompt": "a"}])
    job = tmp_path / "job.toml"
    job.write_text(f'manifest = "rows.csv"\nmodel = "{tiny_model}"\noutput = "out"\n[worker]\nmemory_gib = 100000\n')
    done = batchgen("run", job, "--address", ray_address, timeout=100)
    assert done.returncode == 4
    assert "no node of the cluster can hold a worker" in done.stderr
