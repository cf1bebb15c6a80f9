"""Schedulers by class name, over the config that the model was trained with."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import diffusers
import torch

from batchgen.diffusion.noise import draw_in_float32
from batchgen.errors import InputError, one_line

__all__ = ["PNDMScheduler", "make_scheduler", "seed_scheduler", "takes_variance"]


class LMSDiscreteScheduler(diffusers.LMSDiscreteScheduler):  # type: ignore[misc]  # diffusers has no types
    """diffusers' class of that name, which can start within a schedule, as image-to-image does.

    It takes the order of a step from the step's number, and leaves out derivatives that it has not seen: the first
    steps after a start in the middle are then far too short, and noise is left in the image.
    """

    def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
        """As diffusers', with no higher order than there are derivatives for."""
        return super().step(model_output, timestep, sample, min(order, len(self.derivatives) + 1), return_dict)


class PNDMScheduler(diffusers.PNDMScheduler):  # type: ignore[misc]
    """diffusers' class of that name, which can start within a schedule.

    Its first steps take several calls each, so that a slice of its `timesteps` begins at another noise level than the
    image has, and a history that is missing is taken for one that is there.
    """

    _whole: Mapping[str, Any] = {}  # what a late start changed in the config

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """As diffusers', from the first step."""
        self.register_to_config(**self._whole)
        self._whole = {}
        super().set_timesteps(num_inference_steps, device)

    @property
    def steps(self) -> torch.Tensor:
        """The timestep of each step once, the noisiest first."""
        return torch.from_numpy(self._timesteps[::-1].astype("int64")).to(self.timesteps.device)

    def start_at(self, steps: torch.Tensor) -> torch.Tensor:
        """Start with the last of `self.steps`; the timesteps of the calls to make.

        The Runge-Kutta steps belong to a schedule's start, and need four of them: a later start is that of PLMS, whose
        first step takes two calls. A model that predicts v has it turned into noise at once, since v of unlike noise
        levels make no history; from the first step on that is left as diffusers has it.
        """
        if len(steps) < len(self._timesteps):
            self._whole = {name: self.config[name] for name in ("prediction_type", "skip_prk_steps")}
            self.register_to_config(prediction_type="epsilon", skip_prk_steps=True)
            self.timesteps = torch.cat([steps[:2], steps[1:]])
        return self.timesteps

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        """As diffusers', of noise that is predicted after a late start."""
        if self._whole.get("prediction_type") == "v_prediction":
            alpha = self.alphas_cumprod[timestep]
            model_output = alpha**0.5 * model_output + (1 - alpha) ** 0.5 * sample
        return super().step(model_output, timestep, sample, return_dict)


_OWN: Mapping[str, Any] = {one.__name__: one for one in (LMSDiscreteScheduler, PNDMScheduler)}


class _FromTheFirst:
    """What schedulers with an index of steps are made from besides: unless told otherwise, they start with the first.

    Left alone they look for the first call's timestep, and take the second place where it stands twice, as in long Beta
    schedules: the last step then has no noise level.
    """

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
        self.set_begin_index(0)  # type: ignore[attr-defined]


@cache
def _kind(class_name: str) -> Any:
    base = _OWN.get(class_name) or getattr(diffusers, class_name)
    draw_in_float32(base)
    return type(class_name, (_FromTheFirst, base), {}) if hasattr(base, "set_begin_index") else base


def make_scheduler(class_name: str, kwargs: Mapping[str, Any], base_config: Mapping[str, Any]) -> Any:
    """A scheduler of its own for one pipeline: the model's betas and prediction type, the rest as asked.

    Args:
        class_name: one of `samplers.OPTIONS`.
        kwargs: options of that class; they win over the model's config.

    Raises:
        InputError: the class refuses the options.
    """
    try:
        return _kind(class_name).from_config(base_config, **kwargs)
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
