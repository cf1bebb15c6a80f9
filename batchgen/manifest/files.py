"""Reading manifests: Parquet, CSV and JSONL, a file, folder or glob, streamed record by record.

Knows nothing of what a column means beyond its name; at most one record batch is in memory.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import InputError, StoreError
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.strict_json import parse_json
from batchgen.storage import expand, is_remote, open_input

__all__ = ["Record", "column_types", "embedded_bytes", "folder_of", "manifest_files", "records"]

SUFFIXES = (".parquet", ".pq", ".csv", ".jsonl", ".ndjson")
_BATCH_ROWS = 1024  # of plain columns: a few hundred KiB
_IMAGE_BATCH_ROWS = 16  # with embedded images of a MiB each this stays in the tens of MiB

csv.field_size_limit(1 << 24)  # bytes; prompts longer than Python's default of 128 KiB exist


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row as the file has it; cells that are null are left out."""

    file: str
    number: int  # 1-based, header not counted
    cells: Mapping[str, Any]
    columns: frozenset[str]  # names of all columns of the file (JSONL: of this line), null here or not
    from_text: bool  # the format has no types of its own
    declared: bool = True  # the file says which columns it has


def manifest_files(uri: str) -> list[str]:
    """The files of a manifest, in the order they are read.

    Raises:
        InputError: nothing there, or a file of another kind.
    """
    try:
        found = expand(uri, SUFFIXES)
    except StoreError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            raise
        raise InputError(f"manifest {error}") from error
    if not found:
        raise InputError(f"manifest {uri}: nothing there; give a {', '.join(SUFFIXES)} file, a folder or a glob")
    for file in found:
        if not file.lower().endswith(SUFFIXES):
            raise InputError(f"manifest {file}: not one of {', '.join(SUFFIXES)}")
    return found


def folder_of(file: str) -> str:
    """The folder that relative image URIs of a manifest file start from."""
    if is_remote(file):
        protocol, _, path = file.partition("://")
        return f"{protocol}://{PurePosixPath(path).parent}"
    return str(PurePosixPath(file).parent)


def records(file: str, problems: ProblemLog) -> Iterator[Record]:
    """The rows of one manifest file in order; what cannot be read goes to `problems`, with its place."""
    try:
        with open_input(file) as stream:
            if file.lower().endswith((".parquet", ".pq")):
                yield from _parquet_records(file, stream, problems)
            elif file.lower().endswith(".csv"):
                yield from _csv_records(file, stream, problems)
            else:
                yield from _json_records(file, stream, problems)
    except pa.ArrowException as error:
        problems.add(file, None, None, f"is not readable as Parquet: {str(error).splitlines()[0]}")
    except OSError as error:
        if error.errno is not None:  # the store's; pyarrow's own, for damaged pages, has none
            raise StoreError(f"{file}: {error.strerror or error}") from error
        problems.add(file, None, None, f"is damaged: {str(error).splitlines()[0]}")
    except UnicodeDecodeError as error:
        problems.add(file, None, None, f"is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8")


def _parquet_records(file: str, stream: IO[bytes], problems: ProblemLog) -> Iterator[Record]:
    parquet = pq.ParquetFile(stream, pre_buffer=False)  # reading ahead would hold whole row groups
    names = parquet.schema_arrow.names
    for name in {name for name in names if names.count(name) > 1}:
        problems.add(file, None, name, "appears twice; rename one of the two columns")
        return
    batch_rows = _IMAGE_BATCH_ROWS if any(map(_holds_bytes, parquet.schema_arrow)) else _BATCH_ROWS
    columns = frozenset(names)
    number = 0
    for batch in parquet.iter_batches(batch_size=batch_rows, use_threads=False):
        for cells in batch.to_pylist():
            number += 1
            yield Record(file=file, number=number, cells=_without_nulls(cells), columns=columns, from_text=False)


def _holds_bytes(column: pa.Field) -> bool:
    kinds = [field.type for field in column.type] if pa.types.is_struct(column.type) else [column.type]
    return any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds)


def _without_nulls(cells: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell for name, cell in cells.items() if cell is not None}


