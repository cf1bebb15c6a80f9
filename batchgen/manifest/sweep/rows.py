"""The rows of a sweep: its cells, one after the other, and how many they are. Knows no files.

A cell is a choice of one value from each axis. Cells are made in the order in which the axes are written, the last one
changing fastest. What is drawn is decided by the cell itself, so that a cell does not change when others are added; and
not by its seed, so that seeds show what noise does and nothing else.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import inf, log, prod
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.manifest.sweep.axes import Axis, ByParent, Distribution, Fresh, Listed, Source, label, share
from batchgen.manifest.sweep.sweep import PART, Sweep, column_or_part, is_drawn, part_of, written
from batchgen.manifest.sweep.templates import draw

__all__ = ["axis_lines", "count_cells", "require_fewer", "sweep_rows"]

SHOWN = 4  # values of an axis
TRIES = 1000  # draws for each cell that is asked for, before too few are found that differ and are not skipped
SEEDS = 2**32  # seeds of their own are below it, as other tools' are

_Cell = dict[str, Any]
"""The values of a cell by axis; for seeds of its own their number, counted from 0."""


def count_cells(sweep: Sweep) -> int:
    """How many cells there are before any are skipped; by arithmetic, none is made."""
    taken = [axis for axis in sweep.axes if not is_drawn(sweep, axis)]
    roots = [axis for axis in taken if not isinstance(axis.source, ByParent)]
    return prod(_size(axis, taken, None) for axis in roots) * (sweep.samples or 1)


def _size(axis: Axis, axes: list[Axis], parent: str | None) -> int:
    """How many cells an axis makes with those that depend on it, for a value of the one that it depends on."""
    source = axis.source
    if isinstance(source, Fresh):
        return source.count
    listed = source.sources[parent or ""] if isinstance(source, ByParent) else source
    assert isinstance(listed, Listed)  # what is drawn is not counted
    children = [one for one in axes if isinstance(one.source, ByParent) and one.source.parent in axis.names]
    if not children:
        return len(listed.values)
    return sum(
        prod(_size(child, axes, _label_for(child, axis, value)) for child in children) for value in listed.values
    )


def _label_for(child: Axis, parent: Axis, value: Any) -> str:
    assert isinstance(child.source, ByParent)
    return label(written(part_of(value, parent, child.source.parent)))


def axis_lines(sweep: Sweep) -> dict[str, str]:
    """What each axis takes, in a few words, by its name."""
    return {axis.name: ("drawn from " if is_drawn(sweep, axis) else "") + _said(axis) for axis in sweep.axes}


def _said(axis: Axis) -> str:
    match axis.source:
        case Listed(values, _):
            names = [
                " x ".join(str(written(part_of(one, axis, name))) for name in axis.names) for one in values[:SHOWN]
            ]
            return f"{len(values):,}: {', '.join(names)}{', ...' * (len(values) > SHOWN)}"
        case ByParent(parent, sources):
            return f"by {parent}: {', '.join(sources)}"
        case Fresh(number):
            return f"{number:,} for each cell"
        case Distribution(kind, a, b):
            return f"{kind} {a:g}, {b:g}"


def require_fewer(sweep: Sweep) -> None:
    """Refuse a sweep of more cells than it says that it may have.

    Raises:
        InputError: it has more; the message says which axes make them.
    """
    if (cells := count_cells(sweep)) > sweep.max_rows:
        listed = {axis.name: axis.source for axis in sweep.axes if not is_drawn(sweep, axis)}
        sizes = ", ".join(f"{name} {len(one.values)}" for name, one in listed.items() if isinstance(one, Listed))
        raise InputError(
            f"[sweep] has {cells:,} cells ({sizes}), over max_rows = {sweep.max_rows:,}; raise it, or draw some of "
            "them with `samples`"
        )


def sweep_rows(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """The cells of manifest rows, by column, with the axes' values as `axis_...`.

    Raises:
        InputError: there are more than it may have, or fewer than are to be drawn.
    """
    require_fewer(sweep)
    for cell, key in _enumerated(sweep) if sweep.samples is None else _sampled(sweep, sweep.samples):
        yield _row(sweep, cell, key)


def _enumerated(sweep: Sweep, sample: int | None = None) -> Iterator[tuple[_Cell, str]]:
    """All cells that are not skipped, each with a text that decides what is drawn in it."""
    drawn = [axis for axis in sweep.axes if is_drawn(sweep, axis)]
    for cell in _taken([axis for axis in sweep.axes if axis not in drawn], {}):
        named = sorted((name, label(written(value))) for name, value in cell.items() if name != "seed")
        key = json.dumps([sweep.draw_seed, sample, named])
        for axis in drawn:
            _take(cell, axis, _drawn(axis, cell, key))
        if not any(all(test.fits(_seen(sweep, cell, one)) for one, test in skip.items()) for skip in sweep.skips):
            yield cell, key


def _taken(axes: Sequence[Axis], cell: _Cell) -> Iterator[_Cell]:
    """Every combination of the axes' values."""
    if not axes:
        yield dict(cell)
        return
    axis, *others = axes
    source = axis.source
    if isinstance(source, ByParent):
        source = source.sources[label(written(cell[source.parent]))]
    assert isinstance(source, (Listed, Fresh))  # the others are drawn
    for value in range(source.count) if isinstance(source, Fresh) else source.values:
        _take(cell, axis, value)
        yield from _taken(others, cell)


