"""A dataset through its public door, in both layouts and in one that only this test knows."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import RunCli
from PIL import Image
from test_commit import CARRIED, attempt, image, make_format, make_shard

from batchgen import open_dataset
from batchgen.dataset import layouts
from batchgen.dataset.begun import RECORD
from batchgen.dataset.commit import Attempt, drop_rows
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import new_format
from batchgen.dataset.layouts.layout import IMAGE, DatasetLayout
from batchgen.dataset.progress import read_receipts
from batchgen.dataset.receipts import RECEIPTS
from batchgen.dataset.tables import decode_table, encode_table
from batchgen.dataset.verify import verify_output
from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, RESERVED
from batchgen.options import ImageFormat, Layout
from batchgen.storage import Store, open_store


class TarLayout(DatasetLayout):
    """A third layout: a tar of the images and a table that names them, `data/<shard>.tar`."""

    name = "tar"
    image = pa.field("image", IMAGE)
    side_image = pa.field("image", IMAGE)
    in_marker = frozenset({"image", "step_images", "control_images"})
    objects_a_row = 0
    glob = "data/*.tar"
    card_config = "data_files: data/*.tar"
    python = """

import tarfile
import pandas
def metadata(key):
    with opened(key, "rb") as stream, tarfile.open(fileobj=stream) as tar:
        return pandas.read_parquet(tar.extractfile("metadata.parquet"))
frame = pandas.concat(map(metadata, keys))"""

    def marker_key(self, shard: str) -> str:
        return f"data/{shard}.tar"

    def shard_of(self, name: str) -> str:
        return name.removesuffix(".tar")

    def add_image(self, store: Store, shard: str, attempt: str, name: str, data: bytes) -> dict[str, Any]:
        return {"bytes": data, "path": name}

    def image_key(self, shard: str, cell: Any) -> str:
        return self.marker_key(shard)

    def image_bytes(self, store: Store, shard: str, cell: Any) -> bytes:
        data: bytes = cell["bytes"]
        return data

    def python_in_folder(self, path: str | None) -> str:
        return f"""from glob import glob\nkeys, opened = glob(f"{{folder}}/{self.glob}"), open{self.python}"""

    def python_in_bucket(self, path: str | None) -> str:
        return f"""keys, opened = store.glob(f"{{folder}}/{self.glob}"), store.open{self.python}"""

    def sql_in_folder(self, folder: str, path: str | None) -> str:
        return ""

    def encode(self, table: pa.Table) -> bytes:
        cells = table["image"].to_pylist()
        named = pa.array([{"bytes": None, "path": cell["path"]} for cell in cells], IMAGE)
        bare = table.set_column(table.schema.get_field_index("image"), self.image, named)
        members = {"metadata.parquet": encode_table(bare), **{cell["path"]: cell["bytes"] for cell in cells}}
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return stream.getvalue()

    def read(
        self, store: Store, shard: str, *, columns: Collection[str] | None = None, images: bool = False
    ) -> pa.Table:
        with tarfile.open(fileobj=io.BytesIO(store.read(self.marker_key(shard)))) as tar:
            members = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        without = frozenset() if images else self.in_marker
        table = decode_table(io.BytesIO(members["metadata.parquet"]), columns=columns, without=without)
        if "image" not in table.schema.names:
            return table
        filled = [{**cell, "bytes": members[cell["path"]]} for cell in table["image"].to_pylist()]
        return table.set_column(table.schema.get_field_index("image"), self.image, pa.array(filled, IMAGE))

    def read_schema(self, store: Store, shard: str) -> pa.Schema:
        return self.read(store, shard, images=True).schema


@pytest.fixture(params=[*Layout, TarLayout.name])
def dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A local dataset of each layout with two shards of three rows, one of which failed."""
    monkeypatch.setitem(layouts.LAYOUTS, TarLayout.name, TarLayout())
    begun = Dataset.begin(open_store(str(tmp_path / "out")), make_format(request.param), create=True)
    for number in range(2):
        attempt(begun, make_shard(3, f"{number:016x}", first=3 * number), failed=(1,) * number)
    return begun


