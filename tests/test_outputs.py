"""An output is one place, and the one that was opened: what was moved, replaced, lost or is of one machine alone."""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RunCli, WriteManifest
from test_commit import CARRIED, attempt, make_format, make_shard
from test_kept_outputs import KEPT, contents, made_rows, numbers, verified
from test_plan import key_of, make_row
from test_status import make_record

from batchgen.dataset.begun import RECORD
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.nodes import Meeting, require_files
from batchgen.dataset.progress import Damages
from batchgen.dataset.runs import latest_run
from batchgen.dataset.tracebacks import LONGEST, MOST, Tracebacks
from batchgen.dataset.verify import verify_output
from batchgen.driver.inputs import local_inputs
from batchgen.driver.output import require_listed, survey
from batchgen.driver.record import OpenRecord
from batchgen.engine.loop import Control
from batchgen.errors import InputError, OutputGone, StoreError
from batchgen.generation.parameters import ImageRef
from batchgen.index import Index
from batchgen.options import Layout
from batchgen.places import kept_by_ray
from batchgen.report.status import read_status
from batchgen.resolve import Resolved
from batchgen.storage import Store, open_store

RAY = "session_2026-11-30_06-31-43_777237_15457"


@pytest.mark.parametrize("away", ["moved", "removed", "replaced", "unmounted"])
def test_an_output_that_is_gone_takes_nothing(tmp_path: Path, away: str) -> None:
    """Incident: a store made a moved folder anew; here no write, commit or look does, and another output is told."""
    root = tmp_path / "out"
    begun = Dataset.begin(open_store(str(root)), make_format(), create=True)
    dataset = replace(begun, store=open_store(str(root), anchor=RECORD))
    attempt(dataset, make_shard(2, f"{1:016x}"))
    root.rename(tmp_path / "moved") if away == "moved" else shutil.rmtree(root)
    if away == "unmounted":
        root.mkdir()
    if away == "replaced":
        Dataset.begin(open_store(str(root)), make_format(), create=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputGone, match="another output" if away == "replaced" else "is gone"):
        dataset.require_same()
    with pytest.raises(OutputGone, match=str(root)):
        attempt(dataset, make_shard(2, f"{2:016x}"))
    if away != "replaced":
        for write in (dataset.store.write, dataset.store.create):
            with pytest.raises(OutputGone):
                write("x", b"x")
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert not list(root.glob("data/*/metadata.parquet"))


@pytest.mark.parametrize("layout", list(Layout))
def test_an_output_without_its_books_is_taken_up(store: Store, store_uri: str, layout: str) -> None:
    """Its markers say what it is: readers go on, and a run begins its books anew with the same format."""
    begun = Dataset.begin(store, make_format(layout), create=True)
    shard = make_shard(2)
    attempt(begun, shard)
    store.write("data/0000/strays/x", b"x")
    for entry in list(store.entries(".batchgen")):
        store.delete(entry.key)
    found = Dataset.open(store)
    assert found.format == replace(begun.format, carried=dict(sorted(CARRIED.items())))
    assert [row.cells["id"] for row in found.rows()] == [row.id for row in shard.rows]
    assert list(store.entries(".batchgen")) == []
    again = Dataset.begin(store, make_format(layout), create=True)
    assert again.format == found.format and again.id not in (None, begun.id)
    again.require_same()
    with pytest.raises(InputError, match="begun with layout"):
        Dataset.begin(store, make_format(next(one for one in Layout if one != layout)), create=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["files", "parquet"])
def test_a_run_goes_on_without_the_books(name: str, tmp_path: Path, batchgen: RunCli) -> None:
    """Of rows that are done nothing is made again; one that failed stood in the books alone, and is left out."""
    kept = Path(shutil.copytree(KEPT, tmp_path / "kept"))
    output, manifest = kept / name, kept / "rows.jsonl"
    before, rows = contents(output), made_rows(output)
    shutil.rmtree(output / ".batchgen")
    (failed,) = [row["id"] for file in output.glob("failures/*") for row in pq.read_table(file).to_pylist()]
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if f'"{failed}"' not in line), encoding="utf-8")
    done = batchgen("run", kept / f"{name}.toml", here=True)
    assert done.returncode == 0, done.stderr
    assert contents(output) == before and made_rows(output) == rows
    assert numbers(batchgen, output) == (5, 5, 0, 0)
    lost = batchgen("verify", output)
    assert lost.returncode == 1 and "names rows of a shard that is not there" in lost.stdout + lost.stderr
    assert batchgen("verify", output, "--repair").returncode == 0
    assert verified(batchgen, output) == (5, 0)


