"""The axes of a sweep: what each takes its values from. Knows no columns and no files.

    [1, 3, 7.5]                                     a list
    "1..10"  "1..10 step 2"  "10..1 step 3"         a range, both ends in it
    "5 values from 1 to 10"                         evenly spaced
    {values = ["red", "blue"], weights = [3, 1]}    drawn for each cell, by weight
    {uniform = [1, 10]}  {log_uniform = [0.1, 10]}  drawn for each cell; {normal = [7.5, 2], min = 1, max = 15}
    {by = "animal", values = {cat = ["tabby"], dog = ["pug", "lab"]}}   by the value of another axis
    {file = "lists/parti.tsv", column = "Prompt"}   the cells of a column of a table, or the lines of a text
    {fresh = 4}                                     of `seed`: four seeds of its own for each cell

A draw is decided by a hash of the sweep's seed, the cell, the axis and the value, not by a sequence of random numbers:
a value that is added later changes those draws alone that it wins (weighted rendezvous hashing: Schindelhauer and
Schomaker 2005), and the order of axes and values changes none.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any

from batchgen.errors import InputError

__all__ = ["Axis", "ByParent", "Distribution", "Fresh", "FromFile", "Listed", "Source", "label", "read_source", "share"]

LONGEST_RANGE = 1_000_000  # values, made in a second; more is a mistake in writing
_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})(?:\s+step\s+({_NUMBER}))?\s*")
_SPACED = re.compile(rf"\s*(\d+)\s+values?\s+from\s+({_NUMBER})\s+to\s+({_NUMBER})\s*")
_LEAST_SHARE = 1e-9  # of a normal distribution between its bounds; its quantiles are kept 1e-12 from 0 and 1
_DISTRIBUTIONS = ("uniform", "normal", "log_uniform")

Value = Any
"""A value of an axis: what TOML has, a variant of a template, or a mapping by column for axes that go together."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Values, all of which are taken in turn, or one of which is drawn where they have weights."""

    values: tuple[Value, ...]
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """Numbers that are drawn: between `a` and `b`, or around the mean `a` with the standard deviation `b`."""

    kind: str
    a: float
    b: float
    low: float = -math.inf
    high: float = math.inf
    step: float | None = None  # what they are rounded to multiples of

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest number that may be drawn."""
        return (self.low, self.high) if self.kind == "normal" else (self.a, self.b)

    @property
    def multiples(self) -> tuple[float, float]:
        """The least and the greatest multiple of the step within the bounds; the first is greater where none is."""
        step, (low, high) = Fraction(str(self.step)), self.bounds
        return (
            math.ceil(Fraction(str(low)) / step) if math.isfinite(low) else low,
            math.floor(Fraction(str(high)) / step) if math.isfinite(high) else high,
        )

    def at(self, share: float) -> float | int:
        """The number below which that share of all draws lies, 0 < share < 1."""
        match self.kind:
            case "uniform":
                number = self.a + (self.b - self.a) * share
            case "log_uniform":
                number = self.a * (self.b / self.a) ** share
            case _:
                normal = NormalDist(self.a, self.b)
                under, over = normal.cdf(self.low), normal.cdf(self.high)
                number = normal.inv_cdf(min(max(under + (over - under) * share, 1e-12), 1 - 1e-12))
        low, high = self.bounds
        if self.step is None:
            return min(max(number, low), high)  # the far tails of a normal distribution are known roughly
        least, most = self.multiples
        rounded = Fraction(str(self.step)) * int(min(max(round(number / self.step), least), most))
        return int(rounded) if rounded.denominator == 1 and float(self.step).is_integer() else float(rounded)


@dataclass(frozen=True, slots=True)
class Fresh:
    """Seeds of its own for each cell: so many."""

    count: int


@dataclass(frozen=True, slots=True)
class ByParent:
    """Values by the value of another axis."""

    parent: str
    sources: Mapping[str, Listed | Distribution]  # by the label of the parent's value


@dataclass(frozen=True, slots=True)
class FromFile:
    """The cells of a column of another table, whatever its format; the lines of a text file are its `prompt`."""

    file: str
    column: str


Source = Listed | Distribution | Fresh | ByParent


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a sweep: a column, a part of templates, or several that go together."""

    names: tuple[str, ...]
    source: Source

    @property
    def name(self) -> str:
        return "+".join(self.names)


