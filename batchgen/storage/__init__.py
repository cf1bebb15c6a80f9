"""The door to file systems and object stores: local paths, s3:// and whatever else fsspec opens.

Knows nothing of rows, shards or models. Everything that leaves here is a `StoreError` with the place in it.
"""

import os
from collections.abc import Mapping
from typing import Any

from batchgen.errors import AlreadyExists, InputError, StoreError
from batchgen.places import is_remote, kept_by_ray, local_path, misspelling
from batchgen.storage.local import LocalStore
from batchgen.storage.remote import S3, RemoteStore, input_filesystem, object_at
from batchgen.storage.store import Entry, Store

__all__ = ["S3", "Entry", "Store", "input_filesystem", "object_at", "open_store", "probe", "require_place"]

PROBE_KEY = ".batchgen/probe"


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
        return RemoteStore(uri.rstrip("/"), dict(options or {}), quick=quick)
    if options:
        raise InputError(f"storage_options ({', '.join(options)}) mean nothing for the local folder {uri}; drop them")
    return LocalStore(local_path(uri), anchor)


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
