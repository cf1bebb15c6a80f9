"""Reading manifests: Parquet, text tables, lists, JSON and sweeps, a file, folder or glob, streamed record by record.

Knows nothing of what a column means beyond its name; at most one record batch is in memory.
"""

import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import InputError, StoreError, TextError
from batchgen.manifest.arrow import bounded_rows, common_type, depth, is_text
from batchgen.manifest.documents import json_records
from batchgen.manifest.partitions import partition_notice, partitions_of, typed, with_partitions
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.record import Notice, Record, no_notice, without_nulls
from batchgen.manifest.strict_json import DEEPEST
from batchgen.manifest.sweep import Sweep, parse_sweep, sweep_records
from batchgen.manifest.tables import header_of, is_table, line_records, table_records
from batchgen.manifest.text import TextFile, refuse_others
from batchgen.places import is_remote, local_path, without_query
from batchgen.reading import expand, open_input

__all__ = [
    "FORMATS",
    "Record",
    "column_types",
    "embedded_bytes",
    "folder_of",
    "is_sweep",
    "manifest_files",
    "records",
]

_PARQUET = (".parquet", ".pq")
_TABLES = {".csv": ",", ".tsv": "\t", ".tab": "\t"}  # with the usual separator of each
_LINES = (".jsonl", ".ndjson")
_SWEEP = ".toml"  # never one of a folder's manifests: jobs have that ending
_LOOSE = (".txt", ".json")  # in a folder that holds tables, rather notes and settings
_PACKED = (".gz", ".bz2", ".xz", ".zst")

FORMATS = (*_PARQUET, *_TABLES, *_LINES, *_LOOSE)
"""Endings of a manifest's name; those of text may be followed by that of a compression."""

_OF_TEXT = tuple(kind for kind in FORMATS if kind not in _PARQUET)
_SUFFIXES = (*FORMATS, *(kind + packed for kind in _OF_TEXT for packed in _PACKED))
_BESIDE = ("/_temporary/", "/_delta_log/", "/_spark_metadata/")  # what Spark and Delta Lake keep beside a table
_NOTES = ("readme", "license", "licence", "requirements", "notes", "dataset_info", "package", "config")
_LOOKED_AT = 1000  # columns and row groups whose sizes are looked at
_UNPACKED, _RATIO = 64 << 20, 1000  # bytes of a column in a row group, over what it takes packed: no table has both
_BATCH_ROWS = 1024  # of plain columns: a few hundred KiB
_IMAGE_BATCH_ROWS = 16  # with embedded images of a MiB each this stays in the tens of MiB


def manifest_files(uri: str, notice: Notice = no_notice) -> list[str]:
    """The files of a manifest, in the order they are read.

    Text lists and JSON documents of a folder count where it holds no tables; `notice` is told of those passed over, and
    of columns that folders name.

    Raises:
        InputError: nothing there, or a file of another kind.
    """
    try:
        found = expand(uri, _SUFFIXES)
    except StoreError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            raise
        raise InputError(f"manifest {error}") from error
    if not found:
        raise InputError(f"manifest {uri}: nothing there; give a {_listed()} file, a folder or a glob")
    for file in found:
        name = without_query(file).lower()
        if not name.endswith((*_SUFFIXES, _SWEEP)):
            raise InputError(f"manifest {file}: {_refusal(name)}")
        if not is_remote(file):
            local_path(file)  # whose names can be written down
    if not any(mark in uri for mark in "*?[") and PurePosixPath(found[0]).name != PurePosixPath(uri).name:
        found = _of_folder(uri, found, notice)
    if (line := partition_notice(found)) is not None:
        notice(line)
    return found


def _of_folder(uri: str, found: list[str], notice: Notice) -> list[str]:
    found = [file for file in found if not any(folder in file for folder in _BESIDE)]
    tables = [file for file in found if not _is_loose(file)]
    kept = tables or [file for file in found if not PurePosixPath(file).name.lower().startswith(_NOTES)]
    if passed := [PurePosixPath(file).name for file in found if file not in set(kept)]:
        shown = ", ".join(passed[:3]) + (", ..." if len(passed) > 3 else "")
        notice(f"{uri}: {shown} passed over; name a text or JSON file itself, or by a glob, to have it read")
    if not kept:
        raise InputError(f"manifest {uri}: nothing there but notes; give a {_listed()} file, a folder or a glob")
    return kept


def _listed() -> str:
    return ", ".join(FORMATS)


def _refusal(name: str) -> str:
    if name.endswith(tuple(kind + packed for kind in _PARQUET for packed in _PACKED)):
        return "unpack it; Parquet is compressed within"
    if name.endswith((".xlsx", ".xls", ".ods")):
        return f"save the sheet as CSV in UTF-8; a manifest is one of {_listed()}"
    if name.endswith((".zip", ".tar", ".tgz", ".7z", ".rar")):
        return f"unpack it; a manifest is one of {_listed()}, the text ones also with {', '.join(_PACKED)}"
    if name.endswith(_PACKED):
        return f"name it by what is in it, such as {PurePosixPath(name).stem}.csv{PurePosixPath(name).suffix}"
    return f"not one of {_listed()}"


