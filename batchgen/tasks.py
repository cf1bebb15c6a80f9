"""The table of generation tasks: what each takes, what its batch key adds, which pipeline class it calls.

A new task is a new entry of `TASKS`. Conditioning images arrive here decoded (Pillow, RGB or L, already in the row's
size); nothing in this module touches tensors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["COMMON", "SPELLINGS", "TASKS", "Inputs", "Task", "Values", "denoised_steps", "find_task", "infer_task"]

Values = Mapping[str, Any]
"""What is applied to a row, by column name."""

Inputs = Mapping[str, "Image"]
"""A row's decoded conditioning images, by column name."""

COMMON = frozenset(
    "id task prompt negative_prompt seed num_images_per_prompt width height num_inference_steps guidance_scale eta "
    "clip_skip scheduler scheduler_kwargs model".split()
)
"""Columns that every task takes."""


def _nothing_more(_values: Values) -> tuple[object, ...]:
    return ()


def _no_arguments(_values: Values, _inputs: Sequence[Inputs]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One way to generate.

    `key` gives what the batch key adds to the shared columns; `arguments` turns the values that a micro-batch shares
    (taken from any one of its rows) and the inputs of its rows into arguments of the pipeline call. `modes` are
    Pillow modes of the conditioning images; `unet_channels` are the UNets that can do it.
    """

    name: str
    pipeline: str  # class name in diffusers
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict)
    unet_channels: tuple[int, ...] = (4,)
    key: Callable[[Values], tuple[object, ...]] = _nothing_more
    arguments: Callable[[Values, Sequence[Inputs]], dict[str, Any]] = _no_arguments

    @property
    def columns(self) -> frozenset[str]:
        """Every column that means something to this task."""
        return COMMON.union(self.needs, self.takes)


def denoised_steps(values: Values) -> int:
    """How many of the steps image-to-image runs: diffusers' int(steps * strength), at most all of them."""
    steps: int = values["num_inference_steps"]
    return min(int(steps * values["strength"]), steps)


def _strength_key(values: Values) -> tuple[object, ...]:
    # Inpainting starts from pure noise only at a strength of exactly 1, whatever the number of steps.
    return denoised_steps(values), values["strength"] == 1.0


def _batch_strength(values: Values) -> float:
    """One strength that stands for all that run the same steps, so that an image never depends on its mates'.

    It is 0 where no step is left to run.
    """
    steps: int = denoised_steps(values)
    if steps == 0 or values["strength"] == 1.0:
        return float(steps > 0)
    middle: float = (steps + 0.5) / values["num_inference_steps"]
    return middle


def _image_arguments(values: Values, inputs: Sequence[Inputs]) -> dict[str, Any]:
    return {"image": [i["image"] for i in inputs], "strength": _batch_strength(values)}


def _inpainting_arguments(values: Values, inputs: Sequence[Inputs]) -> dict[str, Any]:
    size = {"width": values["width"], "height": values["height"]}
    return _image_arguments(values, inputs) | size | {"mask_image": [i["mask_image"] for i in inputs]}


def _text_arguments(values: Values, _inputs: Sequence[Inputs]) -> dict[str, Any]:
    size = {"width": values["width"], "height": values["height"]}
    return size | {"guidance_rescale": values.get("guidance_rescale") or 0.0}


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="text-to-image",
            pipeline="StableDiffusionPipeline",
            takes=("guidance_rescale",),
            arguments=_text_arguments,
        ),
        Task(
            name="image-to-image",
            pipeline="StableDiffusionImg2ImgPipeline",
            needs=("image",),
            takes=("strength",),
            modes={"image": "RGB"},
            key=_strength_key,
            arguments=_image_arguments,
        ),
        Task(
            name="inpainting",
            pipeline="StableDiffusionInpaintPipeline",
            needs=("image", "mask_image"),
            takes=("strength",),
            modes={"image": "RGB", "mask_image": "L"},
            unet_channels=(4, 9),
            key=_strength_key,
            arguments=_inpainting_arguments,
        ),
    )
}

SPELLINGS: Mapping[str, str] = {
    "txt2img": "text-to-image",
    "text2img": "text-to-image",
    "img2img": "image-to-image",
    "image2image": "image-to-image",
    "inpaint": "inpainting",
}


def find_task(name: str) -> Task:
    """The task of that name; `txt2img`, `img2img` and `inpaint` are understood, `_` and spaces stand for `-`.

    Raises:
        LookupError: with the known names.
    """
    folded = name.strip().lower().replace("_", "-").replace(" ", "-")
    task = TASKS.get(SPELLINGS.get(folded, folded))
    if task is None:
        near = get_close_matches(folded, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TASKS)}"
        raise LookupError(f"unknown task {name!r}; {hint}")
    return task


def infer_task(columns: Iterable[str]) -> Task:
    """The task that makes most of the columns a row has: among those whose needs are met, the one with most needs."""
    given = set(columns)
    return max((task for task in TASKS.values() if given.issuperset(task.needs)), key=lambda task: len(task.needs))
