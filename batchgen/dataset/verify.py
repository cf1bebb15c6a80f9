"""Checks on the stored bytes what an output promises: markers, books, hashes, uniqueness, schema, state, strays."""

import hashlib
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from batchgen.dataset.begun import COPY, RECORD
from batchgen.dataset.carried import computed_prints, said_prints
from batchgen.dataset.dataset import READERS, Dataset, DatasetRow, Marker
from batchgen.dataset.lease import KEY as LEASE
from batchgen.dataset.lease import Lease, live_holder, require_lease
from batchgen.dataset.progress import Damages, booked_shards, read_receipts, snapshot_digests
from batchgen.dataset.records import REPAIR, is_there
from batchgen.dataset.repair import Finding, apply_repairs, move_aside
from batchgen.dataset.runs import latest_run, new_run_name, standing
from batchgen.dataset.state import ledger_findings, state_findings
from batchgen.errors import Damaged, ImageError, LaterVersion, NotFound, StoreError
from batchgen.identity import shard_id
from batchgen.images import decode
from batchgen.rows import Receipt
from batchgen.storage import Store, open_store

__all__ = ["Verification", "verify_output"]

_AGAIN = "`batchgen verify --repair` takes the row out, and the next run makes it again"
_ASIDE = "`batchgen verify --repair` moves it aside"
_STRAY = re.compile(r"data/[^/]+/[0-9a-f]{8}/[^/]+")  # an image of an attempt


@dataclass(kw_only=True, slots=True)
class Verification:
    """What was checked and what is wrong with it."""

    shards: int = 0
    rows: int = 0
    images: int = 0  # whose bytes were hashed
    decoded: int = 0
    failed_rows: int = 0  # of all manifests
    strays: int = 0  # images that no committed shard names; harmless
    removed: int = 0
    outcome: str | None = None  # of the latest run
    manifest_rows: int = 0  # of its manifest
    done: int = 0  # of these
    failed: int = 0  # of these
    left: int = 0  # of these: neither made nor recorded as failed
    faults: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)  # faults that are no more

    @property
    def ok(self) -> bool:
        return not self.faults

    def summary(self) -> str:
        """One line."""
        decoded = f", {self.decoded:,} decoded" if self.decoded else ""
        removed = f", {self.removed:,} removed" if self.removed else ""
        verdict = "all promises hold" if self.ok else f"{len(self.faults):,} faults"
        if self.repaired:
            verdict += f", {len(self.repaired):,} repaired: the next run makes again what is missing"
        if self.left:
            rows = "1 row is" if self.left == 1 else f"{self.left:,} rows are"
            verdict += f" for what is there; {rows} not made ({self.outcome})"
        return (
            f"{self.shards:,} shards, {self.rows:,} rows, {self.images:,} images hashed{decoded}, "
            f"{self.failed_rows:,} failed rows, {self.strays:,} stray images{removed}: {verdict}"
        )


