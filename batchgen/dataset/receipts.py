"""Receipts: the small objects by which status and resume know what an output holds, without reading its data.

`.batchgen/receipts/<shard>.json` is written after a shard's marker. Many are folded into a snapshot,
`.batchgen/snapshots/<name>.parquet`. One that is missing is rebuilt from the marker.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.dataset.layouts import RECEIPTS, SNAPSHOTS, marker_key, shard_of_name
from batchgen.errors import NotFound, StoreError
from batchgen.options import Layout
from batchgen.rows import Receipt, RowOutcome, Status
from batchgen.storage import Store

__all__ = ["Marker", "fold_receipts", "read_marker", "read_receipts", "rebuild_receipt", "receipt_of", "write_receipt"]

READERS = 16  # receipts fetched side by side: at 20 ms a GET, 800 a second
FOLD_ABOVE = 1000  # loose receipts; reading so many takes 1 to 2 seconds from an object store


def write_receipt(store: Store, receipt: Receipt) -> None:
    """Store a receipt under its shard's name, over an older one."""
    store.write(f"{RECEIPTS}/{receipt.shard}.json", _to_json(receipt).encode())


def read_receipts(
    store: Store, layout: Layout, *, mend: bool, gone: bool = False, damaged: Callable[[str], None] | None = None
) -> Iterator[Receipt]:
    """One receipt for each committed shard; those that are missing or damaged are rebuilt from their markers.

    Args:
        store: the output.
        layout: its layout.
        mend: store what was rebuilt.
        gone: give receipts of images whose shard is gone from data/, too; else what was removed can be made again.
        damaged: told of markers that cannot be read.

    Raises:
        StoreError: a marker is damaged, and nobody is told.
    """
    loose = _loose(store)
    present = {shard_of_name(layout, name) for name in store.names("data") if not name.startswith(".")}
    known: set[str] = set()
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda shard: _read_loose(store, shard), loose)
        for receipt in chain((one for one in read if one is not None), _read_snapshots(store)):
            if receipt.shard not in known:
                known.add(receipt.shard)
                if gone or receipt.shard in present or not receipt.done:
                    yield receipt
        for rebuilt in pool.map(lambda shard: _rebuild(store, layout, shard, damaged), sorted(present - known)):
            if rebuilt is not None:
                if mend:
                    write_receipt(store, rebuilt)
                yield rebuilt


def fold_receipts(store: Store) -> None:
    """Gather receipts into one snapshot where many are loose; a kill in between leaves both, without harm."""
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


def _rebuild(store: Store, layout: Layout, shard: str, damaged: Callable[[str], None] | None) -> Receipt | None:
    try:
        return rebuild_receipt(store, layout, shard)
    except StoreError as error:
        if damaged is None:
            raise
        damaged(str(error))
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """A shard's metadata, and what its writer said of itself."""

    table: pa.Table
    about: Mapping[str, Any]


def read_marker(store: Store, layout: Layout, shard: str, *, pictures: bool = False) -> Marker | None:
    """What a shard was committed with; None where it is not committed.

    Args:
        store: the output.
        layout: its layout.
        shard: name of the shard.
        pictures: with the bytes of the pictures, where the layout keeps them in the marker.

    Raises:
        StoreError: the marker is there and damaged.
    """
    key = marker_key(layout, shard)
    try:
        data = store.read(key)
    except NotFound:
        return None
    try:
        parquet = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        table = parquet.read(
            columns=[n for n in parquet.schema_arrow.names if pictures or n not in ("image", "step_images")]
        )
        table.validate(full=True)
        own = (table.schema.metadata or {}).get(b"batchgen")
        # a file without our own words in its schema was put there by somebody else, and is no marker
        return None if own is None else Marker(table=table, about=json.loads(own))
    except Exception as error:  # on damaged bytes pyarrow raises its own errors, OSError, UnicodeDecodeError and more
        raise StoreError(f"{store.uri}/{key} is damaged: {str(error).splitlines()[0]}") from error


def rebuild_receipt(store: Store, layout: Layout, shard: str) -> Receipt | None:
    """What a shard's receipt said, from its marker alone; None where it is not committed."""
    marker = read_marker(store, layout, shard)
    return None if marker is None else receipt_of(marker, layout, shard)


def receipt_of(marker: Marker, layout: Layout, shard: str) -> Receipt:
    """The receipt that a marker stands for."""
    table, about = marker.table, marker.about
    rows = [
        RowOutcome(id=row["id"], fingerprint=row["fingerprint"], status=Status.DONE)
        for row in table.select(["id", "fingerprint"]).to_pylist()
    ]
    return Receipt(
        shard=shard,
        attempt=about["attempt"],
        run=about["run"],
        rows=[*rows, *map(_outcome, about["failed"])],
        key=about["key"],
        device=table["device"][0].as_py(),
        seconds=sum(table["seconds"].to_pylist()),
        finished=about["finished"],
        images=len(rows) if layout is Layout.FILES else 0,
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
