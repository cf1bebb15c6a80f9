"""From a sweep to a manifest of its own: the rows that the axes stand for, written as Parquet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.errors import InputError, ManifestProblems
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.manifest.files import folder_of, read_sweep_file, records
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.sweep import axis_lines, count_cells
from batchgen.manifest.writer import require_place_for, write_rows
from batchgen.models.adapters import anchored
from batchgen.places import join

__all__ = ["SweepSummary", "read_summary", "write_manifest"]


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
    try:
        sweep = read_sweep_file(source)
    except InputError as error:
        raise InputError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from error
    return SweepSummary(cells=count_cells(sweep), axes=axis_lines(sweep))


def write_manifest(source: str, output: str) -> int:
    """Write the rows of a sweep as a Parquet manifest; returns how many.

    Relative images and adapters are named from the sweep's folder, and in a manifest elsewhere by absolute paths.

    Args:
        source: a TOML file with the table [sweep].
        output: URI of the manifest, ending in `.parquet`. One that was compiled before is replaced.

    Raises:
        InputError: the output is no Parquet file, or there is one that was made otherwise.
        ManifestProblems: the sweep's rows cannot be made.
        StoreError: a file cannot be read or written.
    """
    require_place_for(output)
    problems = ProblemLog()
    rows = [dict(record.cells) for record in records(source, problems)]
    if problems.total:
        raise ManifestProblems(problems)
    if folder_of(source) != folder_of(output):
        for row in rows:
            _anchor(row, folder_of(source))
    write_rows(rows, output, source)
    return len(rows)


def _anchor(row: dict[str, Any], folder: str) -> None:
    """Name what lies in a folder so that it is found from elsewhere."""
    for name, cell in row.items():
        kind = COLUMNS[name].kind if name in COLUMNS else None
        if kind is Kind.ADAPTER:
            row[name] = anchored(cell, folder)
        elif kind is Kind.IMAGE:
            row[name] = [join(folder, one) for one in cell] if isinstance(cell, list) else join(folder, cell)
