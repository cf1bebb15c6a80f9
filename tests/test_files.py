"""Files as people have them: parts in folders, packed and spaced text, lists, documents, and tables of other tools."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteManifest
from test_manifest import read
from test_validate import problems

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.fit import fit_to_output
from batchgen.dataset.format import new_format
from batchgen.dataset.kept import keep_resolved, take_resolved
from batchgen.dataset.schema import metadata_table
from batchgen.errors import InputError, ManifestProblems
from batchgen.index import Index
from batchgen.inputs import Inputs
from batchgen.job import Job
from batchgen.manifest.arrow import ArrowCell, arrow_column, common_type, misfit, python_rows
from batchgen.manifest.documents import LONGEST
from batchgen.manifest.partitions import partitions_of
from batchgen.manifest.problems import ProblemLog
from batchgen.options import ImageFormat, Layout
from batchgen.resolve import Resolved, resolve
from batchgen.storage import Store, open_store

LISTS = Path(__file__).parents[2] / "shared" / "data" / "prompts"


def prompts(path: Path, model: Path, **job: Any) -> list[str]:
    return [row.parameters.to_cells()["prompt"] for row in read(path, model, **job)[0]]


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


# Folders of parts


def test_hive_partitions_are_columns(tmp_path: Path, model_configs: Path) -> None:
    """What Spark, DuckDB and pandas write with partitions: known columns apply, others are carried with their type."""
    for split in ("train", "a%2Fb"):
        for scale in ("3", "2.5"):
            folder = tmp_path / f"d/split={split}/fold=1/guidance_scale={scale}"
            write(folder / "part-0.parquet", prompt=["a"])
            (folder / "_temporary").mkdir()
            write(folder / "_temporary" / "part-1.parquet", prompt=["unfinished"])
    rows, resolved = read(tmp_path / "d", model_configs)
    found = {(row.carried["split"], row.parameters.to_cells()["guidance_scale"]) for row in rows}
    assert found == {("train", 3.0), ("train", 2.5), ("a/b", 3.0), ("a/b", 2.5)} and len(rows) == 4
    assert resolved.carried == {"split": pa.string(), "fold": pa.int64()}
    assert [row.carried["fold"] for row in rows] == [1] * 4
    assert any("'guidance_scale'" in line and "folders" in line for line in resolved.notices)
    one, _ = read(tmp_path / "d/split=train/fold=1/guidance_scale=3/part-0.parquet", model_configs)
    assert one[0].fingerprint in {row.fingerprint for row in rows}


def test_partitions_of_text_and_json(tmp_path: Path, write_manifest: WriteManifest, model_configs: Path) -> None:
    """Other formats lie in such folders too; numbers and words of one key are texts, spelt as they are."""
    write_manifest("d/steps=7/v=1.10/m.csv", [{"prompt": "a"}])
    write_manifest("d/steps=8/v=2/m.jsonl", [{"prompt": "b"}])
    write_manifest("d/steps=8/v=__HIVE_DEFAULT_PARTITION__/m.jsonl", [{"prompt": "c"}])
    rows, resolved = read(tmp_path / "d", model_configs)
    assert [row.parameters.to_cells()["num_inference_steps"] for row in rows] == [7, 8, 8]
    assert resolved.carried == {"v": pa.string()}
    cells = arrow_cells(resolved, [row.carried for row in rows])
    assert cells["v"].to_pylist() == ["1.10", "2", None]


def test_a_partition_beside_a_column(tmp_path: Path, model_configs: Path) -> None:
    """Equal, it is the column; another value is a problem of the row."""
    file = write(tmp_path / "d/seed=3/m.parquet", prompt=["a", "b"], seed=[3, 3])
    assert [row.parameters.sampling.seed for row in read(file, model_configs)[0]] == [3, 3]
    write(file, prompt=["a", "b"], seed=[3, 4])
    (found,) = problems(file, model_configs)
    assert (found.row, found.column) == (2, "seed")
    assert partitions_of("/x=1/y/a=b=c/d=/m.csv") == {"a": "b=c", "d": ""}
    with pytest.raises(InputError, match="two of its folders name the column 'seed'"):
        partitions_of("/seed=1/seed=2/m.csv")


def test_empty_parts_are_passed_over(tmp_path: Path, model_configs: Path) -> None:
    """A part without rows has the types of nothing: pandas writes float64 and null."""
    write(tmp_path / "d/0.parquet", prompt=pa.array([], pa.null()), label=pa.array([], pa.float64()))
    write(tmp_path / "d/1.parquet", prompt=["a"], label=["x"])
    rows, resolved = read(tmp_path / "d", model_configs)
    assert (len(rows), resolved.carried) == (1, {"label": pa.string()})


TEXTS = [
    pa.array(["x", None]), pa.array(["x", None], pa.large_string()), pa.array(["x", None], pa.string_view()),
    pa.array(["x", None]).dictionary_encode(), pa.nulls(2), pa.array([float("nan"), None], pa.float64()),
]  # fmt: skip
WHOLE = [
    pa.array([1, 2], pa.int64()), pa.array([1, None], pa.int32()), pa.array([1, None], pa.float64()),
    pa.array([1.0, float("nan")]), pa.array([1, 2], pa.uint8()), pa.nulls(2),
]  # fmt: skip
TIMES = [
    pa.array([1, None], pa.timestamp("s")), pa.array([1_000, 2], pa.timestamp("ms")),
    pa.array([400_000_000_000, 2], pa.timestamp("s")).cast(pa.timestamp("ms")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "kind"),
    [(TEXTS, pa.string()), (WHOLE, pa.int64()), (TIMES, pa.timestamp("ms"))],
    ids=["text", "whole", "times"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_parts_with_one_kind_of_values(
    parts: list[pa.Array], kind: pa.DataType, turned: bool, tmp_path: Path, model_configs: Path
) -> None:
    """Incident: parts of one table by pandas, Polars and Spark were refused for large_string, int32 or a gap."""
    for number, part in enumerate(reversed(parts) if turned else parts):
        write(tmp_path / f"d/{number}.parquet", prompt=["a", "b"], x=part)
    rows, resolved = read(tmp_path / "d", model_configs)
    assert resolved.carried == {"x": kind}
    column = arrow_cells(resolved, [row.carried for row in rows])["x"]
    wanted = pa.concat_arrays([_with_gaps(part).cast(kind) for part in (reversed(parts) if turned else parts)])
    assert column.combine_chunks().equals(wanted)


def _with_gaps(part: pa.Array) -> pa.Array:
    null = pa.scalar(None, part.type)
    if not pa.types.is_floating(part.type):
        return part.cast(pa.string()) if pa.types.is_dictionary(part.type) else part
    found = [null.as_py() if cell != cell else cell for cell in part.to_pylist()]
    return pa.array(found, part.type) if any(cell is not None for cell in found) else pa.nulls(len(part))


def test_values_that_the_common_type_does_not_hold(tmp_path: Path, model_configs: Path) -> None:
    """A fraction makes the column numbers; a whole number beyond 2^53 is then a problem, with its place."""
    write(tmp_path / "d/0.parquet", prompt=["a"], x=[1])
    write(tmp_path / "d/1.parquet", prompt=["b"], x=[0.5])
    assert read(tmp_path / "d", model_configs)[1].carried == {"x": pa.float64()}
    file = write(tmp_path / "d/0.parquet", prompt=["a", "c"], x=[1, 2**53 + 1])
    (found,) = problems(tmp_path / "d", model_configs)
    assert (found.file, found.row, found.column) == (str(file), 2, "x")
    write(tmp_path / "d/1.parquet", prompt=["b"], x=["text"])
    with pytest.raises(InputError, match="write it with one type"):
        read(tmp_path / "d", model_configs)


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string())),
        (pa.list_(pa.int32(), 2), pa.list_(pa.null()), pa.list_(pa.int32())),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int64())]), pa.struct([("a", pa.int64())])),
        (pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())]), None),
        (pa.map_(pa.string(), pa.int8()), pa.map_(pa.large_string(), pa.int16()), pa.map_(pa.string(), pa.int16())),
        (pa.decimal128(5, 2), pa.decimal128(4, 3), pa.decimal128(6, 3)),
        (pa.timestamp("us", "UTC"), pa.timestamp("us"), None),
        (pa.uint64(), pa.int64(), None),
        (pa.bool_(), pa.int64(), None),
        (pa.binary(), pa.large_binary(), pa.binary()),
        (pa.binary(), pa.string(), None),
        (pa.date32(), pa.date64(), pa.date32()),
        (pa.time32("s"), pa.time64("us"), pa.time64("us")),
        (pa.float16(), pa.float32(), pa.float32()),
    ],
    ids=str,
)
def test_common_types(first: pa.DataType, second: pa.DataType, common: pa.DataType | None) -> None:
    assert common_type(first, second) == common == common_type(second, first)


def arrow_cells(resolved: Resolved, carried: list[Mapping[str, Any]]) -> pa.Table:
    """The carried columns as the metadata has them."""
    return metadata_table(pa.schema(list(resolved.carried.items())), carried)


FAR = [
    pa.array([400_000_000_000, None, 5], pa.timestamp("s")).cast(pa.timestamp("ms")),
    pa.array([400_000_000_000_000_000], pa.timestamp("us", "UTC")),
    pa.array([-62_200_000_000_000], pa.timestamp("ms")),
    pa.array([5_000_000], pa.date32()),
    pa.array([1_500_000_000_000_000_001], pa.timestamp("ns")),
    pa.array([5], pa.timestamp("us", "Mars/Olympus")),
    pa.array([2**62], pa.duration("us")),
    pa.array([[5_000_000, None], None], pa.list_(pa.date32())),
    pa.array([{"a": 5_000_000}, None], pa.struct([("a", pa.date32())])),
]


@pytest.mark.parametrize("column", FAR, ids=lambda column: str(column.type))
def test_times_that_python_has_not(column: pa.Array, tmp_path: Path, model_configs: Path) -> None:
    """Incident: a date beyond the year 9999 ended in an OverflowError. It is carried to the metadata, bit by bit."""
    file = write(tmp_path / "m.parquet", prompt=["a"] * len(column), x=column)
    rows, resolved = read(file, model_configs)
    table = arrow_cells(resolved, [row.carried for row in rows])
    assert table["x"].combine_chunks().equals(column)
    again = [row for batch in table.to_batches() for row in python_rows(batch)]
    assert arrow_column([row["x"] for row in again], column.type).equals(column)
    store = open_store(str(tmp_path / "out"))
    job = Job(manifest=str(file), model=str(model_configs))
    with Index() as index, Index() as other:
        resolved = resolve(job, index, ProblemLog())
        keep_resolved(store, job, index, resolved, before=2e9)
        assert take_resolved(store, job, other) is not None
        assert list(other.rows()) == list(index.rows())


def test_usual_times_are_values_of_python(tmp_path: Path) -> None:
    (cells,) = python_rows(pa.record_batch({"x": pa.array([0], pa.timestamp("us")), "y": pa.array([2**50])}))
    assert cells == {"x": datetime(1970, 1, 1), "y": 2**50}
    assert misfit(0.5, pa.int64()) and misfit(2**53 + 1, pa.float64()) and misfit(0.1, pa.float32())
    assert not misfit(3.0, pa.int64()) and not misfit(None, pa.int64()) and not misfit([1], pa.list_(pa.int8()))
    assert repr(ArrowCell(pa.array([5_000_000], pa.date32()))).startswith("15659")


def begun(folder: Path, **carried: pa.DataType) -> Store:
    store = open_store(str(folder))
    Dataset.begin(store, new_format(Layout.FILES, ImageFormat.PNG, carried), create=True)
    return store


def fitted(store: Store, manifest: Path, model: Path) -> Resolved:
    with Index() as index:
        found = ProblemLog()
        resolved = resolve(Job(manifest=str(manifest), model=str(model)), index, found)
        assert not found.total
        return fit_to_output(resolved, store, index)


@pytest.mark.parametrize(
    ("stored", "today"),
    [
        (pa.int64(), pa.array([1.0, None])),
        (pa.float64(), pa.array([1, 2], pa.int64())),
        (pa.large_string(), pa.array(["a", None])),
        (pa.string(), pa.array(["a", "b"]).dictionary_encode()),
        (pa.dictionary(pa.int32(), pa.string()), pa.array(["a", "b"], pa.string_view())),
        (pa.int32(), pa.array([1, 2], pa.int64())),
        (pa.string(), pa.array([float("nan"), None], pa.float64())),
        (pa.int64(), pa.nulls(2)),
    ],
    ids=str,
)
def test_yesterdays_output_takes_the_same_values(
    stored: pa.DataType, today: pa.Array, tmp_path: Path, model_configs: Path
) -> None:
    """A nightly job's table has a gap, or another writer, today."""
    store = begun(tmp_path / "out", x=stored)
    file = write(tmp_path / "m.parquet", prompt=["a", "b"], x=today)
    resolved = fitted(store, file, model_configs)
    assert resolved.carried == {"x": stored}
    Dataset.begin(store, new_format(Layout.FILES, ImageFormat.PNG, resolved.carried), create=False)
    rows, _ = read(file, model_configs)
    assert arrow_cells(resolved, [row.carried for row in rows])["x"].type == stored


