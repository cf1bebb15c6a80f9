"""Carried columns of done rows follow the manifest: found cheaply, changed by one overwrite of a marker, counted."""

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RunCli
from test_commit import attempt, cut_after, make_format, make_shard
from test_kept_outputs import KEPT, markers, numbers, outputs, verified
from test_plan import fill

from batchgen.dataset import progress
from batchgen.dataset.carried import compare_carried, computed_prints, marker_prints, said_prints
from batchgen.dataset.commit import drop_rows, update_carried
from batchgen.dataset.dataset import Dataset, Marker
from batchgen.dataset.facts import MarkerFacts
from batchgen.dataset.format import new_format
from batchgen.dataset.progress import fold_receipts, read_done, read_receipts
from batchgen.dataset.receipts import RECEIPTS
from batchgen.dataset.snapshots import SNAPSHOTS, list_snapshots
from batchgen.dataset.tables import about
from batchgen.dataset.verify import verify_output
from batchgen.errors import InputError
from batchgen.index import Committed, Index
from batchgen.options import ImageFormat, Layout
from batchgen.rows import Row, Status
from batchgen.storage import open_store

layouts = pytest.mark.parametrize("layout", list(Layout))


def begin(root: Path, layout: Layout = Layout.FILES) -> Dataset:
    return Dataset.begin(open_store(str(root)), make_format(layout), create=True)


def outdated(dataset: Dataset, rows: list[Row]) -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """What a run over these rows would bring up to date, by shard and id."""
    with Index() as index:
        fill(index, rows)
        for receipt, done in read_done(dataset, repair=False):
            index.mark(
                Committed(
                    id=row.id, fingerprint=row.fingerprint, shard=receipt.shard, status=Status.DONE, carried=row[2]
                )
                for row in done
            )
        count = compare_carried(dataset, index)
        found: dict[str, Mapping[str, Mapping[str, Any]]] = dict(index.outdated())
        assert count == sum(map(len, found.values()))
        return found


def cells(dataset: Dataset) -> dict[str, tuple[Any, ...]]:
    return {row.cells["id"]: tuple(row.cells[name] for name in dataset.format.carried) for row in dataset.rows()}


def without_prints(dataset: Dataset) -> None:
    """Markers as earlier code wrote them."""
    for shard in dataset.shards():
        marker = dataset.marker(shard, images=True)
        assert marker is not None
        own = {name: value for name, value in (about(marker.table.schema) or {}).items() if name != "carried_prints"}
        table = marker.table.replace_schema_metadata({**marker.table.schema.metadata, b"batchgen": json.dumps(own)})
        dataset.store.write(dataset.layout.marker_key(shard), dataset.layout.encode(table))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("folded", [False, True])