def verify_output(
    uri: str,
    *,
    deep: bool = False,
    clean: bool = False,
    repair: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Verification:
    """Read everything an output holds and compare.

    Args:
        uri: the output.
        deep: decode every image, too.
        clean: remove the strays of committed shards; those of shards that are not committed may belong to an attempt
            that is under way.
        repair: repair what is wrong, as far as it can be.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        InputError: there is no output.
        OutputBusy: it is to be repaired, and a run is writing to it.
    """
    store = open_store(uri, storage_options)
    if repair:
        with suppress(Damaged):
            Dataset.open(store)  # before anything is written: there may be no output
    held = live_holder(store) is not None
    with _lease(store) if repair else nullcontext():
        dataset = _open_repaired(store) if repair else Dataset.open(store)
        found, findings = _verified(dataset, deep, clean, held)
        repairable = [finding for finding in findings if repair and finding.can_be_repaired]
        if repairable:
            apply_repairs(dataset, repairable)
        found.repaired = [finding.text for finding in repairable]
        found.faults = [finding.text for finding in findings if not repair or not finding.can_be_repaired]
        _count(found, dataset, held=held)
    return found


def _lease(store: Store) -> AbstractContextManager[object]:
    try:
        require_lease(store)
    except LaterVersion:
        raise
    except (Damaged, NotFound):
        move_aside(store, LEASE)
    return Lease(store, new_run_name(time.time()))


def _open_repaired(store: Store) -> Dataset:
    """The output; where what it was begun with is damaged, it is moved aside, to be taken from the shards."""
    try:
        return Dataset.open(store)
    except LaterVersion:
        raise
    except Damaged:
        for key in (RECORD, COPY):
            move_aside(store, key)
        return Dataset.open(store)


def _verified(dataset: Dataset, deep: bool, clean: bool, held: bool) -> tuple[Verification, list[Finding]]:
    found = Verification()
    findings = list(state_findings(dataset.store))
    receipts = {one.shard: one for one in read_receipts(dataset, repair=False, missing=True, damages=Damages())}
    findings += ledger_findings(dataset.store, receipts, booked_shards(dataset.store), held=held)
    others: list[Finding] = []
    with ThreadPoolExecutor(READERS) as pool:
        check = _Check(dataset, pool, deep, clean, found, findings, snapshot_digests(dataset), {}, others)
        for name in dataset.store.names("data"):
            if not name.startswith("."):
                _verify_shard(check, name, receipts.pop(dataset.layout.shard_of(name), None))
    # where no marker has the output's schema, its record is what is wrong
    findings += others if found.shards > len(others) else [Finding(text=one.text) for one in others]
    for receipt in receipts.values():
        _verify_absent(check, receipt)
    return found, findings


def _count(found: Verification, dataset: Dataset, *, held: bool) -> None:
    """How far the latest run's manifest is made, as `status` says it."""
    receipts = list(read_receipts(dataset, repair=False, damages=Damages()))
    found.failed_rows = len({(row.id, row.fingerprint) for receipt in receipts for row in receipt.failures})
    if (record := latest_run(dataset.store, Damages())) is not None:
        now = standing(record, receipts, held=held)
        found.outcome, found.manifest_rows = now.outcome, now.rows
        found.done, found.failed, found.left = now.done, now.failed, now.left


@dataclass(frozen=True, slots=True)
class _Check:
    dataset: Dataset
    pool: ThreadPoolExecutor
    deep: bool
    clean: bool
    found: Verification
    findings: list[Finding]
    digests: dict[str, str]  # of the done rows, as snapshots have them, by shard
    places: dict[str, tuple[str, str]]  # key of the marker that names a row, and the row's fingerprint, by its id
    others: list[Finding]  # markers of another schema

    def note(self, text: str, **repairs: Any) -> None:
        """Something is wrong."""
        self.findings.append(Finding(text=text, **repairs))


def _verify_shard(check: _Check, name: str, receipt: Receipt | None) -> None:
    """What lies under a name in data/.

    Args:
        check: collects what is wrong.
        name: directly below data/.
        receipt: of the shard.
    """
    found, dataset, layout = check.found, check.dataset, check.dataset.layout
    shard = layout.shard_of(name)
    key = layout.marker_key(shard)
    stored = _stored(check, name, key)
    try:
        marker = dataset.marker(shard, images=True)
    except Damaged as error:
        check.note(str(error), **({} if isinstance(error, LaterVersion) else {"aside": (key,), "shard": shard}))
        return
    except StoreError as error:
        check.note(str(error))
        return
    if marker is None:
        if is_there(dataset.store, key):
            check.note(f"{key}: is no marker of batchgen, and readers read it; {_ASIDE}", aside=(key,), shard=shard)
        found.strays += len(stored)  # of an attempt that died, or that is under way
        _verify_absent(check, receipt)
        return
    table = marker.table
    found.shards += 1
    found.rows += table.num_rows
    if not table.schema.equals(dataset.format.schema):
        text = f"{key}: its schema is not the output's; {_ASIDE}"
        check.others.append(Finding(text=text, aside=(key,), shard=shard))
        return
    _verify_ids(check, marker, key)
    said = said_prints(marker)
    if said is not None and said != computed_prints(marker, dataset.format.carried):
        text = f"{key}: what it says of its carried columns is not what they hold; {REPAIR}"
        check.note(text, shard=shard, drop=())
    _verify_receipt(check, marker, receipt)
    named = {key}
    for one in check.pool.map(lambda row: _verify_row(row, check.deep), dataset.rows_of(marker)):
        if one.fault and one.is_lost:
            drop = [(one.row.cells["id"], one.row.cells["fingerprint"])]
            check.note(f"{one.fault}; {_AGAIN}", shard=shard, drop=drop)
        elif one.fault:
            check.note(one.fault)
        named |= one.keys
    found.images += table.num_rows
    found.decoded += table.num_rows if check.deep else 0
    for stray in (one for one in stored if one not in named):
        found.strays += 1
        if check.clean and _STRAY.fullmatch(stray):
            dataset.store.delete(stray)
            found.removed += 1


def _stored(check: _Check, name: str, key: str) -> list[str]:
    """Keys of the objects of a shard; another output among them is none of them."""
    prefix = f"data/{name}"
    if prefix == key:
        return []
    stored = [entry.key for entry in check.dataset.store.entries(prefix)]
    inner = {one[: one.index("/.batchgen/")] for one in stored if "/.batchgen/" in one}
    for place in sorted(inner):
        check.note(
            f"{place}: another output lies inside of this one, and some readers read it too; move it elsewhere, or "
            f"{_ASIDE}",
            aside=(place,),
        )
    return [one for one in stored if not any(one.startswith(f"{place}/") for place in inner)]


def _verify_ids(check: _Check, marker: Marker, key: str) -> None:
    """No id is in two markers; what is there twice the next run drops from one of them."""
    pairs = zip(marker.table["id"].to_pylist(), marker.table["fingerprint"].to_pylist(), strict=True)
    for id_, fingerprint in pairs:
        if id_ in check.places:
            other, print_ = check.places[id_]
            text = f"{key}: id {id_!r} is in {other}, too; the next run drops one of the two"
            if print_ == fingerprint:
                check.note(text, shard=marker.shard, drop=[(id_, fingerprint)])
            else:
                check.note(text)
        check.places.setdefault(id_, (key, fingerprint))


def _verify_absent(check: _Check, receipt: Receipt | None) -> None:
    """A shard without a marker: fine where nothing was committed, or where all its rows failed."""
    if receipt is not None and receipt.done:
        text = f"shard {receipt.shard}: its receipt names {receipt.done} images, its marker is missing; the next run "
        check.note(f"{text}makes them again", shard=receipt.shard)


def _verify_receipt(check: _Check, marker: Marker, receipt: Receipt | None) -> None:
    if receipt is None:
        return  # the next run, or any reader of receipts, rebuilds it
    place = f"shard {marker.shard}"
    rows = list(zip(marker.table["id"].to_pylist(), marker.table["fingerprint"].to_pylist(), strict=True))
    if receipt.done != len(rows):
        text = f"{place}: its receipt counts {receipt.done} rows, its marker holds {len(rows)}; {REPAIR}"
        check.note(text, shard=marker.shard)
    if not {(row.id, row.fingerprint) for row in receipt.failures}.isdisjoint(rows):
        text = f"{place}: its receipt names a row as failed that its marker holds; {REPAIR}"
        check.note(text, shard=marker.shard)
    if check.digests.get(marker.shard, shard_id(rows)) != shard_id(rows):
        check.note(f"{place}: snapshot and marker name different rows; {REPAIR}", shard=marker.shard)


@dataclass(frozen=True, slots=True)
class _Verified:
    """What is wrong with a row's images, and the objects that hold them."""

    row: DatasetRow
    keys: set[str]
    fault: str | None = None
    is_lost: bool = True  # else the store could not say


def _verify_row(row: DatasetRow, deep: bool) -> _Verified:
    """A row's image and those after its steps."""
    cells, path = row.cells, row.dataset.layout.image_path
    keys = row.image_keys()
    if path is not None and cells.get(path.name, keys[0]) != keys[0]:  # older outputs have no such column
        return _Verified(row, set(keys), f"{keys[0]}, id {cells['id']!r}: {path.name} says {cells[path.name]!r}")
    try:
        images = [row.image(), *row.step_images().values(), *row.control_images().values()]
    except StoreError as error:
        return _Verified(row, set(keys), str(error), isinstance(error, (NotFound, Damaged)))
    hashes = [cells["sha256"], *(one["sha256"] for one in row.side_cells())]
    for key, data, sha256 in zip(keys, images, hashes, strict=True):
        # those of steps may be smaller: the first pass of a hires fix is
        size = (cells["width"], cells["height"]) if data is images[0] else None
        if fault := _image_fault(data, sha256, size, deep):
            return _Verified(row, set(keys), f"{key}, id {cells['id']!r}: {fault}")
    return _Verified(row, set(keys))


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
