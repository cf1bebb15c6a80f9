"""What is known of a model before it is loaded: where it lies, what it is, its fingerprint. Knows nothing of torch.

What a model can do and which adapters fit it is read from the configs in its folder.

A model is `builtin`, a diffusers folder, a single `.safetensors` checkpoint, or a hub id with optional `@revision`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from batchgen import builtin
from batchgen.errors import CellError, InputError, ModelLoadError, one_line
from batchgen.models.configs import read_index
from batchgen.models.hashing import Looks, hash_file, hash_folder, hash_path, hash_text, loaded_files, looks_of
from batchgen.models.headers import read_shapes
from batchgen.models.layout import read_layout
from batchgen.models.purpose import FILE, Purpose, read_purpose
from batchgen.options import Family
from batchgen.places import Kind, kind_at, local_path

__all__ = [
    "NOT_BEGUN",
    "Family",
    "Model",
    "ModelDefaults",
    "Source",
    "cached_file",
    "find_model",
    "hub_configs",
    "is_hub_id",
    "require_unchanged",
]

_BUILTIN = re.compile(r"builtin(-[a-z0-9-]+)?")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
_MODELS = frozenset("depth_estimator image_encoder safety_checker text_encoder unet vae".split())
_READ = frozenset({"scheduler", "tokenizer"})  # parts without weights
_SIZED = (Family.SD, Family.SDXL, Family.REFINER)

_Value = TypeVar("_Value")

ModelDefaults = Mapping[str, Mapping[str, Any]]
"""What stands for null cells of models' rows, by the model's fingerprint and then by column."""
NOT_BEGUN: ModelDefaults = {}
"""Of an output that holds nothing yet."""


class Source(StrEnum):
    """How a model is stored."""

    FOLDER = "folder"
    SINGLE_FILE = "single file"
    HUB = "hub"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that exists, by the name the user gave it.

    `fingerprint` is the sha256 over the files that are loaded (for a hub id: over repository and resolved commit).
    `width` and `height` are the size in pixels it was trained at, `scheduler` the class its folder names,
    `unet_channels` what its UNet takes (4 for latents, 9 where it was made for inpainting, 5 for depth, 8 for edits),
    `latent_factor` the pixels a side of one latent, None where its files do not tell,
    `unet_widths` and `unet_layers` the channels and the residual blocks of its levels, `text_width` the width of the
    states that the UNet attends to, `token_widths` that of the vectors of each text encoder's tokens, `text_layers` the
    number of the first one's layers, `purpose` what its folder says that it is for. `defaults` stand for null cells, by
    column: those of its purpose, or of the output that is resumed.
    """

    name: str
    source: Source
    location: str  # path or hub id
    fingerprint: str
    width: int
    height: int
    scheduler: str
    family: Family = Family.SD
    unet_channels: int = 4
    latent_factor: int | None = None
    unet_widths: tuple[int, ...] = (320, 640, 1280, 1280)  # of SD 1.x and 2.x
    unet_layers: tuple[int, ...] = (2, 2, 2, 2)
    text_width: int = 768
    token_widths: tuple[int, ...] = (768,)
    estimates_depth: bool = False  # has a depth estimator beside its UNet
    checks_safety: bool = False  # has a safety checker
    text_layers: int = 12  # of CLIP ViT-L, the text encoder of SD 1.x
    looks: Looks = field(default=(), compare=False)
    classes: int | None = None  # labels that its UNet takes, where it is class-conditional
    revision: str | None = None  # resolved commit of a hub id
    config: str | None = None  # folder or hub id with the layout of a single file
    purpose: Purpose = field(default_factory=Purpose, compare=False)
    defaults: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def folder(self) -> Path:
        """Where a folder's files lie on this machine: each installation has the built-in models in its own place."""
        return builtin.model_path(self.name) if _BUILTIN.fullmatch(self.name) else Path(self.location)

    @property
    def enlarges(self) -> int:
        """How many times as wide its images are as the row's size says."""
        return {Family.UPSCALER: 4, Family.LATENT_UPSCALER: 2}.get(self.family, 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels of the squares that it was trained on; empty where its files do not tell.

        Those of Stable Diffusion 1.x, 2.x and XL (512, 512 or 768, 1024) follow from the UNet's sample size. Upscalers
        were trained on crops, and models of pixels have what they need in their UNet.
        """
        if self.purpose.sizes or self.family not in _SIZED or self.latent_factor is None:
            return self.purpose.sizes
        return (math.isqrt(self.width * self.height),)


def find_model(name: str, *, config: str | None = None, begun: ModelDefaults | None = NOT_BEGUN) -> Model:
    """Look a model up and fingerprint it.

    Args:
        name: as in the command line's MODEL.
        config: for a single file, a diffusers folder of the same architecture (else diffusers asks the hub).
        begun: the models' defaults that an output was begun with; None for one that was begun before models had any.

    Raises:
        InputError: no such model, or a folder or file that is not one.
    """
    model = _find(name, config)
    kept = {} if begun is None else begun.get(model.fingerprint, model.purpose.defaults)
    return replace(model, defaults=kept)


def _find(name: str, config: str | None) -> Model:
    if _BUILTIN.fullmatch(name):
        try:
            return _folder_model(name, builtin.model_path(name))
        except LookupError as error:
            raise InputError(f"model {name!r}: {error.args[0]}") from None
    try:
        path = local_path(name)
    except InputError as error:
        raise InputError(f"model {error}") from None
    if (what := kind_at(path)) is Kind.FOLDER:
        return _folder_model(name, path)
    if what is Kind.FILE:
        return _single_file_model(name, path, config)
    if is_hub_id(name):
        return _hub_model(name)
    near = get_close_matches(name, builtin.model_names(), n=1)
    raise InputError(
        f"model {name!r} is neither 'builtin', nor a folder or file here, nor a hub id like 'owner/name@revision'"
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _folder_model(name: str, path: Path) -> Model:
    layout = _layout(path, name)  # first: what is no model's folder may hold anything, and be of any size
    return Model(
        name=name,
        source=Source.FOLDER,
        location=str(path.resolve()),
        fingerprint=_of_model(name, _whole, path),
        looks=looks_of(path),
        purpose=read_purpose(path, name),
        **layout,
    )


def _of_model(name: str, read: Callable[[Path], _Value], path: Path) -> _Value:
    """What a function finds in a model's files.

    Raises:
        InputError: they cannot be read, or are none; the text names the model.
    """
    try:
        return read(path)
    except InputError as error:
        raise InputError(f"model {name!r}: {error}") from None
    except OSError as error:
        raise InputError(f"model {name!r}: {error.filename or path} cannot be read: {error.strerror}") from None


def _whole(path: Path) -> str:
    """The fingerprint of a folder in which every part that model_index.json names has files that count.

    Raises:
        InputError: a part that is missing or empty.
    """
    found = {file.relative_to(path).parts[0] for file in loaded_files(path)}
    if "unet" in found and "model_index.json" in found:  # the oldest models that denoise pixels lie flat
        named = read_index(path)[1]
        for part in named:
            weighs = part.removesuffix("_2") in _MODELS and part not in found
            reads = part.removesuffix("_2") in _READ and "unet" in named and not any((path / part).glob("*"))
            if weighs or reads:
                raise InputError(f"{path / part} is missing or empty; is the folder complete?")
    return hash_folder(path)


def _single_file_model(name: str, path: Path, config: str | None) -> Model:
    if path.suffix != ".safetensors":
        raise InputError(f"model {name!r}: only .safetensors checkpoints are read; a pickle can run code when loaded")
    try:
        read_shapes(path)
    except CellError as error:
        raise InputError(f"model {name!r}: {error}") from None
    folder = local_path(config) if config else None
    # without a folder at hand it is taken for SD 1.x, whose config diffusers asks of the hub
    layout: dict[str, Any] = {"width": 512, "height": 512, "scheduler": "PNDMScheduler"}
    if folder is not None and folder.is_dir():
        layout, config = _layout(folder, name), str(folder.resolve())
    return Model(
        name=name,
        source=Source.SINGLE_FILE,
        location=str(path.resolve()),
        fingerprint=_of_model(name, hash_file, path),
        looks=looks_of(path),
        config=config,
        **layout,
    )


def is_hub_id(name: str) -> bool:
    """Whether a name may be `owner/name@revision` on the hub."""
    return "://" not in name and _HUB_ID.fullmatch(name) is not None and not name.startswith(".")


def hub_configs(name: str) -> tuple[str, Path]:
    """Repository of a hub id, and a local folder of its configs, which is named by the commit.

    Raises:
        InputError: it is not to be had.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return repository, Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=["*.json", FILE])
        )
    except Exception as error:  # the hub's client raises errors of its HTTP library, which differ between versions
        raise InputError(
            f"model {name!r} is no folder or file here, and not to be had from the hub: {one_line(error)}"
        ) from error


