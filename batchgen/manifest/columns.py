"""The column contract of manifests: names, types, ranges, defaults, who takes them. Knows nothing of files or models.

A new column is an entry of `COLUMNS`, with a `neutral` value, and a field of a group in `generation/parameters.py`; an
image is an entry alone, an adapter has one in `ADAPTERS` of `models/adapters.py` besides. What is forgotten the import
says. `manifests/make_columns.py` puts the column into the README.

The names are diffusers' argument names. A null or absent cell takes the job's default for the column, then that of the
model's own file, then the one in this table, then what the model brings (size, scheduler).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchgen.options import Family

__all__ = [
    "COLUMNS",
    "MAX_SEED",
    "MAX_SIDE",
    "RESERVED",
    "RESULTS",
    "WORDING",
    "Column",
    "Kind",
    "image_column",
    "input_name",
]


class Kind(StrEnum):
    """What a cell holds."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    NUMBERS = "numbers"
    SIZE = "size"
    FLAG = "flag"
    OPTIONS = "options"
    IMAGE = "image"
    ADAPTER = "adapter"


WORDING: Mapping[Kind, str] = {
    Kind.TEXT: "text",
    Kind.INTEGER: "a whole number",
    Kind.NUMBER: "a number",
    Kind.NUMBERS: "a number, or a list of them",
    Kind.SIZE: "two whole numbers, as [height, width]",
    Kind.FLAG: "true or false",
    Kind.OPTIONS: "a JSON object",
    Kind.IMAGE: "an image (a URI, or a struct of bytes and path)",
    Kind.ADAPTER: "an adapter (text, a list, or JSON)",
}
"""The kinds as messages name them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of the contract.

    `low` and `high` are inclusive bounds. `shared` says that all rows of a micro-batch must agree on the value, so that
    it enters the batch key. `choices` are the texts it may hold; `listed` says that a cell may be a list as well.
    `tasks` and `families` are those that take it, all where none are named. `mode` is Pillow's, of an image.

    `neutral` is the value at which a column changes nothing, besides null; where a list is, each of its elements. It is
    left out of fingerprints and batch keys, so that no image is made again for a column that came later. The columns of
    the first release have none: their defaults are in every fingerprint there is, and the goldens of the tests freeze
    them.
    """

    name: str
    about: str  # one line of documentation
    kind: Kind
    absent: str = ""  # what stands for null where there is no default
    default: Any = None
    low: float | None = None
    high: float | None = None
    multiple_of: int | None = None
    shared: bool = False
    choices: tuple[str, ...] = ()
    listed: bool = False
    neutral: Any = None
    tasks: tuple[str, ...] = ()
    families: tuple[Family, ...] = ()
    mode: str = "RGB"

    def is_taken(self, task: str, family: Family | None = None) -> bool:
        """Whether the column means something to a task, with that family of models, or with some."""
        return (not self.tasks or task in self.tasks) and (
            family is None or not self.families or family in self.families
        )

    def is_neutral(self, value: Any) -> bool:
        """Whether the value changes nothing: null, or the column's neutral one."""
        if value is None or self.neutral is None:
            return value is None
        return all(one == self.neutral for one in (value if self.listed else (value,)))


MAX_SEED = 2**63 - 1  # torch takes 64 bits, the metadata's int64 one less
MAX_SIDE = 8192  # pixels; the largest that a tiled VAE is known to decode, and a guard against typing errors


_TEXT = ("text-to-image", "image-to-image", "inpainting", "depth-to-image", "edit", "upscaling")
_PLAIN = ("text-to-image", "image-to-image", "inpainting")
_FROM_IMAGE = ("image-to-image", "inpainting", "depth-to-image")
_XL = (Family.SDXL, Family.REFINER)
_BUT_LATENT_UPSCALER = tuple(family for family in Family if family is not Family.LATENT_UPSCALER)


def _text(name: str, about: str, **kwargs: Any) -> Column:
    return Column(name=name, about=about, kind=Kind.TEXT, **kwargs)


def _number(name: str, about: str, **kwargs: Any) -> Column:
    return Column(name=name, about=about, kind=Kind.NUMBER, **kwargs)


def _integer(name: str, about: str, **kwargs: Any) -> Column:
    return Column(name=name, about=about, kind=Kind.INTEGER, **kwargs)