def test_every_layout_is_registered() -> None:
    """A value that flags and job keys offer has its class, under its own name, and no class is left without one."""
    assert set(layouts.LAYOUTS) == set(Layout)
    assert [layout.name for layout in layouts.LAYOUTS.values()] == list(layouts.LAYOUTS)
    for layout in layouts.LAYOUTS.values():
        names = {field.name for field in (layout.image, layout.image_path) if field is not None}
        assert names <= RESERVED | COLUMNS.keys(), "a manifest may carry a column of that name"


def test_rows_come_with_their_images(dataset: Dataset) -> None:
    """The public iterator gives the metadata and the very bytes that were stored, whatever the layout."""
    found = {row.cells["id"]: row for row in open_dataset(dataset.uri).rows()}
    assert list(found) == ["row-0", "row-1", "row-2", "row-3", "row-5"]
    for number in (0, 1, 2, 3, 5):
        row = found[f"row-{number}"]
        assert row.image() == image(number)
        assert row.cells["sha256"] == hashlib.sha256(image(number)).hexdigest()
        assert (row.cells["tags"], row.cells["seed"], row.step_images()) == (["a", "ü"], number, {})
    images = {row.cells["id"]: image for row, image in open_dataset(dataset.uri).images()}
    assert {name: image.size for name, image in images.items()} == dict.fromkeys(found, (8, 8))
    assert images["row-3"].getpixel((4, 4)) == (3, 3, 3)


def test_images_beside_a_rows_own(dataset: Dataset) -> None:
    """Images after steps come by step, what ControlNets were given by name, and damage to one is found."""
    shard = make_shard(1, "b" * 16, first=8)
    this = Attempt(dataset, shard, "run-1")
    step = {"step": 2, **this.add_side_image(shard.rows[0], image(9), "step-002")}
    control = {"name": "control_image", **this.add_side_image(shard.rows[0], image(10), "control_image")}
    cells: dict[str, Any] = {
        "id": "row-8", "fingerprint": shard.rows[0].fingerprint, "width": 8, "height": 8, "device": "test",
        "seconds": 1.0, "sha256": hashlib.sha256(image(8)).hexdigest(), **this.add_image(shard.rows[0], image(8)),
    }  # fmt: skip
    wrong = {**control, "sha256": hashlib.sha256(image(7)).hexdigest()}
    made = {**cells, "step_images": [step], "control_images": [wrong]}
    this.commit([made], [], size=1, seconds=1.0, device="test")
    (row,) = [row for row in dataset.rows() if row.cells["id"] == "row-8"]
    assert row.image() == image(8) and row.step_images() == {2: image(9)}
    assert row.control_images() == {"control_image": image(10)}
    (fault,) = verify_output(dataset.uri, clean=True).faults
    assert row.control_images() == {"control_image": image(10)}, "no stray"
    assert "row-8" in fault and "sha256" in fault


def test_the_metadata_as_tables(dataset: Dataset) -> None:
    """Without the images' bytes, in the schema's order, and as pandas where the user wants it."""
    table = dataset.to_table()
    assert table.num_rows == 5 and "image" not in table.schema.names and "prompt" in table.schema.names
    few = dataset.to_table(["seed", "id"])
    assert few.schema.names == ["id", "seed"]
    frame = dataset.to_pandas(["id", "split"])
    assert frame["id"].tolist() == table["id"].to_pylist() and set(frame["split"]) == {"train"}
    with pytest.raises(InputError, match="'sed'"):
        dataset.to_table(["sed"])