def _hub_model(name: str) -> Model:
    repository, folder = hub_configs(name)
    return Model(
        name=name,
        source=Source.HUB,
        location=repository,
        fingerprint=hash_text(f"{repository}@{folder.name}"),
        revision=folder.name,
        purpose=read_purpose(folder, name),
        **_layout(folder, name),
    )


def cached_file(repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a hub repository where the hub's cache holds it; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _layout(folder: Path, name: str) -> dict[str, Any]:
    """What a diffusers folder's configs say, as fields of Model.

    Raises:
        InputError: no folder of a Stable Diffusion pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"model {name!r}: {folder} has no model_index.json; give the folder save_pretrained wrote")
    return _of_model(name, read_layout, folder)


def require_unchanged(model: Model) -> None:
    """Make sure that a model's files are those that its fingerprint was made of; they are read where they look other.

    Raises:
        ModelLoadError: they changed, or are gone.
    """
    if model.source is Source.HUB:
        return  # a commit does not change
    path = model.folder
    try:
        same = looks_of(path) == model.looks or hash_path(path) == model.fingerprint
    except (OSError, InputError) as error:
        raise ModelLoadError(f"model {model.name!r} cannot be read here: {error}") from error
    if not same:
        raise ModelLoadError(
            f"model {model.name!r} changed since the manifest was checked; run again to take it as it is now"
        )