def _csv_records(file: str, stream: IO[bytes], problems: ProblemLog) -> Iterator[Record]:
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
    number = 0
    try:
        header = next(reader, [])
        if not header:
            problems.add(file, None, None, "is empty; a table without rows still has a header")
            return
        for name in {name for name in header if header.count(name) > 1}:
            problems.add(file, None, name, "appears twice in the header; rename one of the two columns")
            return
        columns = frozenset(header)
        for cells in reader:
            if not cells:
                continue  # a blank line
            number += 1
            if len(cells) != len(header):
                problems.add(file, number, None, f"has {len(cells)} cells where the header has {len(header)}")
                continue
            filled = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
            yield Record(file=file, number=number, cells=filled, columns=columns, from_text=True)
    except csv.Error as error:
        problems.add(file, number + 1, None, f"is not valid CSV near line {reader.line_num}: {error}")


def _json_records(file: str, stream: IO[bytes], problems: ProblemLog) -> Iterator[Record]:
    number = 0
    for line in io.TextIOWrapper(stream, encoding="utf-8-sig"):
        if not line.strip():
            continue
        number += 1
        try:
            cells = parse_json(line)
        except (ValueError, RecursionError) as error:
            problems.add(file, number, None, f"is not JSON: {error}")
            continue
        if not isinstance(cells, dict):
            problems.add(file, number, None, "is not a JSON object; write one {...} a line")
            continue
        if "\\ud" in line.lower() and (column := _broken_text(cells)) is not None:
            problems.add(file, number, column, "holds one half of a surrogate pair, which is no character; remove it")
            continue
        columns = frozenset(cells)
        yield Record(
            file=file, number=number, cells=_without_nulls(cells), columns=columns, from_text=False, declared=False
        )


def _broken_text(cells: Mapping[str, Any]) -> str | None:
    """The first column whose text cannot be written as UTF-8, which JSON escapes can spell."""
    for name, cell in cells.items():
        try:
            json.dumps([name, cell], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return name.encode("ascii", "backslashreplace").decode()
    return None


def column_types(files: list[str]) -> dict[str, pa.DataType]:
    """Arrow types of the columns of the Parquet and CSV files among `files`, by name; CSV holds text only.

    Raises:
        InputError: two files give one column different types.
    """
    types: dict[str, tuple[pa.DataType, str]] = {}
    for file in files:
        for name, kind in _schema(file).items():
            known, first = types.get(name, (pa.null(), file))
            if pa.types.is_null(known):
                types[name] = (kind, file)
            elif kind != known and not pa.types.is_null(kind):
                raise InputError(
                    f"manifest column {name!r} is {known} in {first} but {kind} in {file}; write it with one type"
                )
    return {name: kind for name, (kind, _) in types.items()}


def _schema(file: str) -> dict[str, pa.DataType]:
    if file.lower().endswith((".parquet", ".pq")):
        with open_input(file) as stream:
            return {column.name: column.type for column in pq.read_schema(stream)}
    if file.lower().endswith(".csv"):
        with open_input(file) as stream:
            header = next(csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")), [])
            return dict.fromkeys(header, pa.string())
    return {}


def embedded_bytes(file: str, column: str, numbers: Iterable[int]) -> dict[int, bytes]:
    """The bytes of images that a Parquet manifest holds in itself, by row number; each row group is read once.

    Args:
        file: the manifest file.
        column: its image column, a struct with `bytes` or plain binary.
        numbers: rows, counted from 1.
    """
    wanted = sorted(set(numbers))
    found: dict[int, bytes] = {}
    with open_input(file) as stream:
        parquet = pq.ParquetFile(stream)
        first = 1
        for group in range(parquet.num_row_groups):
            after = first + parquet.metadata.row_group(group).num_rows
            if any(first <= number < after for number in wanted):
                batches = parquet.iter_batches(_IMAGE_BATCH_ROWS, row_groups=[group], columns=[column])
                found |= _wanted_bytes(batches, first, set(wanted))
            first = after
    if missing := set(wanted) - found.keys():
        raise StoreError(f"{file} has no row {min(missing)}; did it change since the run began?")
    return found


def _wanted_bytes(batches: Iterator[pa.RecordBatch], first: int, wanted: set[int]) -> dict[int, bytes]:
    """The bytes of the wanted rows in a column's batches; `first` is the number of the first row."""
    found: dict[int, bytes] = {}
    for batch in batches:
        cells = batch.column(0)
        for number in wanted.intersection(range(first, first + len(cells))):
            cell = cells[number - first].as_py()
            found[number] = cell["bytes"] if isinstance(cell, dict) else cell
        first += len(cells)
    return found
