"""Everything that is wrong with a manifest, collected and then reported at once. Pure."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

__all__ = ["Problem", "ProblemLog"]

EQUAL_SHOWN = 20  # problems of one kind in one column; more of the same teach nothing
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/]\S*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: where, and what to try. `row` counts from 1; None means the whole file."""

    file: str
    row: int | None
    column: str | None
    message: str

    def __str__(self) -> str:
        place = self.file
        if self.row is not None:
            place += f", row {self.row}"
        if self.column is not None:
            place += f", column {self.column!r}"
        return f"{place}: {self.message}"

    def kind(self) -> tuple[str, str | None, str]:
        """What equal problems share: file, column and message without the values in it."""
        return self.file, self.column, _VARIABLE.sub("…", self.message)


@dataclass(kw_only=True, slots=True)
class ProblemLog:
    """Problems in the order found, at most `EQUAL_SHOWN` of a kind, and how many of each kind there were."""

    shown: list[Problem] = field(default_factory=list)
    counts: Counter[tuple[str, str | None, str]] = field(default_factory=Counter)

    def add(self, file: str, row: int | None, column: str | None, message: str) -> None:
        problem = Problem(file=file, row=row, column=column, message=message)
        kind = problem.kind()
        self.counts[kind] += 1
        if self.counts[kind] <= EQUAL_SHOWN:
            self.shown.append(problem)

    @classmethod
    def of(cls, file: str, message: str) -> Self:
        """A log of one problem that concerns a source as a whole."""
        log = cls()
        log.add(file, None, None, message)
        return log

    @property
    def total(self) -> int:
        return self.counts.total()

    def lines(self) -> Iterator[str]:
        """One line a problem, and one for those of a kind that are not shown."""
        yield from map(str, sorted(self.shown, key=lambda problem: (problem.file, problem.row or 0)))
        for (file, column, message), count in self.counts.items():
            if count > EQUAL_SHOWN:
                where = f"{file}, column {column!r}" if column else file
                yield f"{where}: {count - EQUAL_SHOWN} more like: {message}"
