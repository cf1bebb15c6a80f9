"""The door to file systems and object stores: local paths, s3:// and whatever else fsspec opens.

Knows nothing of rows, shards or models. Everything that leaves here is a `StoreError` with the place in it.
Credentials, profiles and endpoints are left to s3fs and boto3, which read the environment and the user's config files.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from batchgen.claims import publish
from batchgen.errors import AlreadyExists, InputError, NotFound, OutputGone, StoreError, StoreRefused
from batchgen.places import is_remote, kept_by_ray, local_path, misspelling
from batchgen.store_errors import reason, refusal, service_code, trouble
from batchgen.throttle import AT_ONCE, Throttle

__all__ = [
    "S3",
    "Entry",
    "Store",
    "input_filesystem",
    "object_at",
    "open_store",
    "place_named",
    "probe",
    "require_place",
]

PROBE_KEY = ".batchgen/probe"
SINGLE_PUT = 2 << 30  # bytes; s3fs would go over to multipart at 100 MB, where a server may ignore the create condition
S3 = ("s3://", "s3a://")
_OBJECT_STORES = frozenset("abfs abfss adl az gcs gs memory oci oss s3 s3a".split())  # others have no business here


class _Timeouts(Enum):
    """How long an S3 client waits to connect and to read, in seconds, and how often botocore and s3fs on it try."""

    QUICK = 4, 10, 2, 2
    PATIENT = 10, 60, 8, 5
    ONCE = 10, 60, 1, 1  # `Throttle` tries again, and is to see at once that a service is too busy


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A stored object: its key below the store's root, its size in bytes, and what changes when it does."""

    key: str
    size: int
    version: str = ""  # modification time in ns, or a store's tag of the content; empty where neither is known


class Store(Protocol):
    """A folder of objects, by key with `/` between names. Every method raises `StoreError`."""

    uri: str

    def read(self, key: str) -> bytes:
        """The object's bytes; `NotFound` where there is none."""

    def read_part(self, key: str, start: int, end: int) -> bytes:
        """The object's bytes from `start` up to `end` or its own end, without the others; `NotFound` as above."""

    def size(self, key: str) -> int:
        """The object's size in bytes; `NotFound` where there is none."""

    def create(self, key: str, data: bytes) -> None:
        """Store whole or not at all; `AlreadyExists` where the key is taken, whoever came first."""

    def write(self, key: str, data: bytes) -> None:
        """Store whole or not at all, over what is there."""

    def names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, folders without their slash, sorted; none where nothing is there."""

    def entries(self, prefix: str) -> Iterator[Entry]:
        """All objects below a prefix."""

    def delete(self, key: str) -> None:
        """Remove an object, or the empty folders that lie in an object's place; no error where there is none."""


def open_store(
    uri: str, options: Mapping[str, Any] | None = None, *, quick: bool = False, anchor: str | None = None
) -> Store:
    """The store at a URI.

    Args:
        uri: a local folder, s3://bucket/prefix, or a URI of another protocol that fsspec knows.
        options: passed to the fsspec file system over what the environment says.
        quick: give up within seconds when the store cannot be reached, instead of retrying for minutes.
        anchor: key of an object that is there already, and stays: a local folder that lost it, being moved, removed or
            unmounted, takes nothing more (OutputGone), and is never made anew.

    Raises:
        InputError: the URI is misspelt.
    """
    if is_remote(uri):
        why = misspelling(uri) or ("names no bucket" if uri.endswith("://") else None)
        if why is not None:
            raise InputError(f"{uri} {why}")
        return _FsspecStore(uri.rstrip("/"), dict(options or {}), quick=quick)
    if options:
        raise InputError(f"storage_options ({', '.join(options)}) mean nothing for the local folder {uri}; drop them")
    return _LocalStore(local_path(uri), anchor)