def test_yesterdays_output_refuses_others(tmp_path: Path, model_configs: Path) -> None:
    """A fraction where whole numbers stand is told by row; another kind of values is the output's to refuse."""
    store = begun(tmp_path / "out", x=pa.int64())
    file = write(tmp_path / "m.parquet", prompt=["a", "b"], x=[1.0, 0.5])
    with pytest.raises(ManifestProblems, match=r"row 2, column 'x': is 0\.5, which int64 does not hold"):
        fitted(store, file, model_configs)
    file = write(tmp_path / "m.parquet", prompt=["a"], x=["text"])
    assert fitted(store, file, model_configs).carried == {"x": pa.string()}


# Text


TABLE = 'prompt,seed\n"a, ""b""",3\nü 画像,4\n'
SPACED = {
    "tabs": TABLE.replace('a, ""b""', 'a\t""b""').replace(",", "\t").replace("\t ", "\t"),
    "semicolons": 'prompt;seed\n"a, ""b""";3\nü 画像;4\n',
    "bars": 'prompt|seed\n"a, ""b"""|3\nü 画像|4\n',
    "Excel's line": 'sep=;\r\nprompt;seed\r\n"a, ""b""";3\r\nü 画像;4\r\n;\r\n;\r\n',
}
PACKED: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("name", SPACED)
def test_separators_are_found(name: str, tmp_path: Path, model_configs: Path) -> None:
    """And said, since the name says commas."""
    (tmp_path / "m.csv").write_text(SPACED[name])
    rows, resolved = read(tmp_path / "m.csv", model_configs)
    assert [row.parameters.sampling.seed for row in rows] == [3, 4]
    assert rows[1].parameters.to_cells()["prompt"] == "ü 画像"
    assert any(name.split()[0].replace("Excel's", "semicolons") in line for line in resolved.notices)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.json", "m.txt"])
