"""A shard appears whole or not at all, once, and whatever kills a commit, the next attempt completes it."""

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_faults import Fault, Kind, fault_proxy
from s3_server import S3Server
from test_plan import key_of, make_row

from batchgen.dataset import progress
from batchgen.dataset.commit import Attempt, commit_failures, drop_rows
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import OutputFormat, new_format
from batchgen.dataset.layouts import find_layout
from batchgen.dataset.progress import Damages, DoneRows, done_rows, fold_receipts, read_done, read_receipts
from batchgen.dataset.receipts import RECEIPTS, rebuild_receipt, receipt_to_json, write_books
from batchgen.dataset.schema import applied_cells
from batchgen.dataset.snapshots import SNAPSHOTS, list_snapshots, write_snapshot
from batchgen.dataset.verify import verify_output
from batchgen.errors import Damaged, ErrorClass, NotFound, StoreError
from batchgen.images import encode
from batchgen.options import ImageFormat, Layout
from batchgen.rows import DoneRow, Receipt, Shard, failed_row
from batchgen.storage import Entry, Store, open_store

NAME = "0123456789abcdef"
CARRIED = {"split": pa.string(), "tags": pa.list_(pa.string()), "weight": pa.float64()}


def make_shard(rows: int = 4, name: str = NAME, first: int = 0) -> Shard:
    made = tuple(
        replace(make_row(number), carried={"split": "train", "tags": ["a", "ü"]})
        for number in range(first, first + rows)
    )
    return Shard(id=name, key=key_of(made[0]), batch_size=2, rows=made)


def make_format(layout: str = Layout.FILES) -> OutputFormat:
    return new_format(layout, ImageFormat.PNG, CARRIED)


def image(number: int) -> bytes:
    pixels = np.full((8, 8, 3), number, dtype=np.uint8)
    pixels[0, 0] = 255 - number
    return encode(pixels, ImageFormat.PNG)


def attempt(dataset: Dataset, shard: Shard, failed: tuple[int, ...] = (), run: str = "run-1") -> Receipt:
    """One attempt at a shard, as a worker makes it, with rows by position that fail."""
    this = Attempt(dataset, shard, run)
    done: list[dict[str, Any]] = []
    size = 0
    for position, row in enumerate(shard.rows):
        if position in failed:
            continue
        data = image(row.number)
        size += len(data)
        made = {
            "id": row.id,
            "fingerprint": row.fingerprint,
            "status": "done",
            "sha256": hashlib.sha256(data).hexdigest(),
            "width": 8,
            "height": 8,
            "seconds": 0.5,
            "device": "test",
        }
        done.append({**row.carried, **applied_cells(row), **made, **this.add_image(row, data)})
    bad = [failed_row(shard.rows[position], ErrorClass("nan"), "not a number") for position in failed]
    return this.commit(done, bad, size=size, seconds=1.5, device="test")


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def dataset(request: pytest.FixtureRequest, store: Store) -> Dataset:
    """A begun output of each layout on each store."""
    return Dataset.begin(store, make_format(request.param), create=True)


def table_of(dataset: Dataset, shard: Shard) -> pa.Table:
    return pq.read_table(io.BytesIO(dataset.store.read(dataset.layout.marker_key(shard.id))))


def done_ids(dataset: Dataset, shard: str = NAME) -> list[str]:
    return [row.id for row in done_rows(dataset, shard)]


def failed_ids(receipt: Receipt) -> list[str]:
    return [row.id for row in receipt.failures]


def test_a_committed_shard(store: Store, store_uri: str, dataset: Dataset) -> None:
    """Marker, images, ledger and receipt say the same, and `verify` agrees."""
    shard = make_shard()
    receipt = attempt(dataset, shard, failed=(1,))
    assert done_ids(dataset) == ["row-0", "row-2", "row-3"]
    assert failed_ids(receipt) == ["row-1"]
    table = table_of(dataset, shard)
    assert table.schema.equals(dataset.format.schema)
    assert table["id"].to_pylist() == ["row-0", "row-2", "row-3"]
    assert table["tags"].to_pylist() == [["a", "ü"]] * 3
    for row in table.to_pylist():
        if dataset.layout.name is Layout.PARQUET:
            data = row["image"]["bytes"]
        else:
            data = store.read(f"data/{shard.id}/{row['file_name']}")
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
    ledger = pq.read_table(io.BytesIO(store.read(f"failures/{shard.id}.parquet"))).to_pylist()
    assert [(row["id"], row["error_class"]) for row in ledger] == [("row-1", "nan")]
    assert list(read_receipts(dataset, repair=False)) == [receipt]
    found = verify_output(store_uri, deep=True)
    assert (found.faults, found.shards, found.images, found.failed_rows, found.strays) == ([], 1, 3, 1, 0)


