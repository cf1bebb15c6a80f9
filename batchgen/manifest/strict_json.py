"""JSON as people write it into manifests: a key that stands twice in an object is a mistake, not the last one's win."""

import json
import math
from typing import Any

__all__ = ["parse_json"]


def parse_json(text: str) -> Any:
    """What JSON text says; NaN is a null, as pandas means it.

    Raises:
        ValueError: it is no JSON, a key stands twice in one object, or a number is infinite.
        RecursionError: it is too deep.
    """
    return json.loads(text, parse_constant=_constant, parse_float=_float, object_pairs_hook=_object)


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is no JSON number")


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
