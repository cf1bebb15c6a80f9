"""The scorer: a small convolutional net that names what it sees in an image, trained on renders of its own seed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jobs.builtin.autoencoder import to_tensor
from jobs.builtin.naming import CLASSES, answers, naming_loss, scene_labels
from jobs.builtin.renders import open_renders
from jobs.builtin.training import Draw

SCENES = 5_120  # a minute of rendering on two cores


class Scorer(nn.Module):
    """Images (n, 3, 128, 128) in [-1, 1] to naming logits (n, CLASSES).

    The last map is pooled to 2 rows and 4 columns, so that left and right stay apart.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for after in (24, 48, 64, 96, 128):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1, groups=8 if after > 24 else 1), nn.GroupNorm(8, after), nn.SiLU(),
            ]  # fmt: skip
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(128 * 8, 256), nn.SiLU(), nn.Linear(256, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        features = functional.avg_pool2d(self.body(images), (2, 1))  # (n, 128, 2, 4)
        logits: Tensor = self.head(features.flatten(1))
        return logits


def _disturb(images: Tensor, draw: Draw) -> Tensor:
    """Slight blur, noise and gain, so that an autoencoder's softness is not mistaken for another shape."""
    if draw.rng.random() < 0.5:
        small = functional.interpolate(images, scale_factor=float(draw.rng.uniform(0.5, 1.0)), mode="area")
        images = functional.interpolate(small, size=images.shape[-2:], mode="bilinear")
    gain = float(draw.rng.uniform(0.94, 1.06))
    return images * gain + float(draw.rng.uniform(0, 0.06)) * draw.normal(*images.shape)


@dataclass(frozen=True, kw_only=True)
class ScorerTask:
    """Trains the scorer on its own renders, slightly disturbed."""

    renders: Path
    scenes: int = SCENES
    name: str = "scorer"
    inputs: str = "renders"

    def build(self) -> nn.Module:
        return Scorer()

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        renders = open_renders(self.renders, scenes=self.scenes)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            indices = draw.rng.integers(renders.count, size=draw.batch)
            labels = torch.tensor([scene_labels(renders.scene(int(index))) for index in indices], device=device)
            images = to_tensor(renders.batch(indices)).to(device)
            return naming_loss(model(_disturb(images, draw)), labels)

        return loss


@torch.no_grad()
def name_attributes(scorer: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The scorer's answers for images uint8 (n, 128, 128, 3), int64 (n, attributes)."""
    parts = [answers(scorer(to_tensor(images[start : start + 64]))) for start in range(0, len(images), 64)]
    return np.concatenate(parts)
