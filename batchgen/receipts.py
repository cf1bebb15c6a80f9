"""Receipts: the small objects by which status and resume know what an output holds, without reading its data.

`.batchgen/receipts/<shard>.json` is written after a shard's marker. Many are folded into a snapshot,
`.batchgen/snapshots/<name>.parquet`. One that is missing is rebuilt from the marker.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import NotFound, StoreError
from batchgen.job import Layout
from batchgen.layouts import RECEIPTS, SNAPSHOTS, marker_key, shard_of_name
from batchgen.rows import Receipt, RowOutcome, Status
from batchgen.storage import Store

__all__ = ["Marker", "fold_receipts", "read_marker", "read_receipts", "rebuild_receipt", "write_receipt"]

READERS = 16  # receipts fetched side by side: at 20 ms a GET, 800 a second
FOLD_ABOVE = 1000  # loose receipts; reading so many takes 1 to 2 seconds from an object store


def write_receipt(store: Store, receipt: Receipt) -> None:
    """Store a receipt under its shard's name, over an older one."""
    store.write(f"{RECEIPTS}/{receipt.shard}.json", _to_json(receipt).encode())


def read_receipts(store: Store, layout: Layout, *, mend: bool) -> Iterator[Receipt]:
    """One receipt for each committed shard; those that are missing are rebuilt from their markers.

    Args:
        store: the output.
        layout: its layout.
        mend: store what was rebuilt.
    """
    loose = [name.removesuffix(".json") for name in store.names(RECEIPTS) if name.endswith(".json")]
    known = set(loose)
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda shard: _read_loose(store, shard), loose)
        for name in store.names(SNAPSHOTS):
            table = pq.read_table(io.BytesIO(store.read(f"{SNAPSHOTS}/{name}")))
            for shard, text in zip(table["shard"].to_pylist(), table["receipt"].to_pylist(), strict=True):
                if shard not in known:
                    known.add(shard)
                    yield _from_json(text)
        unknown = {shard_of_name(layout, name) for name in store.names("data") if not name.startswith(".")} - known
        for receipt in pool.map(lambda shard: rebuild_receipt(store, layout, shard), sorted(unknown)):
            if receipt is not None:
                if mend:
                    write_receipt(store, receipt)
                yield receipt


def fold_receipts(store: Store) -> None:
    """Gather loose receipts into one snapshot where there are many; a kill in between leaves both, without harm."""
    loose = [name.removesuffix(".json") for name in store.names(RECEIPTS) if name.endswith(".json")]
    if len(loose) <= FOLD_ABOVE:
        return
    with ThreadPoolExecutor(READERS) as pool:
        texts = [_to_json(receipt) for receipt in pool.map(lambda shard: _read_loose(store, shard), loose)]
        stream = io.BytesIO()
        pq.write_table(pa.table({"shard": loose, "receipt": texts}), stream, compression="zstd")
        name = hashlib.sha256("\n".join(loose).encode()).hexdigest()[:16]
        store.write(f"{SNAPSHOTS}/{name}.parquet", stream.getvalue())
        list(pool.map(lambda shard: store.delete(f"{RECEIPTS}/{shard}.json"), loose))


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
        table = parquet.read(columns=[n for n in parquet.schema_arrow.names if pictures or n != "image"])
        table.validate(full=True)
        return Marker(table=table, about=json.loads(table.schema.metadata[b"batchgen"]))
    except Exception as error:  # on damaged bytes pyarrow raises its own errors, OSError, UnicodeDecodeError and more
        raise StoreError(f"{store.uri}/{key} is damaged: {str(error).splitlines()[0]}") from error


def rebuild_receipt(store: Store, layout: Layout, shard: str) -> Receipt | None:
    """What a shard's receipt said, from its marker alone; None where it is not committed."""
    marker = read_marker(store, layout, shard)
    if marker is None:
        return None
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


def _read_loose(store: Store, shard: str) -> Receipt:
    return _from_json(store.read(f"{RECEIPTS}/{shard}.json").decode())


def _to_json(receipt: Receipt) -> str:
    return json.dumps({"version": 1, **asdict(receipt)}, ensure_ascii=False)


def _from_json(text: str) -> Receipt:
    content = json.loads(text)
    content.pop("version")
    rows = [_outcome(row) for row in content.pop("rows")]
    return Receipt(rows=rows, **content)
