"""Arrow's types and cells: which types are one and the same to a user, and values that Python has no room for.

Knows nothing of files and of what a column means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

__all__ = [
    "ArrowCell",
    "Oversized",
    "arrow_column",
    "bounded_rows",
    "common_type",
    "depth",
    "is_text",
    "misfit",
    "python_rows",
]

PART_BYTES = 16 << 20  # of texts that are held at once, once each cell has its own
LONGEST_TEXT = 16 << 20  # bytes of one, as in text tables; embedded images are no texts
_UNITS = ("s", "ms", "us", "ns")
_UNREADABLE = (ValueError, OverflowError, TypeError, KeyError, pa.ArrowException)  # of times that Python has not


@dataclass(frozen=True, slots=True, repr=False)
class ArrowCell:
    """A value as an Arrow array of length one: a date beyond the year 9999, nanoseconds, an unknown zone."""

    array: pa.Array

    def __repr__(self) -> str:
        try:
            return str(self.array.cast(pa.string())[0])
        except pa.ArrowException:
            return f"a {self.array.type}"


def python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as values of Python, exactly; as an `ArrowCell` what would change or fail on the way."""
    names = batch.schema.names
    if not names:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*map(_python_cells, batch.columns), strict=True)]


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's cells are texts, and nothing around them."""
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind))


def depth(kind: pa.DataType) -> int:
    """How many types a type is within itself: 0 for a number, 2 for a list of structs of numbers."""
    found, inner = 0, [kind]
    while inner := [one.field(place).type for one in inner if kinds.is_nested(one) for place in range(one.num_fields)]:
        found += 1
    return found


@dataclass(frozen=True, slots=True)
class Oversized:
    """Stands for a text that nothing takes, so that nobody spells it out."""

    length: int  # bytes


def bounded_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The rows of a batch, a few MiB of texts at a time; texts that were read as dictionaries are spelled out.

    What is longer than `LONGEST_TEXT` becomes `Oversized`.
    """
    import pyarrow.compute as pc  # a tenth of a second, which commands that read no manifest do without

    columns, sizes = [], np.zeros(batch.num_rows, np.int64)
    oversized: list[tuple[str, Any]] = []  # names of columns, and lengths by row
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if kinds.is_dictionary(column.type) and is_text(column.type.value_type):
            lengths = pc.fill_null(pc.binary_length(column.dictionary), 0)
            long = pc.greater(lengths, LONGEST_TEXT)
            by_row = pc.fill_null(lengths.take(column.indices), 0).to_numpy(zero_copy_only=False).astype(np.int64)
            if pc.any(long).as_py():
                kept = pc.if_else(long, pa.scalar("", column.type.value_type), column.dictionary)
                column = pa.DictionaryArray.from_arrays(column.indices, kept)
                oversized.append((name, by_row))
            sizes += np.where(by_row > LONGEST_TEXT, 0, by_row)
        columns.append(column)
    parts = np.cumsum(sizes) // PART_BYTES
    edges = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), batch.num_rows]
    short = pa.RecordBatch.from_arrays(columns, names=batch.schema.names) if columns else batch
    for start, end in pairwise(edges):
        for place, row in enumerate(python_rows(_spelled_out(short.slice(start, end - start))), start):
            long_ones = {name: Oversized(int(of[place])) for name, of in oversized if of[place] > LONGEST_TEXT}
            yield {**row, **long_ones} if long_ones else row


def _spelled_out(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [one.dictionary_decode() if kinds.is_dictionary(one.type) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names) if columns else batch


def _python_cells(column: pa.Array) -> list[Any]:
    if not _holds_time(column.type):
        found: list[Any] = column.to_pylist()
        return found
    try:
        cells: list[Any] = column.to_pylist()
        if pa.array(cells, type=column.type).equals(column):
            return cells
    except _UNREADABLE:
        pass
    places = zip(range(len(column)), column.is_valid().to_pylist(), strict=True)
    # taken, not sliced: a slice is pickled with all of its column
    return [ArrowCell(column.take(pa.array([place]))) if valid else None for place, valid in places]


def _holds_time(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        return _holds_time(kind.value_type)
    if kinds.is_nested(kind):
        return any(_holds_time(kind.field(place).type) for place in range(kind.num_fields))
    return bool(kinds.is_temporal(kind))


def arrow_column(cells: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An array of the type from values of Python, `ArrowCell`s and None.

    Raises:
        pyarrow.ArrowException, ValueError, TypeError, OverflowError: a cell cannot be converted.
    """
    if not any(isinstance(cell, ArrowCell) for cell in cells):
        return pa.array(cells, type=kind)
    parts = [cell.array.cast(kind) if isinstance(cell, ArrowCell) else pa.array([cell], type=kind) for cell in cells]
    return pa.concat_arrays(parts)


