"""Images of many prompts by one pipeline, always from the same noises."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.builtin.recipe import SCORER_SEED_OFFSET

BATCH = 16


@torch.no_grad()
def paint(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    guidance: float,
    steps: int,
    inputs: Mapping[str, Sequence[Any]] | None = None,
    **options: Any,
) -> NDArray[np.uint8]:
    """One image a prompt, uint8 (n, h, w, 3); image i starts from the noise of SCORER_SEED_OFFSET + i.

    Args:
        inputs: arguments of the call that have one value a prompt.
        options: arguments of the call that have one value.
    """
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(prompts), BATCH):
        part = slice(start, min(start + BATCH, len(prompts)))
        noises = [torch.Generator("cpu").manual_seed(SCORER_SEED_OFFSET + i) for i in range(part.start, part.stop)]
        output = pipeline(
            prompt=list(prompts[part]),
            guidance_scale=guidance,
            num_inference_steps=steps,
            generator=noises,
            output_type="np",
            **{name: list(values[part]) for name, values in (inputs or {}).items()},
            **options,
        )
        images.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(images)
