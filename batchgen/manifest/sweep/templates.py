"""Prompt templates in the dynamic-prompt syntax: choices, files of wildcards, comments, named parts. Knows no columns.

    {a|b|c}             one of them; an option may be empty
    {3::a|b}            with weights; they count where the choice is drawn
    {2$$a|b|c}          two, in any order; {1-2$$...} one or two; {2$$ and $$a|b|c} joined by " and " instead of ","
    __colors/warm__     a line of the file colors/warm.txt; * and ? stand for several files
    {~a|b}, __~colors__ drawn for each cell, where the others are written out
    ${name}             a named part: stays, for whoever fills in the cells
    # ...               a comment, at the beginning of a line or after a blank, up to the line's end
    \\{ \\} \\| \\# \\__    the characters themselves

The syntax is that of the dynamicprompts library, whose order of variants is kept. Runs of white space become one blank.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import accumulate, chain, permutations, product
from pathlib import Path

from batchgen.errors import InputError
from batchgen.reading import read_file

__all__ = ["Choice", "Template", "Variant", "Wildcards", "draw", "parse_template"]

SEPARATOR = ","  # between several options, as in dynamicprompts
_TOKEN = re.compile(
    r"(?P<escape>\\[{}|#]|\\__)"
    r"|(?P<comment>(?:(?<=\s)|^)\#\s[^\n]*)"
    r"|(?P<part>\$\{[^{}]*\})"
    r"|(?P<wildcard>__[^\s_{}|$](?:[^\s{}|$]*?[^\s_{}|$])??__)"
    r"|(?P<mark>[{}|])"
    r"|(?P<text>(?:(?!\\[{}|#]|\\__|\$\{|__)[^{}|\#])+|.)",
    re.DOTALL | re.MULTILINE,
)
_HEAD = re.compile(r"\s*(?:(?P<least>\d+)?(?P<range>-)?(?P<most>\d+)?)\$\$")
_SEPARATED = re.compile(r"(?P<separator>[^{}|]*?)\$\$")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")


@dataclass(frozen=True, slots=True)
class Choice:
    """Options of which `least` to `most` are taken, in any order, each at most once."""

    options: tuple["Template", ...]
    weights: tuple[float, ...]
    least: int = 1
    most: int = 1
    separator: str = SEPARATOR
    drawn: bool = False  # once for each cell, where others are written out
    source: str = ""  # as it was written

    def count(self) -> int:
        """How many texts it stands for when it is written out."""
        # the elementary symmetric polynomials of the options' counts: choices of so many options, without their order
        chosen = [1] + [0] * self.most
        for option in self.options:
            for size in range(self.most, 0, -1):
                chosen[size] += chosen[size - 1] * option.count()
        return sum(chosen[size] * math.factorial(size) for size in range(self.least, self.most + 1))

    def variants(self) -> Iterator["Variant"]:
        """What it stands for, in order: fewer options first, those that were written first before others."""
        for size in range(self.least, self.most + 1):
            for taken in permutations(self.options, size):
                for one in product(*(list(option.variants()) for option in taken)):
                    yield tuple(chain.from_iterable(_joined(one, self.separator)))


Piece = str | Choice
"""Text, or a choice that is drawn for each cell."""

Variant = tuple[Piece, ...]
"""One of the texts that a template stands for, with what is still to be drawn in it."""


@dataclass(frozen=True, slots=True)
class Template:
    """Text and choices in a row."""

    pieces: tuple[Piece, ...]

    def count(self) -> int:
        """How many variants it has: 1 where nothing in it is written out."""
        return math.prod(piece.count() for piece in self.pieces if isinstance(piece, Choice) and not piece.drawn)

    def variants(self) -> Iterator[Variant]:
        """All of them; the last choice changes fastest."""
        for one in product(*map(_variants_of, self.pieces)):
            yield tuple(chain.from_iterable(one))


def _variants_of(piece: Piece) -> list[Variant]:
    return [(piece,)] if isinstance(piece, str) or piece.drawn else list(piece.variants())


def draw(variant: Variant, random_: random.Random) -> str:
    """The text of a variant, with its choices drawn by their weights."""
    return " ".join(_text(variant, random_).split())


def _text(variant: Variant, random_: random.Random) -> str:
    return "".join(piece if isinstance(piece, str) else _drawn(piece, random_) for piece in variant)


def _drawn(choice: Choice, random_: random.Random) -> str:
    most = min(choice.most, sum(weight > 0 for weight in choice.weights))
    size = choice.least + int(random_.random() * (most - choice.least + 1))
    left = list(zip(choice.options, choice.weights, strict=True))
    texts = []
    for _ in range(size):
        sums = list(accumulate(weight for _, weight in left))
        point = random_.random() * sums[-1]
        place = next(place for place, upto in enumerate(sums) if point < upto)
        texts.append(_text(left.pop(place)[0].pieces, random_))
    return choice.separator.join(texts)


def _joined(variants: Sequence[Variant], separator: str) -> Iterator[Variant]:
    for place, variant in enumerate(variants):
        yield (separator, *variant) if place else variant


@dataclass(slots=True)
class Wildcards:
    """A folder of text files with an option a line; each is read once.

    Empty lines and comments do not count, the order and equal lines do.
    """

    folder: Path
    drawn: bool = False  # whether choices are drawn that do not say
    read: set[Path] = field(default_factory=set)  # every file that was looked up, and the folder of a pattern
    _known: dict[str, tuple[tuple[Template, float], ...]] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)  # names that are being read: one that comes again is a loop

    def options(self, name: str) -> tuple[tuple[Template, float], ...]:
        """The options that a name stands for, with their weights.

        Raises:
            InputError: there is no such file, it has no lines, or it leads back to itself.
        """
        if name in self._open:
            raise InputError(f"__{name}__ leads back to itself: {' > '.join([*self._open, name])}")
        if name not in self._known:
            self._open.append(name)
            try:
                self._known[name] = tuple(chain.from_iterable(self._lines(file) for file in self._files(name)))
            finally:
                self._open.pop()
            if not self._known[name]:
                raise InputError(f"__{name}__ has no lines")
        return self._known[name]

    def _files(self, name: str) -> list[Path]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"__{name}__ leads out of {self.folder}; wildcards are named from there")
        try:
            if any(mark in name for mark in "*?["):
                self.read.add(self.folder)
                files = sorted(self.folder.glob(f"{name}.txt"))
            else:
                files = [file for file in [self.folder / f"{name}.txt"] if file.is_file()]
        except (OSError, ValueError) as error:  # a name that is too long, a pattern such as a**
            raise InputError(f"__{name}__ can be no file: {error}") from error
        self.read.update(files)
        if not files:
            known = [str(file.relative_to(self.folder).with_suffix("")) for file in self.folder.rglob("*.txt")]
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean __{near[0]}__?" if near else "an option a line makes one"
            raise InputError(f"__{name}__: there is no file {self.folder / name}.txt; {hint}")
        return files

    def _lines(self, file: Path) -> Iterator[tuple[Template, float]]:
        try:
            lines = read_file(file).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                weight, text = _weighted(line)
                template = parse_template(text, self)
            except InputError as error:
                raise InputError(f"{file}, line {number}: {error}") from error
            yield template, weight


def parse_template(text: str, wildcards: Wildcards) -> Template:
    """Text in the dynamic-prompt syntax, with the wildcards that it names.

    Raises:
        InputError: it does not follow the syntax; the message says where.
    """
    reader = _Reader(text, wildcards)
    pieces = reader.pieces(frozenset())
    return Template(_tidied(pieces))


@dataclass(slots=True)
class _Reader:
    """Reads a text from left to right."""

    text: str
    wildcards: Wildcards
    place: int = 0

    def pieces(self, until: frozenset[str]) -> list[Piece]:
        """Text and choices up to one of the marks, which is left unread."""
        found: list[Piece] = []
        while (token := self._peek()) is not None:
            kind, value = token.lastgroup, token.group()
            if kind == "mark" and value in until:
                break
            self.place = token.end()
            match kind:
                case "comment":
                    continue
                case "escape":
                    found.append(value[1:])
                case "wildcard":
                    found.append(self._wildcard(value))
                case "mark" if value == "{":
                    found.append(self._choice(token.start()))
                case "mark" if value == "}":
                    raise InputError(f"{self._at(token.start())}: }} closes nothing; write \\}} for the character")
                case _:
                    found.append(value)
        return found

    def _peek(self) -> re.Match[str] | None:
        return _TOKEN.match(self.text, self.place)

    def _wildcard(self, source: str) -> Choice:
        name = source[2:-2]
        drawn = self.wildcards.drawn
        if name[0] in "~!@":
            drawn = self._is_drawn(name[0], source)
            name = name[1:]
        options = self.wildcards.options(name)
        return _made(options, drawn=drawn, source=source)

    def _choice(self, start: int) -> Choice:
        drawn = self.wildcards.drawn
        if (mark := self.text[self.place : self.place + 1]) and mark in "~!@":
            drawn = self._is_drawn(mark, self.text[start : start + 20])
            self.place += 1
        least, most, separator = self._head(start)
        options: list[tuple[Template, float]] = []
        while True:
            weight, rest = _weighted(self.text[self.place :])
            self.place = len(self.text) - len(rest)
            options.append((Template(_tidied(self.pieces(frozenset("|}")))), weight))
            if (end := self._peek()) is None:
                raise InputError(f"{self._at(start)}: {{ is not closed; write \\{{ for the character")
            self.place = end.end()
            if end.group() == "}":
                break
        source = self.text[start : self.place]
        match options:
            case [(Template((Choice() as only,)), _)] if most > 1:  # several lines of one file
                options = list(zip(only.options, only.weights, strict=True))
        if least > len(options):
            raise InputError(f"{self._at(start)}: {source!r} asks for {least} of {len(options)} options")
        if sum(weight > 0 for _, weight in options) < max(least, 1):
            raise InputError(f"{self._at(start)}: {source!r} has weights of 0 alone")
        return _made(
            options, drawn=drawn, source=source, least=least, most=min(most, len(options)), separator=separator
        )

    def _head(self, start: int) -> tuple[int, int, str]:
        """How many options are taken, and what stands between them."""
        head = _HEAD.match(self.text, self.place)
        if head is None or not any(head.group("least", "range", "most")):
            return 1, 1, SEPARATOR
        self.place = head.end()
        if head["range"] is None:
            least = most = int(head["least"])
        else:
            least, most = int(head["least"] or 1), int(head["most"] or _ANY)
        if least > most:
            raise InputError(f"{self._at(start)}: takes {least} to {most} options; write the smaller number first")
        separator = SEPARATOR
        if (separated := _SEPARATED.match(self.text, self.place)) is not None:
            separator, self.place = separated["separator"], separated.end()
        return least, most, separator

    def _is_drawn(self, mark: str, source: str) -> bool:
        if mark == "@":
            raise InputError(f"{source!r}: taking turns (@) is not supported; ~ draws, ! writes out all")
        return mark == "~"

    def _at(self, place: int) -> str:
        line = self.text.count("\n", 0, place) + 1
        column = place - self.text.rfind("\n", 0, place)
        return f"character {column}" if "\n" not in self.text else f"line {line}, character {column}"


_ANY = 10**6  # as many options as there are


def _made(options: Sequence[tuple[Template, float]], *, drawn: bool, source: str, **taken: object) -> Choice:
    texts, weights = zip(*options, strict=True)
    return Choice(texts, weights, drawn=drawn, source=source, **taken)  # type: ignore[arg-type]


def _weighted(text: str) -> tuple[float, str]:
    """The weight before an option, 1 where none is written, and the rest."""
    match = _WEIGHT.match(text)
    return (1.0, text) if match is None else (float(match[1]), text[match.end() :])


def _tidied(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Pieces with neighbouring texts joined, and no white space at the ends."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    if joined and isinstance(joined[0], str):
        joined[0] = joined[0].lstrip()
    if joined and isinstance(joined[-1], str):
        joined[-1] = joined[-1].rstrip()
    return tuple(piece for piece in joined if piece != "")
