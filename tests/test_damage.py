"""Damage at rest: whatever a file of an output holds, no traceback, the rest goes on, and it can be mended."""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import HERE, RunCli, called
from test_commit import attempt, make_format, make_shard
from test_kept_outputs import KEPT

from batchgen.dataset.begun import COPY, RECORD
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import new_format
from batchgen.dataset.progress import done_rows, read_done, read_receipts
from batchgen.dataset.receipts import RECEIPTS, write_books
from batchgen.dataset.repair import ASIDE
from batchgen.dataset.schema import VERSION
from batchgen.dataset.snapshots import write_snapshot
from batchgen.dataset.verify import verify_output
from batchgen.dataset.withdrawn import Withdrawn, write_withdrawn
from batchgen.errors import LaterVersion
from batchgen.options import ImageFormat, Layout
from batchgen.storage import open_store


def said(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command."""
    done = called(*arguments)
    return done.returncode, done.stdout + done.stderr


def contents(data: bytes) -> Iterator[bytes]:
    """What may have become of a file."""
    yield from (data[: len(data) * tenth // 10] for tenth in range(10))
    for place in range(0, len(data), max(1, len(data) // 12)):
        yield data[:place] + bytes([data[place] ^ (0xFF if place % 2 else 0x04)]) + data[place + 1 :]
    yield from (b"null", b"[]", b"{}", b"7", b"\xff\xfe", b"[" * 200_000, b'{"version": NaN}')
    try:
        record = json.loads(data)
    except ValueError:
        return
    others = itertools.cycle((None, [], {"a": 1}, "x", -1, 1e308, 10**40, [[1]], True))
    for name in record:
        for other in itertools.islice(others, 1):
            yield json.dumps({**record, name: other}).encode()
        yield json.dumps({one: cell for one, cell in record.items() if one != name}).encode()
    for version in ("version", "schema_version", "format"):
        yield json.dumps({**record, version: 10**6}).encode()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A kept output with each kind of state file, some receipts folded and some not; and a copy of it."""
    place = Path(shutil.copytree(KEPT, tmp_path_factory.mktemp("kept") / "moved"))
    output = place / "files"
    for file in (place / "rows.jsonl", *place.glob("model/**/*")):
        os.utime(file, (1e9, 1e9))  # what changed a moment ago is resolved anew each time
    dataset = Dataset.open(open_store(str(output)))
    for receipt in list(read_receipts(dataset, repair=False)):
        write_books(dataset, receipt)
    receipts = list(read_receipts(dataset, repair=False))
    rows = {receipt.shard: done_rows(dataset, receipt.shard) for receipt in receipts}
    write_snapshot(dataset.store, [(receipt, rows[receipt.shard]) for receipt in receipts])
    dataset.store.delete(f"{RECEIPTS}/{receipts[0].shard}.json")
    failed = next(receipt for receipt in receipts if receipt.failures)
    write_withdrawn(dataset.store, Withdrawn().joined([(replace(failed, attempt="another"), failed.failures)]))
    assert said("run", place / "files.toml")[0] == 1
    return output, Path(shutil.copytree(output, place / "whole"))


@pytest.fixture
def kept(prepared: tuple[Path, Path]) -> Path:
    """The output, whole again."""
    output, whole = prepared
    shutil.rmtree(output)
    return Path(shutil.copytree(whole, output))


STATE = ("output.json", "output.copy.json", "runs/*/run.json", "receipts/*.json", "snapshots/*", "lease",
         "withdrawn.json", "plan/*", "../failures/*")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pattern", STATE)
def test_no_content_of_a_state_file_is_a_traceback(kept: Path, pattern: str) -> None:
    """`status` and `verify` of each content, `run` of some: they say what is wrong in a line, or go on."""
    files = sorted((kept / ".batchgen").glob(pattern))
    assert files
    file = files[0].resolve()
    whole = file.read_bytes()
    for number, data in enumerate(contents(whole)):
        file.write_bytes(data)
        assert said("status", kept)[0] in (0, 2, 4)
        assert said("verify", kept)[0] in (0, 1, 2, 4)
        if number in (3, 30):
            code, output = said("run", kept.parent / "files.toml")
            assert code in (1, 2, 4) and ("5 of 6 rows done, 1 failed" in output or code != 1), output
        file.write_bytes(whole)
    file.unlink()
    file.mkdir()
    assert said("status", kept)[0] in (0, 2, 4) and said("verify", kept)[0] in (0, 1, 2, 4)
    assert said("run", kept.parent / "files.toml")[0] in (1, 2, 4)
    assert said("verify", kept, "--repair")[0] in (0, 2)
    code, output = said("verify", kept, "--json")
    assert code == 0, output
    code, output = said("run", kept.parent / "files.toml")
    assert code == 1 and "5 of 6 rows done, 1 failed" in output


# What becomes of damaged shards


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def local(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Dataset]:
    """A local output of each layout with two shards of three rows, one of which failed."""
    dataset = Dataset.begin(open_store(str(tmp_path / "out")), make_format(request.param), create=True)
    for number in range(2):
        attempt(dataset, make_shard(3, f"{number:016x}", first=3 * number), failed=(1,) * number)
    return tmp_path / "out", dataset


def marker_file(local: tuple[Path, Dataset], shard: int = 0) -> Path:
    return local[0] / local[1].layout.marker_key(f"{shard:016x}")


def truncate(local: tuple[Path, Dataset]) -> None:
    file = marker_file(local)
    file.write_bytes(file.read_bytes()[:100])


def flip(local: tuple[Path, Dataset]) -> None:
    """A byte of an image, which the parquet layout holds in its marker."""
    file = next(local[0].glob("data/*/*/row-0.png"), marker_file(local))
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 2] ^= 0xFF
    file.write_bytes(data)


