"""Rows of JSON files: an object a line, a list of objects or of prompts, or a table by columns.

Knows nothing of what a column means beyond its name.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from batchgen.errors import TextError
from batchgen.manifest.names import find_column
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.record import Record, without_nulls
from batchgen.manifest.strict_json import parse_json
from batchgen.manifest.text import TextFile, whole_lines

__all__ = ["json_records"]

CHUNK = 1 << 18  # characters read at once
LONGEST = 1 << 25  # characters of one value of a list; a file that is one object is held whole up to this
_BLANK = re.compile(r"[\s]*")
_WRITE_LINES = "write one object a line (.jsonl), in pandas `to_json(FILE, orient='records', lines=True)`"


def json_records(file: TextFile, problems: ProblemLog) -> Iterator[Record]:
    """The rows of a JSON file, whatever its name says: lines are told from one document by its beginning."""
    is_lines = _is_lines(file.sample())
    values = _line_values(file.text(), file.file, problems) if is_lines else _document_values(file, problems)
    for number, value in values:
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, dict):
            problems.add(file.file, number, None, "is not a JSON object; write one {...} a line")
            continue
        if (column := _broken_text(value)) is not None:
            problems.add(
                file.file, number, column, "holds one half of a surrogate pair, which is no character; remove it"
            )
            continue
        yield Record(
            file=file.file,
            number=number,
            cells={name: cell for name, cell in without_nulls(value).items() if cell == cell},  # NaN is a gap
            columns=frozenset(value),
            from_text=False,
            declared=False,
        )


def _is_lines(sample: str) -> bool:
    """Whether lines are objects of their own; a list or an object that goes over several lines is one document."""
    lines = [line.strip() for line in sample.splitlines() if line.strip()][:2]
    if not lines:
        return True
    first, others = lines[0], lines[1:]
    if first.startswith("["):
        return bool(others) and others[0].startswith("[") and first.endswith("]")
    try:
        value = parse_json(first)
    except ValueError:
        # what is written over several lines, or is longer than the sample; a broken line stands among others
        return first != "{" and (others[0].startswith("{") if others else sample.endswith("\n"))
    return bool(others) or not _is_container(value)


def _is_container(value: Any) -> bool:
    """Whether an object holds rows, and is none itself: lists or objects, and none of them what a column may hold."""
    if not isinstance(value, dict) or not any(isinstance(part, (dict, list)) for part in value.values()):
        return False
    known = {column: value[name] for name in value if (column := find_column(name)) is not None}
    return isinstance(known["prompt"], (dict, list)) if "prompt" in known else not known


def _line_values(lines: io.TextIOBase, name: str, problems: ProblemLog) -> Iterator[tuple[int, Any]]:
    number = 0
    for line in whole_lines(lines):
        if not line.strip():
            continue
        number += 1
        try:
            value = parse_json(line)
        except ValueError as error:
            problems.add(name, number, None, f"is not JSON: {error}")
            continue
        yield number, [value] if isinstance(value, str) else value  # text alone is a row of a list only


def _document_values(file: TextFile, problems: ProblemLog) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for value, listed in _values(file.text()):
            if number == 0 and listed:
                file.notice(f"{file.file} is read as one list")
            for row in [value] if listed else _rows_of(value, file):
                number += 1
                yield number, row
    except TextError:
        raise
    except ValueError as error:
        problems.add(file.file, number + 1, None, f"is not JSON: {error}")


def _values(text: TextIO) -> Iterator[tuple[Any, bool]]:
    """The values of a list, or one after the other; true for those of a list. One value at a time is in memory.

    Raises:
        ValueError: it is no JSON.
    """
    buffer = _Buffer(text)
    listed = buffer.first() == "["
    if listed:
        buffer.drop(1)
    while (start := buffer.first()) and not (listed and start == "]"):
        yield buffer.value(), listed
        if listed:
            after = buffer.first()
            if after == ",":
                buffer.drop(1)
                if buffer.first() == "]":
                    raise ValueError("a comma before the list's end")
            elif after != "]":
                raise ValueError(f"{after!r} where a comma is expected" if after else "the list does not end")
    if listed:
        if not start:
            raise ValueError("the list does not end")
        buffer.drop(1)
        if after := buffer.first():
            raise ValueError(f"{after!r} after the list's end")


class _Buffer:
    """Text that is read as far as the value under way needs it."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._held = ""
        self._place = 0
        self._ended = False

    def first(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            found = _BLANK.match(self._held, self._place)
            assert found is not None
            self._place = found.end()
            if self._place < len(self._held):
                return self._held[self._place]
            if not self._more():
                return ""

    def drop(self, count: int) -> None:
        self._place += count

    def value(self) -> Any:
        """The value that begins here.

        Raises:
            ValueError: there is none, or it is too long.
        """
        wanted = 0
        while True:
            if len(self._held) - self._place >= wanted or self._ended:
                end = _end_of_value(self._held, self._place)
                if end is not None:
                    text, self._place = self._held[self._place : end], end
                    return parse_json(text)
                if self._ended:
                    return parse_json(self._held[self._place :])  # says what is wrong
                wanted = 2 * (len(self._held) - self._place)  # so that a long value is not scanned again and again
                if wanted > 2 * LONGEST:
                    raise ValueError(f"a value is longer than {LONGEST >> 20} MiB; {_WRITE_LINES}")
            self._more(max(CHUNK, wanted - len(self._held) + self._place))

    def _more(self, count: int = CHUNK) -> bool:
        more = self._text.read(count)
        self._held, self._place = self._held[self._place :] + more, 0
        self._ended = not more
        return bool(more)


_MARKS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]', re.DOTALL)
_AFTER = re.compile(r"[,\]}\s]")