@layouts
def test_changed_cells_are_found_and_updated(
    tmp_path: Path, layout: Layout, folded: bool, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: the label of two rows was corrected, `run` said done, and the dataset kept the old one.

    From receipts, snapshots, and outputs whose markers and snapshots say no prints; images stay as they are.
    """
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    dataset = begin(tmp_path / "out", layout)
    shard = make_shard(4)
    attempt(dataset, shard)
    before = {row.cells["id"]: row.image() for row in dataset.rows()}
    if earlier:
        without_prints(dataset)
    if folded:
        fold_receipts(dataset)
    rows = list(shard.rows)
    assert outdated(dataset, rows) == {}
    rows[1] = replace(rows[1], carried={"split": "test", "weight": 2})
    rows[2] = replace(rows[2], carried={})
    found = outdated(dataset, rows)
    assert found == {shard.id: {"row-1": rows[1].carried, "row-2": {}}}
    update_carried(dataset, next(iter(read_receipts(dataset, repair=False))), found[shard.id])
    assert cells(dataset) == {
        "row-0": ("train", ["a", "ü"], None), "row-1": ("test", None, 2.0), "row-2": (None, None, None),
        "row-3": ("train", ["a", "ü"], None),
    }  # fmt: skip
    assert {row.cells["id"]: row.image() for row in dataset.rows()} == before
    fold_receipts(dataset)
    assert outdated(dataset, rows) == {}
    assert verify_output(dataset.uri, deep=True).faults == []


@layouts
def test_updating_killed_at_every_step(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receipt first: from then on no snapshot is asked, so that what is not yet changed is found again."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    for changes in range(4):
        dataset = begin(tmp_path / f"out-{changes}", layout)
        shard = make_shard(4)
        receipt = attempt(dataset, shard, failed=(3,))
        fold_receipts(dataset)
        rows = [replace(row, carried={"split": "new"}) for row in shard.rows]
        found = outdated(dataset, rows)
        with pytest.raises(KeyboardInterrupt) if changes < 3 else nullcontext():
            update_carried(cut_after(dataset, changes), receipt, found[shard.id])
        assert outdated(dataset, rows) == (found if changes < 3 else {})
        assert {found[0] for found in cells(dataset).values()} == ({"train"} if changes < 3 else {"new"})
        assert verify_output(dataset.uri).faults == []


def test_a_row_that_leaves_its_shard_takes_its_print_along(tmp_path: Path) -> None:
    """Superseding cuts the marker's prints with its rows."""
    dataset, shard = begin(tmp_path / "out"), make_shard(4)
    receipt = attempt(dataset, shard)
    drop_rows(dataset, receipt, {(shard.rows[0].id, shard.rows[0].fingerprint)})
    marker = dataset.marker(shard.id)
    assert marker is not None and len(said_prints(marker) or ()) == 3
    assert outdated(dataset, list(shard.rows)) == {}
    assert verify_output(dataset.uri).faults == []


def test_older_snapshots_are_folded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose rows have no prints; until then the markers are asked."""
    monkeypatch.setattr(progress, "FOLD_ABOVE", 0)
    dataset, shard = begin(tmp_path / "out"), make_shard(4)
    attempt(dataset, shard)
    fold_receipts(dataset)
    (path,) = (tmp_path / "out" / SNAPSHOTS).glob("*.rows.parquet")
    pq.write_table(pq.read_table(path).drop_columns("carried"), path)
    rows = [replace(row, carried={"split": "new"}) for row in shard.rows]
    assert len(outdated(dataset, rows)[shard.id]) == 4
    fold_receipts(dataset)
    (snapshot,) = list_snapshots(dataset.store)
    assert snapshot.has_prints() and dataset.store.names(RECEIPTS) == []
    assert len(outdated(dataset, rows)[shard.id]) == 4


def test_verify_compares_cells_and_what_is_said_of_them(tmp_path: Path) -> None:
    dataset, shard = begin(tmp_path / "out"), make_shard(2)
    attempt(dataset, shard)
    key = dataset.layout.marker_key(shard.id)
    marker = dataset.marker(shard.id)
    assert marker is not None
    place = marker.table.schema.get_field_index("split")
    other = marker.table.set_column(place, marker.table.schema.field("split"), pa.array(["x", "x"]))
    dataset.store.write(key, dataset.layout.encode(other))
    (fault,) = verify_output(dataset.uri).faults
    assert key in fault and "carried columns" in fault


CELLS: Mapping[str, tuple[pa.DataType, Any]] = {
    "text": (pa.string(), "猫\n'"),
    "json": (pa.string(), {"b": [1], "a": None}),
    "whole": (pa.int64(), 2**63 - 1),
    "number": (pa.float64(), 3),
    "half": (pa.float32(), 0.1),
    "flag": (pa.bool_(), True),
    "raw": (pa.binary(), b"\x00" * 1000),
    "list": (pa.list_(pa.int8()), [1, None]),
    "struct": (pa.struct([("a", pa.string()), ("b", pa.timestamp("us", "UTC"))]), {"a": "x", "b": None}),
    "map": (pa.map_(pa.string(), pa.int32()), [("k", 1)]),
    "seconds": (pa.timestamp("s"), datetime(2026, 11, 27)),
    "when": (pa.timestamp("us", "UTC"), datetime(2026, 11, 27, tzinfo=UTC)),
    "price": (pa.decimal128(10, 2), Decimal("1.50")),
    "class": (pa.dictionary(pa.int32(), pa.string()), "solid"),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_of_every_type_have_one_print(name: str, tmp_path: Path) -> None:
    """As committed, as read back, and as the manifest's reader gives them."""
    kind, cell = CELLS[name]
    output = new_format(Layout.FILES, ImageFormat.PNG, {"cell": kind})
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), output, create=True)
    shard = make_shard(2)
    rows = [replace(shard.rows[0], carried={"cell": cell}), replace(shard.rows[1], carried={})]
    attempt(dataset, replace(shard, rows=tuple(rows)))
    marker = dataset.marker(shard.id)
    assert marker is not None
    assert said_prints(marker) == computed_prints(marker, output.carried) == marker_prints(dataset, marker)
    assert outdated(dataset, rows) == {}
    assert outdated(dataset, [replace(rows[0], carried={}), rows[1]]) != {}


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (pa.timestamp("s"), pa.int64()),
        (pa.list_(pa.timestamp("s")), pa.list_(pa.int64())),
        (pa.struct([("at", pa.list_(pa.timestamp("s")))]), pa.struct([("at", pa.list_(pa.int64()))])),
        (pa.map_(pa.string(), pa.timestamp("s")), pa.map_(pa.string(), pa.int64())),
    ],
    ids=str,
)
def test_times_that_python_has_not_have_prints_of_their_own(kind: pa.DataType, numbers: pa.DataType) -> None:
    """Incident: times beyond the year 9999 in a list had one print, and a changed one was left as it was."""

    def print_of(second: int) -> str:
        times = [*range(400_000_000_000, 400_000_000_050), second]
        cell: Any = second
        if pa.types.is_list(kind):
            cell = times
        elif pa.types.is_struct(kind):
            cell = {"at": times}
        elif pa.types.is_map(kind):
            cell = [(str(place), one) for place, one in enumerate(times)]
        table = pa.table({"id": ["a"], "cell": pa.array([cell], numbers).cast(kind)})
        facts = MarkerFacts(attempt="", run="", key="", finished=0.0, bytes=0, failed=(), schema_version=3)
        (found,) = computed_prints(Marker(shard="s", facts=facts, table=table), {"cell": kind})
        return found

    assert print_of(400_000_000_100) == print_of(400_000_000_100) != print_of(400_000_000_101)


