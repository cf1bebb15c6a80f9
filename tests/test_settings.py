"""Settings of a job: the safety checker, images of steps, the memory mode, watermarks, precisions of components."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from conftest import HERE, RunCli
from PIL import Image
from tiny_models import build_sd1

from batchgen.generation.watermark import extract

pytestmark = pytest.mark.slow

ROWS = "id,prompt,seed,num_inference_steps,width,height\n" + "".join(
    f"{seed},{prompt},{seed},2,64,64\n" for seed, prompt in enumerate(["a castle", "a castle", "rain", "rain"])
)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose checker objects to about half of what it makes."""
    return build_sd1(tmp_path_factory.mktemp("safety") / "model", with_safety_checker=True)


Made = dict[str, tuple[Path, dict[str, Any]]]  # a row of the metadata and the file that holds it, by id


def run(batchgen: RunCli, folder: Path, model: Path, safety: str, layout: str) -> tuple[Made, int]:
    """What a run with this policy made, and its exit code."""
    (folder / "m.csv").write_text(ROWS)
    (folder / f"{safety}.toml").write_text(
        f'manifest = "m.csv"\noutput = "{safety}"\nmodel = "{model}"\nsafety = "{safety}"\nlayout = "{layout}"\n'
        'memory = "low"\nsave_steps = [1, 2]\n'
    )
    done = batchgen("run", folder / f"{safety}.toml", *HERE)
    pattern = "*/metadata.parquet" if layout == "files" else "*.parquet"
    files = (folder / safety / "data").glob(pattern)
    made = {row["id"]: (file, row) for file in files for row in pq.read_table(file).to_pylist()}
    return made, done.returncode


def data_of(file: Path, row: Mapping[str, Any], name: str, column: str) -> bytes:
    """An encoded image, in a file beside the metadata or in a column."""
    data: bytes = row[column]["bytes"] if row.get(column) else (file.parent / row[name]).read_bytes()
    return data


def pixels_of(file: Path, row: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """A row's own image."""
    return np.asarray(Image.open(io.BytesIO(data_of(file, row, "file_name", "image"))))


def test_policies_and_images_of_steps(batchgen: RunCli, judged: Path, tmp_path: Path) -> None:
    """Keep flags, blank blackens what is flagged and nothing else, drop records a failure.

    Images of steps are named or held by the metadata, verified like the rows' own, and no strays.
    """
    kept, code = run(batchgen, tmp_path, judged, "keep", "files")
    assert code == 0
    flagged = {name for name, (_, row) in kept.items() if row["flagged"]}
    assert flagged and kept.keys() - flagged
    blanked, code = run(batchgen, tmp_path, judged, "blank", "parquet")
    assert code == 0
    for name, (file, row) in blanked.items():
        assert (pixels_of(file, row).max() == 0) == row["flagged"] == (name in flagged)
        if name not in flagged:
            assert np.array_equal(pixels_of(file, row), pixels_of(*kept[name]))
    left, code = run(batchgen, tmp_path, judged, "drop", "files")
    assert code == 1
    assert left.keys() == kept.keys() - flagged
    (ledger,) = (tmp_path / "drop" / "failures").glob("*.parquet")
    assert {row["error_class"] for row in pq.read_table(ledger).to_pylist()} == {"safety"}

    for made in (kept, blanked):
        for file, row in made.values():
            first, last = row["step_images"]
            assert (first["step"], last["step"]) == (1, 2)
            if not (made is blanked and row["flagged"]):
                assert last["sha256"] == row["sha256"] != first["sha256"]
            for step in (first, last):
                image = Image.open(io.BytesIO(data_of(file, step, "path", "image")))
                assert image.size == (64, 64)
                assert not (made is blanked and row["flagged"]) or image.getextrema() == ((0, 0),) * 3
    for output in ("keep", "blank"):
        verified = batchgen("verify", tmp_path / output, "--deep", "--json")
        assert verified.returncode == 0
        assert json.loads(verified.stdout)["strays"] == 0
        (record,) = (tmp_path / output / ".batchgen" / "runs").rglob("*.json")
        assert json.loads(record.read_text())["memory"] == "low"
    file, row = kept["0"]
    (file.parent / row["step_images"][0]["path"]).write_bytes(b"gone")
    assert batchgen("verify", tmp_path / "keep").returncode == 1


def test_marks_and_precisions(batchgen: RunCli, judged: Path, tmp_path: Path) -> None:
    """A watermark for all rows but one, an autoencoder in a precision of its own, no safety checker; as recorded."""
    (tmp_path / "m.csv").write_text(
        "id,prompt,seed,watermark,num_inference_steps,width,height\na,rain,1,,2,128,128\nb,rain,1,me,2,128,128\n"
    )
    (tmp_path / "job.toml").write_text(
        f'manifest = "m.csv"\noutput = "out"\nmodel = "{judged}"\ndtype = "bfloat16"\nsafety = "off"\n'
        'save_steps = [1]\n[dtypes]\nvae = "float32"\n[defaults]\nwatermark = "us"\n'
    )
    assert batchgen("run", str(tmp_path / "job.toml"), *HERE).returncode == 0
    found = {}
    for file in (tmp_path / "out" / "data").glob("*/metadata.parquet"):
        for row in pq.read_table(file).to_pylist():
            assert row["dtype"] == "bfloat16, vae float32"
            assert row["flagged"] is None
            for name in (row["file_name"], row["step_images"][0]["path"]):
                assert extract(np.asarray(Image.open(file.parent / name)), 2) == row["watermark"].encode()
            found[row["id"]] = row["watermark"]
    assert found == {"a": "us", "b": "me"}
    (record,) = (tmp_path / "out" / ".batchgen" / "runs").rglob("*.json")
    assert json.loads(record.read_text())["dtypes"] == {"vae": "float32"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [('unet = "float32"', "[dtypes] names 'unet'; known are"), ('vae = "half"', "[dtypes] vae is 'half'; one of")],
)
def test_wrong_precisions_are_refused(batchgen: RunCli, tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "job.toml").write_text(f'manifest = "m.csv"\n[dtypes]\n{line}\n')
    done = batchgen("validate", str(tmp_path / "job.toml"))
    assert done.returncode == 2
    assert complaint in done.stderr
