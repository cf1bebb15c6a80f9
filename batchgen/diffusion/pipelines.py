"""Pipelines of the tasks, made from one set of components, with a guidance scale of its own for every row."""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import diffusers
import torch

from batchgen.diffusion.noise import draw_in_float32
from batchgen.diffusion.schedulers import PNDMScheduler

__all__ = ["RowScale", "make_pipeline"]

_OWN_ARGUMENTS: Mapping[str, Any] = {
    "safety_checker": None,
    "requires_safety_checker": False,
    "watermarker": None,
    "add_watermarker": False,
}


class RowScale:
    """A guidance scale for every row, in the place where a pipeline takes one number.

    Pipelines ask two things of it: whether it is above 1, which all rows of a micro-batch answer alike, and its product
    with the difference of two predictions, (B, C, H, W).
    """

    def __init__(self, values: Sequence[float], like: torch.Tensor) -> None:
        # Of the latents' type: a wider one would widen the latents themselves.
        self.values = torch.tensor(values, dtype=like.dtype, device=like.device)
        self._least = min(values)

    def __gt__(self, bound: float) -> bool:
        return self._least > bound

    def __ge__(self, bound: float) -> bool:
        return self._least >= bound

    def __mul__(self, difference: torch.Tensor) -> torch.Tensor:
        return self.values.view(-1, 1, 1, 1) * difference


def make_pipeline(class_name: str, components: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """A pipeline that shares the components' modules; copies nothing.

    Args:
        components: modules, tokenizers and scheduler by the names of the class's arguments; what the class does not
            take is left out.
        options: what else the model's folder says (`force_zeros_for_empty_prompt` and the like).
    """
    made = _by_rows(class_name)
    given = {**options, **components, **_OWN_ARGUMENTS}
    taken = inspect.signature(getattr(diffusers, class_name).__init__).parameters.keys() & given.keys()
    pipeline = made(**{name: given[name] for name in taken})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def _by_rows(class_name: str) -> Any:
    """The pipeline class with those places overridden that take one value for the whole batch, or slice a schedule."""
    base = getattr(diffusers, class_name)
    draw_in_float32(base)
    overrides: dict[str, Any] = {}
    if hasattr(base, "prepare_ip_adapter_image_embeds"):
        overrides["prepare_ip_adapter_image_embeds"] = _own_image_embeds
    if hasattr(base, "get_timesteps"):
        overrides["get_timesteps"] = _get_timesteps(base)
    if hasattr(base, "get_guidance_scale_embedding"):
        overrides["get_guidance_scale_embedding"] = _embed_row_scales(base)
        overrides["guidance_scale"] = property(_plain_scale)
    return type(class_name, (base,), overrides)


def _own_image_embeds(_pipeline: Any, _image: Any, ip_adapter_image_embeds: Any, *_args: Any, **_kwargs: Any) -> Any:
    """The tensors as they came, (2B, images, width): the stock method gives every row the images of all rows."""
    return ip_adapter_image_embeds


def _get_timesteps(base: Any) -> Any:
    """The pipeline's own slice of a schedule, cut from its steps where these are fewer than the model's calls."""

    def get(pipeline: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, int]:
        scheduler = pipeline.scheduler
        if not isinstance(scheduler, PNDMScheduler):
            timesteps, steps = base.get_timesteps(pipeline, *args, **kwargs)
            return timesteps, steps
        calls, scheduler.timesteps = scheduler.timesteps, scheduler.steps
        left, steps = base.get_timesteps(pipeline, *args, **kwargs)
        scheduler.timesteps = calls
        return scheduler.start_at(left), steps

    return get


def _embed_row_scales(base: Any) -> Any:
    def embed(pipeline: Any, _scale: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return base.get_guidance_scale_embedding(pipeline, pipeline._guidance_scale.values - 1, *args, **kwargs)

    return embed


def _plain_scale(pipeline: Any) -> Any:
    """The scale; a number where the UNet takes it as an embedding, from which the pipeline subtracts 1."""
    embedded = pipeline.unet.config.time_cond_proj_dim is not None
    return 1.0 if embedded else pipeline._guidance_scale
