"""Everything that is wrong with a manifest, collected and then reported at once. Pure."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from batchgen.errors import printable

__all__ = ["Problem", "ProblemLog"]

EQUAL_SHOWN = 5  # messages that differ in their values alone; more of the same teach nothing
LONGEST_MESSAGE = 500  # characters: messages repeat what cells hold
FILES_NAMED = 3  # of those that have the same fault as the first
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/]\S*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: where it was met first, and what to try. `row` counts from 1; None is the whole file."""

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
        return printable(f"{place}: {self.message}")

    def fault(self) -> tuple[bool, str | None, str]:
        """What a problem shares with those of other rows and files that are the same fault."""
        return self.row is None, self.column, self.message.replace(self.file, "")

    def kind(self) -> tuple[bool, str | None, str]:
        """What faults share that differ in the values in them alone."""
        whole, column, message = self.fault()
        return whole, column, _VARIABLE.sub("…", message)


@dataclass(kw_only=True, slots=True)
class _Met:
    """How often a fault was met, and where."""

    problem: Problem
    rows: int = 0
    files: int = 0
    named: list[str] = field(default_factory=list)  # the first files after that of the problem
    last: str = ""

    def add(self, file: str) -> None:
        self.rows += 1
        if file != self.last:
            self.files += 1
            if 1 < self.files <= FILES_NAMED + 1:
                self.named.append(file)
            self.last = file

    def line(self) -> str:
        if self.problem.row is not None and self.rows > 1:
            where = f" in {self.files:,} files" if self.files > 1 else ""
            return f"{self.problem} ({self.rows:,} rows{where})"
        if self.files > 1:
            more = self.files - 1 - len(self.named)
            return f"{self.problem} (the same in {', '.join(self.named)}{f' and {more:,} more' if more else ''})"
        return str(self.problem)


@dataclass(kw_only=True, slots=True)
class ProblemLog:
    """Problems in the order met: each fault once, with a count, and at most `EQUAL_SHOWN` faults of a kind."""

    counts: Counter[tuple[bool, str | None, str]] = field(default_factory=Counter)  # by kind
    _met: dict[tuple[bool, str | None, str], _Met] = field(default_factory=dict)  # by fault, those that are shown
    _shown: Counter[tuple[bool, str | None, str]] = field(default_factory=Counter)  # faults by kind

    def add(self, file: str, row: int | None, column: str | None, message: str) -> None:
        message = printable(message)
        if len(message) > LONGEST_MESSAGE:  # what to try stands at the end
            message = f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"
        problem = Problem(file=file, row=row, column=column, message=message)
        fault, kind = problem.fault(), problem.kind()
        self.counts[kind] += 1
        if fault not in self._met:
            if self._shown[kind] == EQUAL_SHOWN:
                return
            self._shown[kind] += 1
            self._met[fault] = _Met(problem=problem)
        self._met[fault].add(file)

    @classmethod
    def of(cls, file: str, message: str) -> Self:
        """A log of one problem that concerns a source as a whole."""
        log = cls()
        log.add(file, None, None, message)
        return log

    @property
    def shown(self) -> list[Problem]:
        """Each fault where it was met first."""
        return [met.problem for met in self._met.values()]

    @property
    def total(self) -> int:
        """How many problems there are, in all rows."""
        return self.counts.total()

    def rows(self, problem: Problem) -> int:
        """How often a fault was met that is shown."""
        return self._met[problem.fault()].rows

    def lines(self) -> Iterator[str]:
        """One line a fault, and one for those of a kind that are not shown."""
        met = sorted(self._met.values(), key=lambda one: (one.problem.file, one.problem.row or 0))
        yield from (one.line() for one in met)
        shown = Counter[tuple[bool, str | None, str]]()
        for one in met:
            shown[one.problem.kind()] += one.rows
        for kind, count in self.counts.items():
            if count > shown[kind]:
                _, column, message = kind
                where = f"column {column!r}: " if column else ""
                yield f"{where}{count - shown[kind]:,} more like: {message}"
