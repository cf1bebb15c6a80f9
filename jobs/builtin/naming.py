"""The attributes of a scene as classes: what the text tower, the vision tower and the scorer learn to name."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from jobs.builtin.captions import Caption, Mention
from jobs.builtin.scenes import Background, Color, Finish, Scene, Shape, Size, Thing

UNNAMED = -100  # torch's ignored class
THING_ATTRIBUTES = ("shape", "color", "size", "finish")
VALUES = {"shape": tuple(Shape), "color": tuple(Color), "size": tuple(Size), "finish": tuple(Finish)}
BACKGROUNDS = tuple(Background)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """One question about an image and the number of its answers."""

    name: str
    classes: int


ATTRIBUTES = (
    Attribute(name="number", classes=2),
    Attribute(name="background", classes=len(BACKGROUNDS)),
    *(
        Attribute(name=f"{attribute}_{thing}", classes=len(VALUES[attribute]))
        for thing in (1, 2)
        for attribute in THING_ATTRIBUTES
    ),
)
CLASSES = sum(attribute.classes for attribute in ATTRIBUTES)


def _of_things(things: tuple[Thing, ...] | tuple[Mention, ...], *, known: bool) -> list[int]:
    labels = []
    for place in range(2):
        for attribute in THING_ATTRIBUTES:
            value = getattr(things[place], attribute) if known and place < len(things) else None
            labels.append(UNNAMED if value is None else VALUES[attribute].index(value))
    return labels


def scene_labels(scene: Scene) -> list[int]:
    """The class of every attribute of a scene, in the order of ATTRIBUTES; a missing second object is UNNAMED."""
    return [len(scene.things) - 1, BACKGROUNDS.index(scene.background), *_of_things(scene.things, known=True)]


def caption_labels(caption: Caption) -> list[int]:
    """The class of every attribute that a caption names, UNNAMED for the others."""
    background = UNNAMED if caption.background is None else BACKGROUNDS.index(caption.background)
    return [len(caption.mentions) - 1, background, *_of_things(caption.mentions, known=caption.sided)]


def naming_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the attributes that are named; `logits` (n, CLASSES), `labels` int64 (n, attributes)."""
    parts = torch.split(logits.float(), [attribute.classes for attribute in ATTRIBUTES], dim=1)
    losses = [
        functional.cross_entropy(part, labels[:, number], ignore_index=UNNAMED)
        for number, part in enumerate(parts)
        if bool((labels[:, number] != UNNAMED).any())
    ]
    return torch.stack(losses).mean() if losses else logits.sum() * 0.0


def answers(logits: Tensor) -> NDArray[np.int64]:
    """The likeliest class of every attribute, (n, attributes)."""
    parts = torch.split(logits, [attribute.classes for attribute in ATTRIBUTES], dim=1)
    return torch.stack([part.argmax(dim=1) for part in parts], dim=1).cpu().numpy()
