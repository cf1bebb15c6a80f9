"""What an output holds so far, from receipts, snapshots of them and markers: for status counts, for resume rows.

A shard counts as its own receipt says, else as the newest snapshot that has it, else as its marker, or as its ledger
where all its rows failed; failures that were withdrawn count nowhere. Which of its rows are done, and with which
carried cells, comes from the same snapshot, or from two columns of its marker and what it says of itself. What cannot
be read is noted, and the next of these places is asked.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from batchgen.dataset.carried import marker_prints
from batchgen.dataset.dataset import READERS, Dataset, Marker
from batchgen.dataset.receipts import (
    BOOK_COLUMNS,
    RECEIPTS,
    ledger_shards,
    loose_shards,
    read_ledger,
    read_receipt,
    receipt_of,
    write_books,
)
from batchgen.dataset.snapshots import Snapshot, list_snapshots, write_snapshot
from batchgen.dataset.withdrawn import read_withdrawn
from batchgen.errors import Damaged, LaterVersion, NotFound, StoreError
from batchgen.identity import shard_id
from batchgen.rows import DoneRow, Receipt
from batchgen.storage import Store

__all__ = [
    "FOLD_ABOVE",
    "Damages",
    "DoneRows",
    "agreed_with",
    "booked_shards",
    "done_rows",
    "fold_receipts",
    "read_done",
    "read_receipts",
    "snapshot_digests",
]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

FOLD_ABOVE = 1000  # receipts in no snapshot; so many take 1 to 2 s from an object store, their markers twice as long
MOST_LINES = 5  # of damages
SNAPSHOT_SHARDS = 1000  # of one snapshot, which is held in memory: 50 MB where a shard has 1,000 rows

DoneRows = list[DoneRow]
"""In the order of the shard's marker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Damages:
    """What could not be read: a line for each, and the shards whose markers are among it."""

    lines: list[str] = field(default_factory=list)
    shards: set[str] = field(default_factory=set)

    def notices(self) -> Iterator[str]:
        """The lines, as far as anybody reads them."""
        lines = list(dict.fromkeys(self.lines))
        yield from lines[:MOST_LINES]
        if len(lines) > MOST_LINES:
            yield f"{len(lines) - MOST_LINES:,} more cannot be read; `batchgen verify` lists them"


def _note(damages: Damages | None, error: StoreError, shard: str | None = None) -> None:
    """Note what could not be read; raise it where nobody takes notes."""
    if damages is None:
        raise error
    damages.lines.append(str(error))
    if shard is not None:
        damages.shards.add(shard)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """A shard's receipt, and where it is from: none of these means an object of its own."""

    receipt: Receipt
    snapshot: Snapshot | None = None
    marker: Marker | None = None
    ledger: str | None = None


def read_receipts(
    dataset: Dataset, *, repair: bool, missing: bool = False, damages: Damages | None = None
) -> Iterator[Receipt]:
    """One receipt for each committed shard; those that are missing or damaged are rebuilt.

    Args:
        dataset: the output.
        repair: store what was rebuilt.
        missing: give receipts of images whose shard is missing from data/, too; else what was removed can be made
            again.
        damages: takes note of what cannot be read.

    Raises:
        Damaged: something cannot be read, and there are no `damages`; a receipt alone is no matter.
    """
    present = set(dataset.shards())
    for known in _known(dataset, present, repair=repair, damages=damages):
        if missing or known.receipt.shard in present or not known.receipt.done:
            yield known.receipt


