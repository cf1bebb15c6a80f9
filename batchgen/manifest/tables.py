"""Rows of text files: tables with separators, and lists of a prompt a line.

Knows nothing of what a column means beyond its name.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from batchgen.errors import TextError
from batchgen.manifest.names import find_column, fold
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.record import Record
from batchgen.manifest.script_lines import is_script_line, read_script_line
from batchgen.manifest.text import TextFile, find_separators, whole_lines

__all__ = ["header_of", "is_table", "line_records", "table_records"]

csv.field_size_limit(1 << 24)  # bytes; prompts longer than Python's default of 128 KiB exist

_TITLES = frozenset({"prompt", "prompts", "caption", "captions"})
_STYLES = frozenset({"name", "prompt", "negative_prompt"})  # of A1111's styles.csv


def header_of(file: TextFile, delimiter: str) -> list[str]:
    """The columns of a table, or `prompt` alone where a list has no header."""
    if delimiter == "\n":
        return ["prompt"]
    rows = find_separators(file, delimiter, header=True).rows(file.text(newline=""), strict=False)
    return _named(next(rows, []))


def _named(header: Sequence[str]) -> list[str]:
    """The header with names for columns that have none, as pandas gives them: it writes its index so."""
    return [name if name.strip() else f"Unnamed: {place}" for place, name in enumerate(header)]


def table_records(file: TextFile, delimiter: str, problems: ProblemLog) -> Iterator[Record]:
    """The rows of a table with a header; blank rows after the last are passed over."""
    separators = find_separators(file, delimiter)
    reader = separators.rows(file.text(newline=""))
    number = blank = 0
    try:
        given = next(reader, [])
        if not given:
            problems.add(file.file, None, None, "is empty; a table without rows still has a header")
            return
        header = _named(given)
        for name in {name for name, count in Counter(header).items() if count > 1}:
            problems.add(file.file, None, name, "appears twice in the header; rename one of the two columns")
            return
        if header != given:
            file.notice(f"{file.file} has columns without a name, as pandas writes an index; they are carried along")
        if set(header) == _STYLES:
            file.notice(f"{file.file} has the columns of A1111's styles; each style's prompt is taken as a prompt")
        columns = frozenset(header)
        for cells in reader:
            if not cells:
                continue  # a blank line
            if not any(cells) and len(cells) > 1:
                blank += 1  # as Excel leaves them below a table
                continue
            for _ in range(blank):
                number += 1
                yield Record(file=file.file, number=number, cells={}, columns=columns, from_text=True)
            blank = 0
            number += 1
            if len(cells) != len(header):
                problems.add(file.file, number, None, _miscounted(len(cells), header, separators.delimiter))
                continue
            filled = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
            yield Record(file=file.file, number=number, cells=filled, columns=columns, from_text=True)
    except csv.Error as error:
        hint = "; a quote within a quoted cell is written twice" if "expected after" in str(error) else ""
        problems.add(file.file, number + 1, None, f"is not valid CSV: {error}{hint}")


def _miscounted(count: int, header: Sequence[str], delimiter: str) -> str:
    message = f"has {count} cells where the header has {len(header)}"
    if count < len(header):
        return message
    if len(header) == 1:
        return f"{message}; put prompts that hold a {delimiter!r} in quotes, or name the file .txt, a prompt a line"
    return f"{message}; put cells that hold a {delimiter!r} in quotes"


def is_table(file: TextFile) -> bool:
    """Whether a file named as a list of lines is a table all the same: a header with a prompt's column, and tabs."""
    names = file.sample().partition("\n")[0].rstrip("\r").split("\t")
    return len(names) > 1 and any(find_column(name) == "prompt" for name in names)


def line_records(file: TextFile, problems: ProblemLog) -> Iterator[Record]:
    """A record for each line that is not blank; rows are counted as the file's lines are."""
    for number, line in enumerate(whole_lines(file.text()), 1):
        prompt = line.rstrip("\n")
        if not prompt.strip():
            continue
        if number == 1 and fold(prompt) in _TITLES:
            file.notice(f"{file.file}: the first line, {prompt.strip()!r}, is taken for a header")
            continue
        cells: Mapping[str, str] = {"prompt": prompt}
        if is_script_line(prompt):
            file.notice(f"{file.file} holds options of A1111's script; they are read as columns")
            try:
                cells = {"prompt_syntax": "a1111", **read_script_line(prompt)}
            except TextError as error:
                problems.add(file.file, number, None, str(error))
                continue
        yield Record(file=file.file, number=number, cells=cells, columns=frozenset(cells), from_text=True)
