"""Pose maps of ordinary images, for ControlNets: points by ViTPose (Xu et al. 2022), drawn as OpenPose's maps are."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image

from batchgen.errors import InputError, one_line

__all__ = ["PoseReader", "draw_poses"]

_COCO = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle".split()
)
# OpenPose's order, in which points and limbs take their colours around the circle of hues.
_POINTS = (
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear".split()
)
_LIMBS = tuple(
    tuple(limb.split("-"))
    for limb in (
        "neck-right_shoulder neck-left_shoulder right_shoulder-right_elbow right_elbow-right_wrist "
        "left_shoulder-left_elbow left_elbow-left_wrist neck-right_hip right_hip-right_knee right_knee-right_ankle "
        "neck-left_hip left_hip-left_knee left_knee-left_ankle neck-nose nose-right_eye right_eye-right_ear "
        "nose-left_eye left_eye-left_ear"
    ).split()
)
_COLORS = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(i / len(_POINTS), 1, 1)) for i in range(18)]
_WIDTH = 4  # pixels from a limb's middle to its side, and of a point's radius, in an image of 512
_DARKER = 0.6  # limbs against points
_SURE = 0.3  # a point's least score
_A_PERSON = 0.5  # a detection's least score

Pose = Mapping[str, tuple[float, float]]
"""Where a person's visible points are, in pixels, by name."""


class PoseReader:
    """Finds the poses of the people in an image.

    Args:
        estimator: folder of a VitPoseForPoseEstimation with its image processor.
        detector: folder of an object detector that knows "person"; without one the whole image is one person.

    Raises:
        InputError: a folder that cannot be loaded as such.
    """

    def __init__(self, estimator: Path, detector: Path | None, device: torch.device) -> None:
        from transformers import AutoModelForObjectDetection, VitPoseForPoseEstimation

        self._device = device
        self._estimator, self._processor = _load(VitPoseForPoseEstimation, estimator, device)
        self._detector: Any = None
        if detector is not None:
            self._detector, self._detector_processor = _load(AutoModelForObjectDetection, detector, device)

    def poses(self, image: Image) -> list[Pose]:
        """The poses of all people that are found, each with its visible points."""
        boxes = self._people(image)
        if not boxes:
            return []
        given = self._processor(images=image, boxes=[boxes], return_tensors="pt").to(self._device)
        experts = getattr(self._estimator.config.backbone_config, "num_experts", 1)
        if experts > 1:  # the first was trained on COCO
            given["dataset_index"] = torch.zeros(len(boxes), dtype=torch.int64, device=self._device)
        found = self._processor.post_process_pose_estimation(self._estimator(**given), boxes=[boxes])[0]
        return [_visible(one["keypoints"].tolist(), one["scores"].tolist()) for one in found]

    def _people(self, image: Image) -> list[list[float]]:
        """Boxes of people as left, top, width and height in pixels."""
        if self._detector is None:
            return [[0.0, 0.0, float(image.width), float(image.height)]]
        given = self._detector_processor(images=image, return_tensors="pt").to(self._device)
        size = [(image.height, image.width)]
        (found,) = self._detector_processor.post_process_object_detection(
            self._detector(**given), threshold=_A_PERSON, target_sizes=size
        )
        names = self._detector.config.id2label
        pairs = zip(found["labels"].tolist(), found["boxes"].tolist(), strict=True)
        return [[x, y, x2 - x, y2 - y] for label, (x, y, x2, y2) in pairs if names[label] == "person"]


def draw_poses(poses: Sequence[Pose], width: int, height: int) -> npt.NDArray[np.uint8]:
    """OpenPose's image of people on black, uint8 (H, W, 3): limbs as ellipses, points as dots over them."""
    canvas = np.zeros((height, width, 3), np.uint8)
    thick = max(1, round(_WIDTH * min(width, height) / 512))
    for pose in poses:
        for (first, second), color in zip(_LIMBS, _COLORS, strict=False):
            if first in pose and second in pose:
                (x, y), (x2, y2) = pose[first], pose[second]
                middle = round((x + x2) / 2), round((y + y2) / 2)
                axes = round(np.hypot(x2 - x, y2 - y) / 2), thick
                angle = round(np.degrees(np.arctan2(y2 - y, x2 - x)))
                outline = cv2.ellipse2Poly(middle, axes, angle, 0, 360, 1)
                cv2.fillConvexPoly(canvas, np.asarray(outline), [_DARKER * part for part in color])
        for point, color in zip(_POINTS, _COLORS, strict=True):
            if point in pose:
                cv2.circle(canvas, (round(pose[point][0]), round(pose[point][1])), thick, color, thickness=-1)
    return canvas


def _load(kind: Any, folder: Path, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor

    try:
        model = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers, safetensors and torch each raise their own kinds
        raise InputError(f"{folder} could not be loaded: {one_line(error)}") from error
    return model.eval().requires_grad_(False).to(device), processor


def _visible(points: Sequence[Sequence[float]], scores: Sequence[float]) -> Pose:
    """The points that the estimator is sure of, and the neck between the shoulders, which it does not look for."""
    rows = zip(_COCO, points, scores, strict=True)
    pose = {name: (point[0], point[1]) for name, point, score in rows if score > _SURE}
    if {"left_shoulder", "right_shoulder"} <= pose.keys():
        (x, y), (x2, y2) = pose["left_shoulder"], pose["right_shoulder"]
        pose["neck"] = ((x + x2) / 2, (y + y2) / 2)
    return pose