def _control(name: str, about: str, **kwargs: Any) -> Column:
    kind = Kind.NUMBERS
    return Column(name=name, about=about, kind=kind, shared=True, listed=True, tasks=_PLAIN, **kwargs)


def _size(name: str, about: str, **kwargs: Any) -> Column:
    kind = Kind.SIZE
    return Column(name=name, about=about, kind=kind, high=MAX_SIDE, tasks=_PLAIN, families=_XL, **kwargs)


def _image(name: str, about: str, **kwargs: Any) -> Column:
    return Column(name=name, about=about, kind=Kind.IMAGE, **kwargs)


def _adapter(name: str, about: str, *, shared: bool = True, **kwargs: Any) -> Column:
    return Column(name=name, about=about, kind=Kind.ADAPTER, shared=shared, **kwargs)


COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        _text("id", "a name of its own for each row", absent="the short fingerprint"),
        _text("task", "one of the tasks below", absent="what the columns ask for"),
        _text("prompt", "what to make; may be empty in Parquet and JSONL", tasks=_TEXT),
        _text("negative_prompt", "what to lead away from", absent="empty; for SDXL zeros", tasks=_TEXT),
        _text("prompt_2", "for SDXL's second text encoder", absent="as the first", tasks=_PLAIN, families=_XL),
        _text(
            "negative_prompt_2",
            "the same, to lead away from",
            absent="as the first",
            tasks=_PLAIN,
            families=_XL,
        ),
        _text(
            "prompt_syntax",
            "`a1111` reads weights `(word:1.3)`, `[word]`, `BREAK`, `<lora:name:0.8>` and `<hypernet:name:1>`",
            default="plain",
            choices=("plain", "a1111"),
            tasks=_TEXT,
        ),
        _integer("seed", "of the row's noise", absent="derived from the row, and recorded", low=0, high=MAX_SEED),
        _integer(
            "num_images_per_prompt", "seeds count up, ids become `id-0`, `id-1`, ...", default=1, low=1, high=10_000
        ),
        _integer(
            "width",
            "pixels; for upscaling before it; the latent upscaler takes multiples of 16 or 32",
            absent="the init image's, brought down to such a multiple, else the model's",
            low=8,
            high=MAX_SIDE,
            multiple_of=8,
            shared=True,
        ),
        _integer("height", "the same", absent="as of `width`", low=8, high=MAX_SIDE, multiple_of=8, shared=True),
        _integer(
            "num_inference_steps", "sampling steps; LCM and TCD: up to 50", default=25, low=1, high=1000, shared=True
        ),
        _number("guidance_scale", "at most 1: no guidance, half the work", default=7.5, low=0, high=100, tasks=_TEXT),
        _number("guidance_rescale", "against overexposure", low=0, high=1, shared=True, tasks=("text-to-image",)),
        _number("eta", "noise of DDIM's steps", default=0.0, low=0, high=1, shared=True, families=_BUT_LATENT_UPSCALER),
        _integer("clip_skip", "text layers left out at the end, as in diffusers", low=1, high=24, tasks=_TEXT),
        _text(
            "scheduler",
            "class name of diffusers, or A1111 name such as `Euler a`, `DPM++ 2M Karras`",
            absent="the model's",
            shared=True,
        ),
        Column(name="scheduler_kwargs", about="options of the scheduler's class", kind=Kind.OPTIONS, shared=True),
        _text("model", "as `--model`; a path starts from the current folder", absent="the job's", shared=True),
        _text("refiner", "a refiner that finishes SDXL's images", shared=True, tasks=_PLAIN, families=_XL),
        _adapter("vae", "another autoencoder: a diffusers folder or a single file", tasks=_TEXT),
        _image("image", "what the image starts from", tasks=(*_FROM_IMAGE, "edit", "upscaling")),
        _number("strength", "how much of it is made anew", default=0.8, low=0, high=1, tasks=_FROM_IMAGE),
        _image("mask_image", "white is repainted; of the size of `image`", mode="L", tasks=("inpainting",)),
        Column(
            name="keep_unmasked",
            about="the init image's own pixels where the mask is darker than half",
            kind=Kind.FLAG,
            default=False,
            tasks=("inpainting",),
        ),
        _image("control_image", "one, or a list with one for each ControlNet", listed=True, tasks=_PLAIN),
        _text(
            "control_preprocess",
            "what to make of an ordinary control image first: edges, a depth map, OpenPose's skeletons",
            default="none",
            choices=("none", "canny", "depth", "pose"),
            listed=True,
            tasks=_PLAIN,
        ),
        _adapter("pose_estimator", "ViTPose, for `control_preprocess` `pose`", tasks=_PLAIN),
        _adapter("person_detector", "finds the persons of an image, for more than one pose", tasks=_PLAIN),
        _adapter("controlnet", "one ControlNet or a list", listed=True, tasks=_PLAIN),
        _control("controlnet_conditioning_scale", "how strongly a ControlNet guides", default=1.0, low=0, high=10),
        _control("control_guidance_start", "share of the steps at which it begins", default=0.0, low=0, high=1),
        _control("control_guidance_end", "share of the steps at which it ends", default=1.0, low=0, high=1),
        _image("depth_map", "near is white", absent="estimated by the model", mode="L", tasks=("depth-to-image",)),
        _adapter("ip_adapter", "folder of the adapter's weights and `image_encoder/`", tasks=_PLAIN),
        _image("ip_adapter_image", "an image as a prompt, for an `ip_adapter`", tasks=_PLAIN),
        _number("ip_adapter_scale", "its weight", default=1.0, low=0, high=10, shared=True, tasks=_PLAIN),
        _number("image_guidance_scale", "how closely to keep to it", default=1.5, low=0, high=100, tasks=("edit",)),
        _adapter(
            "loras",
            "one LoRA (LoHa, LoKr, DoRA) or a list, as diffusers, PEFT, kohya's trainer or LyCORIS write them",
            listed=True,
            tasks=_TEXT,
            families=_BUT_LATENT_UPSCALER,
        ),
        _adapter("embeddings", "one textual-inversion embedding or a list", shared=False, listed=True, tasks=_TEXT),
        _adapter("hypernetwork", "a file of A1111's web UI", tasks=_TEXT, families=_BUT_LATENT_UPSCALER),
        _number(
            "denoising_start",
            "where image-to-image enters the noise schedule",
            low=0,
            high=1,
            shared=True,
            tasks=_PLAIN,
            families=_XL,
        ),
        _number(
            "denoising_end",
            "where the refiner takes over",
            absent="0.8 with a refiner",
            low=0,
            high=1,
            shared=True,
            tasks=_PLAIN,
            families=_XL,
        ),
        _number("hires_scale", "enlarge the latents so much", low=1, high=4, shared=True, tasks=("text-to-image",)),
        _number(
            "hires_strength",
            "and denoise them again so strongly",
            default=0.6,
            low=0,
            high=1,
            shared=True,
            tasks=("text-to-image",),
        ),
        _size("original_size", "what SDXL is to take for the size before scaling", absent="the row's size", low=1),
        _size("crops_coords_top_left", "what SDXL is to take for the crop", absent="[0, 0]", low=0),
        _size("target_size", "what SDXL is to take for the final size", absent="the row's size", low=1),
        _integer(
            "noise_level",
            "noise on the x4 upscaler's `image`",
            default=20,
            low=0,
            high=350,
            shared=True,
            tasks=("upscaling",),
            families=(Family.UPSCALER,),
        ),
        _integer("class_label", "one of the model's or classifier's classes", low=0, tasks=("unconditional",)),
        _text("watermark", "invisibly in the pixels; up to a byte for 4,096 of them"),
        _adapter("classifier", "ADM's classifier of noisy images; needs `class_label`", tasks=("unconditional",)),
        _number(
            "classifier_scale",
            "how strongly the classifier leads to its class",
            default=1.0,
            low=0,
            high=1000,
            tasks=("unconditional",),
        ),
    )
}

RESERVED = frozenset(
    "fingerprint file_name picture_path step_images control_images flagged status error error_class sha256 "
    "model_fingerprint batch_size device dtype seconds prompt_tokens sample_index torch_version "
    "diffusers_version".split()
) | {f"{column.name}_{part}" for column in COLUMNS.values() if column.kind is Kind.IMAGE for part in ("uri", "sha256")}
"""Names of the result columns that a manifest may not bring."""

RESULTS = RESERVED | {"sampler"}
"""Names of all result columns; in a manifest the sampler is another name of the scheduler."""


def input_name(column: str, place: int) -> str:
    """The name of one image of a column that may hold several; `place` counts from 0."""
    return column if place == 0 else f"{column}_{place + 1}"


def image_column(name: str) -> str:
    """The column of an image's name."""
    return re.sub(r"_\d+$", "", name)