def _sampled(sweep: Sweep, samples: int) -> Iterator[tuple[_Cell, str]]:
    """Cells that are drawn, all different; each with its seeds where it has some of its own."""
    if (most := prod(_most(axis.source) for axis in sweep.axes if axis.names != ("seed",))) < samples:
        raise InputError(
            f"[sweep] samples = {samples:,}, but the axes have only {most:,} cells that differ; ask for fewer, or "
            "leave it out to make all"
        )
    seen: set[tuple[str, ...]] = set()
    for number in range(samples * TRIES):
        found = list(_enumerated(sweep, number))
        if not found:
            continue
        cell = tuple(label(written(value)) for name, value in found[0][0].items() if name != "seed")
        if cell not in seen:
            seen.add(cell)
            yield from found
        if len(seen) == samples:
            return
    raise InputError(
        f"[sweep] samples = {samples:,}, but {samples * TRIES:,} draws found only {len(seen):,} cells that differ and "
        "are not skipped; ask for fewer, or leave it out to make all"
    )


def _most(source: Source) -> float:
    """How many values a cell may draw at most."""
    match source:
        case Listed(values, _):
            return len(values)
        case ByParent(_, sources):
            return sum(map(_most, sources.values()))
        case Distribution():
            return inf
        case Fresh():
            return 1


def _take(cell: _Cell, axis: Axis, value: Any) -> None:
    cell.update((name, part_of(value, axis, name)) for name in axis.names)


def _drawn(axis: Axis, cell: _Cell, key: str) -> Any:
    """The value that a cell draws from an axis."""
    source = axis.source
    if isinstance(source, ByParent):
        source = source.sources[label(written(cell[source.parent]))]
    if isinstance(source, Distribution):
        return source.at(share(key, axis.name))
    assert isinstance(source, Listed)
    best, least = None, inf
    met: Counter[str] = Counter()
    for place, value in enumerate(source.values):
        weight = 1.0 if source.weights is None else source.weights[place]
        name = label({one: written(part_of(value, axis, one)) for one in axis.names})
        met[name] += 1  # equal values that stand there twice are two
        time = -log(share(key, axis.name, name, met[name])) / weight if weight else inf
        if time < least:
            best, least = value, time
    return best


def _seen(sweep: Sweep, cell: _Cell, name: str) -> Any:
    """What a condition looks at: the value of an axis, or what every row has."""
    return written(cell[name] if name in cell else sweep.cells[name])


def _row(sweep: Sweep, cell: _Cell, key: str) -> dict[str, Any]:
    values = {name: _settled(value, f"{key} {name}") for name, value in {**sweep.cells, **cell}.items()}
    if any(isinstance(axis.source, Fresh) for axis in sweep.axes):
        values["seed"] = int(share(key, "seed", cell["seed"]) * SEEDS)
    row = {name: _filled(value, values) for name, value in values.items() if name in COLUMNS}
    return row | {f"axis_{name}": _shown(name, written(value)) for name, value in cell.items()}


def _settled(value: Any, key: str) -> Any:
    """A value with what is still to be drawn in it drawn."""
    return draw(value, random.Random(key)) if isinstance(value, tuple) else value


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """A value with the parts that it refers to in their places; one that is a reference alone keeps its type."""
    match value:
        case str():
            if (whole := PART.fullmatch(value)) is not None:
                return _filled(values[column_or_part(whole[1])], values)
            return PART.sub(lambda part: _as_text(_filled(values[column_or_part(part[1])], values)), value)
        case list():
            return [_filled(one, values) for one in value]
        case dict():
            return {name: _filled(one, values) for name, one in value.items()}
        case _:
            return value


def _as_text(value: Any) -> str:
    """A value within a text: numbers, lists and tables as JSON, dates as TOML writes them."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (int, float, list, dict)) else str(value)


def _shown(name: str, value: Any) -> Any:
    """A value as a cell of a column that is grouped by, in a type that other values will not change.

    Numbers are floats but for columns that hold whole ones; lists and tables are text.
    """
    if isinstance(value, (list, dict)):
        return label(value)
    whole = name in COLUMNS and COLUMNS[name].kind is Kind.INTEGER
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and not whole else value
