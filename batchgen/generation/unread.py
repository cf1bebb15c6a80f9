"""What looks like syntax in a prompt, and is read as words: its kinds, and what to say of the rows that hold them.

A notice asks for a human's look, so patterns leave out what ordinary text has too: times, ratios, verses, smileys.
No pattern takes longer than in proportion to the text, whoever wrote that: what it repeats ends where the next match
could begin, or is bounded. Knows nothing of models or tokens.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from batchgen.generation.parameters import PROMPTS

__all__ = ["UnreadSyntax", "find_unread"]

_LONGEST = 60  # characters of an example
_WORD = r"(?:\b[^\W\d]\w*|[^\w\s()\[\]])"  # what a number after a colon weighs or ends; not the 12 of 12:30
_DECIMAL = r"[+-]?\d*\.\d+"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """One kind of syntax.

    `what` is its name in a notice, `remedy` what to do, `looks` how it looks, and `signs` are texts one of which it
    holds: looking for them first is ten times quicker than the pattern.
    """

    what: str
    remedy: str
    signs: tuple[str, ...]
    looks: re.Pattern[str]


def _kind(what: str, remedy: str, signs: str, looks: str) -> _Kind:
    return _Kind(what=what, remedy=remedy, signs=tuple(signs.split()), looks=re.compile(looks))


_ASK_A1111 = "set prompt_syntax to a1111 to have it read"
_ROWS = "write a row for each"
_SWEEP = "write a row for each, or a sweep, which reads them"
_TAGS = "<", r"<(?i:lora|lyco|hypernet):[^<>]*>?"

_ANYWHERE = (
    _kind("{a|b} alternatives", _SWEEP, "{", r"\{[^{}|]*+\|[^{}]*+\}"),
    _kind(
        "{name} placeholders or braces", "fill them in, or take them out", "{", r"\{\{?[^\W\d_][\w ,.-]{0,60}\}{1,2}"
    ),
    _kind("__name__ wildcards", _SWEEP, "__", r"(?<!\w)__[^\W_](?:[\w/*.-]{0,80}?[^\W_]|[\w/.-]{0,80}\*)?__(?![^\W_])"),
    _kind(
        "tags of other programs",
        "take them out",
        "<",
        r"<(?!(?i:lora|lyco|hypernet|https?|mailto):)[A-Za-z]\w*:[^<>]+>",
    ),
    _kind("embedding:name", "name it in the column embeddings", "embedding:", r"\bembedding:[\w./\\-]+"),
    _kind(
        "Midjourney's parameters",
        "take them out, and use columns",
        "--",
        r"(?<!\S)--(?:ar|aspect|chaos|cref|c|hd|iw|niji|no|quality|q|seed|sref|stylize|style|s|tile|v|weird|w)"
        r"(?![\w-])(?:\s+[\w:.]+)?",
    ),
    _kind(
        "weights of other programs",
        "write (words:1.3), and set prompt_syntax to a1111",
        ":: ++ )- )0. )1. ).",
        r"\b[^\W\d]\w*\s?::\s?-?(?:\d++(?:\.\d++)?|\.\d++)(?![\w.:\]])"
        r"|\([^()]*\)(?:\++|--+|[01]?\.\d+)(?![\w.])|\b\w{2,}\+\+(?!\w)",
    ),
)
_PLAIN = (
    _kind("LoRA or hypernetwork tags", _ASK_A1111, *_TAGS),
    _kind(
        "(words:1.3) weights or doubled brackets",
        _ASK_A1111,
        "( [[",
        rf"\([^()]*(?:{_WORD}\s*:\d(?:,\d+)?|:\s*{_DECIMAL})\s*\)|\(\([^()]+\)\)|\[\[[^\[\]]+\]\]",
    ),
    _kind("BREAK", _ASK_A1111, "BREAK", r"(?<=[a-z)\],.\d])\s*\bBREAK\b(?=\s*[a-z(\[<,.])"),
    _kind("[a:b:0.5] editing", "write one text", "[", rf"\[[^\[\]]*(?:{_WORD}\s*:\d+|:\s*{_DECIMAL})\s*\]"),
    _kind("[a|b] alternation", _ROWS, "[", r"\[[^\[\]|]*+\|[^\[\]]*+\]"),
    _kind(
        "weighted AND",
        _ROWS,
        "AND",
        rf":\s*{_DECIMAL}\s+AND\b|\bAND\b(?:(?!\bAND\b)[^:])++:\s*{_DECIMAL}\s*\Z",
    ),
    *_ANYWHERE,
)
_A1111 = (
    _kind("LoRA or hypernetwork tags", "write them into the column prompt, in small letters", *_TAGS),
    _kind("AND in a negative prompt", "write 'and'; A1111 composes none there either", "AND", r"\bAND\b"),
    _kind("(words:1,3) weights", "write (words:1.3)", "(", r"\([^()]*:\s*\d+,\d+\s*\)"),
    *_ANYWHERE,
)
_KINDS: Mapping[str, Sequence[_Kind]] = {"plain": _PLAIN, "a1111": _A1111}


@lru_cache(maxsize=1024)  # manifests repeat negative prompts
def find_unread(text: str, syntax: str) -> Mapping[_Kind, str]:
    """The kinds that a text holds and a syntax (`plain` or `a1111`) reads as words, each with its first example."""
    kinds = (kind for kind in _KINDS[syntax] if any(sign in text for sign in kind.signs))
    found = ((kind, kind.looks.search(text)) for kind in kinds)
    return {kind: match.group().strip() for kind, match in found if match}


@dataclass(slots=True)
class _Met:
    rows: int
    first: str


class UnreadSyntax:
    """How many rows hold which kinds, and where each was met first."""

    def __init__(self) -> None:
        self._met: dict[tuple[str, _Kind], _Met] = {}

    def add(self, cells: Mapping[str, Any], file: str, number: int) -> None:
        """Look at a row's prompts.

        Args:
            cells: what is applied to it, without the tags that were taken out.
            file: the manifest's file it is in.
            number: the row in it, from 1.
        """
        syntax = cells.get("prompt_syntax", "plain")
        found: dict[_Kind, tuple[str, str]] = {}
        for column in PROMPTS:
            for kind, example in find_unread(cells.get(column) or "", syntax).items():
                found.setdefault(kind, (column, example))
        for kind, (column, example) in found.items():
            shown = repr(example if len(example) <= _LONGEST else f"{example[:_LONGEST]}...")
            met = self._met.setdefault(
                (syntax, kind), _Met(rows=0, first=f"{file}, row {number}, column {column!r}: {shown}")
            )
            met.rows += 1

    def lines(self) -> Iterator[str]:
        """One notice a kind and syntax."""
        for (syntax, kind), met in self._met.items():
            many = met.rows > 1
            rows = f"{met.rows:,} row{'s' * many} hold{'s' * (not many)}"
            yield (
                f"{rows} {kind.what}, read as words in {syntax} syntax; {kind.remedy} ({'first ' * many}in {met.first})"
            )
