"""The rows of a manifest on disk, in the order they will be made: SQLite in a temporary file.

Sorting, looking up duplicates and subtracting what is done need the whole manifest; here they need disk, about 1 KiB
a row, and a bounded cache, so that the driver's memory does not grow with the manifest. Knows nothing of files,
stores or models.
"""

import fcntl
import os
import pickle
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchgen.rows import Row, Status, decode_row, encode_row

__all__ = ["Committed", "Counts", "DoneCells", "Group", "Index"]

CACHE_KIB = 8 * 1024  # SQLite's page cache, the part of the index that is in memory
CACHED_KEYS = 10_000  # batch keys whose number is kept in memory; a manifest of a million keys stays flat too

_PREFIX = "batchgen-index-"
_LOCK = "lock"
_YOUNG = 2.0  # seconds

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
CREATE TABLE occurrence (content TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE key (number INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE row (
    ordinal INTEGER PRIMARY KEY, key INTEGER NOT NULL, id TEXT NOT NULL UNIQUE, fingerprint TEXT NOT NULL,
    file TEXT NOT NULL, number INTEGER NOT NULL, text TEXT NOT NULL, carried BLOB NOT NULL
);
CREATE INDEX row_by_key ON row (key, ordinal);
CREATE TABLE committed (
    id TEXT NOT NULL, fingerprint TEXT NOT NULL, shard TEXT NOT NULL, done INTEGER NOT NULL, carried TEXT,
    PRIMARY KEY (id, fingerprint, shard)
) WITHOUT ROWID;
CREATE TABLE deferred (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE outdated (shard TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (shard, id)) WITHOUT ROWID;
"""
_KNOWN = "EXISTS (SELECT 1 FROM committed c WHERE c.id = row.id AND c.fingerprint = row.fingerprint)"
_PENDING = f"NOT {_KNOWN} AND row.id NOT IN (SELECT id FROM deferred)"
_OF_MANIFEST = "committed c JOIN row ON row.id = c.id AND row.fingerprint = c.fingerprint"
_DONE = "EXISTS (SELECT 1 FROM committed c WHERE c.id = row.id AND c.fingerprint = row.fingerprint AND c.done)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """A row that the output already knows: made, or tried and failed."""

    id: str
    fingerprint: str
    shard: str
    status: Status
    carried: str | None = None  # print of its carried cells; None where nobody asked


@dataclass(frozen=True, kw_only=True, slots=True)
class DoneCells:
    """A done row's carried cells as the manifest has them now, and the print of those that the output has."""

    shard: str
    id: str
    print: str
    carried: Mapping[str, Any]
    file: str
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Where the manifest's rows stand; done + failed + pending = total."""

    total: int
    done: int
    failed: int
    pending: int
    updated: int = 0  # done rows whose carried columns had changed, and are now as the manifest has them
    sample: tuple[str, ...] = ()  # ids of the rows that were asked for as a sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """How many rows share a batch key."""

    key: str
    total: int
    pending: int


def _held(file: Path) -> int:
    """A file that is locked as long as this process lives: whoever can lock it knows that nobody does."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_left_behind() -> None:
    """Remove the indexes of runs that were killed; what is younger than two seconds may not be locked yet."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else's, or held
            about = folder.lstat()
            if about.st_uid != os.getuid() or not stat.S_ISDIR(about.st_mode) or about.st_mtime > time.time() - _YOUNG:
                continue
            handle = _held(folder / _LOCK)
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


class Index:
    """All rows of a manifest; a context manager that removes its file."""

    def __init__(self) -> None:
        _remove_left_behind()
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self._lock = _held(Path(self._folder.name, _LOCK))
        self._db = sqlite3.connect(Path(self._folder.name, "rows.sqlite"), isolation_level=None)
        self._db.executescript(_TABLES + f"PRAGMA cache_size = -{CACHE_KIB};")
        self._keys: dict[str, int] = {}
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        self._folder.cleanup()
        os.close(self._lock)

    def occurrence(self, content: str) -> int:
        """How often this content was asked for before: 0 the first time, then 1, 2, ..."""
        found = self._db.execute(
            "INSERT INTO occurrence VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count",
            (content,),
        ).fetchone()
        return int(found[0]) - 1

    def add(self, key: str, row: Row) -> tuple[str, int] | None:
        """Append a row; where its id is taken nothing is added, and file and number of the holder come back."""
        try:
            self._db.execute(
                "INSERT INTO row (key, id, fingerprint, file, number, text, carried) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    self._key_number(key),
                    row.id,
                    row.fingerprint,
                    row.file,
                    row.number,
                    encode_row(row),
                    pickle.dumps(row.carried, protocol=5),  # cells of any type, in a file of this process alone
                ),
            )
        except sqlite3.IntegrityError:
            file, number = self._db.execute("SELECT file, number FROM row WHERE id = ?", (row.id,)).fetchone()
            return str(file), int(number)
        return None

    def _key_number(self, key: str) -> int:
        number = self._keys.get(key)
        if number is None:
            self._db.execute("INSERT OR IGNORE INTO key (text) VALUES (?)", (key,))
            number = int(self._db.execute("SELECT number FROM key WHERE text = ?", (key,)).fetchone()[0])
            if len(self._keys) >= CACHED_KEYS:
                self._keys.clear()
            self._keys[key] = number
        return number

    def mark(self, rows: Iterable[Committed]) -> None:
        """Note what the output already holds; a row that one shard made and another failed to make is done."""
        self._db.executemany(
            "INSERT INTO committed VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
            "SET done = MAX(done, excluded.done), carried = COALESCE(excluded.carried, carried)",
            ((row.id, row.fingerprint, row.shard, row.status is Status.DONE, row.carried) for row in rows),
        )

    def counts(self) -> Counts:
        """Totals over the manifest's rows; rows that only the output has are not counted."""
        total, done, known = self._db.execute(
            f"SELECT COUNT(*), COALESCE(SUM({_DONE}), 0), COALESCE(SUM({_KNOWN}), 0) FROM row"
        ).fetchone()
        return Counts(total=total, done=done, failed=known - done, pending=total - known)

    def images(self) -> int:
        """How many done rows the output holds, whether the manifest still names them or not."""
        distinct = "SELECT DISTINCT id, fingerprint FROM committed WHERE done"
        return int(self._db.execute(f"SELECT COUNT(*) FROM ({distinct})").fetchone()[0])

    def done_shards(self) -> Iterator[str]:
        """The shards that hold done rows, whether the manifest still names those or not."""
        return (shard for (shard,) in self._db.execute("SELECT DISTINCT shard FROM committed WHERE done"))

    def done_by_shard(self) -> dict[str, int]:
        """How many done rows of the manifest each shard holds; one that two hold counts for the first."""
        first = f"SELECT MIN(c.shard) AS shard FROM {_OF_MANIFEST} WHERE c.done GROUP BY c.id, c.fingerprint"
        return dict(self._db.execute(f"SELECT shard, COUNT(*) FROM ({first}) GROUP BY shard"))

    def failed(self) -> Iterator[tuple[str, str]]:
        """The manifest's failed rows, by id and fingerprint."""
        yield from self._db.cursor().execute(
            f"SELECT DISTINCT c.id, c.fingerprint FROM {_OF_MANIFEST} WHERE NOT {_DONE} ORDER BY 1"
        )

    def forget(self, rows: Iterable[Committed]) -> None:
        """Note that shards no longer hold these rows."""
        self._db.executemany(
            "DELETE FROM committed WHERE id = ? AND fingerprint = ? AND shard = ?",
            ((row.id, row.fingerprint, row.shard) for row in rows),
        )

    def done_cells(self) -> Iterator[DoneCells]:
        """Done rows of the manifest whose print in the output is known, in the manifest's order."""
        found = self._db.cursor().execute(
            "SELECT c.shard, row.id, c.carried, row.carried, row.file, row.number FROM row JOIN committed c "
            "ON c.id = row.id AND c.fingerprint = row.fingerprint WHERE c.done AND c.carried IS NOT NULL "
            "ORDER BY row.ordinal"
        )
        for shard, id_, print_, carried, file, number in found:
            cells = pickle.loads(carried)
            yield DoneCells(shard=shard, id=id_, print=print_, carried=cells, file=file, number=number)

    def note_outdated(self, rows: Iterable[DoneCells]) -> None:
        """Note whose carried cells are others in the manifest."""
        self._db.executemany("INSERT OR IGNORE INTO outdated VALUES (?, ?)", ((row.shard, row.id) for row in rows))

    def count_outdated(self) -> int:
        """How many done rows were noted so."""
        return int(self._db.execute("SELECT COUNT(DISTINCT id) FROM outdated").fetchone()[0])

    def outdated(self) -> Iterator[tuple[str, dict[str, Mapping[str, Any]]]]:
        """Their shards, each with the cells of its rows by id; one shard is in memory at a time."""
        found = self._db.cursor().execute(
            "SELECT outdated.shard, row.id, row.carried FROM outdated JOIN row ON row.id = outdated.id "
            "ORDER BY outdated.shard"
        )
        for shard, rows in groupby(found, key=lambda row: row[0]):
            yield str(shard), {str(id_): pickle.loads(carried) for _, id_, carried in rows}

    def clear_outdated(self) -> None:
        """Forget whose carried cells were others: the output has them as the manifest has."""
        self._db.execute(
            "UPDATE committed SET carried = NULL FROM outdated "
            "WHERE committed.id = outdated.id AND committed.shard = outdated.shard"
        )
        self._db.execute("DELETE FROM outdated")

    def candidates(self, most: int) -> Iterator[Row]:
        """Rows in an order of their own, by fingerprint: a sample of them is one of the manifest."""
        found = self._db.cursor().execute("SELECT text, carried FROM row ORDER BY fingerprint, id LIMIT ?", (most,))
        for text, carried in found:
            yield decode_row(text, pickle.loads(carried))

    def defer_all_but(self, ids: Iterable[str]) -> int:
        """Leave other rows for a later run: only `counts` calls them pending. Returns how many of these are pending."""
        self._db.execute("INSERT INTO deferred SELECT id FROM row")
        self._db.executemany("DELETE FROM deferred WHERE id = ?", ((id_,) for id_ in ids))
        return int(self._db.execute(f"SELECT COUNT(*) FROM row WHERE {_PENDING}").fetchone()[0])

    def batch_keys(self) -> Iterator[str]:
        """The batch keys, without a look at their rows."""
        return (text for (text,) in self._db.execute("SELECT text FROM key ORDER BY text"))

    def groups(self) -> Iterator[Group]:
        """Batch keys in the order in which they will run."""
        for key, total, pending in self._db.execute(
            f"SELECT key.text, COUNT(*), SUM({_PENDING}) FROM key JOIN row ON row.key = key.number "
            "GROUP BY key.text ORDER BY key.text"
        ):
            yield Group(key=key, total=total, pending=pending)

    def shares(self, limit: int | None = None) -> Iterator[tuple[Group, int]]:
        """Batch keys of the rows that `pending` gives, and how many of these each has."""
        left = sys.maxsize if limit is None else limit
        for group in self.groups():
            if rows := min(group.pending, left):
                yield group, rows
            left -= rows

    def pending(self, limit: int | None = None, *, by_key: bool = True) -> Iterator[tuple[str, Row]]:
        """Rows that are neither done nor failed, by batch key and then in the manifest's order, or in that alone."""
        rows = self._db.cursor().execute(
            f"SELECT key.text, row.text, row.carried FROM key JOIN row ON row.key = key.number WHERE {_PENDING} "
            f"ORDER BY {'key.text, ' * by_key}row.ordinal LIMIT ?",
            (-1 if limit is None else limit,),
        )
        for key, text, carried in rows:
            yield key, decode_row(text, pickle.loads(carried))

    def clear(self) -> None:
        """Forget all rows that were added."""
        self._keys.clear()
        for table in ("row", "key", "occurrence"):
            self._db.execute(f"DELETE FROM {table}")

    def encoded(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """All rows in the manifest's order: batch key, the row as `encode_row` writes it, its carried cells."""
        found = self._db.cursor().execute(
            "SELECT key.text, row.text, row.carried FROM key JOIN row ON row.key = key.number ORDER BY row.ordinal"
        )
        for key, text, carried in found:
            yield key, text, pickle.loads(carried)

    def rows(self) -> Iterator[tuple[str, Row]]:
        """The same rows, with their batch keys."""
        for key, text, carried in self.encoded():
            yield key, decode_row(text, carried)

    def superseded(self) -> Iterator[Committed]:
        """Done rows that the output holds besides: by shard, so that each shard is written once.

        An id that now stands for another fingerprint, which is done as well; or the same row in two shards, which two
        runs can leave that cut their shards differently and did not see each other's lease.
        """
        for id_, fingerprint, shard in self._db.execute(
            "SELECT old.id, old.fingerprint, old.shard FROM committed old JOIN row ON row.id = old.id "
            "AND row.fingerprint <> old.fingerprint JOIN committed new ON new.id = row.id "
            "AND new.fingerprint = row.fingerprint WHERE old.done AND new.done "
            "UNION SELECT late.id, late.fingerprint, late.shard FROM committed late JOIN committed first "
            "ON first.id = late.id AND first.fingerprint = late.fingerprint AND first.shard < late.shard "
            "WHERE late.done AND first.done ORDER BY 3"
        ):
            yield Committed(id=id_, fingerprint=fingerprint, shard=shard, status=Status.DONE)

    def outdated_failures(self) -> Iterator[Committed]:
        """Failures that the output holds besides, by shard.

        Of a row that another shard made, of one that another failed to make as well, and of an id that now stands for
        another fingerprint, which is done or failed.
        """
        for id_, fingerprint, shard in self._db.execute(
            "SELECT old.id, old.fingerprint, old.shard FROM committed old JOIN committed other ON other.id = old.id "
            "AND other.fingerprint = old.fingerprint AND (other.done OR other.shard < old.shard) WHERE NOT old.done "
            "AND other.shard <> old.shard UNION SELECT old.id, old.fingerprint, old.shard FROM committed old "
            "JOIN row ON row.id = old.id AND row.fingerprint <> old.fingerprint JOIN committed new ON new.id = row.id "
            "AND new.fingerprint = row.fingerprint WHERE NOT old.done ORDER BY 3"
        ):
            yield Committed(id=id_, fingerprint=fingerprint, shard=shard, status=Status.FAILED)
