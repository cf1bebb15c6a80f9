"""Schedulers by class name, over the config that the model was trained with."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from batchgen.diffusion.noise import draw_in_float32
from batchgen.errors import InputError, one_line

__all__ = ["make_scheduler", "seed_scheduler", "takes_variance"]


class LMSDiscreteScheduler(diffusers.LMSDiscreteScheduler):  # type: ignore[misc]  # diffusers has no types
    """diffusers' class of that name, which can start within a schedule, as image-to-image does.

    It takes the order of a step from the step's number, and leaves out derivatives that it has not seen: the first
    steps after a start in the middle are then far too short, and noise is left in the image.
    """

    def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
        """As diffusers', with no higher order than there are derivatives for."""
        return super().step(model_output, timestep, sample, min(order, len(self.derivatives) + 1), return_dict)


def make_scheduler(
    class_name: str, kwargs: Mapping[str, Any], base_config: Mapping[str, Any], *, sliced: bool = False
) -> Any:
    """A scheduler of its own for one pipeline: the model's betas and prediction type, the rest as asked.

    Args:
        class_name: one of `samplers.OPTIONS`.
        kwargs: options of that class; they win over the model's config.
        sliced: it starts within its schedule. PNDM's Runge-Kutta steps lie at the schedule's start, and are left out
            then, as all models that were published with that scheduler have it.

    Raises:
        InputError: the class refuses the options.
    """
    kind = LMSDiscreteScheduler if class_name == "LMSDiscreteScheduler" else getattr(diffusers, class_name)
    if sliced and class_name == "PNDMScheduler":
        kwargs = {**kwargs, "skip_prk_steps": True}
    draw_in_float32(kind)
    try:
        return kind.from_config(base_config, **kwargs)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"scheduler {class_name} does not take {dict(kwargs)}: {one_line(error)}") from error


def seed_scheduler(scheduler: Any, seeds: Sequence[int]) -> None:
    """Give a scheduler that draws noise from a Brownian tree (DPM++ SDE) one tree a row.

    It ignores the call's generators and, unseeded, never makes the same image twice. It reads the seeds at the first
    step after `set_timesteps`, which every pipeline call does.
    """
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = list(seeds)


def takes_variance(scheduler: Any) -> bool:
    """Whether the scheduler reads the variance that some models, ADM's among them, predict beside the noise."""
    knows = "variance_type" in inspect.signature(type(scheduler).__init__).parameters  # configs keep what others knew
    return knows and str(scheduler.config.variance_type).startswith("learned")
