"""A sweep as a file says it, [sweep] of a TOML file: read, checked, and all that is wrong told at once.

[sweep]                 samples, draw_seed, max_rows, variants, wildcards: how cells are made of the axes
[sweep.cells]           what every row has
[sweep.axes]            what rows differ in: every combination
[[sweep.zip]]           axes whose values go together, first with first
[[sweep.skip]]          cells that are left out: those that fit all that one of these tables says
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, RESERVED, Kind
from batchgen.manifest.names import find_column, suggest
from batchgen.manifest.sweep.axes import (
    Axis,
    ByParent,
    Distribution,
    Fresh,
    FromFile,
    Listed,
    Source,
    label,
    read_source,
)
from batchgen.manifest.sweep.conditions import Condition, read_condition
from batchgen.manifest.sweep.templates import Variant, Wildcards, parse_template
from batchgen.places import join

__all__ = ["PART", "Sweep", "column_or_part", "is_drawn", "part_of", "read_sweep", "written"]

MAX_ROWS = 100_000  # days of work on one GPU; more is asked for by `max_rows`
PART = re.compile(r"\$\{([^{}]*)\}")
_PROMPTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
_SETTINGS = ("samples", "draw_seed", "max_rows", "variants", "wildcards")
_TABLES = ("cells", "axes", "zip", "skip")
_FEWER = 'raise it, draw them (variants = "draw"), or draw a part of them, {~a|b}'

ReadColumn = Callable[[str, str], list[Any]]
"""The cells of a column of a table, by the table's URI and the column's name; raises InputError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What a sweep's rows are made of."""

    axes: tuple[Axis, ...]  # each after the one that its values depend on
    cells: Mapping[str, Any]  # by column; texts, with what is drawn in them as variants of templates
    skips: tuple[Mapping[str, Condition], ...] = ()  # by axis or column; a cell that fits all of one is left out
    samples: int | None = None  # cells that are drawn, each with all of its seeds; all are made where it is None
    draw_seed: int = 0
    max_rows: int = MAX_ROWS
    read: frozenset[str] = frozenset()  # files beside the sweep's own

    def axis(self, name: str) -> Axis:
        """The axis of a column or part."""
        return next(axis for axis in self.axes if name in axis.names)


def read_sweep(table: Mapping[str, Any], folder: str, read_column: ReadColumn) -> Sweep:
    """The sweep that the table [sweep] says.

    Args:
        table: as TOML gives it.
        folder: where its wildcards and files are looked for.
        read_column: reads a column of another table.

    Raises:
        InputError: something is wrong with it; a line for each thing.
    """
    reader = _Reader(table, folder, read_column)
    sweep = reader.sweep()
    if reader.wrong:
        raise InputError("\n".join(reader.wrong))
    return sweep


def is_drawn(sweep: Sweep, axis: Axis) -> bool:
    """Whether a cell takes one value of the axis by a draw, where others are taken in turn."""
    match axis.source:
        case Fresh():
            return False
        case Listed(_, weights) if weights is None:
            return sweep.samples is not None and axis.names != ("seed",)
        case ByParent(parent, sources):
            lists = all(isinstance(one, Listed) and one.weights is None for one in sources.values())
            return sweep.samples is not None or not lists or is_drawn(sweep, sweep.axis(parent))
        case _:
            return True


def written(value: Any) -> Any:
    """A value as it was written: a variant of a template as its text, with the source of what is drawn in it."""
    if isinstance(value, tuple):
        return "".join(piece if isinstance(piece, str) else piece.source for piece in value)
    return value


def column_or_part(name: str) -> str:
    """The column that a name of a sweep stands for, by its own names and aliases; a part keeps its name."""
    return find_column(name, own=True) or name


def part_of(value: Any, axis: Axis, name: str) -> Any:
    """What a value of an axis says for one of its names."""
    return value[name] if len(axis.names) > 1 else value


