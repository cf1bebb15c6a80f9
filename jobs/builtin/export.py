"""The export stage: finished models to one diffusers folder in float16, with its model card."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from jobs.builtin.card import Card, Part, render_card
from jobs.builtin.purpose import write_purpose
from jobs.builtin.recipe import Recipe, RecipeError
from jobs.builtin.stages import PIPELINE_STAGES, TRAINING_NOTE, Workshop, read_result
from jobs.builtin.text import open_tokenizer
from jobs.builtin.unet import build_scheduler

SCORES = "scores.json"


def load_finished(shop: Workshop) -> StableDiffusionPipeline:
    """The pipeline of the finished stages, float32 on the CPU; raises RecipeError when one has not finished."""
    for stage in ("autoencoder", "unet"):
        if not shop.folders.finished(stage).exists():
            raise RecipeError(f"no finished model of the {stage} stage in {shop.folders.root}: run it first")
    float32 = torch.float32
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(shop.folders.finished("autoencoder"), dtype=float32),
        text_encoder=CLIPTextModel.from_pretrained(shop.folders.finished("unet") / "text_encoder", dtype=float32),
        tokenizer=open_tokenizer(shop.folders.tokenizer),
        unet=UNet2DConditionModel.from_pretrained(shop.folders.finished("unet") / "unet", dtype=float32),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export_stage(shop: Workshop, target: Path, *, note: str = "") -> None:
    """Write the pipeline and its card to `target`, which is replaced whole; `note` goes into the card.

    Raises RecipeError when a stage has not finished or when `target` cannot be written.
    """
    pipeline, results = load_finished(shop), {stage: read_result(shop, stage) for stage in PIPELINE_STAGES}
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            part.half()
        pipeline.save_pretrained(partial)
        declare_float32(partial / "text_encoder" / "config.json")
        for part in ("unet", "vae"):
            forget_origin(partial / part / "config.json")
        (partial / TRAINING_NOTE).write_text(json.dumps(results, indent=2) + "\n")
        write_purpose(partial, "base")
        (partial / "README.md").write_text(render_card(_card(shop, partial, note)))
        for sheet in sorted(shop.folders.root.glob("sheet-guidance-5*.png")):
            shutil.copy(sheet, partial / "samples.png")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except OSError as error:
        raise RecipeError(f"cannot write the model to {target}: {error}") from error
    shop.log(f"export: {target}, {count_bytes(target) / 1e6:.1f} MB")


def declare_float32(config: Path) -> None:
    """Have transformers load the text tower in float32 when no dtype is asked for, as diffusers does the rest.

    Left at "float16" (what is stored), `from_pretrained` without a dtype gives a pipeline of mixed types that fails.
    """
    values = json.loads(config.read_text())
    values["dtype"] = "float32"
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def forget_origin(config: Path) -> None:
    """Drop the path of the training folder, which diffusers notes: the same weights make the same folder anywhere."""
    values = json.loads(config.read_text())
    values.pop("_name_or_path", None)
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def count_bytes(folder: Path) -> int:
    """The size of a folder's own files; links to another folder's do not count."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []  # fmt: skip
    return names[0] if names else platform.processor() or "unknown processor"


def describe_hardware(device: str) -> str:
    """What this machine is, with the device that was trained on."""
    return f"{os.cpu_count()} cores of {_processor()}, {device}, torch {torch.__version__}"


def _runs(result: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A stage's note and those of the runs whose weights it went on from, the last one first."""
    while result is not None:
        yield result
        result = result.get("before")


def _card(shop: Workshop, folder: Path, note: str) -> Card:
    full = Recipe()
    results = {stage: read_result(shop, stage) for stage in PIPELINE_STAGES}
    scores_path = shop.folders.root / SCORES
    scores: dict[str, Any] = json.loads(scores_path.read_text()) if scores_path.exists() else {}
    parts = {"autoencoder": "vae", "text": "text_encoder", "unet": "unet"}
    return Card(
        note=note,
        seed=shop.recipe.seed,
        scenes=results["unet"]["scenes"],
        hardware=describe_hardware(results["unet"]["device"]),
        parts=tuple(
            Part(
                name=stage,
                parameters=count_parameters(folder / parts[stage]),
                megabytes=count_bytes(folder / parts[stage]) / 1e6,
                steps=sum(run["steps"] for run in _runs(result)),
                full_steps=full.training(stage).steps,
                seconds=sum(run["seconds"] for run in _runs(result)),
                loss=result["loss"],
            )
            for stage, result in results.items()
        ),
        psnr=results["autoencoder"]["psnr"],
        matched=results["text"]["matched"],
        scores=scores,
    )


def count_parameters(folder: Path) -> int:
    """The number of stored weights, two bytes each."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2
