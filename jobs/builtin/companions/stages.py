"""The companions' stages: one table of what each trains, prepares and leaves behind, and the function that runs one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from jobs.builtin.companions.controlnet import ControlNetTask
from jobs.builtin.companions.decoder import DecoderTask
from jobs.builtin.companions.depth import DepthTask, EstimatorTask
from jobs.builtin.companions.encoded import Progress
from jobs.builtin.companions.foundation import Foundation
from jobs.builtin.companions.ink import InkTask, save_lora
from jobs.builtin.companions.inpainting import InpaintingTask
from jobs.builtin.companions.ruby_ring import RubyRingTask, save_embedding
from jobs.builtin.companions.upscaler import LARGE_SCENES, UpscalerAutoencoderTask, UpscalerTask, save_autoencoder
from jobs.builtin.stages import Workshop, note_outcome, put_in_place
from jobs.builtin.training import Task, averaged, train

ARRAYS = "encoded.npz"


@dataclass(frozen=True, kw_only=True, slots=True)
class Companion:
    """How a companion is trained and in which format it is left."""

    task: Callable[[Workshop], Task]
    save: Callable[[nn.Module, Path], None]
    scenes: Callable[[Workshop], int] = lambda shop: shop.recipe.scenes


@runtime_checkable
class Prepares(Protocol):
    """A task that has images of its own encoded before it trains."""

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Encode them, unless that is done."""


def foundation(shop: Workshop) -> Foundation:
    """The base of this work folder, finished or not."""
    return Foundation(
        renders=shop.folders.renders,
        latents=shop.folders.latents,
        autoencoder=shop.folders.finished("autoencoder"),
        unet=shop.folders.finished("unet"),
        tokenizer=shop.folders.tokenizer,
        scenes=shop.recipe.scenes,
    )


def _save_model(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def _arrays(shop: Workshop, stage: str) -> Path:
    return shop.folders.stage(stage) / ARRAYS


def _large_scenes(shop: Workshop) -> int:
    return min(LARGE_SCENES, shop.recipe.scenes)


def _large_renders(shop: Workshop) -> dict[str, Any]:
    folder = shop.folders.root / "large-renders"
    return {"renders": folder, "scenes": _large_scenes(shop), "seed": shop.recipe.seed}


COMPANIONS: Mapping[str, Companion] = {
    "controlnet-edges": Companion(
        task=lambda shop: ControlNetTask(foundation=foundation(shop), condition="edges"), save=_save_model
    ),
    "depth-estimator": Companion(task=lambda shop: EstimatorTask(**shop.renders_task()), save=_save_model),
    "depth": Companion(task=lambda shop: DepthTask(foundation=foundation(shop)), save=_save_model),
    "ink": Companion(
        task=lambda shop: InkTask(foundation=foundation(shop), drawings=_arrays(shop, "ink")), save=save_lora
    ),
    "ruby-ring": Companion(
        task=lambda shop: RubyRingTask(
            foundation=foundation(shop), scenes=_arrays(shop, "ruby-ring"), seed=shop.recipe.seed
        ),
        save=save_embedding,
    ),
    "inpainting": Companion(
        task=lambda shop: InpaintingTask(
            foundation=foundation(shop), masked=_arrays(shop, "inpainting"), seed=shop.recipe.seed
        ),
        save=_save_model,
    ),
    "controlnet-depth": Companion(
        task=lambda shop: ControlNetTask(foundation=foundation(shop), condition="depth"), save=_save_model
    ),
    "vae-sharp": Companion(task=lambda shop: DecoderTask(foundation=foundation(shop)), save=_save_model),
    "upscaler-autoencoder": Companion(
        task=lambda shop: UpscalerAutoencoderTask(**_large_renders(shop)), save=save_autoencoder, scenes=_large_scenes
    ),
    "upscaler": Companion(
        task=lambda shop: UpscalerTask(
            **_large_renders(shop),
            foundation=foundation(shop),
            autoencoder=shop.folders.finished("upscaler-autoencoder"),
            encoded=_arrays(shop, "upscaler"),
        ),
        save=_save_model,
        scenes=_large_scenes,
    ),
}


def run_companion(shop: Workshop, name: str) -> None:
    """Train one companion and leave it as `<work>/<name>/model`.

    Raises RecipeError when the base has not been finished, when the folder cannot be written or when the checkpoint
    there was trained on another base.
    """
    companion, folder = COMPANIONS[name], shop.folders.stage(name)
    task = companion.task(shop)
    if isinstance(task, Prepares):
        task.prepare(torch.device(shop.hardware.device), shop.progress(name))
    outcome = train(
        task, shop.recipe.companions[name], folder, seed=shop.recipe.seed, hardware=shop.hardware, log=shop.log
    )
    model = averaged(task, folder)
    put_in_place(shop.folders.finished(name), lambda target: companion.save(model, target))
    note_outcome(folder, outcome, shop, scenes=companion.scenes(shop), inputs=task.inputs)