def label(value: Value) -> str:
    """A value as canonical text, equal for equal values: 3 and 3.0 are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def share(*of: str | int) -> float:
    """A number between 0 and 1, neither of them, that a hash of the arguments decides."""
    text = "\x1f".join(map(str, of))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) + 0.5) / 2**64


def read_source(spec: Any) -> Source | FromFile | None:
    """What a list, a range or a table says of an axis; None for a text that is no range.

    Raises:
        InputError: it says nothing that an axis can take its values from.
    """
    try:
        return _read(spec)
    except OverflowError:
        raise InputError("has a number that is too large") from None


def _read(spec: Any) -> Source | FromFile | None:
    match spec:
        case list():
            return Listed(_filled(spec))
        case str():
            return _read_range(spec)
        case {"values": list(values), "weights": weights, **rest} if not rest:
            return _read_weighted(_filled(values), weights)
        case {"by": str(parent), "values": dict(by), **rest} if not rest:
            return ByParent(parent, {value: _read_child(value, one) for value, one in by.items()})
        case {"fresh": count, **rest} if not rest:
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError(f"fresh is {count!r}; give the number of seeds of each cell, at least 1")
            return Fresh(count)
        case {"file": str(file), **rest} if not rest.keys() - {"column"}:
            return FromFile(file, str(rest.get("column", "prompt")))
        case dict() if len(kinds := [kind for kind in _DISTRIBUTIONS if kind in spec]) == 1:
            return _read_distribution(kinds[0], spec)
        case int() | float():
            raise InputError(f"is {spec!r}; write a list, or put it under [sweep.cells]")
        case _:
            raise InputError(
                f"is {json.dumps(spec, default=str)}; write a list, a range such as '1..10 step 2', or a table: of "
                f"values and weights, of values by another axis, of a file and its column, of fresh, or of one of "
                f"{', '.join(_DISTRIBUTIONS)}"
            )


def _filled(values: Sequence[Any]) -> tuple[Any, ...]:
    if not values:
        raise InputError("has no values")
    for value in values:
        if isinstance(value, int):
            float(value)  # raises OverflowError: columns of axes hold floats
    return tuple(values)


def _read_child(value: str, spec: Any) -> Listed | Distribution:
    source = read_source(spec)
    if not isinstance(source, (Listed, Distribution)):
        raise InputError(f"has {spec!r} for {value!r}; write a list, a range or a distribution")
    return source


def _read_weighted(values: tuple[Any, ...], weights: Any) -> Listed:
    if not isinstance(weights, list) or len(weights) != len(values):
        raise InputError(f"has {len(values)} values; give as many weights, in a list")
    if not all(_is_number(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise InputError(f"has the weights {weights}; they are numbers from 0 up, and one is above it")
    return Listed(values, tuple(float(weight) for weight in weights))


def _read_distribution(kind: str, spec: Mapping[str, Any]) -> Distribution:
    if unknown := spec.keys() - {kind, "min", "max", "step"}:
        raise InputError(f"has {', '.join(sorted(unknown))} beside {kind}; known are min, max and step")
    numbers = spec[kind]
    if not isinstance(numbers, list) or len(numbers) != 2 or not all(map(_is_number, (*numbers, *_bounds(spec)))):
        raise InputError(f"has {kind} = {numbers!r}; give two numbers, and numbers for min, max and step")
    a, b = map(float, numbers)
    if kind == "normal":
        if b <= 0:
            raise InputError(f"has the standard deviation {b:g}; it is above 0")
    elif "min" in spec or "max" in spec:
        raise InputError(f"has min or max; the two numbers of {kind} are its bounds")
    elif a >= b or (kind == "log_uniform" and a <= 0):
        raise InputError(f"has {kind} = {numbers!r}; write the smaller first{', above 0' * (kind == 'log_uniform')}")
    low, high, step = float(spec.get("min", -math.inf)), float(spec.get("max", math.inf)), spec.get("step")
    if low >= high or (step is not None and step <= 0):
        raise InputError("has a min that is not below max, or a step that is not above 0")
    if kind == "normal" and NormalDist(a, b).cdf(high) - NormalDist(a, b).cdf(low) < _LEAST_SHARE:
        raise InputError(f"has normal = {numbers!r}, of which next to nothing is between min and max")
    return Distribution(kind, a, b, low, high, step)


def _bounds(spec: Mapping[str, Any]) -> list[Any]:
    return [spec[name] for name in ("min", "max", "step") if name in spec]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_range(text: str) -> Listed | None:
    """The numbers of a range, counted exactly: 0..1 step 0.1 has 0.3 and no 0.30000000000000004."""
    if (match := _SPACED.fullmatch(text)) is not None:
        count, first, last = int(match[1]), Fraction(match[2]), Fraction(match[3])
        if count < 2:
            raise InputError(f"is {text!r}; give at least 2 values, the first and the last")
        step = (last - first) / (count - 1)
    elif (match := _RANGE.fullmatch(text)) is not None:
        first, last = Fraction(match[1]), Fraction(match[2])
        step = Fraction(match[3] or 1)
        if step <= 0:
            raise InputError(f"is {text!r}; a step is above 0, and a range that falls begins with the larger number")
        step = step if last >= first else -step
        count = int((last - first) / step) + 1
    else:
        return None
    if count > LONGEST_RANGE:
        raise InputError(f"is {text!r}, more than {LONGEST_RANGE:,} values")
    float(first), float(last)  # raise OverflowError
    whole = first.denominator == step.denominator == 1
    numbers = (first + place * step for place in range(count))
    return Listed(tuple(int(number) if whole else float(number) for number in numbers))
