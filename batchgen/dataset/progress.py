"""What an output holds so far, from receipts, snapshots of them and markers: for status counts, for resume rows.

A shard counts as its own receipt says, else as the newest snapshot that has it, else as its marker. Which of its rows
are done, and with which carried cells, comes from the same snapshot, or from two columns of its marker and what it
says of itself.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from batchgen.dataset.carried import marker_prints
from batchgen.dataset.dataset import READERS, Dataset, Marker
from batchgen.dataset.receipts import (
    BOOK_COLUMNS,
    RECEIPTS,
    loose_shards,
    read_receipt,
    receipt_of,
    write_books,
    write_receipt,
)
from batchgen.dataset.snapshots import Snapshot, list_snapshots, write_snapshot
from batchgen.errors import Damaged
from batchgen.identity import shard_id
from batchgen.rows import DoneRow, Receipt

__all__ = ["FOLD_ABOVE", "DoneRows", "done_rows", "fold_receipts", "read_done", "read_receipts", "snapshot_digests"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

FOLD_ABOVE = 1000  # receipts in no snapshot; so many take 1 to 2 s from an object store, their markers twice as long
SNAPSHOT_SHARDS = 1000  # of one snapshot, which is held in memory: 50 MB where a shard has 1,000 rows

DoneRows = list[DoneRow]
"""In the order of the shard's marker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """A shard's receipt, and where it is from: neither a snapshot nor a marker means an object of its own."""

    receipt: Receipt
    snapshot: Snapshot | None = None
    marker: Marker | None = None


def read_receipts(
    dataset: Dataset, *, repair: bool, missing: bool = False, damaged: Callable[[str], None] | None = None
) -> Iterator[Receipt]:
    """One receipt for each committed shard; those that are missing or damaged are rebuilt from their markers.

    Args:
        dataset: the output.
        repair: store what was rebuilt.
        missing: give receipts of images whose shard is missing from data/, too; else what was removed can be made
            again.
        damaged: called with the error's text for each marker that cannot be read.

    Raises:
        Damaged: a marker cannot be read, and there is no `damaged`.
    """
    present = set(dataset.shards())
    for known in _known(dataset, present, repair=repair, damaged=damaged):
        if missing or known.receipt.shard in present or not known.receipt.done:
            yield known.receipt


def read_done(dataset: Dataset, *, repair: bool) -> Iterator[tuple[Receipt, DoneRows]]:
    """One receipt for each committed shard that is still in data/, or that has failed rows alone, with its done rows.

    Args:
        dataset: the output.
        repair: store receipts that were rebuilt, or that said other than their marker.

    Raises:
        Damaged: a marker cannot be read.
    """
    present = set(dataset.shards())
    whole = {snapshot for snapshot in list_snapshots(dataset.store) if _is_whole(dataset, snapshot)}
    folded: dict[Snapshot, dict[str, Receipt]] = {}
    loose: list[Receipt] = []
    for known in _known(dataset, present, repair=repair, damaged=None):
        receipt = known.receipt
        if receipt.shard not in present:
            if not receipt.done:
                yield receipt, []
        elif known.marker is not None:
            yield receipt, _rows_of(dataset, known.marker)
        elif known.snapshot in whole and receipt.done:
            folded.setdefault(known.snapshot, {})[receipt.shard] = receipt
        else:
            loose.append(receipt)
    for snapshot, receipts in folded.items():
        for shard, rows in snapshot.done_rows():
            if shard in receipts:
                yield receipts[shard], rows
    for receipt, rows in _side_by_side(lambda receipt: (receipt, done_rows(dataset, receipt.shard)), loose):
        agreed = _agreed(receipt, rows)
        if repair and agreed != receipt:
            write_receipt(dataset, agreed)
        yield agreed, rows


def _agreed(receipt: Receipt, rows: DoneRows) -> Receipt:
    """The receipt as its marker would have it, after a kill between the two, or an attempt that woke up late."""
    made = {(row.id, row.fingerprint) for row in rows}
    failures = [row for row in receipt.failures if (row.id, row.fingerprint) not in made]
    return replace(receipt, done=len(rows), failures=failures)


def done_rows(dataset: Dataset, shard: str) -> DoneRows:
    """The done rows of one shard, from its marker; none where it is not committed.

    Raises:
        Damaged: the marker cannot be read.
    """
    marker = dataset.marker(shard, columns=("id", "fingerprint"))
    return [] if marker is None else _rows_of(dataset, marker)


def snapshot_digests(dataset: Dataset) -> dict[str, str]:
    """What snapshots say of shards without a receipt of their own: a digest of the done rows, by shard."""
    known = _known(dataset, set(), repair=False, damaged=None)
    wanted = {one.receipt.shard: one.snapshot for one in known if one.snapshot is not None and one.snapshot.has_rows}
    return {
        shard: shard_id((row.id, row.fingerprint) for row in rows)
        for snapshot in set(wanted.values())
        for shard, rows in snapshot.done_rows()
        if wanted.get(shard) == snapshot
    }


def fold_receipts(dataset: Dataset) -> None:
    """Gather receipts, and the done rows of their shards, into snapshots where many are in none.

    A kill in between leaves both, without harm. Receipts whose marker is missing, damaged, or says another number of
    rows stay as they are, for `verify` to find. Snapshots that earlier code wrote, without rows or without prints of
    carried cells, are folded anew.
    """
    store = dataset.store
    snapshots = list_snapshots(store)
    older = [snapshot for snapshot in snapshots if not _is_whole(dataset, snapshot)]
    loose = loose_shards(store)
    if not older and len(loose) <= FOLD_ABOVE:
        return
    waiting: dict[str, Receipt | None] = dict.fromkeys(loose)
    if older:
        known = set(loose)
        for snapshot in snapshots:  # the newest that has a shard says how it is
            for receipt in snapshot.receipts():
                if receipt.shard not in known and snapshot in older:
                    waiting[receipt.shard] = receipt
                known.add(receipt.shard)
    present = set(dataset.shards())
    shards = iter(waiting)
    while chunk := list(islice(shards, SNAPSHOT_SHARDS)):
        found = _side_by_side(lambda shard: _foldable(dataset, shard, waiting[shard], shard in present), chunk)
        folded = {receipt.shard for receipt in write_snapshot(store, (one for one in found if one is not None))}
        for unfolded in (waiting[shard] for shard in chunk if shard not in folded):
            if unfolded is not None:
                write_receipt(dataset, unfolded)
        deletable = (f"{RECEIPTS}/{shard}.json" for shard in chunk if shard in folded and waiting[shard] is None)
        deque(_side_by_side(store.delete, deletable), maxlen=0)
    for snapshot in older:
        snapshot.delete()


def _is_whole(dataset: Dataset, snapshot: Snapshot) -> bool:
    """Whether a snapshot says all of its shards' done rows that resuming asks for."""
    return snapshot.has_rows and (not dataset.format.carried or snapshot.has_prints())


