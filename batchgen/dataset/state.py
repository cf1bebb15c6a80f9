"""Checks that what an output keeps of itself, beside its shards, can be read: each file, and what repairs it."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from batchgen.dataset.begun import COPY, RECORD
from batchgen.dataset.dataset import READERS
from batchgen.dataset.format import OUTPUT
from batchgen.dataset.kept import damaged_plans
from batchgen.dataset.lease import KEY as LEASE
from batchgen.dataset.lease import require_lease
from batchgen.dataset.receipts import FAILURES, RECEIPTS, ledger_shards, loose_shards, read_ledger, read_receipt
from batchgen.dataset.records import REPAIR, read_record
from batchgen.dataset.repair import Finding
from batchgen.dataset.runs import read_run, run_key, run_names
from batchgen.dataset.snapshots import list_snapshots
from batchgen.dataset.withdrawn import WITHDRAWN, read_withdrawn
from batchgen.errors import Damaged, LaterVersion, NotFound, StoreError
from batchgen.rows import Receipt
from batchgen.storage import Store

__all__ = ["ledger_findings", "state_findings"]


def state_findings(store: Store) -> Iterator[Finding]:
    """What is wrong with records, lease, receipts, snapshots and plans."""
    yield from _findings(store, RECORD, partial(read_record, store, RECORD, OUTPUT))
    readers: list[tuple[str, Callable[[], object]]] = [
        (COPY, partial(read_record, store, COPY, OUTPUT)),
        (LEASE, partial(require_lease, store)),
        (WITHDRAWN, partial(read_withdrawn, store)),
        *((run_key(run), partial(read_run, store, run)) for run in run_names(store)),
    ]
    for key, read in readers:
        folder, _, name = key.rpartition("/")
        if name in store.names(folder):
            yield from _findings(store, key, read)
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(lambda shard: _receipt_findings(store, shard), loose_shards(store)):
            yield from found
    for snapshot in list_snapshots(store):
        try:
            snapshot.receipts()
            if snapshot.has_rows:
                deque(snapshot.done_rows(), maxlen=0)
        except Damaged as error:
            is_later = isinstance(error, LaterVersion)
            yield Finding(text=str(error), aside=() if is_later else snapshot.keys())
    for key, why in damaged_plans(store):
        yield _finding(store, key, why)


def _receipt_findings(store: Store, shard: str) -> list[Finding]:
    return list(_findings(store, f"{RECEIPTS}/{shard}.json", lambda: read_receipt(store, shard)))


def _findings(store: Store, key: str, read: Callable[[], object]) -> Iterator[Finding]:
    try:
        read()
    except (Damaged, NotFound) as error:
        yield _finding(store, key, error)


def _finding(store: Store, key: str, error: StoreError) -> Finding:
    if isinstance(error, LaterVersion):
        return Finding(text=str(error))
    text = f"{store.uri}/{key} is damaged: it cannot be read; {REPAIR}" if isinstance(error, NotFound) else str(error)
    return Finding(text=text, aside=(key,))


def ledger_findings(
    store: Store, receipts: Mapping[str, Receipt], booked: set[str], *, held: bool
) -> Iterator[Finding]:
    """What is wrong with the failure ledgers.

    Args:
        store: the output.
        receipts: of all shards, with the failures that count.
        booked: shards whose receipt is stored; of others the ledger may be missing yet.
        held: whether a run is live, which may have committed more since `receipts` were read.
    """
    names = set(ledger_shards(store))
    with ThreadPoolExecutor(READERS) as pool:
        for shard, found in pool.map(lambda shard: (shard, _ledger_or_error(store, shard)), sorted(names)):
            key = f"{FAILURES}/{shard}.parquet"
            if isinstance(found, LaterVersion):
                yield Finding(text=str(found))
            elif isinstance(found, StoreError):
                yield Finding(text=str(found), aside=(key,), shard=shard)
            elif shard not in receipts:
                if not held:
                    yield Finding(text=f"{key}: names rows of a shard that is not there; {REPAIR}", aside=(key,))
            elif found != {(row.id, row.fingerprint) for row in receipts[shard].failures}:
                yield Finding(text=f"{key}: names other rows than those that count as failed; {REPAIR}", shard=shard)
    for shard in sorted(booked & receipts.keys() - names):
        if receipts[shard].failures:
            yield Finding(text=f"{FAILURES}/{shard}.parquet: is missing; {REPAIR}", shard=shard)


def _ledger_or_error(store: Store, shard: str) -> set[tuple[str, str]] | StoreError:
    try:
        return {(row.id, row.fingerprint) for row in read_ledger(store, shard)[1]}
    except (Damaged, NotFound) as error:
        return error
