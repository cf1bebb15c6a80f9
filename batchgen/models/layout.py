"""What a diffusers folder's configs say of a model, before it is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.columns import MAX_SIDE
from batchgen.models.configs import (
    MOST_CHANNELS,
    MOST_LAYERS,
    USUAL_FACTOR,
    Config,
    latent_factor,
    read_config,
    read_index,
)
from batchgen.options import Family

__all__ = ["read_layout"]

_SD_PIPELINES = frozenset(
    "LatentConsistencyModelPipeline StableDiffusionPipeline StableDiffusionControlNetPipeline "
    "StableDiffusionDepth2ImgPipeline StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline "
    "StableDiffusionInstructPix2PixPipeline".split()
)
MAX_CLASSES = 1 << 24  # that a model of pixels tells apart

_TEXT_ENCODERS: Mapping[Family, tuple[str, ...]] = {
    Family.SD: ("text_encoder",),
    Family.SDXL: ("text_encoder", "text_encoder_2"),
    Family.REFINER: ("text_encoder_2",),
    Family.UPSCALER: ("text_encoder",),
    Family.LATENT_UPSCALER: ("text_encoder",),
}

_USUAL_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
_PARTS_OF: Mapping[Family, tuple[str, ...]] = {
    Family.SDXL: (*_USUAL_PARTS, "text_encoder_2", "tokenizer_2"),
    Family.REFINER: ("vae", "text_encoder_2", "tokenizer_2", "scheduler"),
    Family.PIXELS: ("scheduler",),
}
"""What a pipeline's index has to name besides its UNet."""


def read_layout(folder: Path) -> dict[str, Any]:
    """As fields of `catalog.Model`.

    Raises:
        InputError: no folder of a Stable Diffusion pipeline, or one that lacks parts.
    """
    index, classes = read_index(folder)
    family = _family(index, classes)
    if missing := [part for part in _PARTS_OF.get(family, _USUAL_PARTS) if "unet" in classes and part not in classes]:
        raise InputError(f"{folder / 'model_index.json'} names no {missing[0]}; is the folder complete?")
    scheduler = classes.get("scheduler")
    if family is Family.PIXELS:
        return _pixel_layout(folder, scheduler)
    unet = read_config(folder / "unet" / "config.json")
    vae = read_config(folder / "vae" / "config.json")
    factor = latent_factor(vae.numbers("block_out_channels", most=MOST_CHANNELS))
    height, width = _sides(unet, 64, factor or USUAL_FACTOR)
    texts = [read_config(folder / part / "config.json") for part in _TEXT_ENCODERS[family]]
    widths = unet.numbers("block_out_channels", most=MOST_CHANNELS)
    layers = unet.numbers("layers_per_block", most=MOST_LAYERS, count=len(widths))
    return {
        "width": width,
        "height": height,
        "scheduler": scheduler or "PNDMScheduler",
        "family": family,
        "unet_channels": unet.number("in_channels", most=MOST_CHANNELS) or 4,
        "latent_factor": factor,
        "unet_widths": widths,
        "unet_layers": layers or (2,) * len(widths),
        "text_width": next(iter(unet.numbers("cross_attention_dim", most=MOST_CHANNELS)), 0),
        "token_widths": tuple(text.number("hidden_size", most=MOST_CHANNELS) or 768 for text in texts),
        "estimates_depth": "depth_estimator" in classes,
        "checks_safety": "safety_checker" in classes,
        "text_layers": texts[0].number("num_hidden_layers", most=MOST_LAYERS) or 12,
    }


def _pixel_layout(folder: Path, scheduler: str | None) -> dict[str, Any]:
    """The same of a model that denoises pixels; its oldest ones lie flat in their folder."""
    inside = folder / "unet" / "config.json"
    unet = read_config(inside if inside.is_file() else folder / "config.json")
    height, width = _sides(unet, 32, 1)
    return {
        "width": width,
        "height": height,
        "scheduler": scheduler or "DDPMScheduler",
        "family": Family.PIXELS,
        "unet_channels": unet.number("in_channels", most=MOST_CHANNELS) or 3,
        "unet_widths": unet.numbers("block_out_channels", most=MOST_CHANNELS),
        "text_layers": 0,
        "classes": unet.number("num_class_embeds", most=MAX_CLASSES),
    }


def _sides(unet: Config, default: int, factor: int) -> tuple[int, int]:
    """Height and width in pixels of what a UNet was trained on."""
    sides = unet.numbers("sample_size", most=MAX_SIDE, count=2) or (default, default)
    if len(sides) != 2 or max(sides) * factor > MAX_SIDE:
        shown = "x".join(str(side * factor) for side in sides)
        raise InputError(f"{unet.path}: it was trained on {shown} pixels; two sides of at most {MAX_SIDE} are made")
    height, width = sides
    return height * factor, width * factor


def _family(index: Mapping[str, Any], classes: Mapping[str, str]) -> Family:
    kind = str(index.get("_class_name"))
    if kind in ("DDPMPipeline", "DDIMPipeline"):
        return Family.PIXELS
    if kind == "StableDiffusionUpscalePipeline":
        return Family.UPSCALER
    if kind == "StableDiffusionLatentUpscalePipeline":
        return Family.LATENT_UPSCALER
    if kind.startswith("StableDiffusionXL"):
        return Family.SDXL if "text_encoder" in classes else Family.REFINER
    if kind in _SD_PIPELINES:
        return Family.SD
    raise InputError(f"it is a {kind[:100]}; this version generates with Stable Diffusion 1.x, 2.x and XL")