def test_the_schema_has_a_type_for_every_column(dataset: Dataset) -> None:
    """DESIGN: no null-typed columns, and the same schema for every shard of an output."""
    assert [field.name for field in dataset.format.schema if pa.types.is_null(field.type)] == []
    assert len(set(dataset.format.schema.names)) == len(dataset.format.schema.names)
    assert dataset.format.schema.names[-3:] == list(CARRIED)


def test_the_format_of_an_output_comes_back(store: Store, dataset: Dataset) -> None:
    """`status` and `verify` need nothing but the output; layout, format and carried types are kept in it."""
    found = Dataset.open(store)
    assert found == dataset and found.format.carried == CARRIED


def test_carried_columns_in_any_order(tmp_path: Path) -> None:
    """A manifest whose unknown columns are not in alphabetical order verifies, and a rewritten one fits the output."""
    store = open_store(str(tmp_path / "out"))
    for number, carried in enumerate((dict(reversed(CARRIED.items())), CARRIED)):
        dataset = Dataset.begin(store, new_format(Layout.FILES, ImageFormat.PNG, carried), create=True)
        attempt(dataset, make_shard(2, f"{number:016x}", first=2 * number))
    assert verify_output(store.uri).faults == []


def test_a_second_attempt_is_refused(store: Store, store_uri: str, dataset: Dataset) -> None:
    """The first attempt's bytes stay, its receipt is what the second gets, and the second's images are strays."""
    shard = make_shard()
    first = attempt(dataset, shard)
    before = store.read(dataset.layout.marker_key(shard.id))
    second = attempt(dataset, shard)
    assert (second.attempt, second.done, second.run) == (first.attempt, first.done, first.run)
    assert store.read(dataset.layout.marker_key(shard.id)) == before
    found = verify_output(store_uri)
    assert (found.faults, found.rows) == ([], 4)
    assert found.strays == (4 if dataset.layout.name is Layout.FILES else 0)


@pytest.mark.parametrize("late", [(), (2,), (0, 1, 2, 3)])
def test_a_late_attempt_changes_no_row(store: Store, store_uri: str, dataset: Dataset, late: tuple[int, ...]) -> None:
    """Whatever rows a late attempt failed to make, receipt and ledger go on saying what the marker says."""
    shard = make_shard()
    first = attempt(dataset, shard, failed=(1,))
    second = attempt(dataset, shard, failed=late)
    assert (second.done, second.failures) == (3, first.failures)
    assert list(read_receipts(dataset, repair=False)) == [replace(first, seconds=second.seconds)]
    store.delete(f"{RECEIPTS}/{shard.id}.json")
    (rebuilt,) = read_receipts(dataset, repair=False)
    assert (rebuilt.done, rebuilt.failures) == (3, first.failures)
    found = verify_output(store_uri)
    assert (found.faults, found.failed_rows) == ([], 1)


def test_giving_up_on_a_committed_shard_changes_nothing(store: Store, store_uri: str, dataset: Dataset) -> None:
    """A worker that commits and dies before it can say so, three times over: the row is done, not failed."""
    shard = make_shard(rows=1)
    first = attempt(dataset, shard)
    store.delete(f"{RECEIPTS}/{shard.id}.json")
    commit_failures(dataset, shard, "run-1", [failed_row(shard.rows[0], ErrorClass("worker-died"), "died", 3)])
    (kept,) = read_receipts(dataset, repair=False)
    assert (kept.done, kept.failures, kept.attempt) == (1, [], first.attempt)
    assert verify_output(store_uri).faults == []


def test_a_receipt_is_rebuilt_from_the_marker(store: Store, dataset: Dataset) -> None:
    """Killed between marker and receipt: the rebuilt receipt says the same, and is stored only when asked."""
    shard = make_shard()
    receipt = attempt(dataset, shard, failed=(1,))
    place = f"{RECEIPTS}/{shard.id}.json"
    store.delete(place)
    for repair in (False, True):
        (rebuilt,) = read_receipts(dataset, repair=repair)
        assert replace(rebuilt, seconds=receipt.seconds) == receipt
        assert (place.rpartition("/")[2] in store.names(RECEIPTS)) is repair