def _foldable(dataset: Dataset, shard: str, receipt: Receipt | None, present: bool) -> tuple[Receipt, DoneRows] | None:
    receipt = receipt or read_receipt(dataset.store, shard)
    try:
        rows = done_rows(dataset, shard) if present else []
    except Damaged:
        return None
    return None if receipt is None or receipt.done != len(rows) else (receipt, rows)


def _known(
    dataset: Dataset, present: Iterable[str], *, repair: bool, damaged: Callable[[str], None] | None
) -> Iterator[_Known]:
    """Each shard once, from the first place that knows it; of those in none, the ones that are `present`."""
    store = dataset.store
    known: set[str] = set()
    for receipt in _side_by_side(lambda shard: read_receipt(store, shard), loose_shards(store)):
        if receipt is not None:
            known.add(receipt.shard)
            yield _Known(receipt=receipt)
    for snapshot in list_snapshots(store):
        for receipt in snapshot.receipts():
            if receipt.shard not in known:
                known.add(receipt.shard)
                yield _Known(receipt=receipt, snapshot=snapshot)
    unknown = sorted(set(present) - known)
    for marker in _side_by_side(lambda shard: _readable_marker(dataset, shard, damaged), unknown):
        if marker is not None:
            receipt = receipt_of(marker, dataset.layout)
            if repair:
                write_books(dataset, receipt)
            yield _Known(receipt=receipt, marker=marker)


def _readable_marker(dataset: Dataset, shard: str, damaged: Callable[[str], None] | None) -> Marker | None:
    try:
        return dataset.marker(shard, columns=BOOK_COLUMNS)
    except Damaged as error:
        if damaged is None:
            raise
        damaged(str(error))
        return None


def _rows_of(dataset: Dataset, marker: Marker) -> DoneRows:
    table = marker.table
    columns = (table["id"].to_pylist(), table["fingerprint"].to_pylist(), marker_prints(dataset, marker))
    return [DoneRow(*row) for row in zip(*columns, strict=True)]


def _side_by_side(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """The function's results in order, a bounded number of them ahead of whoever takes them."""
    waiting = iter(items)
    with ThreadPoolExecutor(READERS) as pool:
        while some := list(islice(waiting, 4 * READERS)):
            yield from pool.map(function, some)
