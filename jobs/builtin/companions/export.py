"""The companions' export: finished companions to folders beside the exported base, in float16, with their cards.

A pipeline folder holds what was trained for it; what it shares with the base are links, file by file.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPModel, DPTForDepthEstimation

from jobs.builtin.card import Part
from jobs.builtin.companions import ink, ruby_ring
from jobs.builtin.companions.card import PAGES, CompanionCard, render_companion_card
from jobs.builtin.companions.check import CHECKS_FILE
from jobs.builtin.companions.depth import build_feature_extractor
from jobs.builtin.companions.stages import COMPANIONS, foundation
from jobs.builtin.companions.upscaler import build_low_res_scheduler
from jobs.builtin.export import count_bytes, count_parameters, declare_float32, describe_hardware, forget_origin
from jobs.builtin.latents import digest
from jobs.builtin.purpose import DEFAULTS, write_purpose
from jobs.builtin.recipe import Recipe, RecipeError
from jobs.builtin.stages import CLIP, TRAINING_NOTE, Workshop, read_result
from jobs.builtin.text import build_image_processor, open_tokenizer

SHARED = ("vae", "text_encoder", "tokenizer", "scheduler")


def _save_half(model: Any, target: Path) -> None:
    model.half().save_pretrained(target)


def _write_controlnet(finished: Mapping[str, Path], _base: Path, target: Path) -> None:
    (folder,) = finished.values()
    _save_half(ControlNetModel.from_pretrained(folder), target)


def _write_vae(finished: Mapping[str, Path], _base: Path, target: Path) -> None:
    _save_half(AutoencoderKL.from_pretrained(finished["vae-sharp"]), target)


def _write_clip(finished: Mapping[str, Path], base: Path, target: Path) -> None:
    _save_half(CLIPModel.from_pretrained(finished[CLIP]), target)
    declare_float32(target / "config.json")
    open_tokenizer(base / "tokenizer").save_pretrained(target)
    build_image_processor().save_pretrained(target)


def _write_lora(finished: Mapping[str, Path], _base: Path, target: Path) -> None:
    shutil.copy(finished["ink"] / ink.FILE, target / ink.FILE)


def _write_embedding(finished: Mapping[str, Path], _base: Path, target: Path) -> None:
    shutil.copy(finished["ruby-ring"] / ruby_ring.FILE, target / ruby_ring.FILE)


def _open_shared(base: Path) -> dict[str, Any]:
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float16)
    return {name: pipeline.components[name] for name in SHARED}


def _write_inpainting(finished: Mapping[str, Path], base: Path, target: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(finished["inpainting"]).half()
    pipeline = StableDiffusionInpaintPipeline(
        **_open_shared(base), unet=unet, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(target)
    _link_shared(base, target)


def _write_depth(finished: Mapping[str, Path], base: Path, target: Path) -> None:
    pipeline = StableDiffusionDepth2ImgPipeline(
        **_open_shared(base),
        unet=UNet2DConditionModel.from_pretrained(finished["depth"]).half(),
        depth_estimator=DPTForDepthEstimation.from_pretrained(finished["depth-estimator"]).half(),
        feature_extractor=build_feature_extractor(),
    )
    pipeline.save_pretrained(target)
    declare_float32(target / "depth_estimator" / "config.json")
    index = json.loads((target / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "DPTImageProcessor"]  # its Pillow twin where there is no torchvision
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    _link_shared(base, target)


def _write_upscaler(finished: Mapping[str, Path], base: Path, target: Path) -> None:
    pipeline = StableDiffusionUpscalePipeline(
        **{**_open_shared(base), "vae": AutoencoderKL.from_pretrained(finished["upscaler-autoencoder"]).half()},
        unet=UNet2DConditionModel.from_pretrained(finished["upscaler"]).half(),
        low_res_scheduler=build_low_res_scheduler(),
    )
    pipeline.save_pretrained(target)
    _link_shared(base, target, ("text_encoder", "tokenizer", "scheduler"))


def _write_estimator(finished: Mapping[str, Path], _base: Path, target: Path) -> None:
    _save_half(DPTForDepthEstimation.from_pretrained(finished["depth-estimator"]), target)
    declare_float32(target / "config.json")
    build_feature_extractor().save_pretrained(target)


def _link_shared(base: Path, target: Path, parts: Sequence[str] = SHARED) -> None:
    """Put links to the base's files in the place of what the pipeline shares with it."""
    for part in parts:
        shutil.rmtree(target / part)
        (target / part).mkdir()
        for file in sorted((base / part).iterdir()):
            (target / part / file.name).symlink_to(Path("..", "..", base.name, part, file.name))


Writer = Callable[[Mapping[str, Path], Path, Path], None]

EXPORTS: Mapping[str, tuple[Writer, tuple[str, ...]]] = {
    "controlnet-edges": (_write_controlnet, ("controlnet-edges",)),
    "depth-estimator": (_write_estimator, ("depth-estimator",)),
    "depth": (_write_depth, ("depth", "depth-estimator")),
    "ink": (_write_lora, ("ink",)),
    "ruby-ring": (_write_embedding, ("ruby-ring",)),
    "inpainting": (_write_inpainting, ("inpainting",)),
    "controlnet-depth": (_write_controlnet, ("controlnet-depth",)),
    "vae-sharp": (_write_vae, ("vae-sharp",)),
    "upscaler": (_write_upscaler, ("upscaler", "upscaler-autoencoder")),
    CLIP: (_write_clip, (CLIP,)),
}
"""What is exported: how it is written, and the stages that make it."""