def test_encodings(name: str, encoding: str, tmp_path: Path, model_configs: Path) -> None:
    """What Excel, Notepad and PowerShell write."""
    texts = {
        "m.csv": "prompt\nabcü\nb\n", "m.tsv": "prompt\tseed\nabcü\t1\nb\t2\n", "m.txt": "abcü\r\n\r\nb\n",
        "m.jsonl": '{"prompt": "abcü"}\n{"prompt": "b"}\n', "m.json": '["abcü",\n "b"]',
    }  # fmt: skip
    (tmp_path / name).write_bytes(texts[name].encode(encoding))
    assert prompts(tmp_path / name, model_configs) == ["abcü", "b"]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.txt", "m.tsv"])
def test_packed_text(name: str, packed: str, tmp_path: Path, model_configs: Path) -> None:
    """Also in two members, unpacked on the way by a browser, and cut off, which is said of the file."""
    row, head = {"m.csv": ("a\n", "prompt\n"), "m.tsv": ("a\t1\n", "prompt\tseed\n"), "m.txt": ("a\n", "")}.get(
        name, ('{"prompt": "a"}\n', "")
    )
    path, pack = tmp_path / f"{name}{packed}", PACKED[packed]
    path.write_bytes(pack((head + row).encode()) + pack((row * 2).encode()))
    assert prompts(path, model_configs) == ["a"] * 3
    path.write_bytes((head + row).encode())
    assert prompts(path, model_configs) == ["a"]
    path.write_bytes(pack((head + row * 5).encode())[:-5])
    assert {problem.row for problem in problems(path, model_configs)} == {None}


