"""Prompt embeddings, guidance scales and SDXL's added time ids: what a call takes of its rows besides images."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from batchgen.diffusion.adapters import Adapters
from batchgen.diffusion.pipelines import RowScale
from batchgen.diffusion.prompts import Encoded, Prompt, PromptEncoder, Token
from batchgen.generation.parameters import Prompting
from batchgen.rows import Row

__all__ = ["RowPrompts", "prompting_of", "sized"]

_LIKED, _DISLIKED = 6.0, 2.5  # aesthetic scores that a refiner is asked for and away from: its authors' defaults


class RowPrompts:
    """The prompts of rows, as one model reads them."""

    def __init__(self, encoder: PromptEncoder, adapters: Adapters, *, zeros_for_missing: bool) -> None:
        """Zeros, not an empty prompt, stand for a missing negative one where SDXL's models say so."""
        self._encoder = encoder
        self._adapters = adapters
        self._zeros_for_missing = zeros_for_missing

    def chunks(self, row: Row) -> int:
        """How many chunks of 75 tokens the row's prompts need."""
        return max(self._encoder.chunks(self._prompt(row)), self._encoder.chunks(self._negative(row)))

    def count_tokens(self, row: Row) -> int:
        """Tokens of the row's whole prompt, start and end markers not counted."""
        return self._encoder.count_tokens(self._prompt(row))

    def tokens(self, row: Row) -> list[Token]:
        """The tokens of the row's prompt; those of embeddings by the words that stand for them."""
        prompt = self._prompt(row)
        tokens = self._encoder.token_table(prompt)
        for word, internal in prompt.tokens:
            tokens = [
                replace(token, text=word + token.text.removeprefix(internal))
                if token.text.startswith(internal)
                else token
                for token in tokens
            ]
        return tokens

    def arguments(self, rows: Sequence[Row], *, guided: bool, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments that carry prompts and guidance; without guidance there is no negative prompt.

        The rows' LoRAs must be on: they change the text encoders, too.
        """
        count = max(self.chunks(row) for row in rows)
        state = json.dumps([[one["sha256"], one["scale"]] for one in rows[0].parameters.adapters.loras or ()])
        encoded = [self._encoder.encode(self._prompt(row), chunks=count, state=state) for row in rows]
        made = _joined(encoded, "", dtype)
        like: torch.Tensor = made["prompt_embeds"]
        made["guidance_scale"] = RowScale([prompting_of(row).guidance_scale for row in rows], like)
        edits = [row.parameters.editing.image_guidance_scale for row in rows if row.parameters.editing is not None]
        if edits:
            made["image_guidance_scale"] = RowScale(edits, like)
        if guided:
            pairs = zip(rows, encoded, strict=True)
            made |= _joined([self._encode_negative(row, one, count, state) for row, one in pairs], "negative_", dtype)
        return made

    def _encode_negative(self, row: Row, like: Encoded, count: int, state: str) -> Encoded:
        if prompting_of(row).negative_prompt is None and self._zeros_for_missing:
            return self._encoder.zeros_like(like)
        return self._encoder.encode(self._negative(row), chunks=count, state=state)

    def _prompt(self, row: Row) -> Prompt:
        prompting = prompting_of(row)
        return Prompt(
            text=prompting.prompt,
            text_2=prompting.prompt_2,
            clip_skip=prompting.clip_skip,
            weighted=prompting.prompt_syntax == "a1111",
            tokens=self._adapters.tokens(row.parameters.adapters),
        )

    def _negative(self, row: Row) -> Prompt:
        prompting = prompting_of(row)
        return Prompt(  # as in diffusers, clip_skip is for the prompt only
            text=prompting.negative_prompt or "",
            text_2=prompting.negative_prompt_2,
            weighted=prompting.prompt_syntax == "a1111",
            tokens=self._adapters.tokens(row.parameters.adapters),
        )


def prompting_of(row: Row) -> Prompting:
    """The prompts of a row whose task reads text."""
    assert row.parameters.prompting is not None
    return row.parameters.prompting


def _joined(encoded: Sequence[Encoded], prefix: str, dtype: torch.dtype) -> dict[str, Any]:
    """Embeddings of a call's rows under the names that pipelines have for them."""
    made: dict[str, Any] = {f"{prefix}prompt_embeds": torch.cat([one.embeddings for one in encoded]).to(dtype)}
    pooled = [one.pooled for one in encoded if one.pooled is not None]
    if pooled:
        made[f"{prefix}pooled_prompt_embeds"] = torch.cat(pooled).to(dtype)
    return made


@contextmanager
def sized(pipeline: Any, rows: Sequence[Row], options: Mapping[str, Any], *, guided: bool) -> Iterator[None]:
    """While it lasts, SDXL's nets are conditioned on the sizes of each row; pipelines know one for all.

    Args:
        options: the plain values of the model's folder; a refiner's says that it `requires_aesthetics_score`.
    """
    ids = _size_ids(rows, scored=bool(options.get("requires_aesthetics_score")), guided=guided)

    def resize(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        conditions = kwargs["added_cond_kwargs"]
        old = conditions["time_ids"]
        return args, {**kwargs, "added_cond_kwargs": {**conditions, "time_ids": ids.to(old.device, old.dtype)}}

    control = getattr(pipeline, "controlnet", None)
    nets = [] if control is None else list(getattr(control, "nets", [control]))
    handles = [net.register_forward_pre_hook(resize, with_kwargs=True) for net in (pipeline.unet, *nets)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _size_ids(rows: Sequence[Row], *, scored: bool, guided: bool) -> torch.Tensor:
    """Original size, crop and target size of each row or, where `scored`, aesthetic score: (B or 2B, 6 or 5)."""

    def ids(score: float) -> list[list[float]]:
        return [
            [*size.original_size, *size.crops_coords_top_left, *((score,) if scored else size.target_size)]
            for size in (row.parameters.sizes for row in rows)
            if size is not None
        ]

    return torch.tensor([*ids(_DISLIKED), *ids(_LIKED)] if guided else ids(_LIKED))
