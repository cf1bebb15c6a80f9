"""Local files that rows are made from, as every node must have them before it."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from batchgen.index import Index
from batchgen.places import is_remote, local_path
from batchgen.resolve import Resolved

__all__ = ["local_inputs"]

MOST = 256  # files; a look at each takes microseconds, on a network's file system milliseconds
LOOKED_AT = 256  # rows, for images that lie in the manifest itself


def local_inputs(resolved: Resolved, index: Index) -> tuple[tuple[str, int], ...]:
    """Some of them with their sizes in bytes: one of each folder first, since folders are what nodes share or not.

    Args:
        resolved: says which files images and adapters were read from.
        index: the rows; the manifest's files count where images lie in them.
    """
    rows = islice(index.rows(), LOOKED_AT)
    embedded = any(image.row is not None for _, row in rows for image in row.inputs.values())
    files = sorted(file for file in (*resolved.read, *(resolved.files if embedded else ())) if not is_remote(file))
    first = {str(Path(file).parent): file for file in reversed(files)}
    some = dict.fromkeys([*_spread(sorted(first.values())), *_spread(files)])
    return tuple(islice(_sized(some), MOST))


def _spread(files: list[str]) -> list[str]:
    return files[:: -(-len(files) // MOST) or 1]


def _sized(files: Iterable[str]) -> Iterator[tuple[str, int]]:
    for file in files:
        path = local_path(file)
        with suppress(OSError):  # the row says so when its turn comes
            if path.is_file():
                yield str(path), path.stat().st_size
