"""The user's own files: any path or URI that a manifest, a job or a cell names, one at a time.

What leaves here is a `StoreError` with the place in it, or an `InputError` where something may not be read at all.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from batchgen.errors import InputError
from batchgen.places import is_remote, is_web, local_path
from batchgen.storage import S3, input_filesystem, object_at
from batchgen.storage.errors import place_named
from batchgen.web import fetch

__all__ = ["Look", "expand", "look_at_input", "open_file", "open_input", "read_file", "read_input"]

WEB_BYTES, WEB_SECONDS = 256 << 20, 30.0  # of a manifest; images have bounds of the job's
CONFIG_BYTES = 16 << 20  # of a file that is held whole: a job, a model's config, a list of words


def open_input(uri: str) -> IO[bytes]:
    """The file at a URI, open for reading and seekable."""
    with place_named(uri):
        if not is_remote(uri):
            return open_file(local_path(uri))
        if is_web(uri):
            return io.BytesIO(fetch(uri, most=WEB_BYTES, seconds=WEB_SECONDS, anywhere=True))
        protocol, _, path = uri.partition("://")
        stream: IO[bytes] = input_filesystem(protocol).open(path, "rb")
        return stream


def read_input(uri: str, *, most: int, seconds: float = WEB_SECONDS) -> bytes:
    """All bytes of the file at a URI that a cell may name; of the web's, this machine is asked for none.

    Cells name many: on S3 they are requests as the output's are, under the one limit of how many at once.

    Raises:
        InputError: there are more than `most`, no file may be read there, or it takes longer than `seconds`.
    """
    if is_web(uri):
        return fetch(uri, most=most, seconds=seconds)
    if uri.startswith(S3):
        store, key = object_at(uri)
        data = store.read_part(key, 0, most + 1)
    else:
        with open_input(uri) as stream, place_named(uri):
            data = stream.read(min(most + 1, _length(stream) + 1))
    if len(data) > most:
        raise InputError(f"{uri} is larger than {most >> 20} MiB")
    return data


def _length(stream: IO[bytes]) -> int:
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return length


def open_file(path: Path) -> IO[bytes]:
    """A regular file, open for reading: what else has a path (devices, pipes, sockets) may never end, or never begin.

    Raises:
        InputError: it is something else.
        OSError: it is not there, or cannot be read.
    """
    _require_regular(path, path.stat().st_mode)
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _require_regular(path, os.fstat(stream.fileno()).st_mode)
    except BaseException:
        stream.close()
        raise
    return stream


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is a device, a pipe or a socket; copy what comes from it to a file")


def read_file(path: Path, most: int = CONFIG_BYTES) -> bytes:
    """All bytes of a local file that is held whole.

    Raises:
        InputError: it has more than `most`, or is no regular file.
        OSError: it is not there, or cannot be read.
    """
    with open_file(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise InputError(f"{path} is larger than {most >> 20} MiB")
    return data


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What can be seen of a file without reading it; two equal looks mean the same bytes."""

    size: int  # bytes
    version: str  # modification time, or a store's tag of the content; empty where neither is known
    modified: float | None  # Unix time


def look_at_input(uri: str) -> Look:
    """Look at a file, or at a local folder as a whole.

    Raises:
        NotFound: nothing is there.
        StoreError: it cannot be looked at.
    """
    with place_named(uri):
        if is_web(uri):
            return Look(size=0, version="", modified=None)  # nobody knows without reading it
        if is_remote(uri):
            store, key = object_at(uri)
            known = store.about(key)
            changed = known.get("LastModified") or known.get("mtime")
            tag = known.get("ETag") or known.get("etag") or changed or ""
            modified = changed.timestamp() if isinstance(changed, datetime) else changed
            return Look(size=int(known.get("size") or 0), version=str(tag), modified=modified)
        path_here = local_path(uri)
        files = sorted(path_here.rglob("*")) if path_here.is_dir() else [path_here]
        facts = [(file, file.stat()) for file in files if file.is_file()]
        if not facts:
            raise FileNotFoundError(uri)
        # the change time and the inode say what a copied modification time hides; names, what moved within a folder
        versions = (f"{file.name} {fact.st_ino} {fact.st_mtime_ns} {fact.st_ctime_ns}" for file, fact in facts)
        return Look(
            size=sum(fact.st_size for _, fact in facts),
            version=hashlib.sha256("\n".join(versions).encode("utf-8", "surrogateescape")).hexdigest(),
            modified=max(fact.st_mtime for _, fact in facts),
        )


def expand(uri: str, suffixes: Iterable[str]) -> list[str]:
    """The files that a path, folder or glob names, sorted; a folder means the files of these suffixes below it."""
    wanted = tuple(suffixes)
    if is_web(uri):
        return [uri]  # the web lists nothing
    with place_named(uri):
        if is_remote(uri):
            protocol, _, path = uri.partition("://")
            fs, prefix = input_filesystem(protocol, quick=True), f"{protocol}://"
        else:
            import fsspec

            fs, prefix, path = fsspec.filesystem("file"), "", str(local_path(uri))
        if fs.isdir(path):
            return [prefix + found for found in _inputs_below(path, sorted(fs.find(path)), wanted)]
        if fs.exists(path):
            return [prefix + path]
        return [prefix + found for found in sorted(fs.glob(path))] if any(c in path for c in "*?[") else []


def _inputs_below(folder: str, found: list[str], suffixes: tuple[str, ...]) -> Iterator[str]:
    """Files of a folder that can be inputs: nothing hidden, and nothing of an output that lies in it."""
    start = len(folder.rstrip("/"))
    outputs = tuple({path[: path.index("/.batchgen/", start) + 1] for path in found if "/.batchgen/" in path[start:]})
    for path in found:
        if path.lower().endswith(suffixes) and "/." not in path[start:] and not path.startswith(outputs):
            yield path
