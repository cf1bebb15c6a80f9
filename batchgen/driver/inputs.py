"""Local files and folders that rows are made from, as every node must reach them."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from batchgen.index import Index
from batchgen.places import is_remote, local_path
from batchgen.resolve import Resolved

__all__ = ["local_inputs"]

MOST = 256  # a look at each takes microseconds, on a network's file system milliseconds
LOOKED_AT = 256  # rows, for images that lie in the manifest itself


def local_inputs(resolved: Resolved, index: Index) -> tuple[tuple[str, int | None], ...]:
    """Some of them with their sizes in bytes, None for folders; one of each place first, as places are shared or not.

    Args:
        resolved: says which files images and adapters were read from.
        index: the rows; the manifest's files count where images lie in them.
    """
    rows = islice(index.rows(), LOOKED_AT)
    embedded = any(image.row is not None for _, row in rows for image in row.inputs.values())
    files = sorted(file for file in (*resolved.read, *(resolved.files if embedded else ())) if not is_remote(file))
    first = {str(Path(file).parent): file for file in reversed(files)}
    layouts = [model.config for model in resolved.models.values() if model.config is not None]
    some = dict.fromkeys([*layouts, *_spread(sorted(first.values())), *_spread(files)])
    return tuple(islice(_sized(some), MOST))


def _spread(files: list[str]) -> list[str]:
    return files[:: -(-len(files) // MOST) or 1]


def _sized(places: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """Those of the places that are there; of others the row says so when its turn comes, or the hub is asked."""
    for place in places:
        path = local_path(place)
        with suppress(OSError):
            yield str(path), None if path.is_dir() else path.stat().st_size
