"""Reads an output with pyarrow and hashlib alone, and compares two of them row by row. Uses no code of batchgen.

It is a witness: what a layout is it says again here, and an output of a layout that it does not know it refuses.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

__all__ = ["Made", "attempts", "compare", "count_images", "read"]

_OF_THE_ATTEMPT = frozenset(
    {"file_name", "picture_path", "image", "seconds"}
)  # columns that differ from run to run by design
_MARKERS = {"files": "[!.]*/metadata.parquet", "parquet": "[!.]*.parquet"}  # below data/, by layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One row of a dataset and its stored image."""

    shard: str
    cells: Mapping[str, Any]  # of the metadata, without those that differ from run to run
    image: str | None  # sha256 of the stored bytes; None where they are missing


def read(output: Path) -> list[Made]:
    """All rows of a dataset in either layout, every image hashed.

    Raises:
        ValueError: it is of another layout.
    """
    return [made for marker in _markers(output) for made in _read_shard(marker)]


def attempts(output: Path) -> dict[str, tuple[str, int]]:
    """Attempt and number of rows of every committed shard; safe beside a run, which creates markers whole."""
    found = {}
    for marker in _markers(output):
        metadata = pq.read_metadata(marker)
        about = json.loads(metadata.metadata[b"batchgen"])
        found[_shard(marker)] = (about["attempt"], metadata.num_rows)
    return found


def count_images(output: Path) -> int:
    """Image files below data/, also those that no marker names; 0 for the layout `parquet`."""
    return sum(1 for file in (output / "data").glob("*/*/*") if file.is_file())


def compare(reference: Path, other: Path) -> list[str]:
    """How `other` differs from `reference`, a line a difference; nothing where all rows and bytes are the same.

    Compared are: which ids there are and how often, every column but those of the attempt, the sha256 column against
    the stored bytes, and the stored bytes against the reference's.
    """
    wanted = {made.cells["id"]: made for made in read(reference)}
    found = read(other)
    counts = Counter(made.cells["id"] for made in found)
    differences = [f"row {id_!r} is lost" for id_ in wanted if id_ not in counts]
    differences += [f"row {id_!r} is there {count} times" for id_, count in counts.items() if count > 1]
    differences += [f"row {id_!r} is not in the reference" for id_ in counts if id_ not in wanted]
    for made in found:
        if made.cells["id"] in wanted:
            differences += _compare_rows(wanted[made.cells["id"]], made)
    return differences


def _compare_rows(wanted: Made, found: Made) -> Iterator[str]:
    place = f"row {found.cells['id']!r} in shard {found.shard}"
    if found.image is None:
        yield f"{place}: its image is missing"
    elif found.image != found.cells["sha256"]:
        yield f"{place}: the image's bytes are not those of the sha256 column"
    if found.image is not None and found.image != wanted.image:
        yield f"{place}: the image's bytes are not the reference's"
    for name in sorted(wanted.cells.keys() | found.cells.keys()):
        mine, theirs = found.cells.get(name), wanted.cells.get(name)
        if mine != theirs:
            yield f"{place}: {name} is {mine!r}, in the reference {theirs!r}"


def _markers(output: Path) -> list[Path]:
    data = output / "data"
    if not data.is_dir():  # a run that was killed early has not begun it
        return []
    layout = json.loads((output / ".batchgen" / "output.json").read_text())["layout"]
    if layout not in _MARKERS:
        raise ValueError(f"{output}: is of the layout {layout!r}; known here are {', '.join(_MARKERS)}")
    return sorted(data.glob(_MARKERS[layout]))


def _shard(marker: Path) -> str:
    return marker.parent.name if marker.name == "metadata.parquet" else marker.stem


def _read_shard(marker: Path) -> Iterator[Made]:
    with marker.open("rb") as stream:  # a path would have pyarrow look for partitions in its folders' names
        rows = pq.read_table(stream).to_pylist()
    for row in rows:
        cells = {name: cell for name, cell in row.items() if name not in _OF_THE_ATTEMPT}
        yield Made(shard=_shard(marker), cells=cells, image=_hash_image(marker, row))


def _hash_image(marker: Path, row: Mapping[str, Any]) -> str | None:
    if "image" in row:
        return hashlib.sha256(row["image"]["bytes"]).hexdigest()
    file = marker.parent / row["file_name"]
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
