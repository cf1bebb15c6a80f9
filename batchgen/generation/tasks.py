"""The table of generation tasks: what each takes, what its batch key adds, which pipeline class it calls.

A new task is a new entry of `TASKS`. Conditioning images arrive here decoded (Pillow, RGB or L, already in the row's
size); nothing in this module touches tensors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from batchgen.generation.parameters import Parameters
from batchgen.models.catalog import Family

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "COMMON",
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

COMMON = frozenset(
    "id task seed num_images_per_prompt width height num_inference_steps eta scheduler scheduler_kwargs model "
    "watermark".split()
)
"""Columns that every task takes."""

TEXT = frozenset(
    "prompt negative_prompt prompt_syntax guidance_scale clip_skip vae loras embeddings hypernetwork".split()
)
"""Columns of the tasks that read a prompt."""

TWO_TOWERS = frozenset(
    "prompt_2 negative_prompt_2 original_size crops_coords_top_left target_size refiner denoising_start "
    "denoising_end".split()
)
"""Columns that mean something to Stable Diffusion XL only."""

CLASS = ("class_label", "classifier", "classifier_scale")
CONTROL = tuple(
    "control_image control_preprocess controlnet controlnet_conditioning_scale control_guidance_start "
    "control_guidance_end pose_estimator person_detector".split()
)
IMAGE_PROMPT = ("ip_adapter", "ip_adapter_image", "ip_adapter_scale")


_MEANINGLESS: Mapping[Family, frozenset[str]] = {
    Family.SDXL: frozenset(),
    Family.REFINER: frozenset(),
    Family.LATENT_UPSCALER: TWO_TOWERS | {"noise_level", "eta", "loras", "hypernetwork"},
}
"""Columns that a task takes, but not with such a model; for families not listed, those of two towers."""


def _nothing_more(_shared: Parameters) -> tuple[object, ...]:
    return ()


def _no_arguments(_shared: Parameters, _inputs: Sequence[Inputs]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One way to generate.

    `pipelines` are diffusers' classes by the family of the model, `controlled` those that take ControlNets besides, and
    `uncontrolled` the columns that these do not take.
    `key` gives what the batch key adds to the shared columns; `arguments` turns the parameters that a micro-batch
    shares (taken from any one of its rows) and the inputs of its rows into arguments of the pipeline call. `modes` are
    Pillow modes of the conditioning images; `unet_channels` are the UNets that can do it. Tasks that read no text are
    those of models that have no text encoder.
    """

    name: str
    pipelines: Mapping[Family, str]
    controlled: Mapping[Family, str] = field(default_factory=dict)
    uncontrolled: Mapping[Family, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict)
    unet_channels: tuple[int, ...] = (4,)
    key: Callable[[Parameters], tuple[object, ...]] = _nothing_more
    arguments: Callable[[Parameters, Sequence[Inputs]], dict[str, Any]] = _no_arguments
    reads_text: bool = True

    @property
    def columns(self) -> frozenset[str]:
        """Every column that means something to this task, with some family of models."""
        two_towers = TWO_TOWERS if Family.SDXL in self.pipelines else frozenset()
        text = TEXT if self.reads_text else frozenset()
        return COMMON.union(text, self.needs, self.takes, two_towers)

    def columns_for(self, family: Family) -> frozenset[str]:
        """Every column that means something to this task with that family of models."""
        return self.columns - _MEANINGLESS.get(family, TWO_TOWERS)

    def pipeline(self, family: Family, *, controlled: bool) -> str | None:
        """The class in diffusers, or None where there is none."""
        return (self.controlled if controlled else self.pipelines).get(family)


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
            takes=("guidance_rescale", "hires_scale", "hires_strength", *CONTROL, *IMAGE_PROMPT),
            modes={"control_image": "RGB", "ip_adapter_image": "RGB"},
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
            takes=("strength", *CONTROL, *IMAGE_PROMPT),
            modes={"image": "RGB", "control_image": "RGB", "ip_adapter_image": "RGB"},
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
            takes=("strength", "keep_unmasked", *CONTROL, *IMAGE_PROMPT),
            modes={"image": "RGB", "mask_image": "L", "control_image": "RGB", "ip_adapter_image": "RGB"},
            unet_channels=(4, 9),
            key=_strength_key,
            arguments=_inpainting_arguments,
        ),
        Task(
            name="depth-to-image",
            pipelines={Family.SD: "StableDiffusionDepth2ImgPipeline"},
            needs=("image",),
            takes=("strength", "depth_map"),
            modes={"image": "RGB", "depth_map": "L"},
            unet_channels=(5,),
            key=_strength_key,
            arguments=_depth_arguments,
        ),
        Task(
            name="edit",
            pipelines={Family.SD: "StableDiffusionInstructPix2PixPipeline"},
            needs=("image",),
            takes=("image_guidance_scale",),
            modes={"image": "RGB"},
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
            takes=("noise_level",),
            modes={"image": "RGB"},
            unet_channels=(7, 8),
            arguments=_upscaling_arguments,
        ),
        Task(
            name="unconditional",
            pipelines={Family.PIXELS: "DDPMPipeline"},  # whose loop `diffusion.pixels` has, with labels and guidance
            takes=CLASS,
            unet_channels=(1, 3),
            reads_text=False,
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
        near = get_close_matches(folded, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TASKS)}"
        raise LookupError(f"unknown task {name!r}; {hint}")
    return task


def infer_task(columns: Iterable[str], family: Family, unet_channels: int) -> Task:
    """The task that makes most of a row's columns: of those the model can do, the one with most needs that are met.

    Where the model can do none of them, the choice is among all tasks.
    """
    given = set(columns)
    met = [task for task in TASKS.values() if given.issuperset(task.needs)]
    able = [task for task in met if family in task.pipelines and unet_channels in task.unet_channels]
    return max(able or met, key=lambda task: len(task.needs))