def lose_marker(local: tuple[Path, Dataset]) -> None:
    marker_file(local).unlink()


def lose_image(local: tuple[Path, Dataset]) -> None:
    """Where it is no file of its own, its cell."""
    root, dataset = local
    if (file := next(root.glob("data/*/*/row-0.png"), None)) is not None:
        file.unlink()
        return
    marker = dataset.marker(f"{0:016x}", images=True)
    assert marker is not None
    table, place = marker.table, marker.table.schema.get_field_index("image")
    images = [None, *table["image"].to_pylist()[1:]]
    damaged = table.set_column(place, table.schema.field(place), pa.array(images, table.schema.field(place).type))
    dataset.store.write(dataset.layout.marker_key(f"{0:016x}"), dataset.layout.encode(damaged))


def put_folder(local: tuple[Path, Dataset]) -> None:
    """A folder in a marker's place."""
    lose_marker(local)
    marker_file(local).mkdir()
    (marker_file(local) / "x").write_text("x")


def put_foreign_marker(local: tuple[Path, Dataset]) -> None:
    file = marker_file(local, 9)
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": ["row-0"], "x": [1]}), file)


def put_marker_of_another_output(local: tuple[Path, Dataset]) -> None:
    other = Dataset.begin(
        open_store(str(local[0].parent / "other")),
        new_format(local[1].layout.name, ImageFormat.PNG, {"other": pa.int64()}),
        create=True,
    )
    attempt(other, make_shard(2, f"{9:016x}", first=20))
    shutil.copytree(local[0].parent / "other" / "data", local[0] / "data", dirs_exist_ok=True)


def put_another_output(local: tuple[Path, Dataset]) -> None:
    other = Dataset.begin(open_store(str(local[0] / "data" / "inner")), make_format(), create=True)
    attempt(other, make_shard(2, f"{9:016x}", first=20))


DAMAGES: Mapping[Callable[[tuple[Path, Dataset]], None], int] = {
    truncate: 3, flip: 1, lose_marker: 3, lose_image: 1, put_folder: 3, put_foreign_marker: 0,
    put_marker_of_another_output: 0, put_another_output: 0,
}  # fmt: skip
"""And how many rows are lost by each."""


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_mended(
    local: tuple[Path, Dataset], damage: Callable[[tuple[Path, Dataset]], None]
) -> None:
    """It is said with what to do; mended, what is lost can be made again, and no more; nothing is thrown away."""
    root, dataset = local
    lost = 3 if damage is flip and dataset.layout.name is Layout.PARQUET else DAMAGES[damage]
    before = {path: path.read_bytes() for path in root.glob("data/**/*") if path.is_file()}
    damage(local)
    damaged = {path.read_bytes() for path in root.glob("data/**/*") if path.is_file()}
    code, output = said("verify", root)
    assert code == 1 and ("--repair" in output or "next run makes" in output), output
    assert said("status", root)[0] == 0
    code, output = said("verify", root, "--repair", "--json")
    found = json.loads(output)
    assert code == 0 and found["faults"] == [] and len(found["repaired"]) >= 1, output
    kept = {path.read_bytes() for path in [*root.glob("data/**/*"), *(root / ASIDE).glob("**/*")] if path.is_file()}
    rewritten = marker_file(local) if damage in (flip, lose_image) else None
    assert {data for path, data in before.items() if path != rewritten and data in damaged} <= kept
    assert verify_output(dataset.uri, deep=True).faults == []
    done = [row.id for _, rows in read_done(dataset, repair=True) for row in rows]
    assert len(done) == 5 - lost
    for row in ("row-0", "row-1", "row-2"):
        if row not in done:
            shard = make_shard(1, f"{int(row[4:]) + 100:016x}", first=int(row[4:]))
            attempt(dataset, shard)
    found = verify_output(dataset.uri, deep=True)
    assert (found.faults, found.rows, found.failed_rows) == ([], 5, 1)


@pytest.mark.slow
def test_a_run_goes_on_beside_a_damaged_marker(tmp_path: Path, batchgen: RunCli) -> None:
    """Incident: one truncated marker ended every run. All other rows are made, and after the repair its own."""
    place = Path(shutil.copytree(KEPT, tmp_path / "moved"))
    output, job = place / "files", ("run", place / "files.toml", *HERE)
    (damaged,) = (file for file in output.glob("data/*/metadata.parquet") if pq.read_metadata(file).num_rows > 1)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    shutil.rmtree(next(folder for folder in output.glob("data/*") if folder != damaged.parent))
    first = batchgen(*job)
    assert first.returncode == 4, first.stderr
    assert str(damaged) in first.stderr and "4 were left alone" in first.stderr and "--repair" in first.stderr
    mended = batchgen("verify", output, "--repair")
    assert mended.returncode == 0, mended.stdout
    second = batchgen(*job)
    assert second.returncode == 1 and "5 of 6 rows done, 1 failed" in second.stderr, second.stderr
    assert json.loads(batchgen("verify", output, "--deep", "--json").stdout)["faults"] == []


def test_a_copy_of_a_later_version_is_no_damage(tmp_path: Path) -> None:
    """Else `--repair` would move away what a later version wrote."""
    store = Dataset.begin(open_store(str(tmp_path)), make_format(), create=True).store
    stored = f'"schema_version": {VERSION}'.encode()
    store.write(COPY, store.read(RECORD).replace(stored, b'"schema_version": 99'))
    store.write(RECORD, b"{")
    with pytest.raises(LaterVersion, match="upgrade batchgen"):
        Dataset.open(store)
    with pytest.raises(LaterVersion):
        verify_output(str(tmp_path), repair=True)
    assert b"99" in store.read(COPY)