def test_a_dataset_without_shards(tmp_path: Path) -> None:
    """Begun and empty: no rows, and a table with all columns and none."""
    begun = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    assert list(begun.rows()) == [] and begun.to_table().num_rows == 0
    assert begun.to_table().schema.names == begun.format.schema.names
    with pytest.raises(InputError, match="no batchgen output"):
        open_dataset(str(tmp_path))


@pytest.mark.slow
def test_the_readmes_examples_run(tmp_path: Path) -> None:
    """What the README shows of Python on an output of that name: reading it, and training on it."""
    begun = Dataset.begin(open_store(str(tmp_path / "out" / "quickstart")), make_format(), create=True)
    attempt(begun, make_shard(2))
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("From Python, whatever")[2].partition("## Runs from Python")[0]
    reading, loader, stream, table = [part.partition("```")[0] for part in section.split("```python\n")[1:]]
    script = "\nprint('--')\n".join((reading, loader, stream, table))
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tensors = "torch.Size([2, 3, 8, 8]) a red cube\n"  # whichever of the two comes first
    read, loaded, streamed, counted = done.stdout.split("--\n")
    assert (read, loaded, streamed) == ("a red cube 0 (8, 8)\na red cube 1 (8, 8)\n", tensors, tensors)
    assert counted.split()[:3] == ["guidance_scale", "7.5", "2"]


def test_readers_share_the_shards(dataset: Dataset) -> None:
    parts = [[row.cells["id"] for row in dataset.rows(part=(number, 3))] for number in range(3)]
    assert parts == [["row-0", "row-1", "row-2"], ["row-3", "row-5"], []]


