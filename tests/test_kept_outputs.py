"""Outputs that earlier code made resume: nothing is made again, longer manifests add their new rows, checks agree.

`fixtures/outputs` holds a tiny model, a manifest of six rows (one of them fails), and outputs with the jobs that made
them: `files` and `parquet` by e4ff86d, `schema-2` by a68ba8c, the last commit whose metadata had no columns for
classes, classifiers, poses and watermarks. They were made in another folder, and are never made anew.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import HERE, RunCli

KEPT = Path(__file__).parent / "fixtures" / "outputs"
LATER = [
    {"id": "later", "prompt": "a green cone", "seed": 5, "num_inference_steps": 3, "label": "new"},
    {"prompt": "a blue ball", "num_inference_steps": 3, "label": "new"},  # a third one: its seed is another
]

outputs = pytest.mark.parametrize("name", ["files", "parquet", "schema-2"])


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of the kept outputs, their model, manifest and jobs, in a place that they were not made in."""
    return Path(shutil.copytree(KEPT, tmp_path / "moved"))


def contents(output: Path) -> dict[str, bytes]:
    """Every file of the dataset and its failure ledgers."""
    files = [*output.glob("data/**/*"), *output.glob("failures/*")]
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files if path.is_file()}


def markers(output: Path) -> list[Path]:
    """The Parquet files that name the rows."""
    return sorted(output.glob("data/**/*.parquet"))


def made_rows(output: Path) -> dict[str, str]:
    """Fingerprint by id; every row is there once."""
    rows = [row for path in markers(output) for row in pq.read_table(path, columns=["id", "fingerprint"]).to_pylist()]
    found = {row["id"]: row["fingerprint"] for row in rows}
    assert len(found) == len(rows)
    return found


def numbers(batchgen: RunCli, output: Path) -> tuple[int, ...]:
    """Rows, done, failed and left, as `status` counts them."""
    said = json.loads(batchgen("status", output, "--json").stdout)
    return tuple(said[key] for key in ("rows", "done", "failed", "left"))


def verified(batchgen: RunCli, output: Path) -> tuple[int, int]:
    """Images that `verify --deep` decoded, and failed rows; it finds no fault."""
    result = batchgen("verify", output, "--deep", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    said = json.loads(result.stdout)
    assert (said["faults"], said["ok"], said["rows"]) == ([], True, said["images"])
    return said["decoded"], said["failed_rows"]


@outputs
def test_a_kept_output_is_read(name: str, kept: Path, batchgen: RunCli) -> None:
    """By what only reads."""
    assert numbers(batchgen, kept / name) == (6, 5, 1, 0)
    assert verified(batchgen, kept / name) == (5, 1)


@pytest.mark.slow
@outputs
def test_nothing_of_a_kept_output_is_made_again(name: str, kept: Path, batchgen: RunCli) -> None:
    """The same manifest and job: no worker starts, nothing changes, and the row that failed is still reported.

    It lies where a new one is refused, since readers take brackets for a pattern: that is said.
    """
    output = (kept / name).rename(kept / f"{name} [1]")
    before, runs = contents(output), list(output.glob(".batchgen/runs/*"))
    result = batchgen("run", kept / f"{name}.toml", "--output", output, here=True)
    assert result.returncode == 1, result.stderr
    assert "for a pattern" in result.stderr
    assert "5 of 6 rows done, 1 failed" in result.stderr
    assert contents(output) == before
    assert list(output.glob(".batchgen/runs/*")) == runs
    assert numbers(batchgen, output) == (6, 5, 1, 0)


def test_a_kept_output_goes_without_the_defaults_of_its_model(kept: Path, batchgen: RunCli) -> None:
    """Models had none of their own when it was begun; with them all its rows would be others."""
    (kept / "model" / "batchgen.toml").write_text("[defaults]\nguidance_scale = 3.5\neta = 0.5\n")
    before = contents(kept / "files")
    result = batchgen("run", kept / "files.toml", here=True)
    assert result.returncode == 1, result.stderr
    assert "5 of 6 rows done, 1 failed" in result.stderr
    assert "was begun with another default" in result.stderr and "eta, guidance_scale" in result.stderr
    assert contents(kept / "files") == before


def test_a_row_that_an_older_output_has_no_column_for_is_refused(kept: Path, batchgen: RunCli) -> None:
    """Incident: it was made, and nothing said with what; two rows of equal metadata had other fingerprints."""
    before = contents(kept / "schema-2")
    with (kept / "rows.jsonl").open("a", encoding="utf-8") as manifest:
        manifest.write(
            json.dumps({"id": "marked", "prompt": "a cone", "width": 256, "height": 256, "watermark": "mine"}) + "\n"
        )
    for command in (("run", *HERE), ("plan",)):
        result = batchgen(command[0], kept / "schema-2.toml", *command[1:], here=True)
        assert result.returncode == 2, result.stderr
        assert "no watermark, which row 'marked' names" in result.stderr
    assert contents(kept / "schema-2") == before


@pytest.mark.parametrize("name", ["parquet", "schema-2"])  # of either layout
def test_a_longer_manifest_adds_its_new_rows(name: str, kept: Path, batchgen: RunCli) -> None:
    """In shards of the schema that the output has."""
    output = kept / name
    before, rows = contents(output), made_rows(output)
    with (kept / "rows.jsonl").open("a", encoding="utf-8") as manifest:
        manifest.writelines(json.dumps(row) + "\n" for row in LATER)
    result = batchgen("run", kept / f"{name}.toml", *HERE)
    assert result.returncode == 1, result.stderr
    assert name != "schema-2" or "was begun before the columns" in result.stderr
    after, longer = contents(output), made_rows(output)
    assert {path: after[path] for path in before} == before
    assert {id_: longer[id_] for id_ in rows} == rows
    assert "later" in longer and len(longer) == len(rows) + len(LATER)
    assert len({pq.read_schema(path).remove_metadata() for path in markers(output)}) == 1
    assert numbers(batchgen, output) == (8, 7, 1, 0)
    assert verified(batchgen, output) == (7, 1)