def test_all_failed_leaves_no_marker(store: Store, store_uri: str, dataset: Dataset) -> None:
    """No zero-row shards: ledger and receipt alone know the shard, and `verify` counts its rows."""
    shard = make_shard()
    receipt = attempt(dataset, shard, failed=(0, 1, 2, 3))
    assert (receipt.done, receipt.failed) == (0, 4)
    assert store.names("data") == []
    assert rebuild_receipt(dataset, shard.id) is None
    assert list(read_receipts(dataset, repair=False)) == [receipt]
    found = verify_output(store_uri)
    assert (found.faults, found.failed_rows, found.rows) == ([], 4, 0)


def test_dropped_rows_are_gone_for_readers(store: Store, store_uri: str, dataset: Dataset) -> None:
    """Superseded rows leave marker and receipt, the rest stays; with its last row the marker goes."""
    shard = make_shard()
    made = attempt(dataset, shard)
    pairs = [(row.id, row.fingerprint) for row in shard.rows]
    drop_rows(dataset, made, set(pairs[:2]))
    (receipt,) = read_receipts(dataset, repair=False)
    assert table_of(dataset, shard)["id"].to_pylist() == ["row-2", "row-3"]
    assert done_ids(dataset) == ["row-2", "row-3"]
    rebuilt = rebuild_receipt(dataset, shard.id)
    assert rebuilt is not None
    assert (rebuilt.done, rebuilt.attempt) == (receipt.done, receipt.attempt) == (2, rebuilt.attempt)
    assert verify_output(store_uri).faults == []
    drop_rows(dataset, receipt, set(pairs))
    with pytest.raises(NotFound):
        table_of(dataset, shard)
    found = verify_output(store_uri)
    assert (found.faults, found.rows) == ([], 0)


