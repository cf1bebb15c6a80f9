"""LAION's aesthetic predictor: a perceptron of five layers over CLIP's image embedding of length one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from batchgen.diffusion.device import device_errors
from batchgen.errors import ModelLoadError
from batchgen.scoring.clip import Clip
from batchgen.scoring.scorers import Loading
from batchgen.scoring.weights import load_weights

__all__ = ["AestheticScorer"]

_LAYERS = (0, 2, 4, 6, 7)  # places of the linear layers in the published weights; between them only dropout


class AestheticScorer:
    """Scores of about 1 to 10. The published layers have no activation between them, and neither have these."""

    def __init__(self, loading: Loading) -> None:
        self._clip = Clip("aesthetic", loading)
        head = Path(loading.models["aesthetic.head"].place)
        weights = load_weights(head)
        try:
            self._layers = [
                tuple(weights[f"layers.{n}.{part}"].to(loading.device, torch.float32) for part in ("weight", "bias"))
                for n in _LAYERS
            ]
        except KeyError as error:
            raise ModelLoadError(
                f"aesthetic: {head} has no {error.args[0]!r}; it wants the weights of the improved-aesthetic-predictor"
            ) from None

    def score(self, images: Sequence[Image], rows: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]]:
        with torch.inference_mode(), device_errors(len(images)):
            states = self._clip.see(images)
            for weight, bias in self._layers:
                states = torch.nn.functional.linear(states, weight, bias)
        return [{"aesthetic": value} for value in states[:, 0].double().tolist()]
