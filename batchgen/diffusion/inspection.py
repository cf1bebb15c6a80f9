"""What a row's prompt and sampler become before anything is denoised: tokens and noise levels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from batchgen.diffusion.levels import NoiseLevel, noise_levels
from batchgen.diffusion.loaded import LoadedModel
from batchgen.diffusion.loading import load_components
from batchgen.diffusion.prompts import Token
from batchgen.generation.tasks import batch_strength
from batchgen.models.catalog import Model
from batchgen.rows import Row

__all__ = ["Inspection", "NoiseLevel", "Token", "inspect_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """Tokens of a prompt, and of each row the noise levels of its calls, with the level at the end.

    `tokens` are those of the first text encoder, `chunks` how many of them each chunk holds, empty ones too.
    """

    tokens: tuple[Token, ...]
    chunks: tuple[int, ...]
    schedules: tuple[tuple[NoiseLevel, ...], ...]


def inspect_rows(model: Model, rows: Sequence[Row]) -> Inspection:
    """Tokens and noise levels of rows with one prompt.

    Raises:
        ModelLoadError: the model cannot be loaded.
        InputError: an adapter cannot be loaded, or the scheduler does not take a row's options.
    """
    # Nothing is computed with the weights: half precision halves the memory they take.
    dtype = torch.float16
    loaded = LoadedModel(model, load_components(model, device=torch.device("cpu"), dtype=dtype), dtype)
    tokens = tuple(loaded.tokens(rows[0]))
    held = Counter(token.chunk for token in tokens)
    return Inspection(
        tokens=tokens,
        chunks=tuple(held[chunk] for chunk in range(max([*held, 0]) + 1)),
        schedules=tuple(_schedule(loaded.prepared(row), row) for row in rows),
    )


def _schedule(pipeline: Any, row: Row) -> tuple[NoiseLevel, ...]:
    """The levels of the calls that a pipeline makes: an init image and a refiner leave a part of the schedule to it."""
    sampling, refining, scheduler = row.parameters.sampling, row.parameters.refining, pipeline.scheduler
    first, strength = 0, row.parameters.init.strength
    if strength is not None:
        steps, start = sampling.num_inference_steps, refining.denoising_start
        part = {} if start is None else {"denoising_start": start}
        left, _ = pipeline.get_timesteps(steps, batch_strength(steps, strength), torch.device("cpu"), **part)
        first = len(scheduler.timesteps) - len(left)
    stop = len(scheduler.timesteps)
    if (end := refining.denoising_end) is not None:  # as SDXL's pipelines count
        trained = scheduler.config.num_train_timesteps
        stop = sum(timestep >= round(trained - end * trained) for timestep in scheduler.timesteps.tolist())
    return noise_levels(scheduler, first, stop)