def test_a_prompt_a_line(tmp_path: Path, model_configs: Path) -> None:
    """Blank lines are none, a title is a header, columns make it a table."""
    path = tmp_path / "m.txt"
    path.write_text('Prompts\n\n a "b", c \n# d\n{x}\n')
    assert prompts(path, model_configs) == [' a "b", c ', "# d", "{x}"]
    path.write_text("Prompt\tseed\na\t3\n")
    assert read(path, model_configs)[0][0].parameters.sampling.seed == 3


def test_options_of_a1111s_script_are_columns(tmp_path: Path, model_configs: Path) -> None:
    """The script takes all words up to the next option for the prompt, and images of a call times calls."""
    path = tmp_path / "m.txt"
    path.write_text(
        'a\n--prompt "b, c" --negative_prompt d e --steps 3 --sampler_name "DPM++ 2M Karras" --seed 9 --n_iter 2\n'
    )
    rows = read(path, model_configs)[0]
    assert [row.parameters.to_cells()["prompt"] for row in rows] == ["a", "b, c", "b, c"]
    cells = rows[1].parameters.to_cells()
    assert (cells["negative_prompt"], cells["num_inference_steps"], cells["seed"]) == ("d e", 3, 9)
    assert cells["scheduler"] == "DPMSolverMultistepScheduler"
    path.write_text("a\n--prompt b --tiling true\n--prompt 'b\n--steps\n--prompt a --n_iter x\n")
    found = problems(path, model_configs)
    assert [problem.row for problem in found] == [2, 3, 4, 5]
    assert "--tiling is not read" in found[0].message


