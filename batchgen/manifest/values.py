"""What a manifest's cells hold: values in their columns' types, from whatever a file's reader gives."""

import json
import math
import re
from collections.abc import Set
from typing import Any

from batchgen.errors import CellError, WrongType
from batchgen.manifest.columns import COLUMNS, WORDING, Column, Kind
from batchgen.manifest.names import find_column, fold, suggest
from batchgen.manifest.strict_json import parse_json

__all__ = ["SCHEDULES", "parse_cell", "parse_defaults", "scheduled"]

SCHEDULES = ("Karras", "Exponential", "Beta", "SGM Uniform")
"""Schedules of noise levels that diffusers has besides a sampler's usual one, as A1111 appends them to its name."""

_USUAL_SCHEDULES = ("automatic", "normal", "uniform")


def parse_cell(column: Column, cell: Any, *, from_text: bool, declared: bool = False) -> Any:
    """The cell's value in the column's type: str, int, float, bool, dict, or, for images and adapters, the cell itself.

    Sizes become a tuple of two, columns of several numbers or choices a tuple; lists of images and adapters are read
    from JSON text and else left as they are.

    Args:
        cell: a value as the manifest's reader gives it, not null.
        from_text: the file has no types of its own (CSV): numbers and JSON are read from text.
        declared: the file declares the type of the whole column (Parquet), which says what to try.

    Raises:
        CellError: wrong type, not a number, or out of range.
    """
    try:
        return _parse(column, cell, from_text)
    except WrongType as error:
        raise CellError(f"{error}{_another_type(column, cell, from_text, declared)}") from None


def _another_type(column: Column, cell: Any, from_text: bool, declared: bool) -> str:
    """How to give a cell its column's type, in the words of the file's format; empty where the value is at fault."""
    wanted = {Kind.TEXT: "strings", Kind.INTEGER: "int64", Kind.SIZE: "lists of int64"}.get(column.kind, "float64")
    if from_text:
        return ""
    if declared:
        return f"; write the column as {wanted}"
    if column.kind is Kind.TEXT:
        return "; put it in quotes" if isinstance(cell, (int, float)) else ""
    is_number = isinstance(cell, str) and re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", cell)
    return "; write it without quotes" if is_number else ""


def _parse(column: Column, cell: Any, from_text: bool) -> Any:
    match column.kind:
        case Kind.TEXT if column.listed:
            return tuple(_parse_text(column, item) for item in _as_list(cell))
        case Kind.TEXT:
            return _parse_text(column, cell)
        case Kind.INTEGER | Kind.NUMBER:
            return _parse_number(column, cell, from_text)
        case Kind.NUMBERS:
            return tuple(float(_parse_number(column, item, from_text)) for item in _as_list(cell))
        case Kind.SIZE:
            return _parse_size(column, cell, from_text)
        case Kind.FLAG:
            return _parse_flag(cell)
        case Kind.OPTIONS:
            return _parse_options(cell)
        case Kind.IMAGE | Kind.ADAPTER:
            return _from_json(cell) if column.listed or column.kind is Kind.ADAPTER else cell


def parse_defaults(table: Any, allowed: Set[str], wrong: list[str]) -> dict[str, Any]:
    """A TOML table [defaults] by canonical column name, in the columns' types; complaints go to `wrong`."""
    defaults: dict[str, Any] = {}
    spelt: dict[str, str] = {}  # the key of each column
    for key, value in table.items() if isinstance(table, dict) else ():
        column = COLUMNS.get(find_column(key, own=True) or "")
        if column is None or column.name not in allowed:
            near = find_column(key) or suggest(key)
            hint = f"; did you mean {near!r}?" if near in allowed else ""
            wrong.append(f"[defaults] takes no {key!r}{hint}")
            continue
        if (other := spelt.setdefault(column.name, key)) != key:
            wrong.append(f"[defaults] {key} means {column.name!r}, and so does {other}; drop one of them")
            continue
        try:
            defaults[column.name] = parse_cell(column, value, from_text=False)
        except CellError as error:
            wrong.append(f"[defaults] {key} {error}")
    return defaults


