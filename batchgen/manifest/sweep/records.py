"""The rows of a sweep as records of the file that says it, a TOML file with the table [sweep]."""

import tomllib
from collections.abc import Iterator
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.record import Record
from batchgen.manifest.sweep.rows import sweep_rows
from batchgen.manifest.sweep.spec import ReadColumn, read_sweep
from batchgen.manifest.sweep.sweep import Sweep

__all__ = ["parse_sweep", "sweep_records"]


def parse_sweep(text: str, folder: str, read_column: ReadColumn) -> Sweep:
    """The sweep that a TOML file says.

    Args:
        text: of the file.
        folder: where its wildcards and files are looked for.
        read_column: reads a column of another table.

    Raises:
        InputError: it is no TOML, has no sweep, or something is wrong with that; a line for each thing.
    """
    try:
        table: Any = tomllib.loads(text).get("sweep")
    except tomllib.TOMLDecodeError as error:
        raise InputError(str(error)) from error
    except RecursionError:
        raise InputError("is nested too deeply") from None
    if not isinstance(table, dict):
        raise InputError("has no table [sweep]: nothing says which rows to make")
    return read_sweep(table, folder, read_column)


def sweep_records(file: str, sweep: Sweep, problems: ProblemLog) -> Iterator[Record]:
    """The rows of a sweep, in order; what is found wrong while they are made goes to `problems`."""
    try:
        for number, cells in enumerate(sweep_rows(sweep), 1):
            yield Record(
                file=file, number=number, cells=cells, columns=frozenset(cells), from_text=False, declared=False
            )
    except InputError as error:
        problems.add(file, None, None, str(error))