def require_place(uri: str) -> None:
    """Make sure that a local folder is one, or can be made, can be written to, and will stay; nothing is written.

    Whether an object store takes what is written only a write can tell.

    Raises:
        InputError: it is a file, below a file, not writable, or in a folder that Ray removes with its session.
    """
    if is_remote(uri):
        return
    folder = local_path(uri)
    if (ours := kept_by_ray(folder)) is not None:
        raise InputError(
            f"output {uri}: {folder} lies below {ours}, which Ray removes with its session; give a whole path to a "
            "folder that all nodes share, or s3://bucket/prefix"
        )
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"output {uri}: {folder} is no folder; choose another place")
    for place in (folder, folder / ".batchgen", folder / "data"):
        if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"output {uri}: {place} cannot be written to; change its permissions, or choose another")


def probe(store: Store) -> None:
    """Make sure that the store is reachable, writable, and honours create-only writes.

    One object of a fixed name stays behind: nothing needs to be deleted, which workers may not be allowed to.

    Raises:
        StoreError: unreachable, not writable, or a second create of the same key went through.
    """
    for _ in range(2):
        try:
            store.create(PROBE_KEY, b"batchgen checks that this store honours create-only writes.\n")
        except AlreadyExists:
            return
    raise StoreError(
        f"{store.uri}: the store overwrites an existing object although it was asked to create it "
        "(If-None-Match is ignored); commits would not be safe there, use another store"
    )


class _LocalStore:
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


class _FsspecStore:
    """A prefix of an object store."""

    def __init__(self, uri: str, options: dict[str, Any], *, quick: bool) -> None:
        self.uri = uri
        protocol, self.root = uri.split("://", 1)
        with place_named(uri):
            self._fs = _filesystem(protocol, _Frozen(options), _Timeouts.QUICK if quick else _Timeouts.ONCE)
        self._throttle = None if quick or not uri.startswith(S3) else _throttle(_Frozen(options))

    def _ask(self, request: Callable[[], Any]) -> Any:
        """What a request returns; where this file system does not try again by itself, tried again here."""
        return request() if self._throttle is None else self._throttle.call(request, trouble)

    def read(self, key: str) -> bytes:
        # from 0: else s3fs asks for the size first, to which a refusal has no text
        return self._cat(key, **({"start": 0} if self.uri.startswith(S3) else {}))

    def read_part(self, key: str, start: int, end: int) -> bytes:
        return self._cat(key, start=start, end=end)

    def _cat(self, key: str, **bounds: int) -> bytes:
        with place_named(f"{self.uri}/{key}"):
            try:
                data: bytes = self._ask(lambda: self._fs.cat_file(f"{self.root}/{key}", **bounds))
            except OSError as error:
                if service_code(error) != "InvalidRange":
                    raise
                return b""  # it ends before the start: an empty one has no byte 0
            return data

    def size(self, key: str) -> int:
        return int(self.about(key)["size"])

    def about(self, key: str) -> Mapping[str, Any]:
        """What the file system knows of the object, under its own names; `NotFound` where there is none."""
        with place_named(f"{self.uri}/{key}"):
            known: Mapping[str, Any] = self._ask(lambda: self._fs.info(f"{self.root}/{key}"))
            return known

    def create(self, key: str, data: bytes) -> None:
        try:
            with place_named(f"{self.uri}/{key}"):
                self._pipe(key, data, mode="create")
        except StoreError as error:
            if _is_refusal(error.__cause__):
                raise AlreadyExists(f"{self.uri}/{key} exists already") from error
            raise

    def write(self, key: str, data: bytes) -> None:
        with place_named(f"{self.uri}/{key}"):
            self._pipe(key, data)

    def _pipe(self, key: str, data: bytes, **kwargs: Any) -> None:
        if not data:
            raise StoreError(f"{self.uri}/{key}: an empty object cannot be created safely")
        if self.uri.startswith(S3):
            kwargs["chunksize"] = SINGLE_PUT
        self._ask(lambda: self._fs.pipe_file(f"{self.root}/{key}", data, **kwargs))

    def names(self, prefix: str) -> list[str]:
        with place_named(f"{self.uri}/{prefix}"):
            try:
                listed = self._ask(lambda: self._fs.ls(f"{self.root}/{prefix}".rstrip("/"), detail=False))
            except FileNotFoundError as error:
                if service_code(error) == "NoSuchBucket":
                    raise
                return []
        return sorted(PurePosixPath(path).name for path in listed)

    def entries(self, prefix: str) -> Iterator[Entry]:
        with place_named(f"{self.uri}/{prefix}"):
            found = self._ask(lambda: self._fs.find(f"{self.root}/{prefix}".rstrip("/"), detail=True))
        for path, info in found.items():
            key, version = path[len(self.root.lstrip("/")) :].lstrip("/"), info.get("ETag") or info.get("mtime") or ""
            yield Entry(key=key, size=int(info["size"] or 0), version=str(version))

    def delete(self, key: str) -> None:
        with place_named(f"{self.uri}/{key}"):
            try:
                self._ask(lambda: self._fs.rm_file(f"{self.root}/{key}"))
            except FileNotFoundError:
                return