@pytest.mark.parametrize("layout", list(Layout))
def test_the_gallery_lays_out_any_layout(tmp_path: Path, layout: Layout) -> None:
    """The script in manifests/ reads through the same door."""
    begun = Dataset.begin(open_store(str(tmp_path / "out")), make_format(layout), create=True)
    attempt(begun, make_shard(3))
    script = Path(__file__).parents[1] / "manifests" / "make_gallery.py"
    command = [sys.executable, str(script), str(tmp_path / "sheet.png"), begun.uri, "--columns", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((8 + 64, 8 + 64)) == (0, 0, 0)  # the first row's image, enlarged
        assert sheet.getpixel((8 + 136 + 64, 8 + 64)) == (1, 1, 1)


def test_a_layout_is_written_read_verified_and_resumed(dataset: Dataset) -> None:
    """What a layout must do for commit, verify, receipts and superseding; a third one needs nothing but its class."""
    found = verify_output(dataset.uri, deep=True)
    assert (found.faults, found.shards, found.rows, found.decoded, found.failed_rows) == ([], 2, 5, 5, 1)
    receipts = {receipt.shard: receipt for receipt in read_receipts(dataset, repair=False)}
    dataset.store.delete(f"{RECEIPTS}/{1:016x}.json")
    rebuilt = {receipt.shard: receipt for receipt in read_receipts(dataset, repair=True)}
    assert [(r.shard, r.done, r.failed) for r in rebuilt.values()] == [
        (r.shard, r.done, r.failed) for r in receipts.values()
    ]
    again = attempt(dataset, make_shard(3, f"{0:016x}"))
    assert again.attempt == receipts[f"{0:016x}"].attempt
    dropped = make_shard(3).rows[0]
    drop_rows(dataset, again, {(dropped.id, dropped.fingerprint)})
    assert [row.cells["id"] for row in dataset.rows()] == ["row-1", "row-2", "row-3", "row-5"]
    assert verify_output(dataset.uri, deep=True).faults == []


def test_a_layout_of_a_newer_batchgen_is_said(tmp_path: Path, batchgen: RunCli) -> None:
    """An output in a layout that this code does not know is an error in one line, not a traceback."""
    begun = Dataset.begin(open_store(str(tmp_path / "out")), make_format(), create=True)
    record = json.loads(begun.store.read(RECORD))
    begun.store.write(RECORD, json.dumps({**record, "layout": "cuneiform"}).encode())
    done = batchgen("status", begun.uri)
    assert done.returncode == 2 and "'cuneiform'" in done.stderr and "newer batchgen" in done.stderr


# The schema that an output was begun with


def older(dataset: Dataset, *, without: Collection[str] = (), added: Collection[str] = ()) -> Dataset:
    """The dataset as it would be had it been begun when the metadata had other columns."""
    fields = [field for field in dataset.format.schema if field.name not in without]
    fields += [pa.field(name, pa.string()) for name in added]
    schema = pa.schema(fields, metadata=dataset.format.schema.metadata)
    record = json.loads(dataset.store.read(RECORD))
    record["schema"] = schema.serialize().to_pybytes().hex()
    dataset.store.write(RECORD, json.dumps(record).encode())
    return Dataset.open(dataset.store)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("layout", list(Layout))
def test_an_output_keeps_the_schema_it_was_begun_with(tmp_path: Path, layout: Layout, recorded: bool) -> None:
    """Incident: one new column of the metadata made every output that existed unresumable.

    Where `output.json` is of a time when it held no schema, a marker's is taken, and written into it.
    """
    store = open_store(str(tmp_path / "out"))
    before = older(
        Dataset.begin(store, make_format(layout), create=True), without={"watermark", "classifier"}, added={"retired"}
    )
    attempt(before, make_shard(2, "a" * 16))
    if not recorded:
        record = json.loads(store.read(RECORD))
        del record["schema"]
        store.write(RECORD, json.dumps({**record, "schema_version": 2}).encode())
    wanted = make_format(layout)
    now = Dataset.begin(store, wanted, create=True)
    assert now.format.schema.equals(before.format.schema)
    assert now.left_out(wanted) == ["watermark", "classifier"]
    assert "schema" in json.loads(store.read(RECORD))
    attempt(now, make_shard(2, "b" * 16, first=2))
    assert verify_output(store.uri).faults == []
    table = now.to_table(["id", "retired", "split"])
    assert table["retired"].null_count == 4 and table["split"].null_count == 0


def test_without_pandas_the_extra_is_named(begun: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchgen.dataset.dataset.find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"pip install .batchgen\[pandas\]"):
        begun.to_pandas()


def test_an_old_output_without_a_shard_takes_todays_schema(tmp_path: Path) -> None:
    """No reader has seen a shard of it yet."""
    store = open_store(str(tmp_path / "out"))
    begun = Dataset.begin(store, make_format(), create=True)
    record = json.loads(store.read(RECORD))
    del record["schema"]
    store.write(RECORD, json.dumps({**record, "schema_version": 2}).encode())
    assert Dataset.begin(store, make_format(), create=False) == begun
    assert "schema" not in json.loads(store.read(RECORD))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (new_format(Layout.PARQUET, ImageFormat.PNG, CARRIED), "layout files"),
        (new_format(Layout.FILES, ImageFormat.WEBP, CARRIED), "image format png"),
        (new_format(Layout.FILES, ImageFormat.PNG, {**CARRIED, "more": pa.string()}), "more: string"),
        (new_format(Layout.FILES, ImageFormat.PNG, {**CARRIED, "weight": pa.int64()}), "weight: int64"),
    ],
)
def test_what_an_output_cannot_take_is_refused(tmp_path: Path, other: Any, said: str) -> None:
    """Another layout, image format or other carried columns would break readers of the shards that are there."""
    store = open_store(str(tmp_path / "out"))
    Dataset.begin(store, make_format(), create=True)
    with pytest.raises(InputError, match=said):
        Dataset.begin(store, other, create=True)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    """A column that newer code writes with another type fits into no shard of an older output."""
    store = open_store(str(tmp_path / "out"))
    older(Dataset.begin(store, make_format(), create=True), without={"seed"}, added={"seed"})
    with pytest.raises(InputError, match="seed as string"):
        Dataset.begin(store, make_format(), create=True)
