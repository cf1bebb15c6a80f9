"""Columns that folders name, as Hive and Spark write them: `split=train/guidance_scale=3/part-0.parquet`."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from batchgen.errors import InputError
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.record import Record

__all__ = ["partition_notice", "partitions_of", "typed", "with_partitions"]

_FOLDER = re.compile(r"([A-Za-z_][^=]*)=(.*)")
_NULL = "__HIVE_DEFAULT_PARTITION__"


def partitions_of(file: str) -> dict[str, str | None]:
    """What the folders right above a file say, outermost first; None for a null.

    All of them count, also those above the folder that a user names: a file is the same table from wherever it is read.

    Raises:
        InputError: two of them name one column.
    """
    found: list[tuple[str, str | None]] = []
    for folder in reversed(file.split("/")[:-1]):
        said = _FOLDER.fullmatch(folder)
        if said is None:
            break
        value = unquote(said[2])
        found.append((unquote(said[1]), None if value == _NULL else value))
    names = [name for name, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"manifest {file}: two of its folders name the column {twice!r}; rename one of them")
    return dict(reversed(found))


def typed(text: str) -> int | float | str:
    """A folder's value as the number that it spells, where a number is spelt in just that way."""
    if re.fullmatch(r"-?\d{1,18}", text) and str(int(text)) == text:
        return int(text)
    if re.fullmatch(r"-?\d+\.\d+", text) and repr(float(text)) == text:
        return float(text)
    return text


def with_partitions(
    records: Iterable[Record], said: Mapping[str, str | None], problems: ProblemLog
) -> Iterator[Record]:
    """The records with the columns that their file's folders name."""
    if not said:
        yield from records
        return
    values = {name: text for name, text in said.items() if text is not None}
    for record in records:
        own = said.keys() & record.columns
        for name in own:
            cell = record.cells.get(name)
            if not _is_said(cell, said[name]):
                folder = f"{name}={said[name] if said[name] is not None else _NULL}"
                problems.add(
                    record.file, record.number, name, f"is {cell!r} in a folder {folder!r}; move the row, or rename one"
                )
        added = {name: text for name, text in values.items() if name not in own}
        yield replace(
            record,
            cells={**record.cells, **{name: typed(text) for name, text in added.items()}},
            columns=record.columns | said.keys(),
            partitions=added,
        )


def _is_said(cell: Any, text: str | None) -> bool:
    if cell is None or text is None:
        return cell is None and text is None
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        try:
            return float(text) == cell
        except ValueError:
            return False
    return str(cell).lower() == text.lower() if isinstance(cell, bool) else str(cell) == text


def partition_notice(files: Sequence[str]) -> str | None:
    """What is worth saying of the columns that the files' folders name; None where they name none."""
    names: dict[str, None] = {}
    for file in files:
        names.update(dict.fromkeys(partitions_of(file)))
    if not names:
        return None
    plural = "s" * (len(names) > 1)
    return f"column{plural} {', '.join(map(repr, names))} {'are' if plural else 'is'} read from the names of folders"
