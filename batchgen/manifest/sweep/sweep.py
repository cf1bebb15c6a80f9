"""A sweep as data: axes, the cells that all rows have, and what is left out. Knows nothing of how it is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchgen.manifest.names import find_column
from batchgen.manifest.sweep.axes import Axis, ByParent, Fresh, Listed, Source, label
from batchgen.manifest.sweep.conditions import Condition

__all__ = ["MAX_ROWS", "PART", "Sweep", "all_values", "column_or_part", "is_drawn", "labels_of", "part_of", "written"]

MAX_ROWS = 100_000  # days of work on one GPU; more is asked for by `max_rows`
PART = re.compile(r"\$\{([^{}]*)\}")


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


def all_values(source: Source) -> list[Any]:
    """Every value that an axis may take; none of a distribution, or of seeds."""
    match source:
        case Listed(values, _):
            return list(values)
        case ByParent(_, sources):
            return [value for one in sources.values() for value in all_values(one)]
        case _:
            return []


def labels_of(name: str, axes: Sequence[Axis], cells: Mapping[str, Any]) -> frozenset[str]:
    """The labels of all values that a name may have; empty where they are drawn from a distribution, or are seeds."""
    axis = next((axis for axis in axes if name in axis.names), None)
    values = [cells[name]] if axis is None else [part_of(value, axis, name) for value in all_values(axis.source)]
    return frozenset(label(written(value)) for value in values)
