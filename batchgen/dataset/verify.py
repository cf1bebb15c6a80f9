"""Checks on the stored bytes what an output promises: markers, receipts, hashes, uniqueness, schema, strays."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from batchgen.dataset.carried import computed_prints, said_prints
from batchgen.dataset.dataset import READERS, Dataset, DatasetRow, Marker
from batchgen.dataset.lease import live_holder
from batchgen.dataset.progress import read_receipts, snapshot_digests
from batchgen.dataset.runs import latest_run, standing
from batchgen.errors import ImageError, StoreError
from batchgen.identity import shard_id
from batchgen.images import decode
from batchgen.rows import Receipt
from batchgen.storage import open_store

__all__ = ["Verification", "verify_output"]


@dataclass(kw_only=True, slots=True)
class Verification:
    """What was checked and what is wrong with it."""

    shards: int = 0
    rows: int = 0
    images: int = 0  # whose bytes were hashed
    decoded: int = 0
    failed_rows: int = 0
    strays: int = 0  # images that no committed shard names; harmless
    removed: int = 0
    outcome: str | None = None  # of the latest run
    left: int = 0  # rows of its manifest that are neither made nor recorded as failed
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def summary(self) -> str:
        """One line."""
        decoded = f", {self.decoded:,} decoded" if self.decoded else ""
        removed = f", {self.removed:,} removed" if self.removed else ""
        verdict = "all promises hold" if self.ok else f"{len(self.faults):,} faults"
        if self.left:
            rows = "1 row is" if self.left == 1 else f"{self.left:,} rows are"
            verdict += f" for what is there; {rows} not made ({self.outcome})"
        return (
            f"{self.shards:,} shards, {self.rows:,} rows, {self.images:,} images hashed{decoded}, "
            f"{self.failed_rows:,} failed rows, {self.strays:,} stray images{removed}: {verdict}"
        )


def verify_output(
    uri: str, *, deep: bool = False, clean: bool = False, storage_options: Mapping[str, Any] | None = None
) -> Verification:
    """Read everything an output holds and compare.

    Args:
        uri: the output.
        deep: decode every image, too.
        clean: remove the strays of committed shards; those of shards that are not committed may belong to an attempt
            that is under way.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        InputError: there is no output.
    """
    dataset = Dataset.open(open_store(uri, storage_options))
    found = Verification()
    receipts = {
        receipt.shard: receipt for receipt in read_receipts(dataset, repair=False, missing=True, damaged=lambda _: None)
    }
    held = live_holder(dataset.store) is not None
    if (record := latest_run(dataset.store)) is not None:
        now = standing(record, receipts.values(), held=held)
        found.outcome, found.left = now.outcome, max(0, now.left)
    with ThreadPoolExecutor(READERS) as pool:
        check = _Check(dataset, pool, deep, clean, found, snapshot_digests(dataset), {})
        for shard in dataset.shards():
            _verify_shard(check, shard, receipts.pop(shard, None))
    for receipt in receipts.values():
        _verify_absent(found, receipt)
    return found


@dataclass(frozen=True, slots=True)
class _Check:
    dataset: Dataset
    pool: ThreadPoolExecutor
    deep: bool
    clean: bool
    found: Verification
    digests: dict[str, str]  # of the done rows, as snapshots have them, by shard
    places: dict[str, str]  # key of the marker that names a row, by the row's id


def _verify_shard(check: _Check, shard: str, receipt: Receipt | None) -> None:
    found, dataset, layout = check.found, check.dataset, check.dataset.layout
    key, folder = layout.marker_key(shard), layout.image_folder(shard)
    stored = [] if folder is None else [entry.key for entry in dataset.store.entries(folder)]
    try:
        marker = dataset.marker(shard, images=True)
    except StoreError as error:
        found.faults.append(str(error))
        return
    if marker is None:
        found.strays += len(stored)  # of an attempt that died, or that is under way
        _verify_absent(found, receipt)
        return
    table = marker.table
    found.shards += 1
    found.rows += table.num_rows
    if table.num_rows == 0:
        found.faults.append(f"{key}: has no rows")
    if not table.schema.equals(dataset.format.schema):
        found.faults.append(f"{key}: its schema is not the output's")
        return
    for id_ in table["id"].to_pylist():
        if id_ in check.places:
            found.faults.append(f"{key}: id {id_!r} is in {check.places[id_]}, too")
        check.places[id_] = key
    said = said_prints(marker)
    if said is not None and said != computed_prints(marker, dataset.format.carried):
        found.faults.append(f"{key}: what it says of its carried columns is not what they hold")
    _verify_receipt(check, marker, receipt)
    named = {key}
    for fault, keys in check.pool.map(lambda row: _verify_row(row, check.deep), dataset.rows_of(marker)):
        found.faults += [fault] if fault else []
        named |= keys
    found.images += table.num_rows
    found.decoded += table.num_rows if check.deep else 0
    for stray in (one for one in stored if one not in named):
        found.strays += 1
        if check.clean:
            dataset.store.delete(stray)
            found.removed += 1


def _verify_absent(found: Verification, receipt: Receipt | None) -> None:
    """A shard without a marker: fine where nothing was committed, or where all its rows failed."""
    if receipt is None:
        return
    found.failed_rows += receipt.failed
    if receipt.done:
        found.faults.append(f"shard {receipt.shard}: its receipt names {receipt.done} images, its marker is missing")


def _verify_receipt(check: _Check, marker: Marker, receipt: Receipt | None) -> None:
    if receipt is None:
        return  # the next run, or any reader of receipts, rebuilds it
    found, place = check.found, f"shard {marker.shard}"
    found.failed_rows += receipt.failed
    rows = list(zip(marker.table["id"].to_pylist(), marker.table["fingerprint"].to_pylist(), strict=True))
    if receipt.done != len(rows):
        found.faults.append(f"{place}: its receipt counts {receipt.done} rows, its marker holds {len(rows)}")
    if not {(row.id, row.fingerprint) for row in receipt.failures}.isdisjoint(rows):
        found.faults.append(f"{place}: its receipt names a row as failed that its marker holds")
    if check.digests.get(marker.shard, shard_id(rows)) != shard_id(rows):
        found.faults.append(f"{place}: snapshot and marker name different rows")


def _verify_row(row: DatasetRow, deep: bool) -> tuple[str | None, set[str]]:
    """What is wrong with a row's image or those after its steps, and the objects that hold them."""
    cells, keys, path = row.cells, row.image_keys(), row.dataset.layout.image_path
    if path is not None and cells.get(path.name, keys[0]) != keys[0]:  # older outputs have no such column
        return f"{keys[0]}, id {cells['id']!r}: {path.name} says {cells[path.name]!r}", set(keys)
    try:
        images = [row.image(), *row.step_images().values(), *row.control_images().values()]
    except StoreError as error:
        return str(error), set(keys)
    hashes = [cells["sha256"], *(one["sha256"] for one in row.side_cells())]
    for key, data, sha256 in zip(keys, images, hashes, strict=True):
        # those of steps may be smaller: the first pass of a hires fix is
        size = (cells["width"], cells["height"]) if data is images[0] else None
        if fault := _image_fault(data, sha256, size, deep):
            return f"{key}, id {cells['id']!r}: {fault}", set(keys)
    return None, set(keys)


def _image_fault(data: bytes, sha256: str, size: tuple[int, int] | None, deep: bool) -> str | None:
    """What is wrong with one image."""
    if hashlib.sha256(data).hexdigest() != sha256:
        return "sha256 differs from the metadata's"
    if not deep:
        return None
    try:
        image = decode(data)
    except ImageError as error:
        return str(error)
    if size is not None and image.size != size:
        return f"is {image.width}x{image.height}, the metadata says {size[0]}x{size[1]}"
    return None
