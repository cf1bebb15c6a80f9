"""Carried cells of done rows: a print of each row's, and which of them the manifest has changed since.

They decide no pixel and are in no fingerprint, so a row stays done when they change. A marker says the prints of its
rows in its schema's metadata, so that comparing reads no carried column; for older markers they are made from the
columns. Knows nothing of where a shard lies.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

from batchgen.dataset.dataset import Dataset, Marker
from batchgen.dataset.schema import metadata_table
from batchgen.dataset.tables import with_about
from batchgen.errors import InputError
from batchgen.index import DoneCells, Index

__all__ = ["compare_carried", "computed_prints", "marker_prints", "said_prints", "with_carried", "with_prints"]

DIGITS = 12  # hexadecimal: a changed row looks unchanged once in 3e14
COMPARED_ROWS = 1000  # at once
_SAID = "carried_prints"

Types = Mapping[str, pa.DataType]
"""Carried columns of an output and their types."""


def with_prints(table: pa.Table, carried: Types) -> pa.Table:
    """A shard's table that says the prints of its rows."""
    return with_about(table, **{_SAID: "".join(_prints(table, carried))}) if carried else table


def with_carried(table: pa.Table, carried: Types, changed: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """A shard's table with other carried cells in some of its rows.

    Args:
        table: all of its columns.
        carried: which of them are carried.
        changed: the cells by the row's id; what is absent becomes null.
    """
    ids = table["id"].to_pylist()
    fresh = metadata_table(_schema(carried), [changed.get(id_, {}) for id_ in ids])
    is_changed = pa.array([id_ in changed for id_ in ids])
    columns = []
    for field in table.schema:
        column = table[field.name]
        if field.name in carried:
            # not `if_else`, which knows no nested types: rows are taken from the old cells and the new, end to end
            halves = (column, fresh[field.name].cast(field.type))
            both = pa.chunked_array([chunk for half in halves for chunk in half.chunks], field.type).combine_chunks()
            places = [n + len(ids) * new for n, new in enumerate(is_changed.to_pylist())]
            column = both.take(pa.array(places, pa.int64()))
        columns.append(column)
    return with_prints(pa.Table.from_arrays(columns, schema=table.schema), carried)


def marker_prints(dataset: Dataset, marker: Marker) -> Sequence[str | None]:
    """The prints of a marker's rows; None for each where the output carries nothing.

    Raises:
        Damaged: the carried columns of an older marker cannot be read.
    """
    carried, rows = dataset.format.carried, marker.table.num_rows
    if not carried:
        return [None] * rows
    if (said := said_prints(marker)) is not None:
        return said
    if not carried.keys() <= set(marker.table.column_names):
        read = dataset.marker(marker.shard, columns=("id", *carried))
        marker = marker if read is None else read
    return _prints(marker.table, carried) if marker.table.num_rows == rows else [None] * rows


def said_prints(marker: Marker) -> list[str] | None:
    """The prints that a marker says; None where it says none."""
    said = marker.facts.carried_prints
    if said is None or len(said) != DIGITS * marker.table.num_rows:
        return None
    return [said[place : place + DIGITS] for place in range(0, len(said), DIGITS)]


def computed_prints(marker: Marker, carried: Types) -> list[str]:
    """The prints of a marker's rows, from their cells."""
    return _prints(marker.table, carried)


def compare_carried(dataset: Dataset, index: Index) -> int:
    """Note in the index the done rows whose carried cells are others in the manifest; returns how many.

    Raises:
        InputError: a cell of the manifest does not fit its column's type.
    """
    carried = dataset.format.carried
    rows = index.done_cells() if carried else iter(())
    while chunk := list(islice(rows, COMPARED_ROWS)):
        prints = _prints(_table(chunk, carried), carried)
        index.note_outdated(row for row, now in zip(chunk, prints, strict=True) if now != row.print)
    return index.count_outdated()


def _table(rows: Sequence[DoneCells], carried: Types) -> pa.Table:
    schema = _schema(carried)
    try:
        return metadata_table(schema, [row.carried for row in rows])
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        for row in rows:
            for name, kind in carried.items():
                try:
                    metadata_table(_schema({name: kind}), [row.carried])
                except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                    why = str(error).splitlines()[0]
                    raise InputError(
                        f"{row.file}, row {row.number}, column {name!r}: does not fit the output's {kind}: {why}"
                    ) from error
        raise


def _schema(carried: Types) -> pa.Schema:
    return pa.schema(sorted(carried.items()))


def _prints(table: pa.Table, carried: Types) -> list[str]:
    columns = [_cells(table[name], kind) for name, kind in sorted(carried.items())]
    return [
        hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=DIGITS // 2).hexdigest()
        for row in zip(*columns, strict=True)
    ]


def _cells(column: pa.ChunkedArray, kind: pa.DataType) -> Iterator[Any]:
    """A column's cells as values of Python with one spelling; times as numbers, since Python's have fewer years."""
    for cell in column.cast(kind).cast(_without_times(kind)).to_pylist():
        yield hashlib.sha256(cell).hexdigest() if isinstance(cell, bytes) and len(cell) > 64 else cell


def _without_times(kind: pa.DataType) -> pa.DataType:
    """The type with numbers in the place of times, in lists, structs and maps too."""
    if kinds.is_dictionary(kind):
        return _without_times(kind.value_type)
    if kinds.is_temporal(kind) and not kinds.is_interval(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if kinds.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if kinds.is_large_list(kind):
        return pa.large_list(_without_times(kind.value_type))
    if kinds.is_fixed_size_list(kind):
        return pa.list_(_without_times(kind.value_type), kind.list_size)
    if kinds.is_map(kind):
        return pa.map_(_without_times(kind.key_type), _without_times(kind.item_type))
    if kinds.is_struct(kind):
        return pa.struct([(field.name, _without_times(field.type)) for field in kind])
    return kind
