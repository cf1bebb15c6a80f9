"""Noise is the same in every precision: a row is one image in float32 and in half precision, up to rounding."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import build_sd1

from batchgen.diffusion.host import PipelineHost
from batchgen.diffusion.noise import BrownianTreeNoiseSampler, draw_in_float32, randn_tensor
from batchgen.driver import resolved_rows
from batchgen.generation.samplers import OPTIONS
from batchgen.generation.tasks import TASKS
from batchgen.job import Job
from batchgen.sharding import Sizing, make_shards

CLASSES = sorted(
    {*OPTIONS, *(name for task in TASKS.values() for name in (*task.pipelines.values(), *task.controlled.values()))}
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 5, 5), (2, 3), (3, 4, 16, 16)])
def test_half_precision_noise_is_float32_noise_rounded(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """torch 2.11 gave other numbers from 16 on, torch 2.13 at the end where their count is no multiple of 16."""

    def draw(kind: torch.dtype) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(shape[0])]
        return randn_tensor(shape, generator=generators, device=torch.device("cpu"), dtype=kind)

    assert draw(dtype).dtype == dtype
    assert torch.equal(draw(dtype), draw(torch.float32).to(dtype))


@pytest.mark.parametrize("name", CLASSES)
def test_no_class_of_diffusers_draws_otherwise(name: str) -> None:
    """Each class that we use draws by the name `randn_tensor` of its module, which is then ours, or does not draw."""
    kind = getattr(diffusers, name)
    draw_in_float32(kind)
    module = sys.modules[kind.__module__]
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    assert getattr(module, "randn_tensor", randn_tensor) is randn_tensor
    assert getattr(module, "BrownianTreeNoiseSampler", BrownianTreeNoiseSampler) is BrownianTreeNoiseSampler
    assert "torch.randn(" not in source
    assert "torch_utils.randn_tensor" not in source


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("precision") / "sd1")


@pytest.fixture(scope="module")
def hosts() -> list[PipelineHost]:
    """Of every precision, the widest first."""
    kinds: tuple[Literal["float32", "float16", "bfloat16"], ...] = ("float32", "float16", "bfloat16")
    return [PipelineHost(device="cpu", dtype=kind) for kind in kinds]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cells",
    [{}, {"image": "init.png", "strength": 0.9}, {"scheduler": "DPM++ SDE"}],
    ids=["text", "image", "torchsde"],
)
def test_a_row_is_one_image_in_every_precision(
    model: Path, hosts: Sequence[PipelineHost], cells: dict[str, Any], tmp_path: Path
) -> None:
    """At 40 pixels a row has 100 latents, no multiple of 16; an ancestral sampler draws at every step."""
    init = Image.linear_gradient("L").convert("RGB").resize((40, 40))
    init.save(tmp_path / "init.png")
    row = {"prompt": "a castle", "seed": 7, "width": 40, "height": 40, "steps": 4, "scheduler": "Euler a", **cells}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    sizing = Sizing(device="cpu", workers=1, batch_size=1, shard_rows=1)
    with resolved_rows(Job(manifest=str(tmp_path / "m.jsonl"), model=str(model))) as (index, resolved):
        (shard,) = make_shards(index.pending(1), [(group.key, group.total) for group in index.groups()], sizing)
    (batch,) = shard.micro_batches()
    inputs = [{"image": init} if "image" in cells else {}]
    wide, *narrow = (host.generate(resolved.models[str(model)], batch, inputs).pixels.astype(int) for host in hosts)
    for other in narrow:
        assert np.abs(wide - other).mean() < 4  # levels; with other noise it is over 20
