"""The safety checker of Stable Diffusion as a score; without a model, the flag that the run itself recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL.Image import Image

from batchgen.diffusion.device import device_errors
from batchgen.scoring.clip import load_image_processor
from batchgen.scoring.scorers import Loading, quiet

__all__ = ["SafetyScorer"]

_ADJUSTMENT = 0.01  # how much nearer every concept is taken to be where one of special care is met


class SafetyScorer:
    """`unsafe` is 1 where the checker objects; `unsafe_margin` is the largest cosine less its concept's threshold.

    The numbers are those of diffusers' `StableDiffusionSafetyChecker.forward`, which rounds to three digits and tells
    the verdict alone. Without a model `unsafe` is the metadata's `flagged`, null where nobody looked.
    """

    def __init__(self, loading: Loading) -> None:
        self._checker: Any = None
        if (model := loading.models.get("safety")) is None:
            return
        quiet()
        dtype, weights = getattr(torch, loading.dtype), loading.weights("safety")
        self._checker = StableDiffusionSafetyChecker.from_pretrained(model.place, torch_dtype=dtype, **weights)
        self._checker.to(loading.device).eval()
        self._prepare = load_image_processor(model)

    def score(self, images: Sequence[Image], rows: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]]:
        if self._checker is None:
            flags = [row.get("flagged") for row in rows]
            return [{"unsafe": None if flag is None else float(flag)} for flag in flags]
        with torch.inference_mode(), device_errors(len(images)):
            margins = self._margins(images).tolist()
        return [{"unsafe": float(margin > 0), "unsafe_margin": margin} for margin in margins]

    def _margins(self, images: Sequence[Image]) -> torch.Tensor:
        """Float64 (n)."""
        checker = self._checker
        pixels = self._prepare(images=list(images), return_tensors="pt")["pixel_values"]
        seen = checker.vision_model(pixels.to(checker.device, checker.dtype))[1]
        embedding = torch.nn.functional.normalize(checker.visual_projection(seen).float())
        special, concepts = (
            embedding @ torch.nn.functional.normalize(vectors.float()).T - thresholds.float()
            for vectors, thresholds in (
                (checker.special_care_embeds, checker.special_care_embeds_weights),
                (checker.concept_embeds, checker.concept_embeds_weights),
            )
        )
        careful = (_rounded(special) > 0).any(dim=1, keepdim=True)
        return _rounded(concepts.double() + _ADJUSTMENT * careful).amax(dim=1)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return values.double().round(decimals=3)
