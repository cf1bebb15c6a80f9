"""The dataset card: every line of code in it runs, and leads from rows to images."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image
from test_commit import attempt, make_format, make_shard
from test_dataset import TarLayout, older

from batchgen.dataset import layouts
from batchgen.dataset.card import write_card
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.verify import verify_output
from batchgen.options import Layout
from batchgen.reading import open_input
from batchgen.storage import Store

PLACEHOLDER = "PATH OF THIS FOLDER"


@pytest.fixture
def _cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")  # for polars: the tests' server has no certificate


def read_card(dataset: Dataset) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The card's Python run, then its SQL; the names that were left, and the SQL's rows, if it has any."""
    write_card(dataset, images=3, failed=0, models=["builtin"])
    card = dataset.store.read("README.md").decode().replace(PLACEHOLDER, dataset.uri)
    names: dict[str, Any] = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    sql = card.partition("```sql\n")[2].partition("```")[0]
    rows = duckdb.sql(sql) if sql else names.get("rows")
    return names, [] if rows is None else rows.fetchall()


def size(place: str) -> tuple[int, int]:
    with open_input(place) as stream, Image.open(stream) as image:
        return image.size


@pytest.mark.usefixtures("_cached")
@pytest.mark.parametrize("layout", list(Layout))
def test_every_line_of_the_card_runs(store: Store, layout: Layout) -> None:
    """In a folder and in a bucket, in both layouts; rows lead to their images by one plain expression."""
    dataset = Dataset.begin(store, make_format(layout), create=True)
    attempt(dataset, make_shard(3))
    names, rows = read_card(dataset)
    assert names["frame"]["seed"].tolist() == names["table"]["seed"].to_list() == [row[1] for row in rows] == [0, 1, 2]
    assert names["image"].size == (8, 8)
    if "dataset" in names:
        assert names["dataset"][1]["image"].size == (8, 8)
    else:
        assert layout is Layout.FILES and store.uri.startswith("s3://")
    if layout is Layout.FILES:
        assert {size(row[-1]) for row in rows} == {(8, 8)}
        paths = names["frame"]["picture_path"].tolist()
        assert [row[-1] for row in rows] == [f"{store.uri}/{path}" for path in paths]
        if not store.uri.startswith("s3://"):
            assert names["images"].tolist() == names["table"]["image"].to_list() == [row[-1] for row in rows]


@pytest.mark.usefixtures("_cached")
def test_a_layouts_lines_are_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: the card of a third layout told pandas, Polars and DuckDB to read its tars as Parquet."""
    monkeypatch.setitem(layouts.LAYOUTS, TarLayout.name, TarLayout())
    dataset = Dataset.begin(store, make_format(TarLayout.name), create=True)
    attempt(dataset, make_shard(3))
    names, _ = read_card(dataset)
    assert names["frame"]["seed"].tolist() == [0, 1, 2]
    assert names["image"].size == (8, 8)
    card = store.read("README.md").decode()
    assert "- `data/*.tar`: one row an image" in card
    assert not [word for word in ("load_dataset", "polars", "duckdb", "SELECT", "picture_path") if word in card]


@pytest.mark.usefixtures("_cached")
def test_the_card_of_an_older_output(store: Store) -> None:
    """It has no column of paths, and its card speaks of none."""
    begun = older(Dataset.begin(store, make_format(), create=True), without={"picture_path"})
    attempt(begun, make_shard(3))
    names, rows = read_card(begun)
    assert len(names["frame"]) == len(rows) == 3 and "picture_path" not in names["frame"]
    assert verify_output(store.uri).faults == []


def test_a_path_that_leads_elsewhere_is_a_fault(tmp_path: Path) -> None:
    from batchgen.dataset.tables import decode_table, encode_table
    from batchgen.storage import open_store

    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    shard = make_shard(1)
    attempt(dataset, shard)
    marker = tmp_path / "out" / dataset.layout.marker_key(shard.id)
    table = decode_table(marker.open("rb"))
    place = table.schema.get_field_index("picture_path")
    marker.write_bytes(encode_table(table.set_column(place, table.schema.field(place), [["data/x.png"]])))
    (fault,) = verify_output(dataset.uri).faults
    assert "picture_path says 'data/x.png'" in fault
