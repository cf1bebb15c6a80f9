"""A row while the rules are applied: its cells, what they are held against, and what is wrong so far."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.generation.parameters import APPLIED, ImageRef
from batchgen.generation.tasks import Task
from batchgen.manifest.cells import Parsed
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.models.adapters import Finder
from batchgen.models.catalog import Model

__all__ = ["Defaults", "Draft", "Problems", "RowProblems", "asked", "filled_in"]

Problems = Iterator[tuple[str, str]]
"""Columns and what is wrong with their cells."""


class RowProblems(list[tuple[str, str]]):
    """Columns and what is wrong with their cells in one row."""

    def add(self, column: str, message: str) -> None:
        self.append((column, message))


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What the job brings to every row: values of columns, where adapters are looked for, and how models are found.

    `find_model` raises InputError when there is no such model.
    """

    values: Mapping[str, Any]
    adapters: Finder
    find_model: Callable[[str], Model]


def asked(name: str, parsed: Parsed, model: Model, defaults: Defaults) -> Any:
    """What the row, the job, the model or the column contract says of a column, the first that does."""
    value, column = parsed.cells.get(name), COLUMNS[name]
    if value is None or (column.kind is Kind.ADAPTER and value in ([], ())):
        default = (column.default,) if column.listed and column.default is not None else column.default
        value = defaults.values.get(name, model.defaults.get(name, default))
    return value


def filled_in(parsed: Parsed, task: Task, model: Model, defaults: Defaults) -> dict[str, Any]:
    """A row's cells by column, and the defaults of its null ones."""
    names = sorted(task.columns_for(model.family) & APPLIED - {"model"})
    return {"model": model.name, **{name: asked(name, parsed, model, defaults) for name in names}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What a rule reads, and completes: it fills in `values`, and yields what is wrong.

    `values` are cells by column, null where the column is taken and nothing stands for it; columns that mean nothing to
    the row are taken out.
    """

    parsed: Parsed
    task: Task
    model: Model
    inputs: Mapping[str, ImageRef]
    defaults: Defaults
    problems: RowProblems  # of the rules before
    values: dict[str, Any]

    def drop(self, names: Iterable[str], reason: str) -> Problems:
        """Take out columns that mean nothing to this row; a cell that was given all the same is a problem."""
        for name in names:
            self.values.pop(name, None)
            if name in self.parsed.cells:
                yield name, f"{reason}; leave it null"
