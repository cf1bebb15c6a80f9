"""What a model sees of an image as a vector: the features by which sets of images are compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from transformers import AutoModel

from batchgen.diffusion.device import device_errors
from batchgen.errors import ModelLoadError
from batchgen.scoring.clip import load_image_processor
from batchgen.scoring.scorers import Loading, quiet

__all__ = ["FeatureScorer"]


class FeatureScorer:
    """CLIP's image embedding, not normalised, as clean-fid takes it; of any other model the pooled output."""

    def __init__(self, loading: Loading) -> None:
        quiet()
        model = loading.models["features"]
        dtype = getattr(torch, loading.dtype)
        self._model = AutoModel.from_pretrained(model.place, dtype=dtype, **loading.weights("features"))
        self._model.to(loading.device).eval()
        self._see = getattr(self._model, "get_image_features", self._model)
        self._prepare = load_image_processor(model)

    def score(self, images: Sequence[Image], rows: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]]:
        with torch.inference_mode(), device_errors(len(images)):
            pixels = self._prepare(images=list(images), return_tensors="pt")["pixel_values"]
            found = self._see(pixel_values=pixels.to(self._model.device, self._model.dtype))
        if getattr(found, "pooler_output", None) is None:
            raise ModelLoadError(f"features: {type(self._model).__name__} gives no vector for an image as a whole")
        return [{"features": vector} for vector in found.pooler_output.flatten(1).float().cpu().numpy()]