def _kind(file: str) -> str:
    """The ending of a file's name that says its format, without that of a compression."""
    name = without_query(file).lower()
    packed = next((ending for ending in _PACKED if name.endswith(ending)), "")
    name = name.removesuffix(packed)
    return next(kind for kind in (*FORMATS, _SWEEP) if name.endswith(kind))


def _is_loose(file: str) -> bool:
    return _kind(file) in _LOOSE


def is_sweep(file: str) -> bool:
    """Whether a file of rows is a job's or a sweep's, and no table."""
    return file.lower().endswith(_SWEEP)


def folder_of(file: str) -> str:
    """The folder that relative image URIs of a manifest file start from."""
    return without_query(file).rpartition("/")[0] if is_remote(file) else str(PurePosixPath(file).parent)


def records(
    file: str, problems: ProblemLog, notice: Notice = no_notice, beside: Callable[[str], object] = no_notice
) -> Iterator[Record]:
    """The rows of one manifest file in order; what cannot be read goes to `problems`, with its place.

    Args:
        file: its URI.
        problems: what is wrong with it.
        notice: takes lines that are worth reading.
        beside: takes the other files that the rows are read from: wildcards and lists of a sweep.
    """
    what = "Parquet" if _kind(file) in _PARQUET else "text"
    try:
        with open_input(file) as stream:
            if what == "Parquet":
                rows = _parquet_records(file, stream, problems)
            elif _kind(file) == _SWEEP:
                sweep = _sweep_in(file, stream)
                for other in sweep.read:
                    beside(other)
                rows = sweep_records(file, sweep, problems)
            else:
                rows = _text_records(file, stream, problems, notice)
            yield from with_partitions(rows, partitions_of(file), problems)
    except TextError as error:
        problems.add(file, None, None, str(error))
    except InputError as error:  # of a sweep, all that is wrong with it at once
        for line in str(error).splitlines():
            problems.add(file, None, None, line.removeprefix(f"{file} "))
    except (EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
        problems.add(file, None, None, f"is damaged or cut off: {error}")
    except pa.ArrowException as error:
        problems.add(file, None, None, f"is not readable as {what}: {str(error).splitlines()[0]}")
    except OSError as error:
        if error.errno is not None:  # the store's; pyarrow's own, for damaged pages, has none
            raise StoreError(f"{file}: {error.strerror or error}") from error
        problems.add(file, None, None, f"is damaged: {str(error).splitlines()[0]}")


def read_sweep_file(file: str) -> Sweep:
    """The sweep of a TOML file.

    Raises:
        InputError: it has none, or something is wrong with it; a line for each thing.
    """
    with open_input(file) as stream:
        return _sweep_in(file, stream)


def _sweep_in(file: str, stream: IO[bytes]) -> Sweep:
    try:
        text = stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8: {error}") from error
    return parse_sweep(text, folder_of(file), _column)


def _column(file: str, column: str) -> list[Any]:
    """The cells of a column of a table, those that are null left out.

    Raises:
        InputError: the file cannot be read as a table, or has no such column.
    """
    if file.lower().endswith(_SWEEP) or not file.lower().endswith(_SUFFIXES):
        raise InputError(f"{file}: {_refusal(file.lower())}")
    problems, known, cells = ProblemLog(), set[str](), []
    try:
        for record in records(file, problems):
            known |= record.columns
            cells += [cell for name, cell in record.cells.items() if name == column]
    except StoreError as error:
        raise InputError(str(error)) from error
    if problems.total:
        raise InputError("; ".join(problems.lines()))
    if known and column not in known:
        raise InputError(f"{file} has no column {column!r}; it has {', '.join(sorted(known))}")
    return cells


def _text_records(file: str, stream: IO[bytes], problems: ProblemLog, notice: Notice) -> Iterator[Record]:
    text = TextFile(file, stream, notice)
    try:
        match _form(text):
            case "json":
                yield from json_records(text, problems)
            case "\n":
                yield from line_records(text, problems)
            case delimiter:
                yield from table_records(text, delimiter, problems)
    except UnicodeDecodeError as error:
        where = text.undecodable()
        wrong = f"is not UTF-8: {where}" if where else f"is not {text.encoding.upper()} ({error.reason})"
        problems.add(file, None, None, f"{wrong}; save it as UTF-8")


def _form(text: TextFile) -> str:
    """How a text file holds its rows: `json`, or what separates cells, a line's end where there is one a line."""
    kind = _kind(text.file)
    if kind in (*_LINES, ".json"):
        return "json"
    if kind == ".txt":
        if is_table(text):
            text.notice(f"{text.file} is read as a table, with tabs between its columns")
            return "\t"
        return "\n"
    return _TABLES[kind]


def _parquet_records(file: str, stream: IO[bytes], problems: ProblemLog) -> Iterator[Record]:
    if (head := stream.read(64)) and not head.startswith(b"PAR1"):
        refuse_others(head)
    stream.seek(0)
    parquet = pq.ParquetFile(stream, pre_buffer=False)  # reading ahead would hold whole row groups
    names = parquet.schema_arrow.names
    for name in {name for name, count in Counter(names).items() if count > 1}:
        problems.add(file, None, name, "appears twice; rename one of the two columns")
        return
    _require_bounds(parquet)
    batch_rows = _IMAGE_BATCH_ROWS if any(map(_holds_bytes, parquet.schema_arrow)) else _BATCH_ROWS
    columns = frozenset(names)
    # texts as what is said and who says it: a file of a KiB may say the same 30 MB a thousand times
    once = [field.name for field in parquet.schema_arrow if is_text(field.type)]
    parquet = pq.ParquetFile(stream, pre_buffer=False, read_dictionary=once)
    number = 0
    for batch in parquet.iter_batches(batch_size=batch_rows, use_threads=False):
        for cells in bounded_rows(batch):
            number += 1
            yield Record(file=file, number=number, cells=without_nulls(cells), columns=columns, from_text=False)


def _require_bounds(parquet: pq.ParquetFile) -> None:
    """Look at what a file says of itself before its pages are unpacked.

    Raises:
        TextError: types that are nested beyond all use, or pages that unpack into many times their size.
    """
    for column in parquet.schema_arrow:
        if depth(column.type) > DEEPEST:
            raise TextError(f"has a column {column.name!r} whose type is nested more than {DEEPEST} deep")
    about = parquet.metadata
    for place in range(about.num_columns if about.num_columns <= _LOOKED_AT else 0):
        for group in range(min(about.num_row_groups, _LOOKED_AT)):
            chunk = about.row_group(group).column(place)
            packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
            if unpacked > _UNPACKED and unpacked > _RATIO * packed:
                name = chunk.path_in_schema
                raise TextError(f"has a column {name!r} that unpacks from {packed:,} to {unpacked:,} bytes")


def _holds_bytes(column: pa.Field) -> bool:
    kinds = [field.type for field in column.type] if pa.types.is_struct(column.type) else [column.type]
    return any(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) for kind in kinds)