def read_done(dataset: Dataset, *, repair: bool, damages: Damages | None = None) -> Iterator[tuple[Receipt, DoneRows]]:
    """One receipt for each committed shard that is still in data/, or that has failed rows alone, with its done rows.

    Args:
        dataset: the output.
        repair: store receipts that were rebuilt, that said other than their marker, or whose shard is missing.
        damages: takes note of what cannot be read; rows that only a damaged marker could name are none.

    Raises:
        Damaged: something cannot be read, and there are no `damages`.
    """
    present = set(dataset.shards())
    whole = {snapshot for snapshot in list_snapshots(dataset.store) if _is_whole(dataset, snapshot)}
    folded: dict[Snapshot, dict[str, Receipt]] = {}
    loose: list[Receipt] = []
    for known in _known(dataset, present, repair=repair, damages=damages):
        receipt = known.receipt
        if not receipt.done:
            yield receipt, []
        elif receipt.shard not in present:
            if repair:
                _rebook(dataset, replace(receipt, done=0, failures=[]), damages)
        elif known.marker is not None:
            try:
                rows = _rows_of(dataset, known.marker)
            except Damaged as error:  # in the carried columns, of which older markers say no prints
                _note(damages, error, receipt.shard)
                yield replace(receipt, done=0), []
            else:
                yield receipt, rows
        elif known.snapshot in whole:
            folded.setdefault(known.snapshot, {})[receipt.shard] = receipt
        else:
            loose.append(receipt)
    for snapshot, receipts in folded.items():
        try:
            for shard, rows in snapshot.done_rows():
                if shard in receipts and receipts[shard].done == len(rows):
                    yield receipts.pop(shard), rows
        except Damaged as error:
            _note(damages, error)
        loose += receipts.values()  # of which it has other rows than it says
    for receipt, found in _side_by_side(lambda receipt: (receipt, _done_or_error(dataset, receipt.shard)), loose):
        if isinstance(found, Damaged):
            _note(damages, found, receipt.shard)
            yield replace(receipt, done=0), []
            continue
        agreed = agreed_with(receipt, found)
        if repair and agreed != receipt:
            _rebook(dataset, agreed, damages)
        yield agreed, found


def _done_or_error(dataset: Dataset, shard: str) -> DoneRows | Damaged:
    try:
        return done_rows(dataset, shard)
    except Damaged as error:
        return error


def _rebook(dataset: Dataset, receipt: Receipt, damages: Damages | None) -> None:
    """Set a shard's books right; where that fails they are as wrong as they were, and no reason to stop."""
    try:
        write_books(dataset, receipt)
    except StoreError as error:
        _note(damages, error)


def agreed_with(receipt: Receipt, rows: DoneRows) -> Receipt:
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
    damages = Damages()  # which whoever verifies finds elsewhere
    known = _known(dataset, set(), repair=False, damages=damages)
    wanted = {one.receipt.shard: one.snapshot for one in known if one.snapshot is not None and one.snapshot.has_rows}
    digests: dict[str, str] = {}
    for snapshot in set(wanted.values()):
        try:
            for shard, rows in snapshot.done_rows():
                if wanted.get(shard) == snapshot:
                    digests[shard] = shard_id((row.id, row.fingerprint) for row in rows)
        except Damaged as error:
            _note(damages, error)
    return digests


def fold_receipts(dataset: Dataset) -> None:
    """Gather receipts, and the done rows of their shards, into snapshots where many are in none.

    A kill in between leaves both, without harm. Receipts whose marker is missing, damaged, or says another number of
    rows stay as they are, for `verify` to find, and so do damaged snapshots. Those that earlier code wrote, without
    rows or without prints of carried cells, are folded anew.
    """
    store = dataset.store
    snapshots = list_snapshots(store)
    older = [snapshot for snapshot in snapshots if not _is_whole(dataset, snapshot) and _receipts_of(snapshot)]
    loose = loose_shards(store)
    if not older and len(loose) <= FOLD_ABOVE:
        return
    waiting: dict[str, Receipt | None] = dict.fromkeys(loose)
    if older:
        known = set(loose)
        for snapshot in snapshots:  # the newest that has a shard says how it is
            for receipt in _receipts_of(snapshot):
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
                write_books(dataset, unfolded)
        deletable = (f"{RECEIPTS}/{shard}.json" for shard in chunk if shard in folded and waiting[shard] is None)
        deque(_side_by_side(store.delete, deletable), maxlen=0)
    for snapshot in older:
        snapshot.delete()


def booked_shards(store: Store) -> set[str]:
    """Shards whose receipt is stored, by itself or in a snapshot that can be read."""
    folded = (receipt.shard for snapshot in list_snapshots(store) for receipt in _receipts_of(snapshot))
    return {*loose_shards(store), *folded}


def _receipts_of(snapshot: Snapshot) -> list[Receipt]:
    """A snapshot's receipts; none where it is damaged."""
    try:
        return snapshot.receipts()
    except Damaged:
        return []


def _is_whole(dataset: Dataset, snapshot: Snapshot) -> bool:
    """Whether a snapshot says all of its shards' done rows that resuming asks for."""
    try:
        return snapshot.has_rows and (not dataset.format.carried or snapshot.has_prints())
    except (Damaged, NotFound):
        return False


