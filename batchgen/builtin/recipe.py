"""The recipe's numbers: seeds, sizes and steps of every stage; knows nothing of how a stage works."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from batchgen.errors import InputError


class RecipeError(InputError):
    """A stage cannot run as asked: wrong order, unwritable folder, data of another recipe."""


TEST_SEED_OFFSET = 1_000_000  # held-out renders: never trained on by any stage
SCORER_SEED_OFFSET = 2_000_000  # the scorer's own training renders


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the weights. `scale` multiplies steps and scenes: 1.0 is the full recipe."""

    seed: int = 0
    scale: float = 1.0
    scenes: int = 40_960
    autoencoder: Training = field(
        default_factory=lambda: Training(steps=12_000, batch=32, learning_rate=2e-3, ema=0.998)
    )
    text: Training = field(default_factory=lambda: Training(steps=2_000, batch=128, learning_rate=1e-3, ema=0.99))
    unet: Training = field(default_factory=lambda: Training(steps=30_000, batch=32, learning_rate=8e-4, ema=0.999))
    scorer: Training = field(default_factory=lambda: Training(steps=1_500, batch=64, learning_rate=2e-3, ema=0.98))

    def scaled(self) -> "Recipe":
        """The recipe with `scale` worked into every count and then set to 1.0."""
        stages = {name: getattr(self, name) for name in ("autoencoder", "text", "unet", "scorer")}
        shorter = {
            name: replace(
                training,
                steps=max(1, round(training.steps * self.scale)),
                warmup=min(training.warmup, max(1, round(training.steps * self.scale) // 10)),
            )
            for name, training in stages.items()
        }
        return replace(self, scale=1.0, scenes=max(1, round(self.scenes * self.scale)), **shorter)


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

    def finished(self, name: str) -> Path:
        """Where a training stage leaves its model for the stages after it."""
        return self.root / name / "model"
