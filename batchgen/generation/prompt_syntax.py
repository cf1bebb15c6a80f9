r"""What A1111's syntax has in a prompt beside words: weights, chunk breaks, tags. Knows nothing of models or tokens.

The syntax is that of AUTOMATIC1111's stable-diffusion-webui (its `prompt_parser` and `extra_networks` modules and its
wiki page on attention). Three differences, all where the web UI loses something: a lone backslash stays in the text,
a weight that is no number (`(a:1.2.3)`) is text instead of an error, and `BREAK` breaks inside of brackets too.
Prompt editing (`[from:to:when]`), alternation (`[a|b]`) and `AND` want other text states at each step, or several
estimates of the noise, which diffusers' pipelines do not take; `find_unsupported` names them, and rows are refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from batchgen.errors import PromptSyntaxError

__all__ = ["Break", "Tag", "Weighted", "find_unsupported", "parse_tags", "parse_weights", "split_at"]

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
_SPACE = r"(?<!\s)\s*+"  # from its first character on, or each of a thousand would be tried
_BREAK = re.compile(rf"(?:{_SPACE})?\bBREAK\b\s*+")
_STEP = 1.1  # what a bracket without a number multiplies or divides by
_FACTORS = {"(": _STEP, "[": 1 / _STEP}
_OPENING = {")": "(", "]": "["}

_TAGS = re.compile(rf"(?:{_SPACE})?(?:<(?:lora|lyco|hypernet):[^>]*>\s*+)+")
_TAG = re.compile(r"<(lora|lyco|hypernet):([^>]*)>")
_TAG_BEGUN = re.compile(r"<(lora|lyco|hypernet):")

_MARK = re.compile(r"\\.|[()\[\]:|]", re.DOTALL)
_WHEN = re.compile(rf"\s*{_NUMBER}(?:[eE][+-]?[0-9]+)?\s*")
_AND = re.compile(r"\bAND\b")
DEEPEST = 100  # brackets that are open at once: one is a factor of 1.1, so that many more would be infinite
_WORDS_MEANT = r"\[ and \] where they are words, or prompt_syntax plain"


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """A stretch of a prompt and what to multiply its tokens' states by."""

    text: str
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """The place where a prompt goes on in a new chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A LoRA (`lora`, `lyco`) or hypernetwork (`hypernet`) that a prompt asks for, by the name written there."""

    kind: str
    name: str
    scale: float


@dataclass(slots=True)
class _Opened:
    """A bracket that is not closed yet, and what was met since that is in no other bracket."""

    bracket: str
    start: int
    colon: int | None = None  # place of the last one
    has_bar: bool = False


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


def parse_tags(text: str) -> tuple[str, tuple[Tag, ...]]:
    """Take the tags `<lora:NAME:SCALE>` and `<lora:NAME>` (scale 1) out of a prompt: what is left, and the tags.

    `lyco` and `hypernet` are read like `lora`. White space on both sides of a tag becomes one space; a prompt without
    tags is returned as it is.

    Raises:
        PromptSyntaxError: a tag without a name, with a scale that is no number, with more than two parts, or never
            closed.
    """
    closed = text.rfind(">") + 1  # a tag that begins behind it is not looked for, or each would be to the end
    closed += len(text) - closed - len(text[closed:].lstrip())
    tags = tuple(_tag(*match.groups()) for match in _TAG.finditer(text, 0, closed))
    rest = _TAGS.sub(lambda match: " " if match.group() != match.group().strip() else "", text[:closed]) + text[closed:]
    if begun := _TAG_BEGUN.search(rest):
        raise PromptSyntaxError(f"a {begun.group()} tag is never closed; write {begun.group()}NAME:SCALE>")
    return (rest.strip() if tags else rest), tags


def find_unsupported(text: str, *, negative: bool = False) -> str | None:
    """What in a prompt has the web UI sample in a way that is not done here, and what to write; None where nothing has.

    As there, `AND` is a word in negative prompts, a colon inside of brackets asks for a number after it, and what
    follows a backslash is text.
    """
    if not negative and _AND.search(text):
        return (
            "composes prompts by AND, which is not supported; write a row for each, 'and' where it is a word, or "
            "prompt_syntax plain"
        )
    opened: list[_Opened] = []
    for match in _MARK.finditer(text):
        mark, place = match.group(), match.start()
        if mark in _FACTORS:
            opened.append(_Opened(bracket=mark, start=place))
            if len(opened) > DEEPEST:
                return f"nests more than {DEEPEST} brackets; close them, or set prompt_syntax to plain"
        elif opened and mark == ":":
            opened[-1].colon = place
        elif opened and mark == "|":
            opened[-1].has_bar = True
        elif opened and _OPENING.get(mark) == opened[-1].bracket:
            closed = opened.pop()
            span = slice(closed.start, place + 1)
            if mark == "]" and closed.has_bar:
                return f"alternates in {text[span]!r}, which is not supported; write a row for each, {_WORDS_MEANT}"
            if mark == "]" and closed.colon is not None and _WHEN.fullmatch(text, closed.colon + 1, place):
                return (
                    f"changes at a step in {text[span]!r}, which is not supported; write one text, (words:0.8) for a "
                    f"weight, {_WORDS_MEANT}"
                )
    return None


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


def _tag(kind: str, inside: str) -> Tag:
    name, *scales = (part.strip() for part in inside.split(":"))
    written, wanted = f"<{kind}:{inside}>", f"write <{kind}:NAME:SCALE>"
    if not name:
        raise PromptSyntaxError(f"{written} has no name; {wanted}")
    if len(scales) > 1:
        raise PromptSyntaxError(f"{written} has more than a name and a scale; {wanted}")
    if scales and not re.fullmatch(_NUMBER, scales[0]):
        raise PromptSyntaxError(f"{written}: the scale {scales[0]!r} is not a number; {wanted}")
    return Tag(kind=kind, name=name, scale=float(scales[0]) if scales else 1.0)


def _whole_word(word: str) -> str:
    """Pattern of a word where no letter or digit lengthens it."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return before + re.escape(word) + after
