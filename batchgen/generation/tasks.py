"""The table of generation tasks: what each needs, what its batch key adds, which pipeline class it calls.

A new task is a new entry of `TASKS`. Conditioning images arrive here decoded (Pillow, RGB or L, already in the row's
size); nothing in this module touches tensors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batchgen.generation.parameters import Parameters
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.names import near_or_known
from batchgen.models.catalog import Family

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "SPELLINGS",
    "TASKS",
    "Inputs",
    "Task",
    "batch_strength",
    "denoised_steps",
    "find_task",
    "infer_task",
]

Inputs = Mapping[str, "Image"]
"""A row's decoded conditioning images, by column name."""


def _nothing_more(_shared: Parameters) -> tuple[object, ...]:
    return ()


def _no_arguments(_shared: Parameters, _inputs: Sequence[Inputs]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One way to generate; which columns it takes is said by the columns.

    `pipelines` are diffusers' classes by the family of the model, `controlled` those that take ControlNets besides, and
    `uncontrolled` the columns that these do not take.
    `key` gives what the batch key adds to the shared columns; `arguments` turns the parameters that a micro-batch
    shares (taken from any one of its rows) and the inputs of its rows into arguments of the pipeline call.
    `unet_channels` are the UNets that can do it.
    """

    name: str
    pipelines: Mapping[Family, str]
    controlled: Mapping[Family, str] = field(default_factory=dict)
    uncontrolled: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    unet_channels: tuple[int, ...] = (4,)
    key: Callable[[Parameters], tuple[object, ...]] = _nothing_more
    arguments: Callable[[Parameters, Sequence[Inputs]], dict[str, Any]] = _no_arguments

    @property
    def columns(self) -> frozenset[str]:
        """Every column that means something to this task, with some family of models."""
        return _taken(self.name, None)

    def columns_for(self, family: Family) -> frozenset[str]:
        """Every column that means something to this task with that family of models."""
        return _taken(self.name, family)

    def pipeline(self, family: Family, *, controlled: bool) -> str | None:
        """The class in diffusers, or None where there is none."""
        return (self.controlled if controlled else self.pipelines).get(family)


@lru_cache
def _taken(task: str, family: Family | None) -> frozenset[str]:
    return frozenset(column.name for column in COLUMNS.values() if column.is_taken(task, family))


def denoised_steps(steps: int, strength: float) -> int:
    """How many of the steps image-to-image runs: diffusers' int(steps * strength), at most all of them."""
    return min(int(steps * strength), steps)


def batch_strength(steps: int, strength: float) -> float:
    """One strength that stands for all that run the same steps, so that an image never depends on its mates'.

    It is 0 where no step is left to run.
    """
    run = denoised_steps(steps, strength)
    if run == 0 or strength == 1.0:
        return float(run > 0)
    return (run + 0.5) / steps


def _steps_and_strength(shared: Parameters) -> tuple[int, float]:
    assert shared.init.strength is not None, "the task takes it, and it has a default"
    return shared.sampling.num_inference_steps, shared.init.strength


def _strength_key(shared: Parameters) -> tuple[object, ...]:
    # Inpainting starts from pure noise only at a strength of exactly 1, whatever the number of steps.
    return denoised_steps(*_steps_and_strength(shared)), shared.init.strength == 1.0


def _image_arguments(shared: Parameters, inputs: Sequence[Inputs]) -> dict[str, Any]:
    return {"image": [i["image"] for i in inputs], "strength": batch_strength(*_steps_and_strength(shared))}


def _size(shared: Parameters) -> dict[str, Any]:
    return {"width": shared.canvas.width, "height": shared.canvas.height}


def _inpainting_arguments(shared: Parameters, inputs: Sequence[Inputs]) -> dict[str, Any]:
    masks = {"mask_image": [i["mask_image"] for i in inputs]}
    return _image_arguments(shared, inputs) | _size(shared) | masks


def _text_arguments(shared: Parameters, _inputs: Sequence[Inputs]) -> dict[str, Any]:
    assert shared.prompting is not None
    return _size(shared) | {"guidance_rescale": shared.prompting.guidance_rescale or 0.0}


def _depth_arguments(shared: Parameters, inputs: Sequence[Inputs]) -> dict[str, Any]:
    maps = [i.get("depth_map") for i in inputs]
    return _image_arguments(shared, inputs) | ({} if maps[0] is None else {"depth_map": maps})


def _edit_arguments(_shared: Parameters, inputs: Sequence[Inputs]) -> dict[str, Any]:
    return {"image": [i["image"] for i in inputs]}


def _upscaling_arguments(shared: Parameters, inputs: Sequence[Inputs]) -> dict[str, Any]:
    noise = {} if shared.upscaling is None else {"noise_level": shared.upscaling.noise_level}
    return {"image": [i["image"] for i in inputs]} | noise


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="text-to-image",
            pipelines={Family.SD: "StableDiffusionPipeline", Family.SDXL: "StableDiffusionXLPipeline"},
            controlled={
                Family.SD: "StableDiffusionControlNetPipeline",
                Family.SDXL: "StableDiffusionXLControlNetPipeline",
            },
            uncontrolled={Family.SD: ("guidance_rescale",), Family.SDXL: ("guidance_rescale",)},
            arguments=_text_arguments,
        ),
        Task(
            name="image-to-image",
            pipelines={
                Family.SD: "StableDiffusionImg2ImgPipeline",
                Family.SDXL: "StableDiffusionXLImg2ImgPipeline",
                Family.REFINER: "StableDiffusionXLImg2ImgPipeline",
            },
            controlled={
                Family.SD: "StableDiffusionControlNetImg2ImgPipeline",
                Family.SDXL: "StableDiffusionXLControlNetImg2ImgPipeline",
            },
            uncontrolled={Family.SDXL: ("denoising_start", "denoising_end", "refiner")},
            needs=("image",),
            key=_strength_key,
            arguments=_image_arguments,
        ),
        Task(
            name="inpainting",
            pipelines={Family.SD: "StableDiffusionInpaintPipeline", Family.SDXL: "StableDiffusionXLInpaintPipeline"},
            controlled={
                Family.SD: "StableDiffusionControlNetInpaintPipeline",
                Family.SDXL: "StableDiffusionXLControlNetInpaintPipeline",
            },
            needs=("image", "mask_image"),
            unet_channels=(4, 9),
            key=_strength_key,
            arguments=_inpainting_arguments,
        ),
        Task(
            name="depth-to-image",
            pipelines={Family.SD: "StableDiffusionDepth2ImgPipeline"},
            needs=("image",),
            unet_channels=(5,),
            key=_strength_key,
            arguments=_depth_arguments,
        ),
        Task(
            name="edit",
            pipelines={Family.SD: "StableDiffusionInstructPix2PixPipeline"},
            needs=("image",),
            unet_channels=(8,),
            arguments=_edit_arguments,
        ),
        Task(
            name="upscaling",
            pipelines={
                Family.UPSCALER: "StableDiffusionUpscalePipeline",
                Family.LATENT_UPSCALER: "StableDiffusionLatentUpscalePipeline",
            },
            needs=("image",),
            unet_channels=(7, 8),
            arguments=_upscaling_arguments,
        ),
        Task(
            name="unconditional",
            pipelines={Family.PIXELS: "DDPMPipeline"},  # whose loop `diffusion.pixels` has, with labels and guidance
            unet_channels=(1, 3),
        ),
    )
}