class _Reader:
    """Reads the parts of a sweep and collects what is wrong with them."""

    def __init__(self, table: Mapping[str, Any], folder: str, read_column: ReadColumn) -> None:
        self.wrong: list[str] = []
        self._table = table
        self._folder = folder
        self._read_column = read_column
        self._read: set[str] = set()
        for key in table:
            if key not in (*_SETTINGS, *_TABLES):
                self._refuse("[sweep]", f"takes no {key!r}{_meant(key, (*_SETTINGS, *_TABLES))}")
        self._samples = self._count("samples", None)
        self._max_rows = self._count("max_rows", MAX_ROWS) or MAX_ROWS
        self._draw_seed = self._count("draw_seed", 0, least=0) or 0
        variants = table.get("variants", "all")
        if variants not in ("all", "draw"):
            self._refuse("[sweep] variants", f"is {variants!r}; one of all, draw")
        wildcards = table.get("wildcards", ".")
        if not isinstance(wildcards, str):
            self._refuse("[sweep] wildcards", f"is {wildcards!r}; name a folder")
            wildcards = "."
        place = Path(folder) / Path(wildcards).expanduser()
        self._listing = Wildcards(place, drawn=variants == "draw" or self._samples is not None)
        self._drawing = Wildcards(place, drawn=True)  # of values that are drawn themselves

    def sweep(self) -> Sweep:
        axes = [*self._axes(), *self._zips()]
        cells: dict[str, Any] = {}
        for name, value in self._named("cells", self._table_of("cells")):
            if name not in COLUMNS:
                hint = _near(name) or "; what prompts refer to stands under [sweep.axes]"
                self._refuse(f"[sweep.cells] {name}", f"is no column{hint}")
                continue
            values = self._expanded(f"[sweep.cells] {name}", name, (value,), self._listing)
            if len(values) > 1:
                axes.append(Axis((name,), Listed(values)))
            elif values:
                cells[name] = values[0]
        axes = self._ordered(axes)
        if not self.wrong:  # names of what could not be read are not missing
            self._check_names(axes, cells)
        skips = tuple(self._skips(axes, cells))
        read = self._read | {str(file) for file in self._listing.read | self._drawing.read}
        return Sweep(
            axes=tuple(axes),
            cells=cells,
            skips=skips,
            samples=self._samples,
            draw_seed=self._draw_seed,
            max_rows=self._max_rows,
            read=frozenset(read),
        )

    def _refuse(self, place: str, message: str) -> None:
        self.wrong.append(
            f"{place} {message}" if message.startswith(("is ", "has ", "takes ")) else f"{place}: {message}"
        )

    def _count(self, name: str, default: int | None, least: int = 1) -> int | None:
        value = self._table.get(name, default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            self._refuse(f"[sweep] {name}", f"is {value!r}; give a whole number from {least} up")
            return default
        return value

    def _table_of(self, name: str) -> Mapping[str, Any]:
        table = self._table.get(name, {})
        if not isinstance(table, dict):
            self._refuse(f"[sweep] {name}", f"is {table!r}; write a table, [sweep.{name}]")
            return {}
        return table

    def _tables_of(self, name: str) -> list[Mapping[str, Any]]:
        tables = self._table.get(name, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) and table for table in tables):
            self._refuse(f"[sweep] {name}", f"is {tables!r}; write tables, [[sweep.{name}]]")
            return []
        return tables

    def _named(self, where: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """The entries of a table under the names of columns, and of parts of templates."""
        seen: set[str] = set()
        for key, value in table.items():
            name = column_or_part(key)
            if name in RESERVED:
                self._refuse(f"[sweep.{where}] {key}", "is the name of a result column")
            elif name in seen:
                self._refuse(
                    f"[sweep.{where}] {key}", f"is {name!r}, which stands there already, under this name or another"
                )
            else:
                seen.add(name)
                yield name, value

    def _axes(self) -> Iterator[Axis]:
        for name, spec in self._named("axes", self._table_of("axes")):
            if (source := self._source(f"[sweep.axes] {name}", name, spec)) is not None:
                yield Axis((name,), source)

    def _zips(self) -> Iterator[Axis]:
        for table in self._tables_of("zip"):
            lists: dict[str, tuple[Any, ...]] = {}
            for name, spec in self._named("zip", table):
                match self._source(f"[[sweep.zip]] {name}", name, spec, zipped=True):
                    case Listed(values, None):
                        lists[name] = values
                    case Listed() | Distribution() | Fresh() | ByParent():
                        self._refuse(f"[[sweep.zip]] {name}", "is drawn; axes that go together are lists or ranges")
            if len(sizes := {len(values) for values in lists.values()}) > 1:
                said = ", ".join(f"{name} {len(values)}" for name, values in lists.items())
                self._refuse("[[sweep.zip]]", f"has lists of different lengths: {said}")
            elif len(lists) == 1:
                self._refuse("[[sweep.zip]]", f"has {' '.join(lists)} alone; it takes axes that go together")
            elif sizes:
                rows = tuple(dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))
                yield Axis(tuple(lists), Listed(rows))

    def _source(self, place: str, name: str, spec: Any, *, zipped: bool = False) -> Source | None:
        """What an axis takes its values from, with templates written out."""
        try:
            if isinstance(spec, str) and name in _PROMPTS:
                source: Source | FromFile = Listed((spec,))
            else:
                source = read_source(spec) or Listed((spec,))
        except InputError as error:
            self._refuse(place, str(error))
            return None
        listing = replace(self._listing, drawn=True) if zipped else self._listing
        match source:
            case FromFile(file, column):
                return self._from_file(place, file, column)
            case Listed(values, None):
                return Listed(self._expanded(place, name, values, listing))
            case Listed(values, weights):
                return Listed(self._expanded(place, name, values, self._drawing), weights)
            case ByParent(parent, sources):
                parent = column_or_part(parent)
                return ByParent(parent, {value: self._child(place, name, one) for value, one in sources.items()})
            case Distribution():
                return self._in_steps(place, name, source)
            case Fresh() if name != "seed":
                self._refuse(place, "is fresh, which seeds alone can be")
                return None
        return source

    def _in_steps(self, place: str, name: str, source: Distribution) -> Distribution:
        """A distribution for a column of whole numbers has a step, and a multiple of it within its bounds."""
        known = COLUMNS.get(name)
        if source.step is None and known is not None and known.kind is Kind.INTEGER:
            source = replace(source, step=float(known.multiple_of or 1))
        if source.step is not None and source.multiples[0] > source.multiples[1]:
            self._refuse(place, f"has no multiple of {source.step:g} within its bounds")
        return source

    def _child(self, place: str, name: str, source: Listed | Distribution) -> Listed | Distribution:
        if isinstance(source, Distribution):
            return self._in_steps(place, name, source)
        wildcards = self._listing if source.weights is None else self._drawing
        return replace(source, values=self._expanded(place, name, source.values, wildcards))

    def _from_file(self, place: str, file: str, column: str) -> Listed | None:
        try:
            uri = join(self._folder, file)
            self._read.add(uri)
            values = self._read_column(uri, column)
        except InputError as error:
            self._refuse(place, str(error))
            return None
        if not values:
            self._refuse(place, f"has no values: {file} has no cell in {column!r}")
            return None
        return Listed(tuple(values))

    def _expanded(self, place: str, name: str, values: Sequence[Any], wildcards: Wildcards) -> tuple[Any, ...]:
        """The values with each template of a prompt or part written out to its variants."""
        found: list[Any] = []
        for value in values:
            if not isinstance(value, str) or (name in COLUMNS and name not in _PROMPTS):
                found.append(value)
                continue
            try:
                template = parse_template(value, wildcards)
            except InputError as error:
                self._refuse(place, f"{value!r}: {error}" if len(values) > 1 else str(error))
                continue
            if (count := template.count()) > self._max_rows:
                self._refuse(place, f"has {count:,} variants, over max_rows = {self._max_rows:,}; {_FEWER}")
                continue
            found += [_plain(variant) for variant in template.variants()]
        return tuple(found)

    def _ordered(self, axes: Sequence[Axis]) -> list[Axis]:
        """The axes, each after the one that its values depend on."""
        for name in {name for axis in axes for name in axis.names}:
            if sum(name in axis.names for axis in axes) > 1:
                self._refuse("[sweep]", f"{name!r} is an axis twice")
        ordered: list[Axis] = []
        left = list(axes)
        while left:
            known = {name for axis in ordered for name in axis.names}
            ready = [axis for axis in left if not isinstance(axis.source, ByParent) or axis.source.parent in known]
            if not ready:
                for axis in left:
                    self._refuse_parent(axis, axes)
                return ordered
            ordered += ready[:1]
            left.remove(ready[0])
        for axis in ordered:
            if isinstance(axis.source, ByParent):
                self._check_parent(axis, axis.source, ordered)
        return ordered

    def _refuse_parent(self, axis: Axis, axes: Sequence[Axis]) -> None:
        names = [name for one in axes for name in one.names]
        parent = axis.source.parent if isinstance(axis.source, ByParent) else ""
        if parent not in names:
            self._refuse(f"[sweep.axes] {axis.name}", f"is by {parent!r}, which is no axis{_meant(parent, names)}")
        else:
            self._refuse(f"[sweep.axes] {axis.name}", f"is by {parent!r}, which depends on it in turn")

    def _check_parent(self, axis: Axis, source: ByParent, axes: Sequence[Axis]) -> None:
        parent = next(one for one in axes if source.parent in one.names)
        match parent.source:
            case Listed(values, _):
                labels = {label(written(part_of(value, parent, source.parent))) for value in values}
            case ByParent(_, sources):
                lists = [one for one in sources.values() if isinstance(one, Listed)]
                labels = {label(written(value)) for one in lists for value in one.values}
            case _:
                self._refuse(f"[sweep.axes] {axis.name}", f"is by {parent.name!r}, whose values are not listed")
                return
        if missing := sorted(labels - source.sources.keys()):
            self._refuse(f"[sweep.axes] {axis.name}", f"has no values for {parent.name} {', '.join(missing)}")
        for value in sorted(source.sources.keys() - labels):
            said = f"has values for {value!r}, which {parent.name} never is{_meant(value, labels)}"
            self._refuse(f"[sweep.axes] {axis.name}", said)

    def _check_names(self, axes: Sequence[Axis], cells: Mapping[str, Any]) -> None:
        """Each axis is a column, or a part that something refers to; and each reference leads to an axis or a cell."""
        names = [name for axis in axes for name in axis.names]
        for name in cells.keys() & set(names):
            self._refuse(f"[sweep.cells] {name}", "is an axis, too")
        references: dict[str, set[str]] = {name: set(_references(value)) for name, value in cells.items()}
        for axis in axes:
            for name in axis.names:
                references[name] = set(_references([part_of(value, axis, name) for value in _all_values(axis.source)]))
        used = set().union(*references.values())
        for name in names:
            if name not in COLUMNS and name not in used:
                hint = _near(name) or f"; as a part of a prompt it is written ${{{name}}}"
                self._refuse(f"[sweep.axes] {name}", f"is no column, and nothing refers to it{hint}")
        for name, parts in references.items():
            for part in sorted(parts - references.keys()):
                self._refuse(f"[sweep] {name}", f"has ${{{part}}}, which is no axis{_meant(part, names)}")
        for name in references:
            if (loop := _loop(name, references)) is not None:
                self._refuse("[sweep]", f"{' > '.join(loop)} leads back to itself")
                return

    def _skips(self, axes: Sequence[Axis], cells: Mapping[str, Any]) -> Iterator[Mapping[str, Condition]]:
        names = [*(name for axis in axes for name in axis.names), *cells]
        for table in self._tables_of("skip"):
            found: dict[str, Condition] = {}
            for key, wanted in table.items():
                name = column_or_part(key)
                if name not in names:
                    self._refuse(f"[[sweep.skip]] {key}", f"is no axis{_meant(key, names)}")
                elif (test := read_condition(wanted)) is None:
                    self._refuse(f"[[sweep.skip]] {key}", f"is {wanted!r}; write a value, a list, '< 4' or '1..3'")
                elif (
                    test.values
                    and not test.unequal
                    and (known := _labels(name, axes, cells)).isdisjoint(test.values)
                    and known
                ):
                    near = _meant(sorted(test.values)[0], known)
                    self._refuse(f"[[sweep.skip]] {key}", f"is {wanted!r}, which {name} never is{near}")
                else:
                    found[name] = test
            yield found


