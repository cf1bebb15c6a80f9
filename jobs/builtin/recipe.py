"""The recipe's numbers: seeds, sizes and steps of every stage; knows nothing of how a stage works."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from batchgen.errors import InputError


class RecipeError(InputError):
    """A stage cannot run as asked: wrong order, unwritable folder, data of another recipe."""


TEST_SEED_OFFSET = 1_000_000  # held-out renders: never trained on by any stage
SCORER_SEED_OFFSET = 2_000_000  # the scorer's own training renders
CONCEPT_SEED_OFFSET = 3_000_000  # the embedding's few scenes


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training run: optimiser steps, samples a step over all processes, peak learning rate.

    `warmup` and `save_every` are in steps; `ema` is the decay of the averaged weights.
    """

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    save_every: int = 100
    ema: float = 0.998
    weight_decay: float = 1e-3

    def with_steps(self, steps: int) -> "Training":
        """The same over another number of steps, at least one; the warm-up is at most a tenth of them."""
        steps = max(1, steps)
        return replace(self, steps=steps, warmup=min(self.warmup, max(1, steps // 10)))


def _companions() -> dict[str, Training]:
    """What is trained on top of the finished base, by stage.

    A ControlNet begins as a copy but its connections begin at zero, so it takes more than the UNet's own rate; the
    fine-tuned UNets take less, or they would forget before they learn. LoRA and embedding change few numbers and can
    move fast; a word vector's entries deviate by 0.02, a seventh of that a step is enough. Averages span up to a tenth
    of the run.
    """
    return {
        "controlnet-edges": Training(steps=1_000, batch=32, learning_rate=1e-3, ema=0.995),
        "depth-estimator": Training(steps=1_000, batch=32, learning_rate=1e-3, ema=0.99),
        "depth": Training(steps=2_000, batch=32, learning_rate=6e-4, ema=0.995),
        "ink": Training(steps=800, batch=32, learning_rate=2.5e-3, warmup=20, ema=0.98),
        "ruby-ring": Training(steps=300, batch=32, learning_rate=3e-3, warmup=20, ema=0.97, weight_decay=0.0),
        "inpainting": Training(steps=1_500, batch=32, learning_rate=6e-4, ema=0.995),
        "controlnet-depth": Training(steps=1_000, batch=32, learning_rate=1e-3, ema=0.995),
        "vae-sharp": Training(steps=800, batch=32, learning_rate=5e-4, warmup=50, ema=0.99),
        "upscaler-autoencoder": Training(steps=3_000, batch=32, learning_rate=1e-3, ema=0.995),
        "upscaler": Training(steps=9_000, batch=32, learning_rate=1e-3, ema=0.995),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the weights. `scale` multiplies steps and scenes: 1.0 is the full recipe.

    With `keep_tower` the UNet stage leaves the text tower as it is, so that exported companions that
    read it and have a UNet of their own stay valid.
    """

    seed: int = 0
    scale: float = 1.0
    scenes: int = 40_960
    keep_tower: bool = False
    autoencoder: Training = field(
        default_factory=lambda: Training(steps=11_000, batch=32, learning_rate=2e-3, ema=0.998)
    )
    text: Training = field(default_factory=lambda: Training(steps=1_000, batch=128, learning_rate=1e-3, ema=0.99))
    unet: Training = field(default_factory=lambda: Training(steps=20_000, batch=32, learning_rate=8e-4, ema=0.999))
    scorer: Training = field(default_factory=lambda: Training(steps=1_500, batch=64, learning_rate=2e-3, ema=0.98))
    companions: Mapping[str, Training] = field(default_factory=_companions)

    def training(self, stage: str) -> Training:
        """How a stage of the base or a companion is trained."""
        if stage in self.companions:
            return self.companions[stage]
        training: Training = getattr(self, stage)
        return training

    def scaled(self) -> "Recipe":
        """The recipe with `scale` worked into every count and then set to 1.0."""
        stages = {name: getattr(self, name) for name in ("autoencoder", "text", "unet", "scorer")}
        shorter = {name: training.with_steps(round(training.steps * self.scale)) for name, training in stages.items()}
        companions = {
            name: training.with_steps(round(training.steps * self.scale)) for name, training in self.companions.items()
        }
        scenes = max(1, round(self.scenes * self.scale))
        return replace(self, scale=1.0, scenes=scenes, companions=companions, **shorter)


@dataclass(frozen=True, kw_only=True, slots=True)
class Folders:
    """Where the stages of one recipe leave their work, under one root."""

    root: Path

    @property
    def renders(self) -> Path:
        return self.root / "renders"

    @property
    def latents(self) -> Path:
        return self.root / "latents"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    def stage(self, name: str) -> Path:
        """Where a training stage keeps its checkpoint."""
        return self.root / name

    def start(self, name: str) -> Path:
        """Where a training stage looks for weights to begin from instead of noise."""
        return self.root / name / "start"

    def finished(self, name: str) -> Path:
        """Where a training stage leaves its model for the stages after it."""
        return self.root / name / "model"