def test_a_folder_with_tables_of_others_is_no_output(tmp_path: Path) -> None:
    """Not every data/ with Parquet in it was ours once."""
    for place in ("a.parquet", "b/metadata.parquet"):
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": ["x"]}), tmp_path / "data" / place)
    (tmp_path / "data" / "c.parquet").write_bytes(b"PAR1 no table")
    for look in (Dataset.open, lambda store: Dataset.begin(store, make_format(), create=True)):
        with pytest.raises(InputError, match=r"no batchgen output|no output of batchgen"):
            look(open_store(str(tmp_path)))


def test_two_runs_give_an_output_of_earlier_code_one_name(tmp_path: Path) -> None:
    """It has none of its own, and both may meet it at one moment."""
    store = open_store(str(shutil.copytree(KEPT / "files", tmp_path / "files")))
    opened, record = Dataset.open(store), store.read(RECORD)
    names = []
    for _ in range(2):
        store.write(RECORD, record)
        names.append(Dataset.begin(store, opened.format, create=True).id)
    assert names[0] == names[1] is not None and opened.id is None


def test_a_word_is_read_and_written_back(tmp_path: Path) -> None:
    """With a second real folder for what another machine has at the same path."""
    here, there = open_store(str(tmp_path / "here")), open_store(str(tmp_path / "there"))
    with Meeting.held(here, "run") as meeting:
        _answered(meeting, here, there, tmp_path)
    assert list(here.entries(".batchgen/nodes")) == []


def _answered(meeting: Meeting, here: Store, there: Store, folder: Path) -> None:
    with pytest.raises(InputError, match=r"there: .* on this node is not what the driver sees"):
        meeting.answer(there, "node")
    with pytest.raises(InputError, match=r"here: .* the driver does not see"):
        meeting.require_answer(here, "node")
    shutil.copytree(folder / "here", folder / "there", dirs_exist_ok=True)
    meeting.answer(there, "node")  # as from a copy that is read alone
    with pytest.raises(InputError):
        meeting.require_answer(here, "node")
    meeting.answer(here, "node")
    meeting.require_answer(here, "node")
    with pytest.raises(InputError):
        replace(meeting, word="another").require_answer(here, "node")


def test_inputs_are_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    require_files([(str(tmp_path / "a.png"), 3), (str(tmp_path), None)])
    for size, name, why in ((4, "a.png", "3 bytes"), (3, "b.png", "cannot be read"), (3, "a.png/b", "cannot be read")):
        with pytest.raises(InputError, match=f"{name} .*{why}"):
            require_files([(str(tmp_path / name), size)])


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        (f"/tmp/ray/{RAY}/runtime_resources/working_dir_files/_ray_pkg_0123/out", True),
        (f"/scratch/tmp/{RAY}/out", True),
        ("/x/runtime_resources/working_dir_files/_ray_pkg_0123", True),
        ("/data/ray/out", False),
        ("/data/session_7/out", False),
        (f"/data/{RAY}-copy/out", False),
    ],
)
def test_what_ray_removes(path: str, kept: bool) -> None:
    assert (kept_by_ray(Path(path)) is not None) is kept


def test_an_output_below_rays_folders_is_refused(
    tmp_path: Path, write_manifest: WriteManifest, model_configs: Path, batchgen: RunCli
) -> None:
    """Incident: a submitted job left its dataset in the working directory that Ray had unpacked, exit 0."""
    manifest = write_manifest("m.jsonl", [{"prompt": "a"}])
    folder = tmp_path / "ray" / RAY / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    (tmp_path / "latest").symlink_to(folder)
    for output, cwd in (("out", folder), (tmp_path / "latest" / "out", tmp_path)):
        done = batchgen("run", manifest, "--model", model_configs, "--output", output, cwd=cwd, here=True)
        assert done.returncode == 2
        assert "which Ray removes with its session" in done.stderr and done.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_tracebacks_are_kept_whole_and_are_few(tmp_path: Path) -> None:
    kept = Tracebacks(open_store(str(tmp_path)), "run")

    def fail(text: str) -> None:
        try:
            raise StoreError(text) from ValueError("\x1b[31mcause")
        except StoreError as error:
            kept.keep(error, "row x")

    fail("short")
    fail("short")
    fail("y" * 10 * LONGEST)
    found = {file.stat().st_size: file.read_text() for file in tmp_path.glob(".batchgen/runs/run/tracebacks/*.txt")}
    assert len(found) == 2 and max(found) < LONGEST + 1000
    short = found[min(found)]
    assert short.startswith("row x\n\nValueError: \\x1b[31mcause") and "in fail" in short and short.endswith("short\n")
    for number in range(2 * MOST):
        fail(f"another {number}")
    assert len(list(tmp_path.glob(".batchgen/runs/run/tracebacks/*.txt"))) == MOST