def _foldable(dataset: Dataset, shard: str, receipt: Receipt | None, present: bool) -> tuple[Receipt, DoneRows] | None:
    try:
        receipt = receipt or read_receipt(dataset.store, shard)
        rows = done_rows(dataset, shard) if present else []
    except (Damaged, NotFound):
        return None
    return None if receipt.done != len(rows) else (receipt, rows)


def _known(dataset: Dataset, present: Iterable[str], *, repair: bool, damages: Damages | None) -> Iterator[_Known]:
    """Each shard once, from the first place that knows it; of those in none, the ones that are `present`, or failed."""
    present = set(present)
    withdrawn = read_withdrawn(dataset.store, None if damages is None else damages.lines.append)
    left: set[str] = set()  # of a later version, and to be left alone
    for known in _booked(dataset, present, left, damages):
        counting = withdrawn.counting(known.receipt)
        is_stored = known.marker is None and known.ledger is None and counting is known.receipt
        if repair and not is_stored and known.receipt.shard not in left:
            _rebook(dataset, counting, damages)
        yield replace(known, receipt=counting)


def _booked(dataset: Dataset, present: set[str], left: set[str], damages: Damages | None) -> Iterator[_Known]:
    """The same, with failures that were withdrawn; those of a later version are added to `left`."""
    done, empty = set[str](), dict[str, _Known]()
    for known in _recorded(dataset, left, damages):
        # books without a done row: of a shard without a marker, or of one that was made after they were written
        if known.receipt.done or known.receipt.shard not in present:
            done.add(known.receipt.shard)
            yield known
        else:
            empty[known.receipt.shard] = known
    ledgers = set(ledger_shards(dataset.store)) - done - empty.keys()
    unknown = sorted(present - done)
    for shard, found in _side_by_side(lambda shard: (shard, _marker_or_error(dataset, shard)), unknown):
        if isinstance(found, Damaged):
            _note(damages, found, shard)
        elif found is not None:
            ledgers.discard(shard)
            yield _Known(receipt=receipt_of(found, dataset.layout), marker=found)
            continue
        if shard in empty:
            yield empty[shard]
    for receipt in _side_by_side(lambda shard: _receipt_of_ledger(dataset, shard, damages), sorted(ledgers)):
        if receipt is not None:  # without a marker nothing is done, also where one was once
            counting = replace(receipt, done=0) if receipt.shard in present else receipt
            yield _Known(receipt=counting, ledger=receipt.shard)


def _recorded(dataset: Dataset, left: set[str], damages: Damages | None) -> Iterator[_Known]:
    """What receipts say, and snapshots of them; of damaged receipts nothing, since they are rebuilt."""
    known: set[str] = set()
    loose = loose_shards(dataset.store)
    for shard, found in _side_by_side(lambda shard: (shard, _receipt_or_error(dataset, shard)), loose):
        if isinstance(found, Receipt):
            known.add(shard)
            yield _Known(receipt=found)
            continue
        if isinstance(found, LaterVersion):
            left.add(shard)
        if damages is not None:
            _note(damages, found)
    for snapshot in list_snapshots(dataset.store):
        try:
            receipts = snapshot.receipts()
        except Damaged as error:
            _note(damages, error)
            continue
        for receipt in receipts:
            if receipt.shard not in known:
                known.add(receipt.shard)
                yield _Known(receipt=receipt, snapshot=snapshot)


def _receipt_or_error(dataset: Dataset, shard: str) -> Receipt | StoreError:
    try:
        return read_receipt(dataset.store, shard)
    except (Damaged, NotFound) as error:
        return error


def _marker_or_error(dataset: Dataset, shard: str) -> Marker | Damaged | None:
    try:
        return dataset.marker(shard, columns=BOOK_COLUMNS)
    except Damaged as error:
        return error


def _receipt_of_ledger(dataset: Dataset, shard: str, damages: Damages | None) -> Receipt | None:
    """What a ledger says of its shard; None where it is of another, of earlier code, or cannot be read."""
    try:
        receipt, _ = read_ledger(dataset.store, shard)
    except (Damaged, NotFound) as error:
        if damages is not None:
            _note(damages, error)
        return None
    return receipt if receipt is not None and receipt.shard == shard else None


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