def test_folded_receipts_say_the_same(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many loose receipts become one snapshot; later ones, and newer ones of the same shard, come over it."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 4)
    monkeypatch.setattr(progress, "SNAPSHOT_SHARDS", 4)
    made = [attempt(dataset, make_shard(2, f"{n:016x}", first=2 * n), failed=(0,) * (n == 2)) for n in range(5)]
    before = {receipt.shard: (receipt, rows) for receipt, rows in read_done(dataset, repair=False)}
    assert before == {receipt.shard: (receipt, done_rows(dataset, receipt.shard)) for receipt in made}
    fold_receipts(dataset)
    assert dataset.store.names(RECEIPTS) == []
    assert len(list_snapshots(dataset.store)) == 2  # of four shards and of one
    assert {receipt.shard: (receipt, rows) for receipt, rows in read_done(dataset, repair=False)} == before
    made.append(attempt(dataset, make_shard(2, f"{9:016x}", first=18)))
    newer = replace(made[2], failures=[])
    write_books(dataset, newer)
    found = {receipt.shard: receipt for receipt in read_receipts(dataset, repair=False)}
    assert found == {receipt.shard: receipt for receipt in [*made, newer]}
    assert verify_output(dataset.uri).faults == []


def test_done_rows_of_a_snapshot_are_read_from_it_alone(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run looks into no marker whose rows are in a snapshot."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    made = [attempt(dataset, make_shard(2, f"{n:016x}", first=2 * n)) for n in range(3)]
    before = list(read_done(dataset, repair=False))
    fold_receipts(dataset)
    for receipt in made:
        dataset.store.write(dataset.layout.marker_key(receipt.shard), b"nobody reads this")
    assert list(read_done(dataset, repair=True)) == before
    assert [fault for fault in verify_output(dataset.uri).faults if "damaged" not in fault] == []


class Dying:
    """A store whose process ends instead of a change after so many: what SIGKILL at that moment leaves."""

    def __init__(self, store: Store, changes: int) -> None:
        self.uri = store.uri
        self._store = store
        self._left = changes

    def _change(self, method: str, *arguments: Any) -> None:
        if self._left == 0:
            self._end()
        self._left -= 1
        getattr(self._store, method)(*arguments)

    def _end(self) -> None:
        os._exit(9)

    def read(self, key: str) -> bytes:
        return self._store.read(key)

    def read_part(self, key: str, start: int, end: int) -> bytes:
        return self._store.read_part(key, start, end)

    def size(self, key: str) -> int:
        return self._store.size(key)

    def create(self, key: str, data: bytes) -> None:
        self._change("create", key, data)

    def write(self, key: str, data: bytes) -> None:
        self._change("write", key, data)

    def names(self, prefix: str) -> list[str]:
        return self._store.names(prefix)

    def entries(self, prefix: str) -> Iterator[Entry]:
        return self._store.entries(prefix)

    def delete(self, key: str) -> None:
        self._change("delete", key)


class Counted(Dying):
    """A store that counts the bytes that are read from it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, -1)
        self.bytes = 0

    def read(self, key: str) -> bytes:
        data = super().read(key)
        self.bytes += len(data)
        return data

    def read_part(self, key: str, start: int, end: int) -> bytes:
        data = super().read_part(key, start, end)
        self.bytes += len(data)
        return data


def test_what_is_done_is_read_without_the_images(dataset: Dataset) -> None:
    """A resumed run would read hundreds of MiB a shard, where the marker holds the images, for two short columns."""
    shard = make_shard(250)
    this = Attempt(dataset, shard, "run-1")
    cells = [
        {"id": row.id, "fingerprint": row.fingerprint, "seconds": 1.0, **this.add_image(row, os.urandom(20_000))}
        for row in shard.rows
    ]
    this.commit(cells, [], size=5_000_000, seconds=1.0, device="test")
    counted = Counted(dataset.store)
    assert len(done_rows(replace(dataset, store=counted), shard.id)) == 250
    receipt = rebuild_receipt(replace(dataset, store=counted), shard.id)
    assert receipt is not None and receipt.done == 250
    assert counted.bytes < 400_000


def test_verify_finds_a_snapshot_that_disagrees(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume trusts snapshots, so one that names other rows than the marker is a fault."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    receipt = attempt(dataset, make_shard(2))
    fold_receipts(dataset)
    assert verify_output(dataset.uri).faults == []
    write_snapshot(dataset.store, [(receipt, [DoneRow("row-0", "0" * 64), DoneRow("x", "f")])])
    (fault,) = verify_output(dataset.uri).faults
    assert NAME in fault and "snapshot" in fault


def test_a_damaged_snapshot_is_an_error_in_a_line(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """For who takes no notes of damage; else, and without it, the shards say the same."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    receipt = attempt(dataset, make_shard(2))
    fold_receipts(dataset)
    for name in dataset.store.names(SNAPSHOTS):
        whole = dataset.store.read(f"{SNAPSHOTS}/{name}")
        dataset.store.write(f"{SNAPSHOTS}/{name}", whole[: len(whole) // 2])
        if not name.endswith(".rows.parquet"):  # without which it is one of earlier code
            with pytest.raises(Damaged, match=rf"{name} is damaged.*verify --repair"):
                list(read_done(dataset, repair=False))
        ((found, rows),) = read_done(dataset, repair=False, damages=Damages())
        assert (found.done, len(rows)) == (2, 2)
        (fault,) = verify_output(dataset.uri).faults
        assert name in fault
        dataset.store.write(f"{SNAPSHOTS}/{name}", whole)
    for name in dataset.store.names(SNAPSHOTS):
        dataset.store.delete(f"{SNAPSHOTS}/{name}")
    ((found, rows),) = read_done(dataset, repair=True)
    assert replace(found, seconds=receipt.seconds) == receipt and len(rows) == 2


def test_receipts_of_version_1_are_read_and_folded(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """They named every done row, and their snapshots had no rows of their own."""
    made = [attempt(dataset, make_shard(3, f"{n:016x}", first=3 * n), failed=(1,)) for n in range(3)]
    done = {receipt.shard: done_rows(dataset, receipt.shard) for receipt in made}
    older = {receipt.shard: version_1(receipt, done[receipt.shard]) for receipt in made}
    for shard, text in older.items():
        dataset.store.write(f"{RECEIPTS}/{shard}.json", text.encode())
    assert list(read_receipts(dataset, repair=False)) == made
    dataset.store.delete(f"{RECEIPTS}/{made[0].shard}.json")
    dataset.store.delete(f"{RECEIPTS}/{made[1].shard}.json")
    stream = io.BytesIO()
    pq.write_table(pa.table({"shard": list(older)[:2], "receipt": list(older.values())[:2]}), stream)
    dataset.store.write(f"{SNAPSHOTS}/{1:020d}.parquet", stream.getvalue())
    for _ in range(2):
        assert {r.shard: r for r in read_receipts(dataset, repair=False)} == {r.shard: r for r in made}
        assert {r.shard: rows for r, rows in read_done(dataset, repair=False)} == done
        fold_receipts(dataset)
    (snapshot,) = list_snapshots(dataset.store)
    assert snapshot.has_rows and dataset.store.names(RECEIPTS) == []
    assert verify_output(dataset.uri).faults == []


def version_1(receipt: Receipt, done: DoneRows) -> str:
    """A receipt as the first release wrote it."""
    content = json.loads(receipt_to_json(receipt))
    failures = content.pop("failures")
    del content["done"]
    other = {"error_class": None, "error": None, "attempts": 1}
    rows = [{"id": id_, "fingerprint": print_, "status": "done", **other} for id_, print_, _ in done]
    return json.dumps({**content, "version": 1, "rows": [*rows, *({**row, "status": "failed"} for row in failures)]})


def test_what_is_removed_is_not_done(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a receipt nor a snapshot makes rows done whose shard is missing from data/."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    gone = attempt(dataset, make_shard(2, f"{0:016x}"))
    fold_receipts(dataset)
    failed = attempt(dataset, make_shard(2, f"{1:016x}", first=2), failed=(0, 1))
    for entry in list(dataset.store.entries("data")):
        dataset.store.delete(entry.key)
    if dataset.uri.startswith("/"):
        shutil.rmtree(Path(dataset.uri, "data"))
    assert list(read_done(dataset, repair=True)) == [(failed, [])]
    assert {r.shard for r in read_receipts(dataset, repair=False, missing=True)} == {gone.shard, failed.shard}


# Killed at every step


def attempt_and_die(uri: str, env: dict[str, str], layout: Layout, changes: int) -> None:
    """Make an attempt on a store that takes so many changes; module-level so that another process finds it."""
    os.environ.update(env)
    attempt(Dataset(store=Dying(open_store(uri), changes), format=make_format(layout)), make_shard(), failed=(1,))


@pytest.fixture(scope="module")
def warm() -> ForkServerContext:
    """Starts processes from one that has imported this module and opened nothing.

    A child of this process would share the epoll of its connections, and can make them deaf; an interpreter of its own
    imports for seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "s3fs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # it looks for what it preloads nowhere else
        forkserver.ensure_running()
    return context


def code_of_killed(warm: ForkServerContext, uri: str, layout: Layout, changes: int) -> int:
    """Exit code of a process that makes an attempt and is killed after so many changes of the store."""
    process = warm.Process(target=attempt_and_die, args=(uri, dict(os.environ), layout, changes))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store_uri", "dataset"),
    [
        ("local", Layout.FILES),
        ("local", Layout.PARQUET),
        pytest.param("s3", Layout.FILES, marks=pytest.mark.s3),  # whose changes are those of the other layout, and more
    ],
    indirect=True,
)
def test_killed_at_every_step(warm: ForkServerContext, store: Store, store_uri: str, dataset: Dataset) -> None:
    """After a kill between any two changes a reader sees nothing or the whole shard, and a new attempt completes it."""
    shard = make_shard()
    # ledger, marker, receipt, and with the layout `files` three images
    steps = 6 if dataset.layout.name is Layout.FILES else 3
    for changes in range(steps + 1):
        code = code_of_killed(warm, store_uri, Layout(dataset.layout.name), changes)
        assert code == (9 if changes < steps else 0)
        try:
            visible = table_of(dataset, shard)["id"].to_pylist()
        except NotFound:
            visible = []
        assert visible in ([], ["row-0", "row-2", "row-3"])
        assert verify_output(store_uri).faults == []
        receipt = attempt(dataset, shard, failed=(1,))
        assert done_ids(dataset) == ["row-0", "row-2", "row-3"]
        assert failed_ids(receipt) == ["row-1"]
        found = verify_output(store_uri, deep=True)
        assert (found.faults, found.rows, found.failed_rows) == ([], 3, 1)
        for entry in [entry for part in ("data", "failures", ".batchgen/receipts") for entry in store.entries(part)]:
            store.delete(entry.key)


class Cut(Dying):
    """The same in this process: what a kill leaves, without one."""

    def _end(self) -> None:
        raise KeyboardInterrupt


def cut_after(dataset: Dataset, changes: int) -> Dataset:
    return replace(dataset, store=Cut(dataset.store, changes))


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(Layout))
def test_folding_killed_at_every_step(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of receipts and snapshots is there, the same rows are done, and folding again completes it."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 2)
    monkeypatch.setattr(progress, "SNAPSHOT_SHARDS", 2)
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(layout), create=True)
    for number in range(4):
        attempt(dataset, make_shard(2, f"{number:016x}", first=2 * number), failed=(1,) * (number == 3))
    expected = sorted((r.shard, r.done, r.failed, rows) for r, rows in read_done(dataset, repair=False))
    for changes in range(8):  # two snapshots of two files, and four receipts to delete
        with pytest.raises(KeyboardInterrupt):
            fold_receipts(cut_after(dataset, changes))
        assert sorted((r.shard, r.done, r.failed, rows) for r, rows in read_done(dataset, repair=False)) == expected
        assert verify_output(dataset.uri).faults == []
        for receipt in list(read_receipts(dataset, repair=False)):
            write_books(dataset, receipt)
        for snapshot in list_snapshots(dataset.store):
            snapshot.delete()
    fold_receipts(cut_after(dataset, 8))
    assert dataset.store.names(RECEIPTS) == []
    assert sorted((r.shard, r.done, r.failed, rows) for r, rows in read_done(dataset, repair=False)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("dropped", [1, 3])
@pytest.mark.parametrize("layout", list(Layout))
def test_superseding_killed_at_every_step(
    tmp_path: Path, layout: Layout, dropped: int, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts as done is what the marker holds, also where a snapshot knows better; doing it again completes it."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    shard = make_shard(4)
    pairs = {(row.id, row.fingerprint) for row in shard.rows[:dropped]}
    for changes in range(4):  # ledger, receipt and marker
        dataset = Dataset.begin(open_store(str(tmp_path / f"out-{changes}")), make_format(layout), create=True)
        receipt = attempt(dataset, shard, failed=(3,))
        if folded:
            fold_receipts(dataset)
        with pytest.raises(KeyboardInterrupt) if changes < 3 else nullcontext():
            drop_rows(cut_after(dataset, changes), receipt, pairs)
        stored = [(row.cells["id"], row.cells["fingerprint"]) for row in dataset.rows()]
        assert len(stored) == (3 if changes < 3 else 3 - dropped)
        assert [row[:2] for _, rows in read_done(dataset, repair=False) for row in rows] == stored
        list(read_done(dataset, repair=True))  # what the next run does first
        assert verify_output(dataset.uri).faults == []
        drop_rows(dataset, next(iter(read_receipts(dataset, repair=False))), pairs)
        ((receipt, rows),) = read_done(dataset, repair=False)
        assert len(rows) == receipt.done == 3 - dropped and receipt.failed == 1
        assert verify_output(dataset.uri).faults == []


def test_a_row_that_a_late_attempt_made_is_not_failed(tmp_path: Path) -> None:
    """A worker given up for dead commits after all, and dies before its receipt: the next run sets the books right."""
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    shard = make_shard(2)
    commit_failures(
        dataset, shard, "run-1", [failed_row(row, ErrorClass("worker-died"), "died", 3) for row in shard.rows]
    )
    with pytest.raises(KeyboardInterrupt):
        attempt(cut_after(dataset, 3), shard)  # two images and the marker
    (fault,) = verify_output(dataset.uri).faults
    assert f"failures/{shard.id}.parquet" in fault
    (known,) = read_receipts(dataset, repair=False)
    assert (known.done, known.failed) == (2, 0)
    ((receipt, rows),) = read_done(dataset, repair=True)
    assert (len(rows), receipt.done, receipt.failed) == (2, 2, 0)
    assert verify_output(dataset.uri).faults == []


@pytest.mark.s3
@pytest.mark.parametrize("layout", list(Layout))
def test_a_lost_answer_is_one_committed_shard(s3_bucket: str, s3_server: S3Server, layout: Layout) -> None:
    """Marker created, answer lost: the client's retry is refused, and the attempt knows it was its own."""
    shard = make_shard()
    with fault_proxy(
        s3_server, [Fault(kind=Kind.LOST_ANSWER, method="PUT", key=f"*{find_layout(layout).marker_key(shard.id)}")]
    ) as p:
        store = open_store(s3_bucket, {"endpoint_url": p.server.endpoint})
        dataset = Dataset.begin(store, make_format(layout), create=True)
        receipt = attempt(dataset, shard)
        assert p.met(Kind.LOST_ANSWER) == 1
    direct = open_store(s3_bucket, {"endpoint_url": s3_server.endpoint})
    marker = pq.read_schema(io.BytesIO(direct.read(dataset.layout.marker_key(shard.id))))
    assert receipt.attempt.encode() in marker.metadata[b"batchgen"]
    assert receipt.done == 4
    found = verify_output(s3_bucket)
    assert (found.faults, found.rows, found.strays) == ([], 4, 0)


@pytest.mark.s3
@pytest.mark.parametrize("layout", list(Layout))
def test_a_lost_answer_before_lasting_errors_is_no_reason_to_generate_again(
    s3_bucket: str, s3_server: S3Server, layout: Layout
) -> None:
    """Incident: marker created, answer lost, and every retry refused as unavailable: a whole shard was made again."""
    shard = make_shard()
    marker = f"*{find_layout(layout).marker_key(shard.id)}"
    faults = [
        Fault(kind=Kind.LOST_ANSWER, method="PUT", key=marker),
        Fault(kind=Kind.UNAVAILABLE, method="PUT", key=marker, times=None),
    ]
    with fault_proxy(s3_server, faults) as p:
        store = open_store(s3_bucket, {"endpoint_url": p.server.endpoint}, quick=True)
        receipt = attempt(Dataset.begin(store, make_format(layout), create=True), shard, failed=(1,))
        assert p.met(Kind.LOST_ANSWER) == 1 and p.met(Kind.UNAVAILABLE) >= 1
    assert (receipt.done, receipt.failed) == (3, 1)
    found = verify_output(s3_bucket)
    assert (found.faults, found.rows, found.failed_rows, found.strays) == ([], 3, 1, 0)


@pytest.mark.s3
def test_a_marker_that_never_landed_is_an_error(s3_bucket: str, s3_server: S3Server) -> None:
    """Where nothing is found at the marker's place the store's own error stands, and the shard is not committed."""
    shard = make_shard()
    with fault_proxy(
        s3_server, [Fault(kind=Kind.UNAVAILABLE, method="PUT", key=f"*{shard.id}/metadata.parquet", times=None)]
    ) as p:
        store = open_store(s3_bucket, {"endpoint_url": p.server.endpoint}, quick=True)
        dataset = Dataset.begin(store, make_format(), create=True)
        with pytest.raises(StoreError, match=r"metadata\.parquet"):
            attempt(dataset, shard)
    dataset = replace(dataset, store=open_store(s3_bucket, {"endpoint_url": s3_server.endpoint}))
    assert list(read_receipts(dataset, repair=False)) == [] and list(dataset.rows()) == []


@pytest.mark.s3
def test_books_that_cannot_be_written_undo_no_commit(s3_bucket: str, s3_server: S3Server) -> None:
    """The marker exists, ledger and receipt do not: the shard is done, and its books are rebuilt from it."""
    shard = make_shard()
    with fault_proxy(
        s3_server,
        [
            Fault(kind=Kind.UNAVAILABLE, method="PUT", key=f"*{part}*", times=None)
            for part in ("/failures/", "/receipts/")
        ],
    ) as p:
        store = open_store(s3_bucket, {"endpoint_url": p.server.endpoint}, quick=True)
        receipt = attempt(Dataset.begin(store, make_format(), create=True), shard, failed=(1,))
    assert (receipt.done, receipt.failed) == (3, 1)
    dataset = Dataset.open(open_store(s3_bucket, {"endpoint_url": s3_server.endpoint}))
    assert dataset.store.names(RECEIPTS) == []
    (rebuilt,) = read_receipts(dataset, repair=True)
    assert (rebuilt.done, rebuilt.failures) == (receipt.done, receipt.failures)
    assert dataset.store.names(RECEIPTS) == [f"{shard.id}.json"]
    assert dataset.store.names("failures") == [f"{shard.id}.parquet"]


# What `verify` finds


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def local(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Dataset]:
    """A local output of each layout with two shards."""
    store = open_store(str(tmp_path / "out"))
    dataset = Dataset.begin(store, make_format(request.param), create=True)
    for number in range(2):
        attempt(dataset, make_shard(3, f"{number:016x}", first=3 * number))
    assert verify_output(store.uri).ok
    return tmp_path / "out", dataset


def test_verify_finds_every_flipped_byte(local: tuple[Path, Dataset]) -> None:
    """A byte flipped anywhere in an image is a fault that names the place; in a marker it is never a traceback."""
    root, dataset = local
    if dataset.layout.name is Layout.FILES:
        for file in root.glob("data/*/*/*.png"):
            flip(file, file.stat().st_size // 2)
            (fault,) = verify_output(dataset.uri).faults
            assert file.name in fault
            flip(file, file.stat().st_size // 2)
        return
    marker = root / dataset.layout.marker_key(f"{0:016x}")
    place = marker.read_bytes().index(image(1)) + 30
    flip(marker, place)
    (fault,) = verify_output(dataset.uri).faults
    assert marker.name in fault and "checksum" in fault  # of the page, before any image is hashed


@pytest.mark.slow
def test_verify_survives_a_damaged_marker(local: tuple[Path, Dataset]) -> None:
    """Whatever byte of a marker is damaged, `verify` says so or finds nothing, and never breaks off."""
    root, dataset = local
    marker = root / dataset.layout.marker_key(f"{0:016x}")
    size = marker.stat().st_size
    faults = 0
    for place in range(4, size, max(1, size // 60)):
        flip(marker, place)
        faults += not verify_output(dataset.uri).ok
        flip(marker, place)
    assert faults > 10
    marker.write_bytes(marker.read_bytes()[: size // 2])
    assert str(marker.relative_to(root)) in verify_output(dataset.uri).faults[0]


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)


def test_a_damaged_marker_is_a_store_error(local: tuple[Path, Dataset]) -> None:
    """Resume meets a damaged marker without its receipt: an error that names it, not a traceback."""
    root, dataset = local
    dataset.store.delete(f"{RECEIPTS}/{0:016x}.json")
    marker = root / dataset.layout.marker_key(f"{0:016x}")
    for place in range(8, marker.stat().st_size, max(1, marker.stat().st_size // 40)):
        flip(marker, place)
        try:
            list(read_receipts(dataset, repair=False))
        except StoreError as error:
            assert f"{0:016x}" in str(error)
        flip(marker, place)


def test_verify_finds_what_is_missing(local: tuple[Path, Dataset]) -> None:
    """A deleted image, and a deleted marker that a receipt speaks of."""
    root, dataset = local
    if dataset.layout.name is Layout.FILES:
        next(root.glob(f"data/{1:016x}/*/row-4.png")).unlink()
        (fault,) = verify_output(dataset.uri).faults
        assert "row-4.png" in fault
    dataset.store.delete(dataset.layout.marker_key(f"{0:016x}"))
    assert any("marker is missing" in fault for fault in verify_output(dataset.uri).faults)


def test_verify_finds_a_row_twice(local: tuple[Path, Dataset]) -> None:
    """The same rows committed under another shard's name: every id that is there twice is named."""
    _, dataset = local
    attempt(dataset, make_shard(3, "f" * 16))
    faults = verify_output(dataset.uri).faults
    assert len(faults) == 3
    assert all(f"'row-{n}'" in " ".join(faults) for n in range(3))


def test_verify_finds_another_schema(local: tuple[Path, Dataset]) -> None:
    """A marker whose columns are not the output's breaks readers that join shards."""
    _, dataset = local
    other = new_format(dataset.layout.name, ImageFormat.PNG, {"other": pa.int64()})
    attempt(replace(dataset, format=other), make_shard(3, "e" * 16, first=9))
    (fault,) = verify_output(dataset.uri).faults
    assert "schema" in fault


def test_verify_finds_a_receipt_that_disagrees(local: tuple[Path, Dataset]) -> None:
    """Resume trusts receipts, so one that says other than its marker is a fault."""
    _, dataset = local
    receipt = next(r for r in read_receipts(dataset, repair=False) if r.shard == f"{0:016x}")
    write_books(dataset, replace(receipt, done=receipt.done + 1))
    (fault,) = verify_output(dataset.uri).faults
    assert f"{0:016x}" in fault and "counts 4" in fault
    row = make_shard(3).rows[2]
    write_books(dataset, replace(receipt, failures=[failed_row(row, ErrorClass("nan"), "not a number")]))
    (fault,) = verify_output(dataset.uri).faults
    assert f"{0:016x}" in fault and "failed" in fault


def test_clean_removes_strays_of_committed_shards_alone(tmp_path: Path) -> None:
    """Images of an uncommitted shard may belong to an attempt that is under way, so they stay."""
    store = open_store(str(tmp_path / "out"))
    dataset = Dataset.begin(store, make_format(), create=True)
    attempt(dataset, make_shard())
    attempt(dataset, make_shard())
    under_way = make_shard(2, "a" * 16, first=10)
    Attempt(dataset, under_way, "run-2").add_image(under_way.rows[0], image(1))
    assert verify_output(store.uri).strays == 5
    found = verify_output(store.uri, clean=True)
    assert (found.strays, found.removed, found.faults) == (5, 4, [])
    found = verify_output(store.uri, deep=True)
    assert (found.strays, found.rows, found.decoded, found.faults) == (1, 4, 4, [])


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int8(), pa.string()), pa.timestamp("ns"), pa.timestamp("s", "UTC"), pa.large_string(),
        pa.uint64(), pa.decimal128(10, 2), pa.struct([("a", pa.int8())]), pa.map_(pa.string(), pa.int32()),
        pa.date32(), pa.binary(), pa.float16(), pa.list_(pa.null()), pa.duration("us"),
    ],
    ids=str,
)  # fmt: skip
def test_carried_types_come_back(tmp_path: Path, kind: pa.DataType) -> None:
    """A carried column of any type that a Parquet manifest can have ends in the type that the output's schema names."""
    pq.write_table(pa.table({"x": pa.nulls(1, kind)}), tmp_path / "manifest.parquet")
    carried = {"x": pq.read_schema(tmp_path / "manifest.parquet").field("x").type}
    store = open_store(str(tmp_path / "out"))
    dataset = Dataset.begin(store, new_format(Layout.FILES, ImageFormat.PNG, carried), create=True)
    shard = make_shard()
    attempt(dataset, replace(shard, rows=[replace(row, carried={}) for row in shard.rows]))
    assert verify_output(store.uri).faults == []