def test_which_inputs_nodes_are_asked_for(tmp_path: Path) -> None:
    """One of each folder, however many it holds; a manifest where images lie in it; nothing from elsewhere."""
    for number in range(600):
        file = tmp_path / ("many" if number < 590 else f"few-{number}") / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(number))
    (tmp_path / "m.parquet").write_bytes(b"x")
    read = {*map(str, tmp_path.glob("*/*.png")), str(tmp_path / "few-590"), "s3://bucket/x.png", str(tmp_path / "gone")}
    resolved = Resolved(files=[str(tmp_path / "m.parquet")], models={}, carried={}, notices=[], read=read)
    with Index() as index:
        row = make_row(1)
        index.add(key_of(row), row)
        found = dict(local_inputs(resolved, index))
        embedded = ImageRef(uri=str(tmp_path / "m.parquet"), sha256="", width=8, height=8, column="image", row=1)
        other = replace(make_row(2), inputs={"image": embedded})
        index.add(key_of(other), other)
        assert str(tmp_path / "m.parquet") in dict(local_inputs(resolved, index))
    assert len(found) <= 256 and {str(tmp_path / f"few-{n}" / f"{n}.png") for n in range(590, 600)} <= found.keys()
    assert str(tmp_path / "m.parquet") not in found and not any("s3://" in path or "gone" in path for path in found)
    assert found[str(tmp_path / "few-590")] is None and found[str(tmp_path / "few-599" / "599.png")] == 599


def test_a_run_that_failed_early_says_so(tmp_path: Path) -> None:
    """Before it knew what is done: the outcome is its reason, and the numbers are those of the output."""
    dataset = Dataset.begin(open_store(str(tmp_path)), make_format(), create=True)
    attempt(dataset, make_shard(4), failed=(1,))
    first = make_record(run="20260101T000000-000", rows=6, done_before=None, failed_before=None)
    record = OpenRecord(store=dataset.store, record=first)
    with pytest.raises(StoreError), record.closing(Control(), lambda: 1):
        raise StoreError("out of reach")
    now = read_status(dataset.uri)
    assert (now.outcome, now.rows, now.done, now.failed, now.left) == ("failed: out of reach", 6, 3, 1, 2)
    assert verify_output(dataset.uri).summary().endswith("2 rows are not made (failed: out of reach)")
    later = replace(first, run="20260102T000000-000", done_before=5, failed_before=1)
    for outcome in ("failed: out of reach", "finished", "finished"):
        record = OpenRecord(store=dataset.store, record=later, previous=latest_run(dataset.store))
        assert record.previous is not None and record.previous.outcome == outcome
        with record.closing(Control(), lambda: 1):
            pass  # there was nothing to do
        assert record.is_stored is (outcome != "finished")
    with suppress(ZeroDivisionError), OpenRecord(store=dataset.store, record=later).closing(Control(), lambda: 1):
        raise ZeroDivisionError("oh")
    assert read_status(dataset.uri).outcome == "failed: ZeroDivisionError: oh"


@pytest.mark.parametrize("layout", list(Layout))
def test_what_is_done_is_what_is_listed(tmp_path: Path, layout: str) -> None:
    """A shard that somebody removed while the run went on is not done, whatever its receipt said."""
    dataset = Dataset.begin(open_store(str(tmp_path)), make_format(layout), create=True)
    with Index() as index:
        for number in range(2):
            attempt(dataset, make_shard(2, f"{number:016x}", first=2 * number), failed=(1,) * number)
        survey(dataset, index, repair=False, damages=Damages())
        require_listed(dataset, index)
        removed = next(tmp_path.glob(f"data/{1:016x}*"))
        shutil.rmtree(removed) if removed.is_dir() else removed.unlink()
        with pytest.raises(StoreError, match=f"1 of the shards .* not in data/ any more, the first is {1:016x}"):
            require_listed(dataset, index)
