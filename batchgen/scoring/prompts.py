"""What an image was meant to show: a row's prompt as plain words, for models that compare it with the image."""

from collections.abc import Mapping
from typing import Any

from batchgen.generation.prompt_syntax import Weighted, parse_weights

__all__ = ["plain_prompt"]


def plain_prompt(cells: Mapping[str, Any]) -> str | None:
    """The prompt without weights and breaks; None where a row has none, or an empty one."""
    prompt = cells.get("prompt")
    if prompt and cells.get("prompt_syntax") == "a1111":
        pieces = parse_weights(prompt)
        prompt = "".join(piece.text if isinstance(piece, Weighted) else " " for piece in pieces)
    return prompt if prompt and prompt.strip() else None
