"""Checks on the stored bytes what an output promises: markers, receipts, hashes, uniqueness, schema, strays."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from batchgen.dataset.commit import OutputFormat
from batchgen.dataset.layouts import marker_key, shard_of_name
from batchgen.dataset.output import read_output
from batchgen.dataset.receipts import read_marker, read_receipts
from batchgen.errors import StoreError
from batchgen.images import ImageError, decode
from batchgen.options import Layout
from batchgen.rows import Receipt, Status
from batchgen.storage import Entry, Store, open_store

__all__ = ["Verification", "verify_output"]

READERS = 16  # pictures fetched side by side


@dataclass(kw_only=True, slots=True)
class Verification:
    """What was checked and what is wrong with it."""

    shards: int = 0
    rows: int = 0
    images: int = 0  # whose bytes were hashed
    decoded: int = 0
    failed_rows: int = 0
    strays: int = 0  # pictures that no committed shard names; harmless
    removed: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    def summary(self) -> str:
        """One line."""
        decoded = f", {self.decoded:,} decoded" if self.decoded else ""
        removed = f", {self.removed:,} removed" if self.removed else ""
        verdict = "all promises hold" if self.ok else f"{len(self.faults):,} faults"
        return (
            f"{self.shards:,} shards, {self.rows:,} rows, {self.images:,} images hashed{decoded}, "
            f"{self.failed_rows:,} failed rows, {self.strays:,} stray pictures{removed}: {verdict}"
        )


def verify_output(uri: str, *, deep: bool = False, clean: bool = False) -> Verification:
    """Read everything an output holds and compare.

    Args:
        uri: the output.
        deep: decode every image, too.
        clean: remove the strays of committed shards; those of shards that are not committed may belong to an attempt
            that is under way.

    Raises:
        InputError: there is no output.
    """
    store = open_store(uri)
    output = read_output(store)
    found = Verification()
    receipts = {
        receipt.shard: receipt
        for receipt in read_receipts(store, output.layout, mend=False, gone=True, damaged=lambda _: None)
    }
    places: dict[str, str] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for name in (name for name in store.names("data") if not name.startswith(".")):
            shard = shard_of_name(output.layout, name)
            _verify_shard(_Check(store, output, pool, deep, clean, found), shard, receipts.pop(shard, None), places)
    for receipt in receipts.values():
        _verify_absent(found, receipt)
    return found


@dataclass(frozen=True, slots=True)
class _Check:
    store: Store
    output: OutputFormat
    pool: ThreadPoolExecutor
    deep: bool
    clean: bool
    found: Verification


def _verify_shard(check: _Check, shard: str, receipt: Receipt | None, places: dict[str, str]) -> None:
    found, output = check.found, check.output
    key = marker_key(output.layout, shard)
    stored = list(check.store.entries(f"data/{shard}")) if output.layout is Layout.FILES else []
    try:
        marker = read_marker(check.store, output.layout, shard, pictures=True)
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
    if not table.schema.equals(output.schema):
        found.faults.append(f"{key}: its schema is not the output's")
        return
    rows = table.to_pylist()
    for row in rows:
        if row["id"] in places:
            found.faults.append(f"{key}: id {row['id']!r} is in {places[row['id']]}, too")
        places[row["id"]] = key
    _verify_receipt(found, shard, receipt, rows)
    found.faults += [fault for fault in check.pool.map(lambda row: _verify_pictures(check, shard, row), rows) if fault]
    found.images += len(rows)
    found.decoded += len(rows) if check.deep else 0
    _strays(check, key, stored, rows)


def _verify_absent(found: Verification, receipt: Receipt | None) -> None:
    """A shard without a marker: fine where nothing was committed, or where all its rows failed."""
    if receipt is None:
        return
    found.failed_rows += receipt.failed
    if receipt.done:
        found.faults.append(f"shard {receipt.shard}: its receipt names {receipt.done} images, its marker is gone")


def _verify_receipt(
    found: Verification, shard: str, receipt: Receipt | None, rows: Sequence[Mapping[str, Any]]
) -> None:
    if receipt is None:
        return  # the next run, or any reader of receipts, rebuilds it
    found.failed_rows += receipt.failed
    told = {(row.id, row.fingerprint) for row in receipt.rows if row.status is Status.DONE}
    if told != {(row["id"], row["fingerprint"]) for row in rows}:
        found.faults.append(f"shard {shard}: receipt and marker name different rows")


def _verify_pictures(check: _Check, shard: str, row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row's picture or those after its steps."""
    steps = ({"id": row["id"], "file_name": step.get("path"), **step} for step in row["step_images"] or ())
    pictures = [row, *steps]  # those of steps may be smaller: the first pass of a hires fix is
    return next(filter(None, (_verify_picture(check, shard, picture) for picture in pictures)), None)


def _verify_picture(check: _Check, shard: str, row: Mapping[str, Any]) -> str | None:
    """What is wrong with one picture."""
    if check.output.layout is Layout.FILES:
        place = f"data/{shard}/{row['file_name']}"
        try:
            data = check.store.read(place)
        except StoreError as error:
            return str(error)
    else:
        place, data = f"data/{shard}.parquet, id {row['id']!r}", row["image"]["bytes"]
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return f"{place}: sha256 differs from the metadata's"
    if check.deep:
        try:
            image = decode(data)
        except ImageError as error:
            return f"{place}: {error}"
        if "width" in row and image.size != (row["width"], row["height"]):
            return f"{place}: is {image.width}x{image.height}, the metadata says {row['width']}x{row['height']}"
    return None


def _strays(check: _Check, key: str, stored: Sequence[Entry], rows: Sequence[Mapping[str, Any]]) -> None:
    if check.output.layout is not Layout.FILES:
        return
    folder = key.rpartition("/")[0]
    steps = (step["path"] for row in rows for step in row["step_images"] or ())
    named = {f"{folder}/{name}" for name in (*(row["file_name"] for row in rows), *steps)} | {key}
    for entry in stored:
        if entry.key not in named:
            check.found.strays += 1
            if check.clean:
                check.store.delete(entry.key)
                check.found.removed += 1
