"""CLIP score and PickScore: cosines of an image's and its prompt's embeddings, by transformers' CLIPModel."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from batchgen.diffusion.device import device_errors
from batchgen.scoring.metrics import Metric
from batchgen.scoring.models import ScoringModel, processor_folder
from batchgen.scoring.prompts import plain_prompt
from batchgen.scoring.scorers import Loading, quiet

__all__ = ["Clip", "ClipScorer", "load_image_processor"]

_CLIP_TOKENS = 77  # what every published CLIP was trained with; longer prompts are cut, as its paper cuts them


class Clip:
    """A pair of towers that gives embeddings of length one, float32 (n, d)."""

    def __init__(self, part: str, loading: Loading) -> None:
        quiet()
        model = loading.models[part]
        dtype = getattr(torch, loading.dtype)
        self._towers = CLIPModel.from_pretrained(model.place, dtype=dtype, **loading.weights(part))
        self._towers.to(loading.device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model.place, **loading.revision(part))
        self._prepare = load_image_processor(model)

    @property
    def logit_scale(self) -> float:
        """What its cosines are multiplied by; 100 in OpenAI's."""
        return float(self._towers.logit_scale.detach().double().exp())

    def see(self, images: Sequence[Image]) -> torch.Tensor:
        """Embeddings of images (RGB)."""
        pixels = self._prepare(images=list(images), return_tensors="pt")["pixel_values"]
        found = self._towers.get_image_features(pixel_values=pixels.to(self._towers.device, self._towers.dtype))
        return _unit(found.pooler_output)

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings of texts, cut at 77 tokens."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=_CLIP_TOKENS, return_tensors="pt"
        ).to(self._towers.device)
        found = self._towers.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return _unit(found.pooler_output)


class ClipScorer:
    """CLIP score: 100 * max(cosine, 0); PickScore: the model's logit scale * cosine. Null without a prompt."""

    def __init__(self, metric: Metric, loading: Loading) -> None:
        self._name = metric.name
        self._clip = Clip(metric.name, loading)

    def score(self, images: Sequence[Image], rows: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]]:
        prompts = {number: text for number, row in enumerate(rows) if (text := plain_prompt(row)) is not None}
        if not prompts:
            return [{} for _ in rows]
        with torch.inference_mode(), device_errors(len(prompts)):
            seen = self._clip.see([images[number] for number in prompts])
            cosines = (seen * self._clip.read(list(prompts.values()))).sum(dim=-1).double()
        scored = self._clip.logit_scale * cosines if self._name == "pickscore" else 100 * cosines.clamp(min=0)
        by_row = dict(zip(prompts, scored.tolist(), strict=True))
        return [{self._name: by_row.get(number)} for number in range(len(rows))]


def load_image_processor(model: ScoringModel) -> Any:
    """What makes pixel values of images, as the model's folder says, by Pillow.

    torchvision, where it is installed, would be taken instead, and resizes to other values.
    """
    if model.revision is not None:
        return AutoImageProcessor.from_pretrained(model.place, revision=model.revision, backend="pil")
    return AutoImageProcessor.from_pretrained(processor_folder(Path(model.place)), backend="pil")


def _unit(found: torch.Tensor) -> torch.Tensor:
    embeddings = found.float()
    unit: torch.Tensor = embeddings / embeddings.norm(dim=-1, keepdim=True)
    return unit