def column_types(files: list[str]) -> tuple[dict[str, pa.DataType], set[str]]:
    """Arrow types of the columns that the files, but for JSON, or their folders declare; text tables hold text only.

    Returns:
        Types by name, and the columns that files declare with types that differ in storage.

    Raises:
        InputError: two files give one column types of two kinds.
    """
    types: dict[str, _Declared] = {}
    by_folders: set[str] = set()
    for file in files:
        said = partitions_of(file)
        by_folders |= said.keys()
        for name, kind in (_said_types(said) | _schema(file)).items():
            known = types.setdefault(name, _Declared(kind=pa.null()))
            if (common := common_type(known.kind, kind)) is None:
                common = pa.string() if name in by_folders else _where_filled(name, known, kind, file)
            known.mixed |= common != kind or not (common == known.kind or pa.types.is_null(known.kind))
            known.kind = common
            known.files.append(file)
    return {name: known.kind for name, known in types.items()}, {name for name, known in types.items() if known.mixed}


@dataclass(kw_only=True, slots=True)
class _Declared:
    """The type of a column so far, and the files that have it."""

    kind: pa.DataType
    mixed: bool = False
    files: list[str] = field(default_factory=list)


def _where_filled(name: str, known: _Declared, kind: pa.DataType, file: str) -> pa.DataType:
    """The type of those files in which the column has a cell; pandas writes texts that are all missing as numbers.

    Raises:
        InputError: it has cells of both types.
    """
    if _is_null(file, name):
        return known.kind
    if all(_is_null(one, name) for one in known.files):
        return kind
    raise InputError(
        f"manifest column {name!r} is {known.kind} in {known.files[0]} but {kind} in {file}; write it with one type"
    )


def _is_null(file: str, column: str) -> bool:
    """Whether a Parquet file has no cell in a column; NaN is none."""
    if _kind(file) not in _PARQUET:
        return False
    with open_input(file) as stream:
        batches = pq.ParquetFile(stream, pre_buffer=False).iter_batches(_BATCH_ROWS, columns=[column])
        return all(batch.column(0).is_null(nan_is_null=True).true_count == len(batch) for batch in batches)


def _said_types(said: dict[str, str | None]) -> dict[str, pa.DataType]:
    kinds = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    return {name: pa.null() if text is None else kinds[type(typed(text))] for name, text in said.items()}


def _schema(file: str) -> dict[str, pa.DataType]:
    if _kind(file) in _PARQUET:
        with open_input(file) as stream:
            parquet = pq.ParquetFile(stream, pre_buffer=False)
            rows = parquet.metadata.num_rows  # a part without any has types that nobody thought of
            return {column.name: column.type for column in parquet.schema_arrow} if rows else {}
    if _kind(file) in (*_LINES, ".json", _SWEEP):
        return {}
    with open_input(file) as stream:
        text = TextFile(file, stream)
        return dict.fromkeys(header_of(text, _form(text)), pa.string())


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
        parquet = pq.ParquetFile(stream, pre_buffer=False)
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
