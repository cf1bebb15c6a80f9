"""Conditions on a cell of a sweep: `"DDIM"`, `[1, 2]`, `"< 4"`, `"!= PLMS"`, `"1..3"`. Pure."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.manifest.sweep.axes import label

__all__ = ["Condition", "read_condition"]

_COMPARED = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_LIKE_COMPARED = re.compile(r"\s*[<>=]=?\s*[-+=\d.].*", re.DOTALL)
_UNEQUAL = re.compile(r"\s*!=\s*(.*?)\s*", re.DOTALL)
_SPAN = re.compile(r"\s*([-+]?\d+(?:\.\d+)?)\s*\.\.\s*([-+]?\d+(?:\.\d+)?)\s*")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """What a value must be: one of some, none of some, or a number within bounds."""

    values: frozenset[str] = frozenset()  # labels
    unequal: bool = False
    bounds: tuple[tuple[str, float], ...] = ()  # comparisons that all hold

    def fits(self, value: Any) -> bool:
        """Whether a value is what is wanted; text is no number."""
        if self.bounds:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            return number and all(_OPERATORS[sign](value, bound) for sign, bound in self.bounds)
        return (label(value) in self.values) != self.unequal


def read_condition(wanted: Any) -> Condition | None:
    """The condition that a value of TOML says; None for one that says none, such as an empty list or "== 4"."""
    if isinstance(wanted, list):
        return Condition(frozenset(map(label, wanted))) if wanted else None
    if isinstance(wanted, str):
        if match := _COMPARED.fullmatch(wanted):
            return Condition(bounds=((match[1], float(match[2])),))
        if match := _SPAN.fullmatch(wanted):
            return Condition(bounds=((">=", float(match[1])), ("<=", float(match[2]))))
        if match := _UNEQUAL.fullmatch(wanted):
            return Condition(frozenset({match[1], _number_label(match[1])}), unequal=True)
        if _LIKE_COMPARED.fullmatch(wanted):
            return None
    return Condition(frozenset({label(wanted)}))


def _number_label(text: str) -> str:
    """The label of the number that a text writes, so that 4.0 is 4; the text itself where it writes none."""
    try:
        return label(float(text))
    except ValueError:
        return text
