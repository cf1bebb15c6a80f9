"""Tables of TOML read as dataclasses; unknown keys and values of other types are told all at once. Knows no columns.

A field's annotation says what its key takes: text, a flag, a number, one of an enum's values, a list of such, a table,
or a dataclass's own table. Numbers are more than 0, or from 0 up with the metadata `ZERO`. A field that is not compared
is no key.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import StrEnum
from types import MappingProxyType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from batchgen.errors import InputError

__all__ = ["ZERO", "read_fields", "table_keys"]

ZERO: Mapping[str, Any] = MappingProxyType({"zero": True})
"""Metadata of a field whose number may be 0."""

_WANTED = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_LISTED = {str: "texts", int: "whole numbers", float: "numbers"}


def table_keys(kind: type) -> list[str]:
    """The keys that a dataclass's table has."""
    return [one.name for one in fields(kind) if one.compare]


def read_fields(
    kind: type,
    table: Mapping[str, Any],
    wrong: list[str],
    *,
    prefix: str = "",
    elsewhere: Callable[[str], Sequence[str]] = lambda _key: (),
) -> dict[str, Any]:
    """A table's entries as arguments of a dataclass; what is wrong with them goes to `wrong`, and they are left out.

    Args:
        kind: the dataclass.
        table: as TOML gives it.
        wrong: takes a line for each complaint.
        prefix: of the keys in complaints, `limits.` for the table [limits].
        elsewhere: where else a key that is unknown here would be known, in full.
    """
    hints = get_type_hints(kind)
    zeros = {one.name for one in fields(kind) if one.metadata == ZERO}
    known = table_keys(kind)
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = [prefix + one for one in get_close_matches(key, known, n=1)] + list(elsewhere(key))
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(known)}"
            wrong.append(f"unknown key {prefix + key!r}; {hint}")
            continue
        nested: list[str] = []
        try:
            found[key] = _typed(hints[key], value, prefix + key, nested, elsewhere, least=0 if key in zeros else None)
        except ValueError as error:
            wrong.append(f"key {prefix + key!r} {error}")
        wrong += nested
    return found


def _typed(
    hint: Any, value: Any, name: str, wrong: list[str], elsewhere: Callable[[str], Sequence[str]], least: int | None
) -> Any:
    """The value as the annotated type.

    Raises:
        ValueError: it is not of that type; the text says what is wanted.
    """
    wanted = get_args(hint)[0] if isinstance(hint, UnionType) else hint  # T | None: TOML has no null
    origin = get_origin(wanted)
    if origin is tuple:
        return _listed(get_args(wanted)[0], value, name, least)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ValueError("wants a table")
        return value
    if is_dataclass(wanted):
        if not isinstance(value, dict):
            raise ValueError(f"wants a table, [{name}]")
        arguments = read_fields(cast(type, wanted), value, wrong, prefix=f"{name}.", elsewhere=elsewhere)
        try:
            return cast(type, wanted)(**arguments)
        except InputError as error:
            raise ValueError(f"is wrong: {error}") from None
    return _plain(wanted, value, least)


def _listed(wanted: Any, value: Any, name: str, least: int | None) -> tuple[Any, ...]:
    if get_origin(wanted) is Mapping:
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise ValueError(f"wants tables, [[{name}]]")
        return tuple(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"is {value!r}; wants a list of {_LISTED[wanted]}")
    try:
        return tuple(_plain(wanted, one, least) for one in value)
    except ValueError as error:
        raise ValueError(f"has a value that {error}; it wants a list of {_LISTED[wanted]}") from None


def _plain(wanted: Any, value: Any, least: int | None) -> Any:
    if issubclass(wanted, StrEnum):
        if value not in list(wanted):
            raise ValueError(f"is {value!r}; one of {', '.join(wanted)}")
        return wanted(value)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise ValueError(f"is {value!r}; wants {_WANTED[wanted]}")
    if wanted is float and not math.isfinite(value):
        raise ValueError(f"is {value}; wants a finite number")
    if wanted in (int, float) and (value < 0 or (value == 0 and least is None)):
        raise ValueError(f"is {value}; wants {'more than 0' if least is None else '0 or more'}")
    return value