def _from_json(cell: Any) -> Any:
    """The cell, or what its text says where that is a JSON list or object."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(cell)
        except ValueError as error:
            raise CellError(f"starts like JSON and is none: {error}") from None
    return cell


def _as_list(cell: Any) -> list[Any]:
    cell = _from_json(cell)
    if isinstance(cell, (list, tuple)):
        if not cell:
            raise CellError("is an empty list; leave it null")
        return list(cell)
    return [cell]


def _parse_size(column: Column, cell: Any, from_text: bool) -> tuple[int, ...]:
    if isinstance(cell, str) and "x" in cell.lower():
        raise CellError(f"is {_shown(cell)}; write {WORDING[Kind.SIZE]}, height first")
    numbers = tuple(int(_parse_number(column, item, from_text)) for item in _as_list(cell))
    if len(numbers) != 2:
        raise CellError(f"holds {len(numbers)} numbers; give {WORDING[Kind.SIZE]}")
    return numbers


def _parse_flag(cell: Any) -> bool:
    if isinstance(cell, str) and cell.strip().lower() in ("true", "false"):
        return cell.strip().lower() == "true"
    if not isinstance(cell, bool):
        raise CellError(f"is {_shown(cell)}, not {WORDING[Kind.FLAG]}")
    return cell


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse_text(column: Column, cell: Any) -> str:
    if column.name == "id" and isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)  # what pandas makes of an index
    if column.name == "scheduler" and isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)  # DiffusionDB's numbers
    if not isinstance(cell, str):
        raise WrongType(f"is {_shown(cell)}, not text")
    if "\x00" in cell:
        raise CellError("holds a NUL character; remove it")
    if column.name == "id" and not cell.strip():
        raise CellError("is blank; give each row a name of its own, or drop the column")
    if column.choices and cell not in column.choices:
        raise CellError(f"is {_shown(cell)}; one of {', '.join(column.choices)}")
    return cell


def _parse_number(column: Column, cell: Any, from_text: bool) -> int | float:
    whole = column.kind in (Kind.INTEGER, Kind.SIZE)
    if from_text and isinstance(cell, str):
        try:
            if "_" in cell or not cell.isascii():  # Python's own spellings, which are no other program's
                raise ValueError
            cell = int(cell) if whole and "." not in cell else float(cell)
        except (ValueError, OverflowError):
            raise CellError(f"is {_shown(cell)}, not {WORDING[column.kind]}{_comma(cell, whole)}") from None
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        raise WrongType(f"is {_shown(cell)}, not {WORDING[column.kind]}")
    if isinstance(cell, int) and abs(cell) > 2**64:
        raise CellError(f"is {_shown(cell)}, too large")
    if not math.isfinite(cell):
        raise CellError(f"is {cell}; give a finite number")
    if whole and cell != int(cell):
        raise CellError(f"is {cell}, not {WORDING[column.kind]}")
    value = int(cell) if whole else float(cell)
    _check_range(column, value)
    return value


def _comma(cell: str, whole: bool) -> str:
    if re.fullmatch(r"\s*-?\d{1,3}(,\d{3})+\s*", cell) and whole:
        return f"; write {cell.strip().replace(',', '')}"
    return "; write a point for the comma" if re.fullmatch(r"\s*-?\d+,\d+\s*", cell) else ""


def _check_range(column: Column, value: float) -> None:
    if column.name == "seed" and value == -1:
        raise CellError("is -1; leave it null to have a seed derived from the row and recorded")
    if (column.low is not None and value < column.low) or (column.high is not None and value > column.high):
        if column.high is None:
            raise CellError(f"is {value}; at least {column.low:g}")
        raise CellError(f"is {value}; between {column.low} and {column.high}")
    if column.multiple_of is not None and value % column.multiple_of:
        step = column.multiple_of
        below = max(step, int(value) // step * step)
        raise CellError(f"is {value}, not a multiple of {step}; try {below} or {below + step}")


def _parse_options(cell: Any) -> dict[str, Any]:
    if isinstance(cell, str):
        try:
            cell = parse_json(cell)
        except ValueError as error:
            raise CellError(f"is not JSON: {error}") from None
    if isinstance(cell, list) and all(isinstance(item, tuple) and len(item) == 2 for item in cell):  # an Arrow map
        names = [name for name, _ in cell]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise CellError(f"says {twice!r} twice; keep one of them")
        cell = dict(cell)
    if not isinstance(cell, dict):
        raise CellError(f'is {_shown(cell)}, not {WORDING[Kind.OPTIONS]}; for example {{"use_karras_sigmas": true}}')
    if wrong := [key for key, value in cell.items() if not _is_json(value)]:
        raise CellError(f"has {wrong[0]} = {_shown(cell[wrong[0]])}, which JSON does not hold; leave it out")
    return {key: value for key, value in sorted(cell.items()) if value is not None}


def _is_json(value: Any) -> bool:
    """Whether JSON holds the value: NaN and infinity it does not."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def scheduled(sampler: str | None, schedule: Any) -> str:
    """The sampler's name with a schedule of noise levels, as A1111 (since 1.9) and ComfyUI write them apart.

    Raises:
        CellError: diffusers has no such schedule, or the two name different samplers.
    """
    kinds = {fold(name): name for name in SCHEDULES}
    if not isinstance(schedule, str):
        raise CellError(f"is {schedule!r}, not the name of a noise schedule: {', '.join(SCHEDULES)}")
    if sampler is None:
        raise CellError(f"is the noise schedule {schedule!r}, and no sampler is named beside it")
    folded = fold(schedule)
    if folded in _USUAL_SCHEDULES or fold(sampler).endswith(folded):
        return sampler
    if folded not in kinds:
        raise CellError(
            f"is {schedule!r}, and the sampler beside it {sampler!r}; diffusers has the schedules "
            f"{', '.join(SCHEDULES)}, and a sampler is to be named once"
        )
    return f"{sampler} {kinds[folded]}"
