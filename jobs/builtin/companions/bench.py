"""The bench that companions are checked on: fresh scenes, their prompts, and tools to paint and to judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from numpy.typing import NDArray
from PIL import Image
from transformers import DPTForDepthEstimation

from jobs.builtin.autoencoder import reconstruct, to_tensor
from jobs.builtin.captions import caption_around, draw_caption
from jobs.builtin.companions.conditions import inverse_depth
from jobs.builtin.companions.measures import Images, relief_correlation
from jobs.builtin.companions.upscaler import draw_large
from jobs.builtin.export import load_finished
from jobs.builtin.painting import paint
from jobs.builtin.recipe import TEST_SEED_OFFSET, RecipeError
from jobs.builtin.renderer import Render, render
from jobs.builtin.scenes import Scene, draw_scene
from jobs.builtin.scorer import ScorerTask, name_attributes
from jobs.builtin.stages import Workshop
from jobs.builtin.training import averaged

FIRST_SCENE = 20_000  # of the held-out sequence; the evaluation's prompts come before it
BATCH = 16
GUIDANCE = 5.0

Rows = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found: numbers by row and measure, whether they show an effect, and images for the sheet.

    `columns` are sets of images uint8 (n, h, w, 3) that stand side by side.
    """

    question: str
    rows: Rows
    passes: bool
    columns: tuple[Images, ...]


@dataclass(frozen=True)
class Bench:
    """Fresh scenes with their renders and captions, and the tools that all checks use."""

    shop: Workshop
    count: int
    steps: int

    @cached_property
    def scenes(self) -> list[Scene]:
        seed = self.shop.recipe.seed + TEST_SEED_OFFSET
        return [draw_scene(seed, FIRST_SCENE + index) for index in range(self.count)]

    @cached_property
    def renders(self) -> list[Render]:
        return [render(scene) for scene in self.scenes]

    @cached_property
    def truth(self) -> Images:
        return np.stack([image.rgb for image in self.renders])

    @cached_property
    def large(self) -> Images:
        """The scenes at the upscaler's size, uint8 (n, 512, 512, 3)."""
        return np.stack([draw_large(scene) for scene in self.scenes])

    @cached_property
    def inverse(self) -> NDArray[np.float32]:
        """True inverse depth, float32 (n, 128, 128) in [0, 1]."""
        return np.stack([inverse_depth(image.depth) for image in self.renders])

    @cached_property
    def prompts(self) -> list[str]:
        return self.describe(self.scenes)

    @cached_property
    def plain(self) -> Images:
        """What the base alone paints for the prompts."""
        return self.paint(load_finished(self.shop), self.prompts)

    @cached_property
    def vague_prompts(self) -> list[str]:
        """Prompts that leave shapes, sizes and places to the depth: full ones say so much that depth adds little."""
        rng = np.random.default_rng((self.shop.recipe.seed, FIRST_SCENE))
        return [
            caption_around(rng, "an object" if len(scene.things) == 1 else "two objects", scene.background)
            for scene in self.scenes
        ]

    @cached_property
    def vague(self) -> Images:
        """What the base alone paints for the vague prompts."""
        return self.paint(load_finished(self.shop), self.vague_prompts)

    @cached_property
    def restored(self) -> Images:
        """The renders through the base's autoencoder: as good as any image can be."""
        return reconstruct(load_finished(self.shop).vae, self.truth)

    def describe(self, scenes: Sequence[Scene]) -> list[str]:
        rng = np.random.default_rng((self.shop.recipe.seed, FIRST_SCENE))
        return [draw_caption(rng, scene, complete=True).text for scene in scenes]

    def finished(self, stage: str) -> Path:
        folder = self.shop.folders.finished(stage)
        if not folder.exists():
            raise RecipeError(f"no finished model of the {stage} stage in {self.shop.folders.root}: run it first")
        return folder

    def paint(
        self,
        pipeline: Any,
        prompts: Sequence[str],
        *,
        inputs: Mapping[str, Sequence[Image.Image]] | None = None,
        **options: Any,
    ) -> Images:
        """One image a prompt, uint8 (n, 128, 128, 3), always from the same noises; `inputs` has one a prompt."""
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.to(self.shop.hardware.device)
        return paint(pipeline, prompts, guidance=GUIDANCE, steps=self.steps, inputs=inputs, **options)

    def answers(self, images: Images) -> NDArray[np.int64]:
        """What the scorer sees, int64 (n, attributes); raises RecipeError when it has not been trained."""
        task = ScorerTask(renders=self.shop.folders.root / "scorer-renders")
        return name_attributes(averaged(task, self.shop.folders.stage("scorer")), images)

    def open_estimator(self) -> DPTForDepthEstimation:
        """The finished depth estimator, on the CPU; raises RecipeError when it has not been trained."""
        return DPTForDepthEstimation.from_pretrained(self.finished("depth-estimator"), dtype=torch.float32).eval()

    def relief(self, images: Images) -> float:
        """How well the depth that the estimator sees in images fits the scenes'."""
        return self.relief_of(self.estimate(images))

    @torch.no_grad()
    def estimate(self, images: Images) -> NDArray[np.float32]:
        """Inverse depth that the estimator sees, float32 (n, 128, 128)."""
        estimator = self.open_estimator()
        parts = [to_tensor(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return torch.cat([estimator(part).predicted_depth for part in parts]).numpy()

    def relief_of(self, maps: NDArray[np.float32]) -> float:
        """How well inverse depth of any scale, float32 (n, 128, 128), fits the scenes'."""
        low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
        scaled = (maps - low) / np.maximum(high - low, 1e-6)
        return relief_correlation(scaled, self.inverse, self.inverse.mean(axis=0))


def to_pillow(images: Images) -> list[Image.Image]:
    """As Pillow images."""
    return [Image.fromarray(image) for image in images]