class _Frozen(dict[str, Any]):
    """Options that can be a cache key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@lru_cache(maxsize=8)
def _throttle(_options: _Frozen) -> Throttle:
    """That of all requests of an S3 service in this process."""
    return Throttle()


@lru_cache(maxsize=8)
def _filesystem(protocol: str, options: _Frozen, timeouts: _Timeouts) -> Any:
    import fsspec

    if protocol not in _OBJECT_STORES:
        near = get_close_matches(protocol.lower(), _OBJECT_STORES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}://?" if near else f"known are {', '.join(sorted(_OBJECT_STORES))}"
        raise InputError(f"there is no protocol {protocol}:// here; {hint}")
    if f"{protocol}://" not in S3:
        return fsspec.filesystem(protocol, **options)
    connect, read, attempts, tries = timeouts.value
    retries = {"total_max_attempts": attempts, "mode": "standard"}
    config = {"connect_timeout": connect, "read_timeout": read, "retries": retries, "max_pool_connections": AT_ONCE}
    fs = fsspec.filesystem(
        protocol, skip_instance_cache=True, **({"config_kwargs": config, "use_listings_cache": False} | options)
    )
    fs.retries = tries
    return fs


def _is_refusal(error: BaseException | None) -> bool:
    """Whether a failed create says that the key is taken."""
    return isinstance(error, FileExistsError) or service_code(error) in ("PreconditionFailed", "412")


def object_at(uri: str) -> tuple[_FsspecStore, str]:
    """The store that holds one of the user's own objects, with as much patience as for an output, and its key there.

    Raises:
        InputError: there is no such protocol, or it has no business here.
    """
    protocol, _, path = uri.partition("://")
    bucket, _, key = path.partition("/")
    return _FsspecStore(f"{protocol}://{bucket}", {}, quick=False), key


def input_filesystem(protocol: str, *, quick: bool = False) -> Any:
    """The fsspec file system from which the user's own files of a protocol are listed, and large ones read in parts.

    Raises:
        InputError: there is no such protocol, or it has no business here.
    """
    return _filesystem(protocol, _Frozen(), _Timeouts.QUICK if quick else _Timeouts.PATIENT)


@contextmanager
def place_named(place: str) -> Iterator[None]:
    """Turn whatever a file system raises into a `StoreError` that names the place."""
    try:
        yield
    except StoreError:
        raise
    except FileExistsError as error:
        raise AlreadyExists(f"{place} exists already") from error
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound(f"{place}: {_missing(place, error)}") from error
    except (OSError, ValueError, ImportError) as error:
        raise _store_error(place, error) from error
    except Exception as error:
        # botocore's errors have no common base that is importable without botocore
        if type(error).__module__.split(".")[0] not in {"botocore", "aiobotocore", "aiohttp", "gcsfs", "azure"}:
            raise
        raise _store_error(place, error) from error


def _store_error(place: str, error: Exception) -> StoreError:
    advice = refusal(error)
    if advice is None:
        return StoreError(f"{place}: {reason(error)}")
    denied = "access denied " if isinstance(error, PermissionError) else ""
    return StoreRefused(f"{place}: {f'{denied}({reason(error)})' if denied else reason(error)}; {advice}")


def _missing(place: str, error: OSError) -> str:
    if service_code(error) == "NoSuchBucket":
        return f"there is no bucket {place.split('/')[2]!r}; create it, or check the name and the endpoint"
    return reason(error) if isinstance(error, (NotADirectoryError, IsADirectoryError)) else "not found"