def misfit(cell: Any, kind: pa.DataType) -> str | None:
    """Why a cell cannot stand in a column of the type without changing; None where it can."""
    shown = repr(cell) if len(repr(cell)) <= 60 else repr(cell)[:57] + "..."
    try:
        column = arrow_column([cell], kind)
        if isinstance(cell, ArrowCell) or _same(cell, column.to_pylist()[0]):
            return None
    except _UNREADABLE:
        pass
    return f"is {shown}, which {kind} does not hold exactly"


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        # a struct has all of its fields, a row only some
        return all(_same(first.get(name), second.get(name)) for name in first.keys() | second.keys())
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second or (first != first and second != second))


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both where they differ in storage alone; None where they are of two kinds.

    Texts are one kind however they are stored, and so are whole numbers of any width, numbers with and without gaps
    (which pandas writes as float64), times of any unit, and lists, structs and maps of such.
    """
    if first == second:
        return first
    if kinds.is_null(first) or kinds.is_null(second):
        return second if kinds.is_null(first) else first
    first, second = _plain(first), _plain(second)
    if first == second:
        return first
    if kinds.is_nested(first) or kinds.is_nested(second):
        return _common_nested(first, second)
    if _is_number(first) and _is_number(second):
        return _common_number(first, second)
    if kinds.is_date(first) and kinds.is_date(second):
        return pa.date32()
    if kinds.is_decimal(first) and kinds.is_decimal(second):
        scale = max(first.scale, second.scale)
        digits = max(first.precision - first.scale, second.precision - second.scale) + scale
        return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale) if digits <= 76 else None
    return _common_time(first, second)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The usual type for what another stores in a way of its own."""
    if kinds.is_dictionary(kind):
        return _plain(kind.value_type)
    if kinds.is_large_string(kind) or kinds.is_string_view(kind):
        return pa.string()
    if kinds.is_large_binary(kind) or kinds.is_binary_view(kind) or kinds.is_fixed_size_binary(kind):
        return pa.binary()
    if _is_list(kind):
        return pa.list_(kind.value_type)
    return kind


def _is_list(kind: pa.DataType) -> bool:
    lists = (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, kinds.is_list_view, kinds.is_large_list_view)
    return any(is_one(kind) for is_one in lists)


def _is_number(kind: pa.DataType) -> bool:
    return bool(kinds.is_integer(kind) or kinds.is_floating(kind))


def _common_number(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    wider = max(first, second, key=lambda kind: kind.bit_width)
    if kinds.is_floating(first) and kinds.is_floating(second):
        return wider
    if kinds.is_floating(first) or kinds.is_floating(second):
        return pa.float64()
    if kinds.is_signed_integer(first) == kinds.is_signed_integer(second):
        return wider
    return None if pa.uint64() in (first, second) else pa.int64()


def _common_time(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Times of the finer unit."""
    if kinds.is_timestamp(first) and kinds.is_timestamp(second):
        return pa.timestamp(_finer(first, second), first.tz) if first.tz == second.tz else None
    if kinds.is_duration(first) and kinds.is_duration(second):
        return pa.duration(_finer(first, second))
    if kinds.is_time(first) and kinds.is_time(second):
        unit = _finer(first, second)
        return pa.time64(unit) if unit in ("us", "ns") else pa.time32(unit)
    return None


def _finer(first: pa.DataType, second: pa.DataType) -> str:
    return max(str(first.unit), str(second.unit), key=_UNITS.index)


def _common_nested(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if kinds.is_list(first) and kinds.is_list(second):
        item = common_type(first.value_type, second.value_type)
        return None if item is None else pa.list_(item)
    if kinds.is_map(first) and kinds.is_map(second):
        key, item = common_type(first.key_type, second.key_type), common_type(first.item_type, second.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if kinds.is_struct(first) and kinds.is_struct(second):
        parts = {field.name: field.type for field in second}
        if {field.name for field in first} == parts.keys():
            found = [(field.name, common_type(field.type, parts[field.name])) for field in first]
            return None if any(kind is None for _, kind in found) else pa.struct(found)
    return None
