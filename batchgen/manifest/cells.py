"""Sorts a record's cells into known columns, parsed, and carried ones. Knows names and types, not their meaning."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from batchgen.errors import CellError, InputError
from batchgen.identity import canonical
from batchgen.inputs import Inputs
from batchgen.manifest.arrow import ArrowCell, Oversized, common_type
from batchgen.manifest.columns import COLUMNS, RESERVED
from batchgen.manifest.files import Record, column_types
from batchgen.manifest.names import describes_another, find_column, fold, is_sampler, is_schedule, remark, suggest
from batchgen.manifest.problems import Problem, ProblemLog
from batchgen.manifest.strict_json import without_nan
from batchgen.manifest.values import parse_cell, scheduled

__all__ = ["CellSorter", "Parsed", "carried_cell", "missing_prompt"]

_ARROW = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """A record whose known cells are in their columns' types, by canonical name, and whose other cells are carried.

    `spoiled` names the columns whose cell did not fit and is left out: the row cannot be made, but what else is wrong
    with it can still be found.
    """

    record: Record
    cells: Mapping[str, Any]
    carried: Mapping[str, Any]
    spoiled: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meaning:
    """What a column name of a file stands for: a column of the contract, a part of one, nothing known or allowed."""

    column: str | None = None
    refused: bool = False
    schedule: bool = False  # noise levels for the sampler that another column names


class CellSorter:
    """Reads names once a file, and remembers what types the carried columns had."""

    def __init__(self, problems: ProblemLog, inputs: Inputs | None = None) -> None:
        self._inputs = inputs or Inputs()
        self._crowded: set[str] = set()  # files with more columns than a manifest may have
        self.doubts: dict[str, Problem] = {}  # by line: columns that may have been meant otherwise than they are read
        self._problems = problems
        self._meanings: dict[tuple[str, str], _Meaning] = {}
        self._carried: set[str] = set()
        self._kinds: dict[str, set[type]] = {}  # of the cells of JSONL, which declares no types
        self.mixed: set[str] = set()  # carried columns that files store in several ways, known with their types

    def parse(self, record: Record) -> Parsed:
        """The record's cells sorted and parsed; those that do not fit become problems."""
        if len(record.columns) > self._inputs.columns or len(self._carried) > self._inputs.columns:
            return self._too_many(record)
        cells: dict[str, Any] = {}
        carried: dict[str, Any] = {}
        spoiled: set[str] = set()
        schedule: tuple[str, Any] | None = None  # the name of its column, and its cell
        for name, cell in record.cells.items():
            if isinstance(cell, Oversized):
                self._problems.add(
                    record.file, record.number, name, f"has {cell.length:,} bytes, which no cell may have"
                )
                spoiled.add(find_column(name) or name)
                continue
            meaning = self._meanings.get((record.file, name)) or self._meaning(record, name)
            if meaning.refused:
                spoiled.add(meaning.column or name)
            elif meaning.column is None:
                if isinstance(cell, (str, bytes)) and len(cell) > self._inputs.carried_mib << 20:
                    long = f"is longer than {self._inputs.carried_mib} MiB, which [inputs] carried_mib of a job raises"
                    self._problems.add(record.file, record.number, name, long)
                    spoiled.add(name)
                    continue
                carried[name] = cell if record.declared else without_nan(cell)
                self._carried.add(name)
                if not record.declared:
                    self._kinds.setdefault(name, set()).add(_kind(cell))
            elif _stands_for_null(cell):
                continue
            elif meaning.schedule:
                schedule = name, cell
            else:
                try:
                    self._require_short(cell)
                    said = record.partitions.get(name)
                    from_text = record.from_text or said is not None
                    given = cell if said is None else said
                    cells[meaning.column] = parse_cell(
                        COLUMNS[meaning.column], given, from_text=from_text, declared=record.declared
                    )
                except CellError as error:
                    self._problems.add(record.file, record.number, name, str(error))
                    spoiled.add(meaning.column)
        if schedule is not None and "scheduler" not in spoiled:
            try:
                cells["scheduler"] = scheduled(cells.get("scheduler"), schedule[1])
            except CellError as error:
                self._problems.add(record.file, record.number, schedule[0], str(error))
                spoiled.add("scheduler")
        return Parsed(record=record, cells=cells, carried=carried, spoiled=frozenset(spoiled))

    def _require_short(self, cell: Any) -> None:
        """Make sure that text is no longer than the job bears.

        Raises:
            CellError: it is.
        """
        most = self._inputs.prompt_characters
        for text in cell if isinstance(cell, list) else (cell,):
            if isinstance(text, str) and len(text) > most:
                raise CellError(
                    f"has {len(text):,} characters; at most {most:,}, which [inputs] prompt_characters of a job raises"
                )

    def _too_many(self, record: Record) -> Parsed:
        """A record of a file whose columns are not looked at; its file is named once."""
        if record.file not in self._crowded:
            self._crowded.add(record.file)
            count = max(len(record.columns), len(self._carried))
            said = f"has {count:,} columns; at most {self._inputs.columns:,}, which [inputs] columns of a job raises"
            self._problems.add(record.file, None, None, said)
        return Parsed(record=record, cells={}, carried={}, spoiled=frozenset({"prompt"}))

    def carried_types(self, files: list[str]) -> dict[str, pa.DataType]:
        """Arrow types of the carried columns: what Parquet says, text for CSV, what was seen for JSONL.

        A JSONL column of mixed types, of lists or of objects becomes JSON text; one that is null everywhere, text.
        """
        types, mixed = column_types(files)
        declared = {
            name: pa.string() if pa.types.is_null(kind) else kind
            for name, kind in types.items()
            if name not in RESERVED and (find_column(name) is None or name in self._carried)
        }
        for name, kind in declared.items():
            seen = _seen_type(self._kinds[name]) if name in self._kinds else kind
            common = common_type(kind, seen)
            if common is None and pa.types.is_string(kind) and name in mixed:
                common = kind  # what folders spell, and is a number in some of them
            if common is None:
                raise InputError(
                    f"manifest column {name!r} is {kind} in one file and {seen} in JSONL; write it with one type"
                )
            if common != seen:
                mixed.add(name)
            declared[name] = common
        self.mixed = mixed & declared.keys()
        return declared | {
            name: _seen_type(kinds) for name, kinds in sorted(self._kinds.items()) if name not in declared
        }

    def spelling(self, record: Record, column: str) -> str:
        """The name under which the record's file has a column of the contract."""
        return next(
            (name for name in record.cells if find_column(name) == column and column not in record.cells), column
        )

    def _meaning(self, record: Record, name: str) -> _Meaning:
        meaning = self._classify(record, name)
        self._meanings[record.file, name] = meaning
        return meaning

    def _classify(self, record: Record, name: str) -> _Meaning:
        if is_schedule(name) and any(is_sampler(other) for other in record.columns):
            self._doubt(record, name, "is read as the noise schedule of the samplers beside it")
            return _Meaning(column="scheduler", schedule=True)
        if name in COLUMNS:
            return _Meaning(column=name)
        if name in RESERVED:
            self._problems.add(record.file, None, name, "is the name of a result column; rename it")
            return _Meaning(refused=True)
        if describes_another(name, record.columns):
            self._doubt(record, name, "is carried along; it describes the image that the table has a URL of")
            return _Meaning()
        if (column := find_column(name)) is not None:
            return self._classify_other_name(record, name, column)
        if near := suggest(name):
            self._doubt(record, name, f"is unknown and carried along; did you mean {near!r}?")
        elif said := remark(name):
            self._doubt(record, name, f"is unknown and carried along; {said}")
        return _Meaning()

    def _classify_other_name(self, record: Record, name: str, column: str) -> _Meaning:
        rivals = [n for n in record.columns if n != name and find_column(n) == column and not is_schedule(n)]
        if not rivals:
            said = remark(name)
            self._doubt(record, name, f"is read as {column!r}{f', {said}' if said else ''}")
            return _Meaning(column=column)
        text_of_its_own = column == "prompt" and "prompt" in rivals  # beside the prompt, as datasets have captions
        another_tools = find_column(name, own=True) is None and any(find_column(n, own=True) for n in rivals)
        if text_of_its_own or another_tools:
            self._doubt(record, name, f"is carried along, since there is a column {rivals[0]!r}")
            return _Meaning()
        self._problems.add(
            record.file, None, name, f"means {column!r}, and so does {rivals[0]!r}; rename or drop one of them"
        )
        return _Meaning(column=column, refused=True)

    def _doubt(self, record: Record, name: str, said: str) -> None:
        doubt = Problem(file=record.file, row=None, column=name, message=said)
        self.doubts.setdefault(f"column {name!r} {said}", doubt)


