"""VQAScore: how likely a model that sees the image answers Yes when asked whether it shows the prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from batchgen.diffusion.device import device_errors
from batchgen.errors import ModelLoadError
from batchgen.scoring.prompts import plain_prompt
from batchgen.scoring.scorers import Loading, quiet

__all__ = ["VqaScorer", "question"]

_ANSWER = "Yes"


def question(prompt: str) -> str:
    """What the model is asked, in the words of Lin et al. 2024."""
    return f'Does this figure show "{prompt}"? Please answer yes or no.'


class VqaScorer:
    """The probability of the first token of "Yes", over the whole vocabulary; null without a prompt.

    Images go through the model one at a time: processors differ in how they pad several.
    """

    def __init__(self, loading: Loading) -> None:
        quiet()
        model = loading.models["vqa_score"]
        dtype, weights = getattr(torch, loading.dtype), loading.weights("vqa_score")
        self._processor = AutoProcessor.from_pretrained(model.place, backend="pil", **loading.revision("vqa_score"))
        self._model = AutoModelForImageTextToText.from_pretrained(model.place, dtype=dtype, **weights)
        self._model.to(loading.device).eval()
        if self._processor.chat_template is None:
            raise ModelLoadError(
                f"vqa_score: {model.name} has no chat template, which says where image and question stand in a text"
            )
        self._yes = self._processor.tokenizer(_ANSWER, add_special_tokens=False)["input_ids"][0]

    def score(self, images: Sequence[Image], rows: Sequence[Mapping[str, Any]], /) -> list[dict[str, Any]]:
        with torch.inference_mode(), device_errors(1):
            return [
                {} if (prompt := plain_prompt(row)) is None else {"vqa_score": self._agreement(image, prompt)}
                for image, row in zip(images, rows, strict=True)
            ]

    def _agreement(self, image: Image, prompt: str) -> float:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question(prompt)}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        logits = self._model(**inputs).logits[0, -1].double()
        return float(logits.softmax(dim=-1)[self._yes])
