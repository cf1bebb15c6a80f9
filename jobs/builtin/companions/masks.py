"""Masks for inpainting: objects, dilated or as boxes, rectangles and whole images; knows no torch."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

KINDS = ("object", "box", "rectangles", "whole")
SHARES = (0.3, 0.4, 0.25, 0.05)
MARGIN = (4, 14)  # pixels around an object, at least a little more than half a latent
SIDE = (24, 88)  # pixels of a random rectangle


def grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """A mask (h, w) and all that lies within so many pixels of it."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
    return cv2.dilate(mask.astype(np.uint8), disc) > 0


def box(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """The box around a mask (h, w) that is not empty, with a margin of so many pixels."""
    spans = (slice(max(0, int(places.min()) - pixels), int(places.max()) + pixels + 1) for places in np.nonzero(mask))
    result = np.zeros_like(mask)
    result[tuple(spans)] = True
    return result


def _rectangles(rng: Generator, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    result = np.zeros(shape, dtype=np.bool_)
    for _ in range(int(rng.integers(1, 3))):
        height, width = rng.integers(*SIDE, size=2)
        row, column = rng.integers(0, shape[0] - height), rng.integers(0, shape[1] - width)
        result[row : row + height, column : column + width] = True
    return result


def draw_mask(rng: Generator, objects: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Draw what is to be painted anew, bool (h, w), for an image with `objects` uint8 (h, w), 0 for none."""
    kind, margin = KINDS[int(rng.choice(len(KINDS), p=SHARES))], int(rng.integers(*MARGIN))
    numbers = np.unique(objects[objects > 0])
    if kind == "whole":
        return np.ones(objects.shape, dtype=np.bool_)
    if kind == "rectangles" or not numbers.size:
        return _rectangles(rng, objects.shape)
    chosen = objects == rng.choice(numbers)
    return grow(chosen, margin) if kind == "object" else box(chosen, margin)
