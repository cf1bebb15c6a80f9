"""Counts the rows that ask a model for what it was not made for. Notices, not problems: no model refuses a prompt."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchgen.generation.prompt_syntax import Weighted, parse_weights, split_at
from batchgen.models.catalog import Model

__all__ = ["Suitability", "is_far", "unknown_words"]

LEAST_AREA, MOST_AREA = 0.75, 1.5  # of the trained square's, inclusive: 512x768 and 576x448 are common for SD 1.x
MOST_SIDE = 2.0  # of the trained square's: XL was trained up to 2048x512
SHOWN = 5  # words or sizes of a notice
MOST_KEPT = 10_000  # of them that are told apart, so that memory does not grow with the manifest

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_FUNCTION_WORDS = frozenset(
    "a an and are as at be by for from has have in into is it its of on or that the there this to which with".split()
)
"""What says nothing by itself, and is no news where a model's captions went without."""


def unknown_words(cells: Mapping[str, Any], known: frozenset[str]) -> set[str]:
    """The words of a row's prompts that are not known, in lower case.

    Neither negative prompts count, whose words are habits (`blurry`), nor the tokens of the row's embeddings; nor all
    of a row with LoRAs or a hypernetwork, which may have taught the model any word.
    """
    if cells.get("loras") or cells.get("hypernetwork"):
        return set()
    found: set[str] = set()
    for name in ("prompt", "prompt_2"):
        if text := cells.get(name):
            found.update(_WORD.findall(_words_alone(text, cells).lower()))
    return {word for word in found - known - _FUNCTION_WORDS if not word.isdecimal()}


def _words_alone(text: str, cells: Mapping[str, Any]) -> str:
    """What is words in a prompt: without weights, breaks and tokens of embeddings."""
    if tokens := [one["token"] for one in cells.get("embeddings") or ()]:
        text = " ".join(split_at(text, tokens)[::2])
    if cells["prompt_syntax"] != "a1111":
        return text
    return " ".join(piece.text for piece in parse_weights(text) if isinstance(piece, Weighted))


def is_far(width: int, height: int, side: int) -> bool:
    """Whether a size in pixels is far from the square that a model was trained on."""
    area = width * height / side**2
    return not LEAST_AREA <= area <= MOST_AREA or max(width, height) > MOST_SIDE * side


@dataclass(slots=True)
class _Found:
    """The rows of one kind: how many, where the first is, and what they ask for."""

    rows: int = 0
    first: str = ""
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, asked: set[str], place: str) -> None:
        self.rows += 1
        self.first = self.first or place
        self.asked.update(one for one in asked if one in self.asked or len(self.asked) < MOST_KEPT)

    def listed(self) -> str:
        """What most rows ask for, and where the first of them is."""
        shown = [what for what, _ in self.asked.most_common(SHOWN)]
        more = len(self.asked) - len(shown)
        return ", ".join(shown) + (f" and {more:,} more" if more else "") + f" (first in {self.first})"


@dataclass(slots=True)
class _Asked:
    """What the rows of one model ask for."""

    model: Model
    known: frozenset[str]
    rows: int = 0
    words: _Found = field(default_factory=_Found)
    sizes: _Found = field(default_factory=_Found)

    def lines(self) -> Iterator[str]:
        name, about = self.model.name, self.model.purpose.about
        if self.words.rows:
            line = f"{_of(self.words.rows, self.rows)} words that {name!r} was not trained on: {self.words.listed()}"
            yield f"{line}; it makes {about}" if about else line
        if self.sizes.rows:
            trained = " and ".join(f"{side}x{side}" for side in self.model.sizes)
            yield (
                f"{_of(self.sizes.rows, self.rows)} sizes far from the {trained} that {name!r} was trained at: "
                f"{self.sizes.listed()}; what is shown may be repeated or missing there"
            )


class Suitability:
    """Counts rows of the manifest, model by model, as they are resolved."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    def add(self, cells: Mapping[str, Any], model: Model, file: str, number: int) -> None:
        """Look at a row's cells, every default filled in."""
        asked = self._asked.get(model.name)
        if asked is None:
            asked = self._asked[model.name] = _Asked(model, frozenset(model.purpose.words))
        asked.rows += 1
        if asked.known and (words := unknown_words(cells, asked.known)):
            asked.words.add({f'"{word}"' for word in words}, f"{file}, row {number}")
        if far := {
            f"{width}x{height}" for width, height in _sizes(cells, model) if _is_far_from_all(width, height, model)
        }:
            asked.sizes.add(far, f"{file}, row {number}")

    def lines(self) -> Iterator[str]:
        """One notice a kind and model."""
        for asked in self._asked.values():
            yield from asked.lines()


def _sizes(cells: Mapping[str, Any], model: Model) -> Iterator[tuple[int, int]]:
    """The sizes that a model has to be good at: that of a hires fix's second pass where its own file names sizes.

    The usual models of Stable Diffusion bear that; the built-in one puts small cones around a cone at any strength.
    """
    width, height, scale = cells["width"], cells["height"], cells.get("hires_scale")
    yield width, height
    if model.purpose.sizes and scale is not None:
        yield round(width * scale), round(height * scale)


def _is_far_from_all(width: int, height: int, model: Model) -> bool:
    return bool(model.sizes) and all(is_far(width, height, side) for side in model.sizes)


def _of(rows: int, all_rows: int) -> str:
    return f"{rows:,} of {all_rows:,} row{'s' * (all_rows > 1)} {'has' if rows == 1 else 'have'}"