def _plain(variant: Variant) -> Any:
    """A variant in which nothing is left to draw as its text."""
    texts = [piece for piece in variant if isinstance(piece, str)]
    if len(texts) < len(variant):
        return variant
    return texts[0] if len(texts) == 1 else " ".join("".join(texts).split())


def _all_values(source: Source) -> list[Any]:
    match source:
        case Listed(values, _):
            return list(values)
        case ByParent(_, sources):
            return [value for one in sources.values() for value in _all_values(one)]
        case _:
            return []


def _labels(name: str, axes: Sequence[Axis], cells: Mapping[str, Any]) -> frozenset[str]:
    """The labels of all values that a name may have; empty where they are drawn from a distribution, or are seeds."""
    axis = next((axis for axis in axes if name in axis.names), None)
    values = [cells[name]] if axis is None else [part_of(value, axis, name) for value in _all_values(axis.source)]
    return frozenset(label(written(value)) for value in values)


def _references(value: Any) -> list[str]:
    """Names of the parts that a value refers to."""
    match written(value):
        case str(text):
            return [column_or_part(name) for name in PART.findall(text)]
        case list(values):
            return [name for one in values for name in _references(one)]
        case dict(values):
            return [name for one in values.values() for name in _references(one)]
        case _:
            return []


def _loop(name: str, references: Mapping[str, set[str]], path: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The way from a name over what it refers to back to itself."""
    if name in path:
        return (*path[path.index(name) :], name)
    steps = (_loop(one, references, (*path, name)) for one in sorted(references.get(name, ())))
    return next((step for step in steps if step is not None), None)


def _meant(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _near(name: str) -> str:
    near = suggest(name)
    return f"; did you mean {near!r}?" if near else ""
