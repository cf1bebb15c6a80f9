"""Models before they are loaded: every byte that is loaded is in the fingerprint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import build_sd1

from batchgen.diffusion.host import PipelineHost
from batchgen.driver import resolved_rows
from batchgen.errors import InputError, ModelLoadError
from batchgen.job import Job
from batchgen.models.catalog import find_model, require_unchanged
from batchgen.models.hashing import hash_folder
from batchgen.rows import MicroBatch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_sd1(tmp_path / "sd1")


def scaled(model: Path, factor: float) -> None:
    """Other weights of the same size in the model's UNet."""
    (weights,) = (model / "unet").glob("*.safetensors")
    save_file({name: tensor * factor for name, tensor in load_file(weights).items()}, weights)


def test_what_lies_behind_links_is_in_the_fingerprint(model: Path, tmp_path: Path) -> None:
    """Incident: a model whose `unet` was a link to another folder kept its fingerprint with other weights."""
    plain = find_model(str(model)).fingerprint
    shutil.move(model / "unet", tmp_path / "elsewhere")
    (model / "unet").symlink_to(tmp_path / "elsewhere")
    assert find_model(str(model)).fingerprint == plain
    scaled(model, 1.5)
    assert find_model(str(model)).fingerprint != plain


def test_links_that_lead_back_up_end(model: Path) -> None:
    plain = hash_folder(model)
    (model / "unet" / "up").symlink_to(model)
    assert hash_folder(model) == plain


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", [shutil.rmtree, lambda path: [file.unlink() for file in path.iterdir()]])
def test_a_part_that_contributes_nothing_is_an_error(part: str, damage: Callable[[Path], object], model: Path) -> None:
    damage(model / part)
    with pytest.raises(InputError, match=f"{part}.* is missing"):
        find_model(str(model))


def test_a_model_that_changed_since_the_check_is_not_loaded(model: Path, tmp_path: Path) -> None:
    """Incident: weights that were replaced after the check made other images under the old fingerprint."""
    (tmp_path / "m.csv").write_text("prompt,width,height,steps\na,64,64,1\n")
    with resolved_rows(Job(manifest=str(tmp_path / "m.csv"), model=str(model))) as (index, resolved):
        rows = [row for _, row in index.pending()]
    found = resolved.models[str(model)]
    (weights,) = (model / "unet").glob("*.safetensors")
    weights.touch()
    assert find_model(str(model)) == found  # no reason for a worker to read it anew
    host = PipelineHost(device="cpu", dtype="float32")
    host.generate(found, MicroBatch(rows=rows, size=1), [{}])  # another time, and the same bytes
    scaled(model, 1.5)
    host.forget()
    with pytest.raises(ModelLoadError, match="changed since the manifest was checked; run again"):
        host.generate(found, MicroBatch(rows=rows, size=1), [{}])
    shutil.rmtree(model)
    with pytest.raises(ModelLoadError, match="cannot be read here"):
        require_unchanged(found)
