"""Distances of sets of images, by torchmetrics, over features that other modules computed."""

import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of libraries beside it that it looks for
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

__all__ = ["distance"]

_SUBSETS, _SUBSET = 100, 1000  # how often KID draws, and how many images of each set, at most
_SEED = 0  # of the drawing: equal sets have equal distances


class _Given(nn.Module):
    """In place of the network: what comes is features already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def distance(metric: str, real: npt.NDArray[np.float32], made: npt.NDArray[np.float32]) -> Mapping[str, float]:
    """A distance of two sets, float64.

    Args:
        metric: `fid`, the Fréchet distance of two normal distributions, or `kid`, the squared maximum mean discrepancy
            under a cubic kernel, with the standard deviation over 100 draws of at most 1,000 images of each set.
        real: features, (n, d), of at least two images.
        made: the same of at least two others, (m, d).

    Returns:
        By column of the metric.
    """
    sets = [torch.from_numpy(features).double() for features in (real, made)]
    module = _Given(real.shape[1])
    if metric == "fid":
        frechet = FrechetInceptionDistance(feature=module)
        for features, is_real in zip(sets, (True, False), strict=True):
            frechet.update(features, real=is_real)
        return {"fid": float(frechet.compute())}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all features, which are here already
        torch.manual_seed(_SEED)
        kernel = KernelInceptionDistance(
            feature=module, subsets=_SUBSETS, subset_size=min(_SUBSET, len(real), len(made))
        )
        for features, is_real in zip(sets, (True, False), strict=True):
            kernel.update(features, real=is_real)
        mean, deviation = kernel.compute()
    return {"kid": float(mean), "kid_std": float(deviation)}
