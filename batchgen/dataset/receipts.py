"""Receipts: the small objects by which status and resume know what an output holds, without reading its data.

`.batchgen/receipts/<shard>.json` is written after a shard's marker. Many are folded into a snapshot,
`.batchgen/snapshots/<name>.parquet`. One that is missing is rebuilt from the marker.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.dataset.dataset import READERS, Dataset, Marker
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.schema import failures_table
from batchgen.errors import Damaged, NotFound
from batchgen.rows import Receipt, RowOutcome, Status
from batchgen.storage import Store

__all__ = [
    "FAILURES",
    "RECEIPTS",
    "SNAPSHOTS",
    "delete_receipt",
    "fold_receipts",
    "read_receipts",
    "rebuild_receipt",
    "receipt_of",
    "write_books",
    "write_receipt",
]

RECEIPTS = ".batchgen/receipts"
SNAPSHOTS = ".batchgen/snapshots"
FAILURES = "failures"
FOLD_ABOVE = 1000  # loose receipts; reading so many takes 1 to 2 seconds from an object store


def write_receipt(dataset: Dataset, receipt: Receipt) -> None:
    """Store a receipt under its shard's name, over an older one."""
    dataset.store.write(f"{RECEIPTS}/{receipt.shard}.json", _to_json(receipt).encode())


def write_books(dataset: Dataset, receipt: Receipt) -> None:
    """Failure ledger and receipt; both say what the marker says, so that whoever writes them last changes nothing."""
    ledger = f"{FAILURES}/{receipt.shard}.parquet"
    failed = [row for row in receipt.rows if row.status is Status.FAILED]
    if failed:
        stream = io.BytesIO()
        pq.write_table(failures_table(failed), stream, compression="zstd")
        dataset.store.write(ledger, stream.getvalue())
    write_receipt(dataset, receipt)


def delete_receipt(dataset: Dataset, shard: str) -> None:
    """Forget a shard."""
    dataset.store.delete(f"{RECEIPTS}/{shard}.json")


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
    store = dataset.store
    loose = _loose(store)
    present = set(dataset.shards())
    known: set[str] = set()
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda shard: _read_loose(store, shard), loose)
        for receipt in chain((one for one in read if one is not None), _read_snapshots(store)):
            if receipt.shard not in known:
                known.add(receipt.shard)
                if missing or receipt.shard in present or not receipt.done:
                    yield receipt
        for rebuilt in pool.map(lambda shard: _rebuild(dataset, shard, damaged), sorted(present - known)):
            if rebuilt is not None:
                if repair:
                    write_books(dataset, rebuilt)
                yield rebuilt


def fold_receipts(dataset: Dataset) -> None:
    """Gather receipts into one snapshot where many are loose; a kill in between leaves both, without harm."""
    store = dataset.store
    loose, older = _loose(store), store.names(SNAPSHOTS)
    if len(loose) <= FOLD_ABOVE:
        return
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda shard: _read_loose(store, shard), loose)
        receipts = {receipt.shard: receipt for receipt in _read_snapshots(store)}
        receipts |= {receipt.shard: receipt for receipt in read if receipt is not None}
        table = pa.table({"shard": list(receipts), "receipt": [_to_json(receipt) for receipt in receipts.values()]})
        stream = io.BytesIO()
        pq.write_table(table, stream, compression="zstd")
        store.write(f"{SNAPSHOTS}/{time.time_ns():020d}.parquet", stream.getvalue())
        list(pool.map(lambda shard: store.delete(f"{RECEIPTS}/{shard}.json"), loose))
        list(pool.map(lambda name: store.delete(f"{SNAPSHOTS}/{name}"), older))


def _loose(store: Store) -> list[str]:
    names = (name for name in store.names(RECEIPTS) if name.endswith(".json") and not name.startswith("."))
    return [name.removesuffix(".json") for name in names]


def _read_snapshots(store: Store) -> Iterator[Receipt]:
    """Receipts of all snapshots, the newest snapshot first; names sort by time."""
    names = [name for name in store.names(SNAPSHOTS) if name.endswith(".parquet") and not name.startswith(".")]
    for name in reversed(names):
        table = pq.read_table(io.BytesIO(store.read(f"{SNAPSHOTS}/{name}")))
        yield from map(_from_json, table["receipt"].to_pylist())


def _rebuild(dataset: Dataset, shard: str, damaged: Callable[[str], None] | None) -> Receipt | None:
    try:
        return rebuild_receipt(dataset, shard)
    except Damaged as error:
        if damaged is None:
            raise
        damaged(str(error))
        return None


def rebuild_receipt(dataset: Dataset, shard: str) -> Receipt | None:
    """What a shard's receipt said, from its marker alone; None where it is not committed."""
    marker = dataset.marker(shard)
    return None if marker is None else receipt_of(marker, dataset.layout)


def receipt_of(marker: Marker, layout: DatasetLayout) -> Receipt:
    """The receipt that a marker stands for."""
    table, about = marker.table, marker.about
    rows = [
        RowOutcome(id=row["id"], fingerprint=row["fingerprint"], status=Status.DONE)
        for row in table.select(["id", "fingerprint"]).to_pylist()
    ]
    return Receipt(
        shard=marker.shard,
        attempt=about["attempt"],
        run=about["run"],
        rows=[*rows, *map(_outcome, about["failed"])],
        key=about["key"],
        device=table["device"][0].as_py(),
        seconds=sum(table["seconds"].to_pylist()),
        finished=about["finished"],
        images=len(rows) * layout.objects_a_row,
        bytes=about["bytes"],
    )


def _outcome(row: Mapping[str, Any]) -> RowOutcome:
    return RowOutcome(**{**row, "status": Status(row["status"])})


def _read_loose(store: Store, shard: str) -> Receipt | None:
    """A receipt; None where it is damaged, or gone since it was listed."""
    try:
        return _from_json(store.read(f"{RECEIPTS}/{shard}.json").decode())
    except (NotFound, ValueError, KeyError, TypeError):
        return None


def _to_json(receipt: Receipt) -> str:
    return json.dumps({"version": 1, **asdict(receipt)}, ensure_ascii=False)


def _from_json(text: str) -> Receipt:
    content = json.loads(text)
    content.pop("version")
    rows = [_outcome(row) for row in content.pop("rows")]
    return Receipt(rows=rows, **content)
