"""Text as files hold it: compressed or not, in which encoding, and the separators of its table.

What is found by looking is said in a notice. Knows nothing of what a column means.
"""

import bz2
import csv
import gzip
import io
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import IO, Any

import pyarrow as pa

from batchgen.errors import TextError
from batchgen.manifest.record import Notice, no_notice

__all__ = ["Separators", "TextFile", "find_separators", "refuse_others", "whole_lines"]

SAMPLE_BYTES = 64 << 10  # looked at before a file is read: some hundred rows
SAMPLE_ROWS = 20
LONGEST_LINE = 1 << 24  # characters
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_OTHERS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8"),
    (b"PAR1\x15", "Parquet; let its name end in .parquet"),
    (b"ARROW1\x00", "an Arrow file; write it as Parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save the sheet as CSV in UTF-8"),
    (b"SQLite format 3", "an SQLite database; export the table as CSV"),
    (b"%PDF", "a PDF; copy the prompts into a text file, one a line"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (b"<!doctype html", "a web page; download the file itself"),
    (b"<html", "a web page; download the file itself"),
)
_BOMS = (  # the longer ones first: UTF-16's is the beginning of UTF-32's
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(slots=True)
class TextFile:
    """A text file that can be read from its start as often as needed."""

    file: str
    stream: IO[bytes]
    notice: Notice = no_notice
    encoding: str = ""
    _kept: list[Any] = field(default_factory=list)  # pyarrow's readers close what they read when they are collected

    def __post_init__(self) -> None:
        sample = self._bytes().read(SAMPLE_BYTES)
        refuse_others(sample)
        self.encoding = _encoding(sample)
        if self.encoding != "utf-8-sig":
            self.notice(f"{self.file} is read as {self.encoding.upper()}")

    def text(self, *, newline: str | None = None) -> io.TextIOWrapper:
        """The whole file from its start; one at a time, since all of them move the same stream."""
        text = io.TextIOWrapper(self._bytes(), encoding=self.encoding, newline=newline)
        self._kept.append(text)
        return text

    def sample(self) -> str:
        """Some of the first lines; whole ones, but for a line that is longer than all that is looked at."""
        text = self._bytes().read(SAMPLE_BYTES).decode(self.encoding, errors="ignore")
        if len(text) * 4 < SAMPLE_BYTES:
            return text
        return text[: text.rfind("\n") + 1] or text

    def undecodable(self) -> str | None:
        """Where the first bytes are that are no UTF-8; None in other encodings."""
        if self.encoding != "utf-8-sig":
            return None
        for number, line in enumerate(iter(partial(self._bytes().readline, LONGEST_LINE), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte = line[error.start : error.start + 1]
                guess = byte.decode("cp1252", errors="ignore")
                as_windows = f", {guess!r} in Windows-1252" if guess.isprintable() and guess else ""
                return f"line {number} holds the byte 0x{byte.hex()}{as_windows}"
        return None

    def _bytes(self) -> io.BufferedReader:
        """The file's bytes, unpacked; what they are packed with is seen from their beginning, whatever the name."""
        self.stream.seek(0)
        magic = self.stream.read(6)
        self.stream.seek(0)
        raw: Any = self.stream
        if magic.startswith(b"\x1f\x8b"):
            raw = gzip.GzipFile(fileobj=self.stream, mode="rb")
        elif magic.startswith(b"BZh"):
            raw = bz2.BZ2File(self.stream)
        elif magic.startswith(b"\xfd7zXZ\x00"):
            raw = lzma.LZMAFile(self.stream)  # noqa: SIM115 - closed with the stream
        elif magic.startswith(b"\x28\xb5\x2f\xfd"):
            raw = pa.CompressedInputStream(pa.PythonFile(self.stream, mode="r"), "zstd")
        self._kept.append(raw)
        reader = io.BufferedReader(raw)
        self._kept.append(reader)
        return reader


def whole_lines(text: io.TextIOBase) -> Iterator[str]:
    """The lines of a text, as iterating over it gives them.

    Raises:
        TextError: one is longer than any table's; a packed file of some KiB may hold one of GiB.
    """
    while line := text.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise TextError(f"holds a line of more than {LONGEST_LINE:,} characters")
        yield line


def refuse_others(sample: bytes) -> None:
    """Look at a file's first bytes for what is no manifest at all, whatever its name says.

    Raises:
        TextError: it is something else.
    """
    for magic, what in _OTHERS:
        if sample.startswith(magic) or (magic.startswith(b"<") and sample.lstrip().lower().startswith(magic)):
            raise TextError(f"is {what}")


def _encoding(sample: bytes) -> str:
    """UTF-8 with or without a mark, or what a mark or the zeros among Latin letters say."""
    for mark, name in _BOMS:
        if sample.startswith(mark):
            return name
    head = sample[:4096]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 5 > len(head) and min(even, odd) * 10 < max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8-sig"


@dataclass(frozen=True, kw_only=True, slots=True)
class Separators:
    """How a text table is written."""

    delimiter: str
    quoted: bool = True  # a cell in quotes may hold separators; else quotes are text
    skipped: int = 0  # lines before the header

    def rows(self, text: io.TextIOBase, *, strict: bool = True) -> Iterator[list[str]]:
        """The table's rows, header first, as csv reads them.

        Raises:
            csv.Error: quotes do not close, or stand where none may.
        """
        lines = islice(whole_lines(text), self.skipped, None)
        if self.quoted:
            return csv.reader(lines, delimiter=self.delimiter, strict=strict)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)


def find_separators(file: TextFile, usual: str, *, header: bool = False) -> Separators:
    """How a table is written: with the usual delimiter, or with one that gives all first rows the header's columns.

    Tables with tabs are often written without quotes around cells (PartiPrompts is), and then a cell may begin with
    one; which it is only the whole file shows, and is left open where `header` says that the header alone is wanted.
    """
    sample = file.sample()
    if said := re.match(r'"?sep=(.)"?\r?\n', sample):  # as Excel writes it
        found = Separators(delimiter=said[1], skipped=1)
    else:
        found = Separators(delimiter=_delimiter(sample, usual))
    if found.delimiter != usual:
        name = _NAMES.get(found.delimiter, repr(found.delimiter))
        file.notice(f"{file.file} is read with {name} between its columns")
    if not header and found.delimiter == "\t" and not _is_table(file, found):
        plain = replace(found, quoted=False)
        if _is_table(file, plain):
            file.notice(f"{file.file} is read with its quotes as text")
            return plain
    return found


def _delimiter(sample: str, usual: str) -> str:
    candidates = [usual, *(one for one in _NAMES if one != usual)]
    counts = {}
    for one in candidates:
        rows = Separators(delimiter=one).rows(io.StringIO(sample, newline=""), strict=False)
        try:
            counts[one] = [len(row) for row in islice(rows, SAMPLE_ROWS) if row]
        except csv.Error:
            counts[one] = []
    several = [one for one in candidates if counts[one] and counts[one][0] > 1]
    even = [one for one in several if len(set(counts[one])) == 1]
    return (even or several or [usual])[0]


def _is_table(file: TextFile, separators: Separators) -> bool:
    """Whether every row of the file has the header's number of columns, with quotes that close."""
    rows = separators.rows(file.text(newline=""))
    try:
        width = len(next(rows, []))
        return all(len(row) == width for row in rows if row)
    except csv.Error:
        return False