SPELLINGS: Mapping[str, str] = {
    "txt2img": "text-to-image",
    "text2img": "text-to-image",
    "img2img": "image-to-image",
    "image2image": "image-to-image",
    "inpaint": "inpainting",
    "depth2img": "depth-to-image",
    "instruct-pix2pix": "edit",
    "pix2pix": "edit",
    "upscale": "upscaling",
    "uncond": "unconditional",
    "class-conditional": "unconditional",
}


def find_task(name: str) -> Task:
    """The task of that name; short names like `img2img` are understood, `_` and spaces stand for `-`.

    Raises:
        LookupError: with the known names.
    """
    folded = name.strip().lower().replace("_", "-").replace(" ", "-")
    task = TASKS.get(SPELLINGS.get(folded, folded))
    if task is None:
        raise LookupError(f"unknown task {name!r}; {near_or_known(folded, TASKS)}")
    return task


def infer_task(columns: Iterable[str], family: Family, unet_channels: int) -> Task:
    """The task that makes most of a row's columns: of those the model can do, the one with most needs that are met.

    Where the model can do none of them, the choice is among all tasks.
    """
    given = set(columns)
    met = [task for task in TASKS.values() if given.issuperset(task.needs)]
    able = [task for task in met if family in task.pipelines and unet_channels in task.unet_channels]
    return max(able or met, key=lambda task: len(task.needs))
