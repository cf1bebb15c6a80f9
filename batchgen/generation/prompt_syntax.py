r"""What people write into a prompt beside words: weights, chunk breaks, LoRA tags. Knows nothing of models or tokens.

The syntax is that of AUTOMATIC1111's stable-diffusion-webui (its `prompt_parser` and `extra_networks` modules and its
wiki page on attention). Three differences, all where the web UI loses something: a lone backslash stays in the text,
a weight that is no number (`(a:1.2.3)`) is text instead of an error, and `BREAK` breaks inside of brackets too.
Prompt editing (`[from:to:when]`), alternation (`[a|b]`) and `AND` change the prompt from step to step; they are text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from batchgen.errors import LoraTagError

__all__ = ["Break", "LoraTag", "Weighted", "parse_loras", "parse_weights", "split_at"]

_NUMBER = r"[+-]?(?:[0-9]{1,6}(?:\.[0-9]*)?|\.[0-9]+)"  # at most six digits before the point: always finite
_LEXEME = re.compile(
    rf"""
    (?P<escape> \\[\\()\[\]] )
  | (?P<open>   [(\[] )
  | (?P<weight> :\s*{_NUMBER}\s*\) )
  | (?P<close>  [)\]] )
  | (?P<text>   [^\\()\[\]:]+ | [\\:] )
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_STEP = 1.1  # what a bracket without a number multiplies or divides by
_FACTORS = {"(": _STEP, "[": 1 / _STEP}
_OPENING = {")": "(", "]": "["}

_LORAS = re.compile(r"\s*(?:<lora:[^>]*>\s*)+")
_LORA = re.compile(r"<lora:([^>]*)>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """A stretch of a prompt and what to multiply its tokens' states by."""

    text: str
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """The place where a prompt goes on in a new chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraTag:
    """A LoRA that a prompt asks for, by the name written there."""

    name: str
    scale: float


def parse_weights(text: str) -> list[Weighted | Break]:
    r"""Split a prompt where its weight changes; any text is allowed, and the result is never empty.

    `(a)` is 1.1, `((a))` 1.21, `(a:1.3)` 1.3, `[a]` 1/1.1; nested brackets multiply; one that is never closed reaches
    to the end, one that was never opened is text; `\(`, `\)`, `\[`, `\]` and `\\` are text. The word `BREAK` in
    capitals, with the white space around it, is a break.
    """
    pieces: list[Weighted | Break] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where in `pieces`; round and square need not nest

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        for number, piece in enumerate(pieces[start:], start):
            if isinstance(piece, Weighted):
                pieces[number] = Weighted(text=piece.text, weight=piece.weight * factor)

    for match in _LEXEME.finditer(text):
        lexeme = match.group()
        match match.lastgroup:
            case "open":
                opened[lexeme].append(len(pieces))
            case "weight" if opened["("]:
                close("(", float(lexeme[1:-1]))
            case "close" if opened[_OPENING[lexeme]]:
                close(_OPENING[lexeme], _FACTORS[_OPENING[lexeme]])
            case "escape":
                pieces.append(Weighted(text=lexeme[1:], weight=1.0))
            case _:
                first, *others = _BREAK.split(lexeme)
                pieces.append(Weighted(text=first, weight=1.0))
                for other in others:
                    pieces += [Break(), Weighted(text=other, weight=1.0)]
    for bracket, starts in opened.items():
        while starts:
            close(bracket, _FACTORS[bracket])
    return _merge(pieces)


def parse_loras(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """Take the tags `<lora:NAME:SCALE>` and `<lora:NAME>` (scale 1) out of a prompt: what is left, and the tags.

    White space on both sides of a tag becomes one space; a prompt without tags is returned as it is.

    Raises:
        LoraTagError: a tag without a name, with a scale that is no number, with more than two parts, or never closed.
    """
    tags = tuple(_lora_tag(match.group(1)) for match in _LORA.finditer(text))
    rest = _LORAS.sub(lambda match: " " if match.group() != match.group().strip() else "", text)
    if "<lora:" in rest:
        raise LoraTagError("a <lora: tag is never closed; write <lora:NAME:SCALE>")
    return (rest.strip() if tags else rest), tags


def split_at(text: str, words: Sequence[str]) -> list[str]:
    """Cut a text at some words: what is between them at even places, the words at odd places.

    Words are found as they are written, the longest where several fit, and never inside of a longer word (`cat` is not
    in `concatenate`, but `<cat>` is in `a<cat>b`).
    """
    assert all(words), "a word has at least one character"
    if not words:
        return [text]
    longest_first = sorted(words, key=len, reverse=True)
    return re.split(f"({'|'.join(map(_whole_word, longest_first))})", text)


def _merge(pieces: Sequence[Weighted | Break]) -> list[Weighted | Break]:
    """The same without empty pieces, neighbours of one weight joined."""
    merged: list[Weighted | Break] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, Weighted) and isinstance(last, Weighted) and piece.weight == last.weight:
            merged[-1] = Weighted(text=last.text + piece.text, weight=last.weight)
        elif isinstance(piece, Break) or piece.text:
            merged.append(piece)
    return merged or [Weighted(text="", weight=1.0)]


def _lora_tag(inside: str) -> LoraTag:
    name, *scales = (part.strip() for part in inside.split(":"))
    if not name:
        raise LoraTagError(f"<lora:{inside}> names no LoRA; write <lora:NAME:SCALE>")
    if len(scales) > 1:
        raise LoraTagError(f"<lora:{inside}> has more than a name and a scale; write <lora:NAME:SCALE>")
    if scales and not re.fullmatch(_NUMBER, scales[0]):
        raise LoraTagError(f"<lora:{inside}>: the scale {scales[0]!r} is not a number; write <lora:NAME:SCALE>")
    return LoraTag(name=name, scale=float(scales[0]) if scales else 1.0)


def _whole_word(word: str) -> str:
    """Pattern of a word where no letter or digit lengthens it."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return before + re.escape(word) + after
