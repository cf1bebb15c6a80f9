"""Load the components of a Stable Diffusion model, once, from a folder, a single file or the hub."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from batchgen.diffusion.noise import draw_in_float32
from batchgen.errors import ModelLoadError, one_line
from batchgen.models.catalog import Family, Model, Source

__all__ = ["DTYPES", "Components", "Loader", "Loading", "load_components", "quiet"]

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""Precisions by the names that jobs give them."""

draw_in_float32(DiagonalGaussianDistribution)  # which samples what autoencoders encode

_WITH_SECOND_TOWER = (Family.SDXL, Family.REFINER)
_UNCHECKED: Mapping[str, Any] = {"safety_checker": None, "requires_safety_checker": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """What a model is made of.

    `parts` are modules, tokenizers and scheduler by the names of diffusers' pipeline arguments, `options` the plain
    values that the model's folder gives its pipeline.
    """

    parts: Mapping[str, Any]
    options: Mapping[str, Any]


def quiet() -> None:
    """Silence the progress bars and warnings of diffusers and transformers: a worker's stderr is for its own lines."""
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How models are loaded.

    `with_safety` reads the safety checker too, where the model has one; `allow_pickle` reads pickled weights where
    there are no others, with torch's weights-only loader; `low_memory` slices attention and, on a GPU, keeps there only
    the part of the model that computes. `dtypes` are precisions of single components, by diffusers' names for them.
    """

    with_safety: bool = False
    allow_pickle: bool = False
    low_memory: bool = False
    dtypes: Mapping[str, str] = field(default_factory=dict)


PLAIN = Loading()


class Loader(Protocol):
    """Makes the components of a model, in the precisions asked for and on the device."""

    def __call__(self, model: Model, *, device: torch.device, dtype: torch.dtype, how: Loading) -> Components: ...


def load_components(model: Model, *, device: torch.device, dtype: torch.dtype, how: Loading = PLAIN) -> Components:
    """Read a model's weights in the precisions asked for, whatever the files hold, and put them on the device.

    Raises:
        ModelLoadError: weights missing, damaged, pickled, or of another kind of model; one line that says what to do.
    """
    quiet()
    try:
        pipeline = _place(_read(model, dtype, how), device, how)
    except ModelLoadError:
        raise
    except Exception as error:  # diffusers, transformers, safetensors, torch and the hub each raise their own kinds
        raise ModelLoadError(f"model {model.name!r} could not be loaded: {one_line(error)}") from error
    if pipeline.components.keys().isdisjoint({"text_encoder_2"}) == (model.family in _WITH_SECOND_TOWER):
        raise ModelLoadError(
            f"model {model.name!r} is a {type(pipeline).__name__} now, no {model.family}; check it again"
        )
    parts = dict(pipeline.components)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    if "vae" in parts and parts["vae"].dtype != dtype:
        translate(parts["vae"])
    plain = (bool, int, float, str)
    options = {name: value for name, value in pipeline.config.items() if isinstance(value, plain) and name not in parts}
    return Components(parts=parts, options=options)


def translate(vae: Any) -> Any:
    """Make an autoencoder of a precision of its own take images of another one and answer in that.

    Pipelines give it images of the UNet's precision, and would give the UNet latents of the autoencoder's.
    """
    encode = vae.encode

    def translated(images: torch.Tensor) -> AutoencoderKLOutput:
        parameters = encode(images.to(vae.dtype)).latent_dist.parameters
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(parameters.to(images.dtype)))

    vae.encode = translated
    if vae.dtype == torch.float32:  # or pipelines would upcast it for a moment and then leave it in half precision
        vae.register_to_config(force_upcast=False)
    return vae


def _place(pipeline: Any, device: torch.device, how: Loading) -> Any:
    if not how.low_memory:
        return pipeline.to(device)
    if hasattr(pipeline, "enable_attention_slicing"):
        pipeline.enable_attention_slicing()
    if device.type != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
    return pipeline


def _read(model: Model, dtype: torch.dtype, how: Loading) -> Any:
    unwanted = {} if how.with_safety and model.checks_safety else _UNCHECKED
    match model.source:
        case Source.FOLDER:
            return _read_folder(model, model.folder, dtype, unwanted, how)
        case Source.HUB:
            return _read_folder(model, _download(model, unwanted), dtype, unwanted, how)
        case Source.SINGLE_FILE:
            return _read_single_file(model, dtype, how)


def _read_folder(model: Model, folder: Path, dtype: torch.dtype, unwanted: Mapping[str, Any], how: Loading) -> Any:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return DiffusionPipeline.from_pretrained(
        folder,
        dtype={"default": dtype, **{name: DTYPES[own] for name, own in how.dtypes.items()}} if how.dtypes else dtype,
        variant=_variant(model, folder, [part for part in index if part not in unwanted], how),
        use_safetensors=None if how.allow_pickle else True,
        local_files_only=True,
        **(unwanted if "safety_checker" in index else {}),
    )


def _variant(model: Model, folder: Path, parts: Iterable[str], how: Loading) -> str | None:
    """The part of the weights' file names that says fp16, needed where a folder has no others.

    Raises:
        ModelLoadError: there are pickles alone, and they are not allowed.
    """
    weighted = [part for part in parts if (folder / part / "config.json").is_file()]
    names = {part: [file.name for file in sorted((folder / part).glob("*"))] for part in weighted}
    for part, files in names.items():
        if how.allow_pickle:
            break
        if not any(name.endswith(".safetensors") for name in files) and any(name.endswith(".bin") for name in files):
            raise ModelLoadError(
                f"model {model.name!r} has only pickled weights in {part}/, which can run code when loaded; convert a "
                "copy you trust: DiffusionPipeline.from_pretrained(OLD, use_safetensors=False).save_pretrained(NEW), "
                "or set allow_pickle = true in the job to have it read with torch's weights-only loader"
            )
    endings = (".safetensors", ".bin") if how.allow_pickle else (".safetensors",)
    weights = [name for files in names.values() for name in files if name.endswith(endings)]
    return "fp16" if weights and all(".fp16." in name for name in weights) else None


def _download(model: Model, unwanted: Mapping[str, Any]) -> Path:
    """The folder of the hub's cache that holds the model, fetched where it is not there yet."""
    arguments = {"revision": model.revision, "use_safetensors": True, **unwanted}
    try:
        return Path(DiffusionPipeline.download(model.location, **arguments))
    except (OSError, ValueError):  # some repositories hold half precision only
        return Path(DiffusionPipeline.download(model.location, variant="fp16", **arguments))


def _read_single_file(model: Model, dtype: torch.dtype, how: Loading) -> Any:
    if model.config is None:
        hint = "it needs the hub for its config; name a diffusers folder of the same architecture to work offline"
    else:
        hint = f"does it fit the config {model.config!r}?"
    is_xl = model.family is Family.SDXL
    pipeline = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    try:
        read = pipeline.from_single_file(
            model.location,
            config=model.config,
            dtype=torch.float32 if how.dtypes else dtype,  # it knows no precisions of components
            local_files_only=model.config is not None and Path(model.config).is_dir(),
            **({} if is_xl else _UNCHECKED),
        )
    except Exception as error:  # as above: every library its own
        raise ModelLoadError(
            f"model {model.name!r} could not be loaded: {one_line(error).rstrip('.')}; {hint}"
        ) from error
    for name, part in read.components.items():
        if isinstance(part, torch.nn.Module):
            part.to(DTYPES[how.dtypes[name]] if name in how.dtypes else dtype)
    return read
