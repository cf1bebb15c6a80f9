"""Writes manifests in Parquet."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import InputError, StoreError
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.files import folder_of
from batchgen.manifest.sweep import label
from batchgen.reading import open_input
from batchgen.storage import open_store

__all__ = ["require_place_for", "write_rows", "write_table"]

_MADE_FROM = b"batchgen.made_from"  # in the file's own metadata: what it was made from, and that it may be overwritten


def require_place_for(output: str) -> None:
    """Refuse a place where a manifest cannot be written, or would replace a file that was made otherwise.

    Raises:
        InputError: the name is not one of Parquet, or there is such a file.
    """
    if not output.lower().endswith((".parquet", ".pq")):
        raise InputError(f"--output {output}: a manifest is written as Parquet; name a file that ends in .parquet")
    try:
        with open_input(output) as stream:
            metadata = pq.read_schema(stream).metadata or {}
    except StoreError:
        return  # there is none yet
    except (pa.ArrowException, OSError):
        metadata = {}
    if _MADE_FROM not in metadata:
        raise InputError(f"--output {output}: there is a file that was not written so; name another, or move it away")


def write_rows(rows: Sequence[Mapping[str, Any]], output: str, made_from: str) -> None:
    """Write rows, in order, with the columns of the contract first; lists and tables become JSON text.

    Args:
        rows: cells by column; those that a row lacks are null.
        output: URI of the file, for which `require_place_for` found nothing.
        made_from: what the rows come from, which is noted in the file.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    ordered = [*(name for name in COLUMNS if name in names), *(name for name in names if name not in COLUMNS)]
    write_table(pa.table({name: _column([row.get(name) for row in rows]) for name in ordered}), output, made_from)


def write_table(table: pa.Table, output: str, made_from: str) -> None:
    """Write a table as a manifest; `output` and `made_from` as in `write_rows`."""
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_MADE_FROM: made_from.encode()}), stream, compression="zstd")
    open_store(folder_of(output)).write(PurePosixPath(output).name, stream.getvalue())


def _column(cells: Sequence[Any]) -> pa.Array:
    """Cells as a column: whole numbers and others together as floats, mixed types as text."""
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds & {list, dict}:
        return pa.array([cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells])
    if kinds == {int, float}:
        return pa.array(cells, pa.float64())
    return pa.array(cells) if len(kinds) == 1 else pa.array([None if cell is None else label(cell) for cell in cells])
