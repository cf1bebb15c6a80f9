"""Pipelines of the tasks, made from one set of components, with a guidance scale of its own for every row."""

from functools import cache
from typing import Any

import diffusers

from batchgen.diffusion.loading import Components

__all__ = ["make_pipeline"]


def make_pipeline(class_name: str, components: Components, scheduler: Any) -> Any:
    """A pipeline that shares the components' modules and has the given scheduler; copies nothing.

    Its `guided` says whether the call runs the unconditional pass; then `guidance_scale` is a tensor (B, 1, 1, 1).
    """
    pipeline = _with_row_guidance(class_name)(**{**components, "scheduler": scheduler}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def _with_row_guidance(class_name: str) -> Any:
    """The pipeline class with the one place overridden that takes the guidance scale for a number.

    Stock pipelines ask `guidance_scale > 1`, which a tensor cannot answer and which on a GPU would wait for the
    device at every step; all other arithmetic on the scale broadcasts over the rows.
    """
    base = getattr(diffusers, class_name)
    return type(class_name, (base,), {"guided": True, "do_classifier_free_guidance": property(_is_guided)})


def _is_guided(pipeline: Any) -> bool:
    return bool(pipeline.guided)