def test_a_cell_that_no_longer_fits_is_named(tmp_path: Path) -> None:
    dataset, shard = begin(tmp_path / "out"), make_shard(2)
    attempt(dataset, shard)
    with pytest.raises(InputError, match=r"m\.csv, row 1, column 'weight'"):
        outdated(dataset, [shard.rows[0], replace(shard.rows[1], carried={"weight": "heavy"})])


@pytest.mark.slow
@outputs
def test_a_label_of_a_kept_output_is_corrected(name: str, tmp_path: Path, batchgen: RunCli) -> None:
    """Outputs made before prints were kept: three labels (one of two images) change, no worker starts."""
    kept = Path(shutil.copytree(KEPT, tmp_path / "moved"))
    output = kept / name
    made = {path: path.read_bytes() for path in output.rglob("*.png")}
    text = (kept / "rows.jsonl").read_text()
    (kept / "rows.jsonl").write_text(text.replace('"label": "solid"', '"label": "firm"'))
    plan = json.loads(batchgen("plan", kept / f"{name}.toml", "--json").stdout)
    assert (plan["pending"], plan["outdated"]) == (0, 3)
    result = batchgen("run", kept / f"{name}.toml", here=True)
    assert result.returncode == 1, result.stderr  # the row that failed is still reported
    assert "carried columns of 3 done rows" in result.stderr and "3 updated" in result.stderr
    labels = [label for path in markers(output) for label in pq.read_table(path)["label"].to_pylist()]
    assert sorted(map(str, labels)) == ["None", "changed", "firm", "firm", "firm"]
    assert {path: path.read_bytes() for path in output.rglob("*.png")} == made
    assert all(about(pq.read_schema(path)) for path in markers(output))
    assert numbers(batchgen, output) == (6, 5, 1, 0)
    assert verified(batchgen, output) == (5, 1)
    again = batchgen("run", kept / f"{name}.toml", here=True)
    assert "updat" not in again.stderr
