"""Who looks on while a pipeline makes an image: told of noised latents and estimates, and changing no bit of them."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from batchgen.diffusion.attention import AttentionMaps
from batchgen.diffusion.levels import NoiseLevel, level_now

__all__ = ["NOBODY", "Call", "Observer", "observed"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """What a model was given at one call, and what it took the finished latents for, each (B, C, H, W).

    `noised` is on the model's scale, whatever the sampler's own: signal and noise of one variance together.
    `estimate` is x0, guidance included; None where noise without a signal says nothing of it.
    """

    level: NoiseLevel
    noised: torch.Tensor
    estimate: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Observer:
    """What is told of a pipeline's call.

    `after_step` gets the number of a step, from 1, and the latents after it, at the noise level of that step;
    `at_call` every call of the model; `control_maps` for each ControlNet what it is given, uint8 (B, H, W, 3);
    `attention` takes up where the UNet looks.
    """

    after_step: Callable[[int, torch.Tensor], None] | None = None
    at_call: Callable[[Call], None] | None = None
    control_maps: Callable[[Sequence[npt.NDArray[np.uint8]]], None] | None = None
    attention: AttentionMaps | None = None


NOBODY = Observer()


@contextmanager
def observed(scheduler: Any, tell: Callable[[Call], None] | None) -> Iterator[None]:
    """While it lasts, each call of the model is told of; the scheduler computes what it would without."""
    if tell is None:
        yield
        return
    scale, step = scheduler.scale_model_input, scheduler.step
    given: list[torch.Tensor] = []  # what the model is given, since the last step
    calls = 0

    @functools.wraps(scale)
    def scaled(*args: Any, **kwargs: Any) -> Any:
        given.append(scale(*args, **kwargs))
        return given[-1]

    @functools.wraps(step)  # pipelines ask for its parameters by name
    def stepped(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        level = level_now(scheduler, calls, float(timestep))
        noised = given[0][: len(sample)].clone()  # the rows once: with guidance they are there twice or three times
        given.clear()
        tell(Call(level=level, noised=noised, estimate=_estimate(scheduler, level, noised, model_output)))
        return step(model_output, timestep, sample, *args, **kwargs)

    scheduler.scale_model_input, scheduler.step = scaled, stepped
    try:
        yield
    finally:
        del scheduler.scale_model_input, scheduler.step


def _estimate(scheduler: Any, level: NoiseLevel, noised: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """x0 by what the model was trained to predict (Ho et al. 2020; v: Salimans & Ho 2022); clipped by no scheduler."""
    kind = scheduler.config.prediction_type
    output = output[:, : noised.shape[1]]  # without a learnt variance
    if kind in ("sample", "original_sample"):
        return output.clone()
    signal, noise = _parts(scheduler, level)
    if kind == "v_prediction":
        return signal * noised - noise * output
    return (noised - noise * output) / signal if signal else None


def _parts(scheduler: Any, level: NoiseLevel) -> tuple[float, float]:
    """By how much signal and noise are multiplied in what the model is given."""
    if level.sigma is None:
        return 0.0, 1.0
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return 1 - level.sigma, level.sigma
    whole = math.hypot(1.0, level.sigma)
    return 1 / whole, level.sigma / whole
