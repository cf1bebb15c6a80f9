"""Control images, and maps made of ordinary images: edges, depth and poses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from batchgen import builtin
from batchgen.diffusion.pose import PoseReader, draw_poses
from batchgen.manifest.columns import input_name

__all__ = ["ControlMaker", "canny_edges"]

_CANNY_THRESHOLDS = (100, 200)  # of ControlNet's own annotator (Zhang et al. 2023)


def canny_edges(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """White edges on black, uint8 (H, W, 3), of an image uint8 (H, W, 3), by Canny's detector (Canny 1986)."""
    edges = cv2.Canny(image, *_CANNY_THRESHOLDS)
    return np.repeat(edges[..., None], 3, axis=2).astype(np.uint8)


class ControlMaker:
    """Makes control images; a depth estimator is loaded when the first row asks for one.

    Args:
        estimator: the model's own depth estimator and its feature extractor, where it has them; else the built-in
            model's companion is used, which knows that model's world.
    """

    def __init__(self, estimator: tuple[Any, Any] | None) -> None:
        self._estimator = estimator
        self._makers: Mapping[str, Callable[[Image.Image], npt.NDArray[np.uint8]]] = {
            "none": np.asarray,
            "canny": lambda image: canny_edges(np.asarray(image)),
            "depth": self._depth,
        }

    def maps(
        self,
        inputs: Sequence[Mapping[str, Image.Image]],
        how: Sequence[Sequence[str]],
        poses: Callable[[], PoseReader],
    ) -> list[npt.NDArray[np.uint8]]:
        """What each ControlNet is given, uint8 (B, H, W, 3).

        Args:
            inputs: the rows' images by name, RGB.
            how: for each row and ControlNet, what to make of its image: none, canny, depth or pose.
            poses: gives what reads poses, where they are asked for.
        """
        return [
            np.stack(
                [
                    self._make(one[input_name("control_image", net)], kinds[net], poses)
                    for one, kinds in zip(inputs, how, strict=True)
                ]
            )
            for net in range(len(how[0]))
        ]

    def _make(self, image: Image.Image, kind: str, poses: Callable[[], PoseReader]) -> npt.NDArray[np.uint8]:
        if kind == "pose":
            return draw_poses(poses().poses(image), image.width, image.height)
        return self._makers[kind](image)

    def _depth(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Inverse depth, near is white, of the image's size."""
        if self._estimator is None:
            self._estimator = _builtin_estimator()
        estimator, extractor = self._estimator
        pixels = extractor(images=image, return_tensors="pt").pixel_values.to(estimator.device, estimator.dtype)
        depth = estimator(pixels).predicted_depth[:, None].float()
        depth = torch.nn.functional.interpolate(depth, size=image.size[::-1], mode="bicubic", align_corners=False)[0, 0]
        low, high = depth.min(), depth.max()
        levels = ((depth - low) / (high - low).clamp(min=1e-6) * 255).round().byte().cpu().numpy()
        return np.repeat(levels[..., None], 3, axis=2)


def _builtin_estimator() -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, DPTForDepthEstimation

    folder = builtin.companion_path("builtin-depth-estimator")
    estimator = DPTForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval()
    return estimator, AutoImageProcessor.from_pretrained(folder)
