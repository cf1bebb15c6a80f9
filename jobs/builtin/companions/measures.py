"""What the checks measure on images: edges, depth, palette, noise; knows no models."""

import numpy as np
from numpy.typing import NDArray

from jobs.builtin.companions.masks import grow

Images = NDArray[np.uint8]
"""(n, h, w, 3)."""


def edge_agreement(found: NDArray[np.bool_], wanted: NDArray[np.bool_], *, within: int = 2) -> float:
    """F1 of two edge maps (h, w): an edge pixel is right when the other map has one within so many pixels."""
    if not found.any() or not wanted.any():
        return 0.0
    precision = float(grow(wanted, within)[found].mean())
    recall = float(grow(found, within)[wanted].mean())
    return 2 * precision * recall / max(1e-9, precision + recall)


def relief_correlation(
    estimated: NDArray[np.float32], truth: NDArray[np.float32], average: NDArray[np.float32]
) -> float:
    """Pearson's correlation of two sets of depth maps (n, h, w), mean over the maps, of what stands out of `average`.

    All scenes have the same floor; without the average (h, w) taken off, any two of them would correlate at 0.9.
    """
    values = []
    for first, second in zip(estimated - average, truth - average, strict=True):
        first, second = first - first.mean(), second - second.mean()
        values.append(float((first * second).sum() / max(1e-9, np.sqrt((first**2).sum() * (second**2).sum()))))
    return float(np.mean(values))


def saturation(images: Images) -> float:
    """Mean HSV saturation, 0 to 1."""
    values = images.astype(np.float32)
    high, low = values.max(axis=-1), values.min(axis=-1)
    return float(((high - low) / np.maximum(high, 1)).mean())


def palette_distance(images: Images, first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Mean distance of pixels to the mixtures of two colours, in units of 1/255 of a channel."""
    start, end = np.array(first, dtype=np.float32), np.array(second, dtype=np.float32)
    way, values = end - start, images.reshape(-1, 3).astype(np.float32) - start
    share = np.clip(values @ way / (way @ way), 0, 1)
    return float(np.linalg.norm(values - share[:, None] * way, axis=1).mean())


def psnr_where(first: Images, second: Images, places: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio in dB over `places` (n, h, w), the mean over images."""
    error = ((first.astype(np.float32) - second.astype(np.float32)) ** 2).mean(axis=-1)
    means = (error * places).sum(axis=(1, 2)) / np.maximum(places.sum(axis=(1, 2)), 1)
    return float((10 * np.log10(255**2 / np.maximum(means, 1e-3))).mean())


def _steps(images: Images) -> list[NDArray[np.float32]]:
    return [np.diff(images.astype(np.float32), axis=axis) for axis in (1, 2)]


def gradient_error(images: Images, truth: Images) -> float:
    """Mean absolute error of the differences between neighbouring pixels, in units of 1/255."""
    pairs = zip(_steps(images), _steps(truth), strict=True)
    return float(np.mean([np.abs(mine - true).mean() for mine, true in pairs]))


def sharpness(images: Images, truth: Images) -> float:
    """Mean square of the differences between neighbouring pixels, as a share of the truth's; 1 is as sharp."""
    mine, true = (sum(float((step**2).mean()) for step in _steps(some)) for some in (images, truth))
    return mine / max(1e-9, true)
