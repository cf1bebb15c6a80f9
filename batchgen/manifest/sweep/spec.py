"""A sweep as a file says it, [sweep] of a TOML file: read, checked, and all that is wrong told at once.

[sweep]                 samples, draw_seed, max_rows, variants, wildcards: how cells are made of the axes
[sweep.cells]           what every row has
[sweep.axes]            what rows differ in: every combination
[[sweep.zip]]           axes whose values go together, first with first
[[sweep.skip]]          cells that are left out: those that fit all that one of these tables says
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, RESERVED, Kind
from batchgen.manifest.sweep.axes import (
    Axis,
    ByParent,
    Distribution,
    Fresh,
    FromFile,
    Listed,
    Source,
    read_source,
)
from batchgen.manifest.sweep.conditions import Condition, read_condition
from batchgen.manifest.sweep.references import check_names, complaint, meant, near, ordered_axes
from batchgen.manifest.sweep.sweep import MAX_ROWS, Sweep, column_or_part, labels_of
from batchgen.manifest.sweep.templates import Variant, Wildcards, parse_template
from batchgen.places import join
from batchgen.toml_tables import ZERO, read_fields

__all__ = ["ReadColumn", "read_sweep"]

_PROMPTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
_FEWER = 'raise it, draw them (variants = "draw"), or draw a part of them, {~a|b}'

ReadColumn = Callable[[str, str], list[Any]]
"""The cells of a column of a table, by the table's URI and the column's name; raises InputError."""


class Variants(StrEnum):
    """What becomes of a prompt's alternatives: a row for each, or one that is drawn."""

    ALL = "all"
    DRAW = "draw"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Said:
    """The keys of the table [sweep]."""

    samples: int | None = None
    draw_seed: int = field(default=0, metadata=ZERO)
    max_rows: int = MAX_ROWS
    variants: Variants = Variants.ALL
    wildcards: str = "."
    cells: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)
    zip: tuple[Mapping[str, Any], ...] = ()
    skip: tuple[Mapping[str, Any], ...] = ()


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


class _Reader:
    """Reads the parts of a sweep and collects what is wrong with them."""

    def __init__(self, table: Mapping[str, Any], folder: str, read_column: ReadColumn) -> None:
        self.wrong: list[str] = []
        self._said = _Said(**read_fields(_Said, table, self.wrong, prefix="sweep."))
        self._folder = folder
        self._read_column = read_column
        self._read: set[str] = set()
        place = Path(folder) / Path(self._said.wildcards).expanduser()
        drawn = self._said.variants is Variants.DRAW or self._said.samples is not None
        self._listing = Wildcards(place, drawn=drawn)
        self._drawing = Wildcards(place, drawn=True)  # of values that are drawn themselves

    def sweep(self) -> Sweep:
        axes = [*self._axes(), *self._zips()]
        cells: dict[str, Any] = {}
        for name, value in self._named("cells", self._said.cells):
            if name not in COLUMNS:
                hint = near(name) or "; what prompts refer to stands under [sweep.axes]"
                self._refuse(f"[sweep.cells] {name}", f"is no column{hint}")
                continue
            values = self._expanded(f"[sweep.cells] {name}", name, (value,), self._listing)
            if len(values) > 1:
                axes.append(Axis((name,), Listed(values)))
            elif values:
                cells[name] = values[0]
        axes = ordered_axes(axes, self.wrong)
        if not self.wrong:  # names of what could not be read are not missing
            self.wrong += check_names(axes, cells)
        skips = tuple(self._skips(axes, cells))
        read = self._read | {str(file) for file in self._listing.read | self._drawing.read}
        return Sweep(
            axes=tuple(axes),
            cells=cells,
            skips=skips,
            samples=self._said.samples,
            draw_seed=self._said.draw_seed,
            max_rows=self._said.max_rows,
            read=frozenset(read),
        )

    def _refuse(self, place: str, message: str) -> None:
        self.wrong.append(complaint(place, message))

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
        for name, spec in self._named("axes", self._said.axes):
            if (source := self._source(f"[sweep.axes] {name}", name, spec)) is not None:
                yield Axis((name,), source)

    def _zips(self) -> Iterator[Axis]:
        for table in self._said.zip:
            lists: dict[str, tuple[Any, ...]] = {}
            for name, spec in self._named("zip", table):
                match self._source(f"[[sweep.zip]] {name}", name, spec, zipped=True):
                    case Listed(values, None):
                        lists[name] = values
                    case Listed() | Distribution() | Fresh() | ByParent():
                        self._refuse(f"[[sweep.zip]] {name}", "is drawn; axes that go together are lists or ranges")
                    case None:
                        pass  # refused already
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
            if (count := template.count()) > self._said.max_rows:
                self._refuse(place, f"has {count:,} variants, over max_rows = {self._said.max_rows:,}; {_FEWER}")
                continue
            found += [_plain(variant) for variant in template.variants()]
        return tuple(found)

    def _skips(self, axes: Sequence[Axis], cells: Mapping[str, Any]) -> Iterator[Mapping[str, Condition]]:
        names = [*(name for axis in axes for name in axis.names), *cells]
        for table in self._said.skip:
            if not table:
                self._refuse("[[sweep.skip]]", "is empty, and would leave out every cell")
            found: dict[str, Condition] = {}
            for key, wanted in table.items():
                name = column_or_part(key)
                if name not in names:
                    self._refuse(f"[[sweep.skip]] {key}", f"is no axis{meant(key, names)}")
                elif (test := read_condition(wanted)) is None:
                    self._refuse(f"[[sweep.skip]] {key}", f"is {wanted!r}; write a value, a list, '< 4' or '1..3'")
                elif (
                    test.values
                    and not test.unequal
                    and (known := labels_of(name, axes, cells)).isdisjoint(test.values)
                    and known
                ):
                    near = meant(sorted(test.values)[0], known)
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
