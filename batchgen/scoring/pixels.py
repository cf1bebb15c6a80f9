"""Metrics of the pixels alone: sharpness, brightness, contrast, a perceptual hash. No model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL.Image import Image, Resampling
from scipy.fft import dct

from batchgen.scoring.metrics import Metric

__all__ = ["PixelScorer"]

_HASH_SIDE = 8  # low frequencies a side: 64 bits
_HASH_FROM = 32  # pixels a side that the cosine transform sees


class PixelScorer:
    """One of the metrics, image by image."""

    def __init__(self, metric: Metric) -> None:
        self._name = metric.name
        self._measure = _MEASURES[metric.name]

    def score(self, images: Sequence[Image], rows: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]]:
        return [{self._name: self._measure(image.convert("L"))} for image in images]


def _sharpness(luma: Image) -> float:
    return float(cv2.Laplacian(np.asarray(luma), cv2.CV_64F).var())


def _brightness(luma: Image) -> float:
    return float(np.asarray(luma, dtype=np.float64).mean() / 255)


def _contrast(luma: Image) -> float:
    return float(np.asarray(luma, dtype=np.float64).std() / 255)


def _perceptual_hash(luma: Image) -> str:
    """ImageHash's phash: which of the 8 by 8 lowest frequencies, constant included, are above their median."""
    small = np.asarray(luma.resize((_HASH_FROM, _HASH_FROM), Resampling.LANCZOS), dtype=np.float64)
    low = dct(dct(small, axis=0), axis=1)[:_HASH_SIDE, :_HASH_SIDE]
    bits = np.packbits(low > np.median(low))  # row by row, the first one highest
    return bits.tobytes().hex()


_MEASURES: Mapping[str, Callable[[Image], Any]] = {
    "sharpness": _sharpness,
    "brightness": _brightness,
    "contrast": _contrast,
    "phash": _perceptual_hash,
}