def _stands_for_null(cell: Any) -> bool:
    """NaN, as pandas writes a missing number, or a struct of nulls, as an image column holds where a row has none."""
    if isinstance(cell, dict):
        return bool(cell) and all(value is None for value in cell.values())
    return isinstance(cell, float) and cell != cell


def missing_prompt(record: Record) -> str:
    """What to say of a record without a prompt."""
    if any(find_column(name) == "prompt" for name in record.columns):
        return "is null; write a prompt, or set one in the job's [defaults]"
    names = {fold(name): name for name in record.columns}
    folded = {one: name for one, name in names.items() if not one.endswith(("id", "url", "key")) and one[:2] != "id"}
    near = get_close_matches("prompt", folded, n=1, cutoff=0.5)
    near = near or [one for one in folded if any(word in one for word in ("prompt", "caption", "text", "description"))]
    hint = f"rename {folded[near[0]]!r}" if near else f"the file has {_listed(record.columns)}"
    return f"is missing; {hint}"


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


class _WideInteger:
    """What a whole number is that no float holds."""


def _kind(cell: Any) -> type:
    if type(cell) is not int or abs(cell) <= 2**53:
        return type(cell)
    return _WideInteger if -(2**63) <= cell < 2**63 else object  # Arrow's widest integer


def _seen_type(kinds: set[type]) -> pa.DataType:
    if kinds == {int, float}:
        return pa.float64()
    if kinds <= {int, _WideInteger}:
        return pa.int64()
    return _ARROW.get(next(iter(kinds)), pa.string()) if len(kinds) == 1 else pa.string()


def carried_cell(cell: Any, kind: pa.DataType) -> Any:
    """A carried cell as its column's type takes it: JSON text where lists, objects or mixed types became text.

    NaN, by which pandas marks a gap, is null where the column turned out to be none of floats.
    """
    if isinstance(cell, float) and cell != cell and not pa.types.is_floating(kind):
        return None
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if is_text and cell is not None and not isinstance(cell, (str, ArrowCell)):
        return canonical(cell)
    return cell