def test_quotes_in_tables_with_tabs(tmp_path: Path, model_configs: Path) -> None:
    """Incident: a prompt of PartiPrompts begins with a quote; tables with quoted cells are read as ever."""
    path = tmp_path / "m.tsv"
    path.write_text('Prompt\tNote\n"G I G" in paint\tx\nb\t"\n')
    assert prompts(path, model_configs) == ['"G I G" in paint', "b"]
    path.write_text('Prompt\tNote\n"G ""I""\n G"\tx\nb\ty\n')
    assert prompts(path, model_configs) == ['G "I"\n G', "b"]


JSON: Mapping[str, tuple[str, list[str]]] = {
    "a list": (json.dumps([{"prompt": "a]},"}, {"prompt": 'b"\\'}], indent=2), ["a]},", 'b"\\']),
    "a list on a line": (json.dumps([{"prompt": "a"}, {"prompt": "b"}]), ["a", "b"]),
    "texts": (json.dumps(["a, b", "ü"]), ["a, b", "ü"]),
    "an empty list": ("[ ]", []),
    "lines": ('{"prompt": "a"}\n\n{"prompt": "b"}', ["a", "b"]),
    "one object": ('{"prompt": "a", "tags": ["x"]}', ["a"]),
    "objects over lines": ('{\n"prompt": "a"}\n{\n"prompt": "b"}', ["a", "b"]),
    "objects over lines too": ('{"prompt": "a",\n "n": 1}\n{"prompt": "b",\n "n": 1}', ["a", "b"]),
    "a list inside": ('{"version": "1", "prompts": [{"prompt": "a"}]}', ["a"]),
    "columns of pandas": ('{"prompt": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}}', ["a", "b"]),
    "columns": ('{"prompt": ["a", "b"], "n": [1, 2]}', ["a", "b"]),
    "a long list": (json.dumps([{"prompt": "x" * 300_000}] * 3), ["x" * 300_000] * 3),
    "a long line": (json.dumps({"prompt": "x" * 300_000}), ["x" * 300_000]),
}


@pytest.mark.parametrize("name", ["m.json", "m.jsonl"])
@pytest.mark.parametrize("case", JSON)
def test_json_documents(case: str, name: str, tmp_path: Path, model_configs: Path) -> None:
    """Whatever the name says: what json.dump, jq, pandas and dataset cards write."""
    text, expected = JSON[case]
    (tmp_path / name).write_text(text)
    assert prompts(tmp_path / name, model_configs, inputs=Inputs(prompt_characters=1 << 20)) == expected


