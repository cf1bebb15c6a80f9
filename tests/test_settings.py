"""Settings of a job: the safety checker, images of steps, the memory mode, watermarks, precisions of components."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import RunCli
from PIL import Image
from tiny_models import build_sd1

from batchgen.generation.watermark import extract

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROWS = "id,prompt,seed,num_inference_steps,width,height\n" + "".join(
    f"{seed},{prompt},{seed},2,64,64\n" for seed, prompt in enumerate(["a castle", "a castle", "rain", "rain"])
)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose checker objects to about half of what it makes."""
    return build_sd1(tmp_path_factory.mktemp("safety") / "model", with_safety_checker=True)


def run(
    batchgen: RunCli, address: str, folder: Path, model: Path, safety: str
) -> tuple[dict[str, bool | None], dict[str, Path], int]:
    """Flags and images by id, and the exit code."""
    (folder / "m.csv").write_text(ROWS)
    (folder / "job.toml").write_text(
        f'manifest = "m.csv"\noutput = "{safety}"\nmodel = "{model}"\nsafety = "{safety}"\n'
    )
    done = batchgen("run", str(folder / "job.toml"), "--address", address)
    flags: dict[str, bool | None] = {}
    images: dict[str, Path] = {}
    for file in (folder / safety / "data").glob("*/metadata.parquet"):
        for row in pq.read_table(file).to_pylist():
            flags[row["id"]] = row["flagged"]
            images[row["id"]] = file.parent / row["file_name"]
    return flags, images, done.returncode


def test_policies(batchgen: RunCli, ray_address: str, judged: Path, tmp_path: Path) -> None:
    """Keep flags, blank blackens what is flagged and nothing else, drop records a failure, off asks nobody."""
    flags, kept, code = run(batchgen, ray_address, tmp_path, judged, "keep")
    assert code == 0
    assert set(flags.values()) == {True, False}
    flagged = {name for name, flag in flags.items() if flag}
    _, blanked, _ = run(batchgen, ray_address, tmp_path, judged, "blank")
    for name, file in blanked.items():
        pixels = np.asarray(Image.open(file))
        assert (pixels.max() == 0) == (name in flagged)
        if name not in flagged:
            assert np.array_equal(pixels, np.asarray(Image.open(kept[name])))
    left, _, code = run(batchgen, ray_address, tmp_path, judged, "drop")
    assert code == 1
    assert left.keys() == flags.keys() - flagged
    (ledger,) = (tmp_path / "drop" / "failures").glob("*.parquet")
    assert {row["error_class"] for row in pq.read_table(ledger).to_pylist()} == {"safety"}
    unasked, _, _ = run(batchgen, ray_address, tmp_path, judged, "off")
    assert set(unasked.values()) == {None}


@pytest.mark.parametrize("layout", ["files", "parquet"])
def test_step_images_are_part_of_the_dataset(
    batchgen: RunCli, ray_address: str, judged: Path, tmp_path: Path, layout: str
) -> None:
    """They are named or held by the metadata, verified like the rows' own, and no strays."""
    (tmp_path / "m.csv").write_text(ROWS)
    (tmp_path / "job.toml").write_text(
        f'manifest = "m.csv"\noutput = "out"\nmodel = "{judged}"\nlayout = "{layout}"\n'
        'memory = "low"\nsave_steps = [1, 2]\n'
    )
    assert batchgen("run", str(tmp_path / "job.toml"), "--address", ray_address).returncode == 0
    pattern = "*/metadata.parquet" if layout == "files" else "*.parquet"
    rows = [
        (file, row) for file in (tmp_path / "out" / "data").glob(pattern) for row in pq.read_table(file).to_pylist()
    ]
    assert len(rows) == 4
    for file, row in rows:
        assert [step["step"] for step in row["step_images"]] == [1, 2]
        assert row["step_images"][1]["sha256"] == row["sha256"] != row["step_images"][0]["sha256"]
        for step in row["step_images"]:
            data = (file.parent / step["path"]).read_bytes() if layout == "files" else step["image"]["bytes"]
            assert Image.open(io.BytesIO(data)).size == (64, 64)
    verified = batchgen("verify", str(tmp_path / "out"), "--deep", "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["strays"] == 0
    (record,) = (tmp_path / "out" / ".batchgen" / "runs").rglob("*.json")
    assert json.loads(record.read_text())["memory"] == "low"
    if layout == "files":
        file, row = rows[0]
        (file.parent / row["step_images"][0]["path"]).write_bytes(b"gone")
        assert batchgen("verify", str(tmp_path / "out")).returncode == 1


def test_marks_and_precisions(batchgen: RunCli, ray_address: str, judged: Path, tmp_path: Path) -> None:
    """A watermark for all rows but one, and an autoencoder in a precision of its own; both are recorded."""
    (tmp_path / "m.csv").write_text(
        "id,prompt,seed,watermark,num_inference_steps,width,height\na,rain,1,,2,128,128\nb,rain,1,me,2,128,128\n"
    )
    (tmp_path / "job.toml").write_text(
        f'manifest = "m.csv"\noutput = "out"\nmodel = "{judged}"\ndtype = "bfloat16"\nsafety = "off"\n'
        'save_steps = [1]\n[dtypes]\nvae = "float32"\n[defaults]\nwatermark = "us"\n'
    )
    assert batchgen("run", str(tmp_path / "job.toml"), "--address", ray_address).returncode == 0
    found = {}
    for file in (tmp_path / "out" / "data").glob("*/metadata.parquet"):
        for row in pq.read_table(file).to_pylist():
            assert row["dtype"] == "bfloat16, vae float32"
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
