"""Prefixes of object stores as stores, and the file systems behind them.

Credentials, profiles and endpoints are left to s3fs and boto3, which read the environment and the user's config files.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from batchgen.errors import AlreadyExists, InputError, StoreError
from batchgen.storage.errors import place_named, service_code, trouble
from batchgen.storage.store import Entry
from batchgen.storage.throttle import AT_ONCE, Throttle

__all__ = ["S3", "RemoteStore", "input_filesystem", "object_at"]

SINGLE_PUT = 2 << 30  # bytes; s3fs would go over to multipart at 100 MB, where a server may ignore the create condition
S3 = ("s3://", "s3a://")
_OBJECT_STORES = frozenset("abfs abfss adl az gcs gs memory oci oss s3 s3a".split())  # others have no business here


class _Timeouts(Enum):
    """How long an S3 client waits to connect and to read, in seconds, and how often botocore and s3fs on it try."""

    QUICK = 4, 10, 2, 2
    PATIENT = 10, 60, 8, 5
    ONCE = 10, 60, 1, 1  # `Throttle` tries again, and is to see at once that a service is too busy


class RemoteStore:
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


def object_at(uri: str) -> tuple[RemoteStore, str]:
    """The store that holds one of the user's own objects, with as much patience as for an output, and its key there.

    Raises:
        InputError: there is no such protocol, or it has no business here.
    """
    protocol, _, path = uri.partition("://")
    bucket, _, key = path.partition("/")
    return RemoteStore(f"{protocol}://{bucket}", {}, quick=False), key


def input_filesystem(protocol: str, *, quick: bool = False) -> Any:
    """The fsspec file system from which the user's own files of a protocol are listed, and large ones read in parts.

    Raises:
        InputError: there is no such protocol, or it has no business here.
    """
    return _filesystem(protocol, _Frozen(), _Timeouts.QUICK if quick else _Timeouts.PATIENT)
