"""Tries schedulers without a model: whether one can be built with its options, and runs its steps.

`python -m batchgen.diffusion.trial` reads trials as JSON from stdin and writes what went wrong to stdout: checking a
manifest must not import diffusers, and asks this in a process of its own.
"""

import json
import sys
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from batchgen.diffusion.schedulers import make_scheduler, seed_scheduler, takes_variance
from batchgen.errors import InputError, one_line
from batchgen.identity import canonical

__all__ = ["try_scheduler"]

_CHANNELS, _SIDE = 3, 2  # of pixels: some classes cut what a model learnt of the variance off after so many


def try_scheduler(class_name: str, kwargs: Mapping[str, Any], config: Mapping[str, Any], steps: int) -> str | None:
    """Run a scheduler's steps on numbers that stand for a model's; why it cannot, or None.

    Args:
        class_name: one of `samplers.OPTIONS`.
        kwargs: its options, over `config`.
        config: the scheduler config in the model's folder.
        steps: `num_inference_steps`.
    """
    try:
        scheduler = _made(class_name, canonical(dict(kwargs)), canonical(dict(config)))
        seed_scheduler(scheduler, [0])
        scheduler.set_timesteps(steps)
        sample = torch.ones(1, _CHANNELS, _SIDE, _SIDE)
        predicted = torch.zeros(1, _CHANNELS * (2 if takes_variance(scheduler) else 1), _SIDE, _SIDE)
        for timestep in scheduler.timesteps:
            scheduler.scale_model_input(sample, timestep)
            sample = scheduler.step(predicted, timestep, sample).prev_sample
    except InputError as error:
        return str(error)
    except Exception as error:  # each class fails in ways of its own
        return f"{class_name} cannot do {steps} steps: {one_line(error)}"
    if not sample.isfinite().all():
        return f"{class_name} cannot do {steps} steps: they end in numbers that are not finite"
    sigmas = getattr(scheduler, "sigmas", None)
    if scheduler.timesteps.min() < 0 or (sigmas is not None and sigmas.min() < 0):
        return f"{class_name} cannot do {steps} steps: some are at less than no noise"
    if sigmas is not None and sigmas.max() > sigmas[0]:
        return f"{class_name} cannot do {steps} steps: noise grows on the way"
    if sigmas is not None and sigmas[-1] >= sigmas[0]:
        return f"{class_name} cannot do {steps} steps: they end with as much noise as they begin with"
    return None


@lru_cache
def _made(class_name: str, kwargs: str, config: str) -> Any:
    """A scheduler for any number of steps; some take a second to build."""
    return make_scheduler(class_name, json.loads(kwargs), json.loads(config))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with torch.inference_mode():
        json.dump([try_scheduler(*trial) for trial in json.load(sys.stdin)], sys.stdout)