def _end_of_value(text: str, start: int) -> int | None:
    """Where the object, list or text that begins at `start` ends; None where it goes on after what is held."""
    depth = 0
    if text[start] not in '"[{':
        after = _AFTER.search(text, start)
        return after.start() if after else None
    for mark in _MARKS.finditer(text, start):
        one = mark[0]
        if one == '"':
            return None  # a text that does not close
        if one in "[{":
            depth += 1
        elif one in "]}":
            depth -= 1
        if depth == 0:
            return mark.end()
    return None


def _rows_of(value: Any, file: TextFile) -> Iterator[Any]:
    """The rows of a document that is no list: itself, a list that it holds, or its columns side by side.

    Raises:
        TextError: it is a table of another kind.
    """
    if not _is_container(value):
        yield value
        return
    if any(find_column(name) == "prompt" and not _holds_objects(part) for name, part in value.items()):
        file.notice(f"{file.file} is read by its columns")
        yield from _by_columns(value)
        return
    lists = {name: part for name, part in value.items() if isinstance(part, list) and _is_table(part)}
    if len(lists) != 1:
        found = f"lists {', '.join(map(repr, lists))}" if lists else f"keys {', '.join(map(repr, list(value)[:5]))}"
        raise TextError(f"is an object with the {found}, and no table; {_WRITE_LINES}")
    ((name, rows),) = lists.items()
    file.notice(f"{file.file}: the list {name!r} is read")
    yield from rows


def _holds_objects(part: Any) -> bool:
    return isinstance(part, list) and any(isinstance(row, dict) for row in part)


def _is_table(rows: list[Any]) -> bool:
    return bool(rows) and all(isinstance(row, (dict, str)) for row in rows)


def _by_columns(value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a table by columns: lists, or objects with the same keys as pandas writes them."""
    columns = {name: part if isinstance(part, (dict, list)) else None for name, part in value.items()}
    first = next(iter(columns.values()))
    places = list(first) if isinstance(first, dict) else range(len(first or ()))
    for name, part in columns.items():
        same = isinstance(part, type(first)) and part is not None and len(part) == len(places)
        if not same or (isinstance(part, dict) and part.keys() != set(places)):
            raise TextError(f"has columns of other lengths: {name!r} and {next(iter(columns))!r}; {_WRITE_LINES}")
    for place in places:
        yield {name: part[place] for name, part in columns.items() if part is not None}


def _broken_text(cells: Mapping[str, Any]) -> str | None:
    """The first column whose text cannot be written as UTF-8, which JSON escapes can spell."""
    try:
        json.dumps(cells, ensure_ascii=False).encode()
        return None
    except UnicodeEncodeError:
        pass
    for name, cell in cells.items():
        try:
            json.dumps([name, cell], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return name.encode("ascii", "backslashreplace").decode()
    return None
