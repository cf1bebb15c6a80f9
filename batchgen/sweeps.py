"""From a sweep to a manifest of its own: the rows that the axes stand for, written as Parquet."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import InputError, ManifestProblems, StoreError
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.manifest.files import folder_of, read_sweep_file, records
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.sweep import axis_lines, count_cells
from batchgen.models.adapters import anchored
from batchgen.storage import join, open_input, open_store

__all__ = ["SweepSummary", "read_summary", "write_manifest"]

_SOURCE = b"batchgen.sweep"  # in the Parquet file's own metadata: what it was made from, and that it may be overwritten


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepSummary:
    """What a sweep is, counted without making its cells."""

    cells: int  # before any are skipped
    axes: Mapping[str, str]  # what each takes, by name


def read_summary(source: str) -> SweepSummary:
    """What the sweep of a TOML file is.

    Raises:
        InputError: something is wrong with it; a line for each thing.
        StoreError: it cannot be read.
    """
    sweep = read_sweep_file(source)
    return SweepSummary(cells=count_cells(sweep), axes=axis_lines(sweep))


def write_manifest(source: str, output: str) -> int:
    """Write the rows of a sweep as a Parquet manifest; returns how many.

    Relative images and adapters are named from the sweep's folder, and in a manifest elsewhere by absolute paths.

    Args:
        source: a TOML file with the table [sweep].
        output: URI of the manifest, ending in `.parquet`. A manifest of a sweep that lies there is replaced.

    Raises:
        InputError: the output is no Parquet file, or there is one that no sweep made.
        ManifestProblems: the sweep's rows cannot be made.
        StoreError: a file cannot be read or written.
    """
    _require_place(output)
    problems = ProblemLog()
    rows = [dict(record.cells) for record in records(source, problems)]
    if problems.total:
        raise ManifestProblems(problems)
    if folder_of(source) != folder_of(output):
        for row in rows:
            _anchor(row, folder_of(source))
    names = dict.fromkeys(name for row in rows for name in row)
    ordered = [*(name for name in COLUMNS if name in names), *(name for name in names if name not in COLUMNS)]
    table = pa.table({name: _column([row.get(name) for row in rows]) for name in ordered})
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_SOURCE: source.encode()}), stream, compression="zstd")
    open_store(folder_of(output)).write(PurePosixPath(output).name, stream.getvalue())
    return len(rows)


def _require_place(output: str) -> None:
    if not output.lower().endswith((".parquet", ".pq")):
        raise InputError(f"--output {output}: a sweep is written as Parquet; name a file that ends in .parquet")
    try:
        with open_input(output) as stream:
            metadata = pq.read_schema(stream).metadata or {}
    except StoreError:
        return  # there is none yet
    except (pa.ArrowException, OSError):
        metadata = {}
    if _SOURCE not in metadata:
        raise InputError(f"--output {output}: there is a file that no sweep made; name another, or move it away")


def _anchor(row: dict[str, Any], folder: str) -> None:
    """Name what lies in a folder so that it is found from elsewhere."""
    for name, cell in row.items():
        kind = COLUMNS[name].kind if name in COLUMNS else None
        if kind is Kind.ADAPTER:
            row[name] = anchored(cell, folder)
        elif kind is Kind.IMAGE:
            row[name] = [join(folder, one) for one in cell] if isinstance(cell, list) else join(folder, cell)


def _column(cells: Sequence[Any]) -> pa.Array:
    """Cells as a column: lists and tables as JSON, whole numbers and others together as floats, mixed types as text."""
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds & {list, dict}:
        return pa.array([cell if cell is None or isinstance(cell, str) else json.dumps(cell) for cell in cells])
    if kinds == {int, float}:
        return pa.array(cells, pa.float64())
    if len(kinds) > 1:
        return pa.array(
            [cell if cell is None or isinstance(cell, str) else json.dumps(cell, default=str) for cell in cells]
        )
    return pa.array(cells)