@pytest.mark.parametrize(
    ("text", "row", "said"),
    [
        ('[{"prompt": "a"}, {"prompt": b}]', 2, "not JSON"),
        ('[{"prompt": "a"}, {"prompt": "b"}', 3, "does not end"),
        ('[{"prompt": "a"} {"prompt": "b"}]', 2, "comma"),
        ('[{"prompt": "a"}] x', 2, "after the list"),
        ('[{"prompt": "a"},]', 2, "comma"),
        ('[{"prompt": "a"}, 3]', 2, "not a JSON object"),
        ('[{"prompt": "a"}, {"prompt": "a', 2, "not JSON"),
        ('{"images": [{"id": 1}], "annotations": [{"caption": "x"}]}', None, "'images', 'annotations'"),
        ('{"x.png": {"p": "a"}}', None, "'x.png'"),
        ('{"prompt": ["a", "b"], "n": [1]}', None, "other lengths"),
    ],
)
def test_json_that_is_no_table(text: str, row: int | None, said: str, tmp_path: Path, model_configs: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    (found,) = problems(tmp_path / "m.json", model_configs)
    assert (found.row, said in found.message) == (row, True), found.message


@pytest.mark.slow
def test_a_value_without_an_end_is_not_held_whole(tmp_path: Path, model_configs: Path) -> None:
    (tmp_path / "m.json").write_text('[{"prompt": "' + "x" * (3 * LONGEST))
    (found,) = problems(tmp_path / "m.json", model_configs)
    assert "MiB" in found.message


def test_bytes_that_are_no_utf8(tmp_path: Path, model_configs: Path) -> None:
    """The line and the byte, and what it is in the encoding of most such files."""
    (tmp_path / "m.csv").write_bytes("prompt\na\nBär\n".encode("latin-1"))
    (found,) = problems(tmp_path / "m.csv", model_configs)
    assert "line 3" in found.message and "'ä'" in found.message


@pytest.mark.parametrize("name", ["m.xlsx", "m.zip", "m.gz", "m.parquet.gz"])
def test_files_that_want_another_form(name: str, tmp_path: Path, model_configs: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"save|unpack|name it"):
        read(tmp_path / name, model_configs)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_files_that_are_something_else(name: str, tmp_path: Path, model_configs: Path) -> None:
    """A workbook under another name, what Git LFS leaves, a page instead of a download."""
    for content, said in ((b"PK\x03\x04xx", "Excel"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
                          (b"\n<!DOCTYPE html><html>", "web page")):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        (found,) = problems(tmp_path / name, model_configs)
        assert found.row is None and said in found.message


def test_lists_in_folders(tmp_path: Path, model_configs: Path) -> None:
    """Beside tables they are notes and passed over with a notice; alone they are the manifest."""
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "README.txt").write_text("about\n")
    assert prompts(tmp_path, model_configs) == ["a"]
    (tmp_path / "b.csv").write_text("prompt\nb\n")
    rows, resolved = read(tmp_path, model_configs)
    assert [row.parameters.to_cells()["prompt"] for row in rows] == ["b"]
    assert any("a.txt" in line and "passed over" in line for line in resolved.notices)
    assert prompts(tmp_path / "[ab].*", model_configs) == ["a", "b"]


def test_a_fault_is_told_once(tmp_path: Path, model_configs: Path) -> None:
    """With a count of rows and files, whatever the fault; its values are told apart up to five."""
    (tmp_path / "d").mkdir()
    for number in range(7):
        (tmp_path / f"d/{number}.jsonl").write_text("{'prompt': 'a'}\n" * 50)
    with pytest.raises(ManifestProblems) as error:
        read(tmp_path / "d", model_configs)
    (line,) = error.value.log.lines()
    assert line.endswith("(350 rows in 7 files)") and error.value.log.total == 350
    for number in range(7):
        (tmp_path / f"d/{number}.jsonl").write_text('{"prompt": "a", "status": 1}\n' * 50)
    with pytest.raises(ManifestProblems) as error:
        read(tmp_path / "d", model_configs)
    (line,) = error.value.log.lines()
    assert "0.jsonl" in line and "3.jsonl and 3 more" in line
    (tmp_path / "m.csv").write_text("prompt,image\n" + "".join(f"a,{n % 5}.png\n" for n in range(30)))
    with pytest.raises(ManifestProblems) as error:
        read(tmp_path / "m.csv", model_configs)
    assert [line.endswith("(6 rows)") for line in error.value.log.lines()] == [True] * 5


# Tables of other tools


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists are not here")
def test_published_lists(model_configs: Path) -> None:
    """As they were published: PartiPrompts, GenEval's two files, T2I-CompBench."""
    counts = {path.name: len(read(path, model_configs)[0]) for path in LISTS.iterdir() if path.suffix != ".md"}
    assert counts == {
        "PartiPrompts.tsv": 1632, "geneval-evaluation_metadata.jsonl": 553, "geneval-generation_prompts.txt": 553,
        "t2i-compbench-color_val.txt": 300,
    }  # fmt: skip
    same = [
        prompts(LISTS / f"geneval-{name}", model_configs)
        for name in ("evaluation_metadata.jsonl", "generation_prompts.txt")
    ]
    assert same[0] == same[1]


def test_drawbench(tmp_path: Path, model_configs: Path) -> None:
    """Its sheet as it is saved, and as the hub has it: a column Prompts, and a category that is carried."""
    for name in ("Prompts,Category", "prompts,category"):
        (tmp_path / "m.csv").write_text(f'{name}\n"A red colored car.",Colors\nfour cups,Counting\n')
        assert prompts(tmp_path / "m.csv", model_configs) == ["A red colored car.", "four cups"]


def test_diffusiondb(tmp_path: Path, model_configs: Path) -> None:
    """Its metadata.parquet: settings apply, the rest is carried with its types."""
    file = write(
        tmp_path / "metadata.parquet", image_name=["a.png"], prompt=["a"], part_id=pa.array([1], pa.uint16()),
        seed=pa.array([5], pa.uint32()), step=pa.array([30], pa.uint16()), cfg=pa.array([7.0], pa.float32()),
        sampler=pa.array([8], pa.uint8()), width=pa.array([64], pa.uint16()), height=pa.array([64], pa.uint16()),
        user_name=["x"], timestamp=pa.array([0], pa.timestamp("ns", "UTC")), image_nsfw=pa.array([0.1], pa.float32()),
    )  # fmt: skip
    ((row,), resolved) = read(file, model_configs)
    sampling = row.parameters.sampling
    assert (sampling.seed, sampling.num_inference_steps) == (5, 30)
    assert resolved.carried["part_id"] == pa.uint16() and resolved.carried["timestamp"] == pa.timestamp("ns", "UTC")


def test_laion(tmp_path: Path, model_configs: Path) -> None:
    """TEXT is the prompt; WIDTH and HEIGHT are of the image at URL, and no sizes to paint in."""
    file = write(
        tmp_path / "m.parquet", SAMPLE_ID=[1], URL=["http://x/y.jpg"], TEXT=["a cat"], HEIGHT=[683], WIDTH=[1023],
        LICENSE=["?"], NSFW=["UNLIKELY"], similarity=[0.3],
    )  # fmt: skip
    ((row,), resolved) = read(file, model_configs)
    assert row.parameters.to_cells()["prompt"] == "a cat" and row.carried["WIDTH"] == 1023
    assert not any("did you mean" in line for line in resolved.notices)


@pytest.mark.parametrize("key", ["caption_id", "prompt_id", "text_id", "id_prompt", "image_id"])
def test_captions_before_ids(key: str, tmp_path: Path, model_configs: Path) -> None:
    """A caption is the prompt, whatever keys stand beside it; nobody is told to rename a key."""
    file = write(tmp_path / "m.parquet", **{key: ["7"], "caption": ["a"]})
    assert prompts(file, model_configs) == ["a"]
    (found,) = problems(write(tmp_path / "n.parquet", **{key: ["7"], "short_caption": ["a"]}), model_configs)
    assert "rename 'short_caption'" in found.message


def test_styles_of_a1111(tmp_path: Path, model_configs: Path) -> None:
    """A style with {prompt} is no prompt; one without is, with a notice."""
    path = tmp_path / "styles.csv"
    path.write_text(
        'name,prompt,negative_prompt\nfilm,"{prompt}, film",ugly\nold,"old {prompt}",\n', encoding="utf-8-sig"
    )
    (found,) = problems(path, model_configs)
    assert (found.row, found.column, "{prompt}" in found.message) == (1, "prompt", True)
    path.write_text("name,prompt,negative_prompt\nfilm,film grain,ugly\n", encoding="utf-8-sig")
    ((row,), resolved) = read(path, model_configs)
    assert row.carried == {"name": "film"} and any("styles" in line for line in resolved.notices)


def test_an_index_of_pandas(tmp_path: Path, model_configs: Path) -> None:
    """A column without a name is carried under the one that pandas gives it."""
    (tmp_path / "m.csv").write_text(",prompt\n0,a\n1,b\n")
    rows, _ = read(tmp_path / "m.csv", model_configs)
    assert [row.carried for row in rows] == [
        {"Unnamed: 0": "0"},
        {"Unnamed: 0": "1"},
    ]
