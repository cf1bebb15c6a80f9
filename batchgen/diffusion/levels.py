"""Noise levels of schedulers: what a model is given at each of its calls, and what is left at the end."""

import math
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["NoiseLevel", "level_now", "noise_levels"]

_MIDPOINT = frozenset({"DPMSolverSDEScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"})
"""Classes that call the model between two of their `sigmas` on every other call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevel:
    """What the model is given at one call; most samplers make one call a step, those of second order about two."""

    step: int  # from 1
    timestep: float  # of the training schedule, a whole number for most samplers
    sigma: float | None  # noise over signal, sqrt((1 - a) / a) with a = alphas_cumprod; None: infinite, no signal
    log_snr: float | None  # natural logarithm of a / (1 - a); None: no signal or, at the end, no noise


def noise_levels(scheduler: Any, first: int = 0, stop: int | None = None) -> tuple[NoiseLevel, ...]:
    """What the model is given at each call, by the scheduler's own numbers, and the level that the last one leads to.

    Args:
        scheduler: after `set_timesteps`.
        first: place in its timesteps of the first call that is made.
        stop: and of the first that is not made any more; None: all are.
    """
    timesteps = scheduler.timesteps.tolist()
    stop = len(timesteps) if stop is None else stop
    levels = [_level(scheduler, place, place - first + 1, timesteps[place]) for place in range(first, stop)]
    if stop < len(timesteps):
        return (*levels, _level(scheduler, stop, stop - first + 1, timesteps[stop]))
    return (*levels, _made(scheduler, stop - first + 1, 0.0, _last_sigma(scheduler)))


def level_now(scheduler: Any, call: int, timestep: float) -> NoiseLevel:
    """The level of the call that a scheduler is about to take the answer of."""
    place = getattr(scheduler, "step_index", None)
    if place is None:
        place = getattr(scheduler, "begin_index", None) or 0
    return _level(scheduler, place, call, timestep)


def _level(scheduler: Any, place: int, step: int, timestep: float) -> NoiseLevel:
    own = getattr(scheduler, "sigmas", None)
    between = type(scheduler).__name__ in _MIDPOINT and place % 2 == 1
    sigma = _training_sigma(scheduler, timestep) if own is None or between else float(own[place])
    return _made(scheduler, step, timestep, sigma)


def _made(scheduler: Any, step: int, timestep: float, sigma: float) -> NoiseLevel:
    signal = 1 - sigma if getattr(scheduler.config, "use_flow_sigmas", False) else 1.0  # scaled as sigma is
    known = math.isfinite(sigma) and sigma > 0 and signal > 0
    return NoiseLevel(
        step=step,
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


def _last_sigma(scheduler: Any) -> float:
    """The noise that the last step leaves: none with `set_alpha_to_one`, or with a last sigma of zero."""
    if (own := getattr(scheduler, "sigmas", None)) is not None:
        return float(own[-1])
    kind = type(scheduler).__name__
    if kind == "TCDScheduler":
        return _training_sigma(scheduler, 0)
    alpha = 1.0 if kind == "LCMScheduler" else float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return math.sqrt((1 - alpha) / alpha)
