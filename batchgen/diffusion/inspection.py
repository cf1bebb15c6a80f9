"""What a row's prompt and sampler become before anything is denoised: tokens and noise levels."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from batchgen.diffusion.loading import load_components
from batchgen.diffusion.prompts import Prompt, PromptEncoder, Token
from batchgen.diffusion.schedulers import make_scheduler
from batchgen.models.catalog import Model
from batchgen.rows import Row

__all__ = ["Inspection", "NoiseLevel", "inspect_row", "noise_levels"]

_MIDPOINT = frozenset({"DPMSolverSDEScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"})
"""Classes that call the model between two of their `sigmas` on every other call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevel:
    """What the model is given at one call; most samplers make one call a step, those of second order about two."""

    step: int  # from 1
    timestep: float  # of the training schedule, a whole number for most samplers
    sigma: float | None  # noise over signal, sqrt((1 - a) / a) with a = alphas_cumprod; None: infinite, no signal
    log_snr: float | None  # natural logarithm of a / (1 - a); None: no signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """`tokens` are those of the first text encoder, `chunks` how many of them each chunk holds, empty ones too."""

    tokens: tuple[Token, ...]
    chunks: tuple[int, ...]
    schedule: tuple[NoiseLevel, ...]


def inspect_row(model: Model, row: Row) -> Inspection:
    """Tokens and noise levels of a text-to-image row.

    Raises:
        ModelLoadError: the model cannot be loaded.
        InputError: the scheduler does not take the row's options.
    """
    # Nothing is computed with the weights: half precision halves the memory they take.
    parts = load_components(model, device=torch.device("cpu"), dtype=torch.float16).parts
    prompting, sampling = row.parameters.prompting, row.parameters.sampling
    assert prompting is not None, "explained rows have a prompt"
    encoder = PromptEncoder(parts)
    prompt = Prompt(text=prompting.prompt, weighted=prompting.prompt_syntax == "a1111")
    tokens = tuple(encoder.token_table(prompt))
    held = Counter(token.chunk for token in tokens)
    scheduler = make_scheduler(sampling.scheduler, sampling.scheduler_kwargs, parts["scheduler"].config)
    return Inspection(
        tokens=tokens,
        chunks=tuple(held[chunk] for chunk in range(encoder.chunks(prompt))),
        schedule=noise_levels(scheduler, sampling.num_inference_steps),
    )


def noise_levels(scheduler: Any, steps: int) -> tuple[NoiseLevel, ...]:
    """What the model is given at each call of a run of `steps` steps, by the scheduler's own numbers."""
    scheduler.set_timesteps(steps)
    return tuple(_level(scheduler, place, timestep) for place, timestep in enumerate(scheduler.timesteps.tolist()))


def _level(scheduler: Any, place: int, timestep: float) -> NoiseLevel:
    own = getattr(scheduler, "sigmas", None)
    between = type(scheduler).__name__ in _MIDPOINT and place % 2 == 1
    sigma = _training_sigma(scheduler, timestep) if own is None or between else float(own[place])
    signal = 1 - sigma if getattr(scheduler.config, "use_flow_sigmas", False) else 1.0  # scaled as sigma is
    known = math.isfinite(sigma) and sigma > 0 and signal > 0
    return NoiseLevel(
        step=place + 1,
        timestep=timestep,
        sigma=sigma if math.isfinite(sigma) else None,
        log_snr=2 * math.log(signal / sigma) if known else None,
    )


def _training_sigma(scheduler: Any, timestep: float) -> float:
    """Sigma of the training schedule; between two timesteps log sigma is a straight line, as in k-diffusion."""
    alphas = scheduler.alphas_cumprod.double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    below, part = int(timestep), timestep % 1
    if not part:
        return float(sigmas[below])
    return float(torch.lerp(sigmas[below].log(), sigmas[below + 1].log(), part).exp())
