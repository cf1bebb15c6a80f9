"""LPIPS: how unlike an image is to the real one of the same name, by the layers of AlexNet or VGG16.

torchmetrics' own builds its network with torchvision, which must not be needed here; what it ships of the metric, the
weights of the channels, is read from its folder.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image, Resampling
from torch import nn

from batchgen.dataset.dataset import READERS
from batchgen.diffusion.device import device_errors
from batchgen.errors import ImageError, ModelLoadError
from batchgen.scoring.reference import Reference
from batchgen.scoring.scorers import Loading
from batchgen.scoring.weights import load_weights

__all__ = ["LpipsScorer"]

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels from -1 to 1, as LPIPS was trained
_EPSILON = 1e-8  # torchmetrics'; features of length zero stay finite


@dataclass(frozen=True, kw_only=True, slots=True)
class _Net:
    """The convolutions of a network of torchvision, up to the last one that LPIPS looks behind."""

    heads: str  # file of torchmetrics
    convolutions: Sequence[tuple[int, int, int, int]]  # channels, kernel, stride, padding
    pooled_after: Sequence[int]  # numbers of convolutions
    pool: int  # pixels a side; two to the next one
    seen_after: Sequence[int]  # numbers of convolutions


_ALEXNET = _Net(
    heads="alex.pth",
    convolutions=[(64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)],
    pooled_after=(0, 1),
    pool=3,
    seen_after=(0, 1, 2, 3, 4),
)
_VGG16 = _Net(
    heads="vgg.pth",
    convolutions=[(width, 3, 1, 1) for width in (64, 64, 128, 128, *[256] * 3, *[512] * 6)],
    pooled_after=(1, 3, 6, 9),
    pool=2,
    seen_after=(1, 3, 6, 9, 12),
)


_NETS: Mapping[tuple[int, ...], _Net] = {(64, 3, 11, 11): _ALEXNET, (64, 3, 3, 3): _VGG16}
"""By the shape of the first weights."""


class LpipsScorer:
    """Zhang et al. 2018, version 0.1, as torchmetrics computes it; the real image is brought to the other's size.

    An image without a real one of its name has no score.
    """

    def __init__(self, loading: Loading) -> None:
        model = loading.models["lpips"]
        weights = load_weights(Path(model.place))
        shape = tuple(weights["features.0.weight"].shape) if "features.0.weight" in weights else ()
        net = _NETS.get(shape)
        if net is None:
            raise ModelLoadError(
                f"lpips: {model.name} holds neither AlexNet's nor VGG16's weights as torchvision has them"
            )
        self._stages = [stage.to(loading.device).eval() for stage in _stages(net, weights)]
        heads = torch.load(_shipped(net.heads), weights_only=True, map_location=loading.device)
        self._heads = [heads[f"lin{number}.model.1.weight"] for number in range(len(self._stages))]
        self._device = loading.device
        self._reference = Reference.open(loading.models["reference"].place)

    def score(self, images: Sequence[Image], rows: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(READERS) as pool:
            real = list(pool.map(self._real, rows))
        with torch.inference_mode(), device_errors(2):
            return [self._cells(image, other) for image, other in zip(images, real, strict=True)]

    def _real(self, row: Mapping[str, Any]) -> Image | ImageError | None:
        try:
            return self._reference.image(row["id"])
        except ImageError as error:
            return error

    def _cells(self, image: Image, other: Image | ImageError | None) -> dict[str, Any]:
        if other is None:
            return {}
        return {"lpips_error": str(other)} if isinstance(other, ImageError) else {"lpips": self._apart(image, other)}

    def _apart(self, image: Image, other: Image) -> float:
        pair = [np.asarray(image), np.asarray(other.resize(image.size, Resampling.BICUBIC))]
        scaled = (np.stack(pair) / 127.5 - 1 - np.array(_SHIFT)) / np.array(_SCALE)
        states = torch.from_numpy(scaled).permute(0, 3, 1, 2).to(self._device, torch.float32)
        distance = 0.0
        for stage, head in zip(self._stages, self._heads, strict=True):
            states = stage(states)
            unit = states / (_EPSILON + states.square().sum(dim=1, keepdim=True)).sqrt()
            distance += float(nn.functional.conv2d((unit[:1] - unit[1:]).square(), head).mean())
        return distance


def _stages(net: _Net, weights: Mapping[str, torch.Tensor]) -> list[nn.Sequential]:
    """The network cut behind the activations that are looked at; weights have the numbers that torchvision counts."""
    stages, layers, place, channels = [], list[nn.Module](), 0, 3
    for number, (width, kernel, stride, padding) in enumerate(net.convolutions):
        convolution = nn.Conv2d(channels, width, kernel, stride, padding)
        convolution.load_state_dict({name: weights[f"features.{place}.{name}"] for name in ("weight", "bias")})
        layers += [convolution, nn.ReLU()]
        place, channels = place + 2, width
        if number in net.seen_after:
            stages.append(nn.Sequential(*layers))
            layers = []
        if number in net.pooled_after:
            layers.append(nn.MaxPool2d(net.pool, 2))
            place += 1
    return stages


def _shipped(name: str) -> Path:
    """A file of weights that torchmetrics ships."""
    found = find_spec("torchmetrics")
    assert found is not None and found.origin is not None, "looked for before anything started"
    return Path(found.origin).parent / "functional" / "image" / "lpips_models" / name
