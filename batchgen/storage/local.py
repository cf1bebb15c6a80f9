"""A folder of the local file system as a store."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from batchgen.errors import OutputGone
from batchgen.storage.claims import publish
from batchgen.storage.errors import place_named
from batchgen.storage.store import Entry

__all__ = ["LocalStore"]


class LocalStore:
    """A folder of the local file system; a write is a temporary file, fsync, then link (or a claim) or replace."""

    def __init__(self, root: Path, anchor: str | None) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)  # workers have working directories of their own
        self._anchor = anchor

    def read(self, key: str) -> bytes:
        with place_named(f"{self.uri}/{key}"):
            return (self.root / key).read_bytes()

    def read_part(self, key: str, start: int, end: int) -> bytes:
        with place_named(f"{self.uri}/{key}"), (self.root / key).open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def size(self, key: str) -> int:
        with place_named(f"{self.uri}/{key}"):
            return (self.root / key).stat().st_size

    def create(self, key: str, data: bytes) -> None:
        self._put(key, data, publish)

    def write(self, key: str, data: bytes) -> None:
        self._put(key, data, os.replace)

    def _put(self, key: str, data: bytes, give_name: Callable[[Path, Path], None]) -> None:
        target = self.root / key
        with place_named(f"{self.uri}/{key}"):
            self._make_folder(target.parent)
            handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    with suppress(OSError):  # vfat, SMB and others have the modes of their mount
                        os.fchmod(stream.fileno(), 0o666 & ~_UMASK)
                    os.fsync(stream.fileno())
                give_name(Path(temporary), target)
            finally:
                Path(temporary).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder below the root, and the root itself only where no anchor says that it was there."""
        if self._anchor is not None and not (self.root / self._anchor).is_file():
            raise OutputGone(
                f"{self.uri}: {self._anchor} is gone; the folder was moved, removed or unmounted while it was in use"
            )
        if folder.is_dir():
            return
        try:
            if self._anchor is None:
                self.root.mkdir(parents=True, exist_ok=True)
            for name in reversed([folder, *folder.parents][: len(folder.relative_to(self.root).parts)]):
                name.mkdir(exist_ok=True)
        except FileExistsError as error:  # nothing that `create` must not replace
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error

    def names(self, prefix: str) -> list[str]:
        with place_named(f"{self.uri}/{prefix}"):
            folder = self.root / prefix
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def entries(self, prefix: str) -> Iterator[Entry]:
        with place_named(f"{self.uri}/{prefix}"):
            for folder, _, files in os.walk(self.root / prefix):
                for name in files:
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):  # a temporary file of a run that is going on
                        fact = path.stat()
                        key = path.relative_to(self.root).as_posix()
                        yield Entry(key=key, size=fact.st_size, version=str(fact.st_mtime_ns))

    def delete(self, key: str) -> None:
        with place_named(f"{self.uri}/{key}"):
            path = self.root / key
            if path.is_dir() and not path.is_symlink():
                for folder, _, _ in os.walk(path, topdown=False):
                    Path(folder).rmdir()
            else:
                path.unlink(missing_ok=True)


def _current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


_UMASK = _current_umask()  # read once at import: reading it means setting it, which threads must not race over
