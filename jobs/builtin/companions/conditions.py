"""Conditioning images from renders: edges and depth, as Stable Diffusion's annotators draw them; knows no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from jobs.builtin.renderer import Render
from jobs.builtin.renders import RenderSet

CANNY = (100, 200)  # the thresholds of ControlNet's canny annotator (Zhang et al. 2023)
CANNY_SHARE = 0.5  # of the conditioning images; the rest are the renderer's own edges, as a careful drawing has them


def canny(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The edges of an image uint8 (h, w, 3), bool (h, w)."""
    return cv2.Canny(np.ascontiguousarray(image), *CANNY) > 0


def edge_image(edges: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """White edges on black, uint8 (h, w, 3)."""
    return (edges[..., None].repeat(3, axis=-1) * np.uint8(255)).astype(np.uint8)


def inverse_depth(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth (h, w) in MiDaS' convention (Ranftl et al. 2020): 1 is nearest, 0 farthest; the sky is infinitely far."""
    inverse = 1 / depth
    low, high = inverse.min(), inverse.max()
    scaled: NDArray[np.float32] = ((inverse - low) / max(float(high - low), 1e-6)).astype(np.float32)
    return scaled


def depth_image(inverse: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Gray, near is white, uint8 (h, w, 3), from inverse depth (h, w) in [0, 1]."""
    return (inverse * 255).round().astype(np.uint8)[..., None].repeat(3, axis=-1)


def _edges(rng: Generator, renders: RenderSet, index: int) -> NDArray[np.uint8]:
    found = canny(renders.rgb(index)) if rng.random() < CANNY_SHARE else renders.edges(index)
    return edge_image(found)


def _depth(_rng: Generator, renders: RenderSet, index: int) -> NDArray[np.uint8]:
    return depth_image(inverse_depth(renders.depth(index)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """A kind of conditioning image, uint8 (128, 128, 3): as drawn in training, and as any render has it."""

    draw: Callable[[Generator, RenderSet, int], NDArray[np.uint8]]
    exact: Callable[[Render], NDArray[np.uint8]]


CONDITIONS: Mapping[str, Condition] = {
    "edges": Condition(draw=_edges, exact=lambda image: edge_image(image.edges)),
    "depth": Condition(draw=_depth, exact=lambda image: depth_image(inverse_depth(image.depth))),
}
