"""Text embeddings: each distinct prompt is encoded once, alone, and kept."""

from collections import OrderedDict
from typing import Any

import torch

from batchgen.errors import InputError

__all__ = ["PromptEncoder"]

CACHE_BYTES = 256 << 20  # on the device: 2,200 prompts of SD 1.x in float16 (77 x 768 each), 1/64 of a 16 GiB card


class PromptEncoder:
    """The text encoder of one model with a cache of what it made, least recently used out first.

    Prompts are encoded at batch shape 1 always, so that an embedding never depends on what else is in the batch.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder
        self._room = cache_bytes
        self._cache: OrderedDict[tuple[str, int | None], torch.Tensor] = OrderedDict()

    def encode(self, prompt: str, clip_skip: int | None) -> torch.Tensor:
        """Embedding of a prompt, cut at the tokenizer's length as diffusers does: (1, 77, width), on the device.

        Args:
            clip_skip: how many of the text encoder's last layers to leave out; None for none.

        Raises:
            InputError: the text encoder has fewer layers than that.
        """
        key = (prompt, clip_skip)
        embedding = self._cache.pop(key, None)
        if embedding is None:
            embedding = self._compute(prompt, clip_skip)
            self._room -= embedding.nbytes
        self._cache[key] = embedding
        while self._room < 0 and len(self._cache) > 1:
            self._room += self._cache.popitem(last=False)[1].nbytes
        return embedding

    def count_tokens(self, prompt: str) -> int:
        """Tokens of the whole prompt, without the start and end markers and before anything is cut."""
        return len(self._tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)

    def _compute(self, prompt: str, clip_skip: int | None) -> torch.Tensor:
        length = self._tokenizer.model_max_length
        tokens = self._tokenizer(
            [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self._encoder.device)
        mask = tokens.attention_mask if getattr(self._encoder.config, "use_attention_mask", False) else None
        if clip_skip is None:
            embedding: torch.Tensor = self._encoder(tokens.input_ids, attention_mask=mask)[0]
            return embedding
        layers = self._encoder.config.num_hidden_layers
        if clip_skip > layers:
            raise InputError(f"clip_skip is {clip_skip}, but the model's text encoder has {layers} layers")
        output = self._encoder(tokens.input_ids, attention_mask=mask, output_hidden_states=True)
        # diffusers reaches for text_model, which transformers 5.6 flattened away (huggingface/diffusers#14124).
        transformer = getattr(self._encoder, "text_model", self._encoder)
        skipped: torch.Tensor = transformer.final_layer_norm(output.hidden_states[-(clip_skip + 1)])
        return skipped
