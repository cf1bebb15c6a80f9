"""Schedulers by class name, over the config that the model was trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from batchgen.diffusion.noise import draw_in_float32
from batchgen.errors import InputError

__all__ = ["make_scheduler", "seed_scheduler"]


def make_scheduler(class_name: str, kwargs: Mapping[str, Any], base_config: Mapping[str, Any]) -> Any:
    """A scheduler of its own for one pipeline: the model's betas and prediction type, the rest as asked.

    Args:
        class_name: one of `samplers.OPTIONS`.
        kwargs: options of that class; they win over the model's config.

    Raises:
        InputError: the class refuses the options.
    """
    kind = getattr(diffusers, class_name)
    draw_in_float32(kind)
    try:
        return kind.from_config(base_config, **kwargs)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"scheduler {class_name} does not take {dict(kwargs)}: {reason}") from error


def seed_scheduler(scheduler: Any, seeds: Sequence[int]) -> None:
    """Give a scheduler that draws noise from a Brownian tree (DPM++ SDE) one tree a row.

    It ignores the call's generators and, unseeded, never makes the same image twice. It reads the seeds at the first
    step after `set_timesteps`, which every pipeline call does.
    """
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = list(seeds)