def _same_weights(first: Path, second: Path) -> bool:
    """Whether two folders hold the same weights once they are in float16."""
    mine, other = ({n: v.half() for f in folder.glob("*.safetensors") for n, v in load_file(f).items()}
                   for folder in (first, second))  # fmt: skip
    return mine.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in mine.items())


def _require_base(shop: Workshop, base: Path) -> None:
    """Raise RecipeError unless `base` is what this work folder's finished base was exported to."""
    foundation(shop).require()
    if not (base / "model_index.json").exists():
        raise RecipeError(f"no exported model in {base}: run export first")
    unet, autoencoder = shop.folders.finished("unet"), shop.folders.finished("autoencoder")
    parts = {"unet": unet / "unet", "text_encoder": unet / "text_encoder", "vae": autoencoder}
    for part, folder in parts.items():
        if not _same_weights(folder, base / part):
            raise RecipeError(
                f"{base / part} holds other weights than {folder}, which the companions were trained on: run export "
                "again, or name the right base"
            )


def _require_fresh(shop: Workshop, stage: str) -> None:
    """Raise RecipeError when a companion was trained on another base than this work folder's."""
    if read_result(shop, stage)["inputs"] != COMPANIONS[stage].task(shop).inputs:
        raise RecipeError(
            f"{shop.folders.finished(stage)} was trained on another base than the work folder holds now: remove "
            f"{shop.folders.stage(stage)} and run the {stage} stage again"
        )


def export_companions(shop: Workshop, base: Path, names: Sequence[str] = (), *, note: str = "") -> None:
    """Write the named companions, or all finished ones, beside the exported base as `<base>-<name>`, each whole.

    `note` goes into their cards.

    Raises RecipeError when `base` is not the export of this work folder's base, when a companion was trained on
    another, when a named one has not been finished, when none has, or when the folders cannot be written.
    """
    _require_base(shop, base)

    def missing(name: str) -> list[str]:
        return [stage for stage in EXPORTS[name][1] if not shop.folders.finished(stage).exists()]

    if names and (lacking := [stage for name in names for stage in missing(name)]):
        raise RecipeError(f"not finished in {shop.folders.root}: {', '.join(lacking)}; run these stages first")
    names = names or [name for name in EXPORTS if not missing(name)]
    if not names:
        raise RecipeError(f"no finished companion in {shop.folders.root}: run a companion's stage first")
    for name in names:
        for stage in EXPORTS[name][1]:
            if stage in COMPANIONS:
                _require_fresh(shop, stage)
    for name in names:
        target = base.with_name(f"{base.name}-{name}")
        try:
            _export(shop, name, base, target, note)
        except OSError as error:
            raise RecipeError(f"cannot write the companion to {target}: {error}") from error
        shop.log(f"export: {target}, {count_bytes(target) / 1e6:.1f} MB of its own")


def _export(shop: Workshop, name: str, base: Path, target: Path, note: str) -> None:
    write, stages = EXPORTS[name]
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write({stage: shop.folders.finished(stage) for stage in stages}, base, partial)
    for config in partial.rglob("*config.json"):
        if not config.is_symlink():
            forget_origin(config)
    for weights in partial.rglob("*.safetensors"):
        if not weights.is_symlink():
            weights.chmod(0o644)  # safetensors writes them for their owner alone
    results = {stage: read_result(shop, stage) for stage in stages}
    (partial / "README.md").write_text(render_companion_card(_card(shop, name, results, partial, note)))
    (partial / TRAINING_NOTE).write_text(json.dumps(results, indent=2) + "\n")
    if name in DEFAULTS:
        write_purpose(partial, name)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)


def _place(folder: Path, stage: str) -> Path:
    """Where a stage's weights lie in an exported folder: in a part of the pipeline, or they are all there is."""
    part = folder / {"depth-estimator": "depth_estimator", "upscaler-autoencoder": "vae"}.get(stage, "unet")
    return part if part.exists() else folder


def _card(
    shop: Workshop, name: str, results: Mapping[str, Mapping[str, Any]], folder: Path, note: str
) -> CompanionCard:
    full, path = Recipe(), shop.folders.root / CHECKS_FILE
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return CompanionCard(
        page=PAGES[name],
        note=note,
        base=foundation(shop).digest,
        seed=shop.recipe.seed,
        hardware=describe_hardware(str(next(iter(results.values()))["device"])),
        parts=tuple(
            Part(
                name=stage,
                parameters=count_parameters(_place(folder, stage)),
                megabytes=count_bytes(_place(folder, stage)) / 1e6,
                steps=result["steps"],
                full_steps=full.training("text" if stage == CLIP else stage).steps,
                seconds=result["seconds"],
                loss=result["loss"],
            )
            for stage, result in results.items()
        ),
        checks=tuple(
            found[stage]
            for stage in results
            if stage in found and found[stage]["weights"] == digest(shop.folders.finished(stage))
        ),
    )
