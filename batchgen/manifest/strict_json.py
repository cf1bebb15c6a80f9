"""JSON as people write it into manifests: a key that stands twice in an object is a mistake, not the last one's win."""

import json
import math
import re
from typing import Any

__all__ = ["DEEPEST", "parse_json", "without_nan"]

DEEPEST = 64  # lists and objects within each other: what is read is walked and written by functions that recurse
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def parse_json(text: str) -> Any:
    """What JSON text says. NaN, which is no JSON, is taken for what it is; `without_nan` makes a gap of it.

    Raises:
        ValueError: it is no JSON, nested too deeply, a key stands twice in one object, or a number is infinite.
    """
    if text.count("[") + text.count("{") > DEEPEST:
        depth = 0
        for mark in _BRACKETS.finditer(text):
            depth += (mark[0] in "[{") - (mark[0] in "]}")
            if depth > DEEPEST:
                raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")
    return json.loads(text, parse_constant=_constant, parse_float=_float, object_pairs_hook=_object)


def without_nan(value: Any) -> Any:
    """The value with nulls for NaN, as pandas means it."""
    match value:
        case float() if math.isnan(value):
            return None
        case list():
            return [without_nan(one) for one in value]
        case dict():
            return {name: without_nan(one) for name, one in value.items()}
        case _:
            return value


def _constant(name: str) -> float:
    if name != "NaN":
        raise ValueError(f"{name} is no JSON number")
    return math.nan


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is beyond what a double holds")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object; keep one of them")
    return found
