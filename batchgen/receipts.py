"""Receipts: the small objects by which status and resume know what an output holds, without reading its data.

`.batchgen/receipts/<shard>.json` is written after a shard's marker. Many are folded into a snapshot,
`.batchgen/snapshots/<name>.parquet`. One that is missing is rebuilt from the marker.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import NotFound, StoreError
from batchgen.job import Layout
from batchgen.layouts import FAILURES, RECEIPTS, SNAPSHOTS, marker_key, shard_of_name
from batchgen.rows import Receipt, RowOutcome, Status
from batchgen.storage import Store

__all__ = ["fold_receipts", "read_marker", "read_receipts", "rebuild_receipt", "write_receipt"]

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


def read_marker(store: Store, layout: Layout, shard: str) -> pa.Table | None:
    """The metadata that a shard was committed with, without pictures; None where the shard is not committed.

    Raises:
        StoreError: the marker is there and no Parquet file.
    """
    key = marker_key(layout, shard)
    try:
        parquet = pq.ParquetFile(io.BytesIO(store.read(key)))
    except NotFound:
        return None
    except pa.ArrowException as error:
        raise StoreError(f"{store.uri}/{key} is damaged: {str(error).splitlines()[0]}") from error
    return parquet.read(columns=[name for name in parquet.schema_arrow.names if name != "image"])


def rebuild_receipt(store: Store, layout: Layout, shard: str) -> Receipt | None:
    """What a shard's receipt said, from its marker and its failure ledger; None where it is not committed."""
    table = read_marker(store, layout, shard)
    if table is None:
        return None
    about = json.loads(table.schema.metadata[b"batchgen"])
    rows = [
        RowOutcome(id=row["id"], fingerprint=row["fingerprint"], status=Status.DONE)
        for row in table.select(["id", "fingerprint"]).to_pylist()
    ]
    return Receipt(
        shard=shard,
        attempt=about["attempt"],
        run=about["run"],
        rows=[*rows, *_read_failures(store, shard)],
        key=about["key"],
        device=table["device"][0].as_py(),
        seconds=sum(table["seconds"].to_pylist()),
        finished=about["finished"],
        images=len(rows) if layout is Layout.FILES else 0,
        bytes=about["bytes"],
    )


def _read_failures(store: Store, shard: str) -> Sequence[RowOutcome]:
    try:
        table = pq.read_table(io.BytesIO(store.read(f"{FAILURES}/{shard}.parquet")))
    except NotFound:
        return []
    return [RowOutcome(**{**row, "status": Status(row["status"])}) for row in table.to_pylist()]


def _read_loose(store: Store, shard: str) -> Receipt:
    return _from_json(store.read(f"{RECEIPTS}/{shard}.json").decode())


def _to_json(receipt: Receipt) -> str:
    return json.dumps({"version": 1, **asdict(receipt)}, ensure_ascii=False)


def _from_json(text: str) -> Receipt:
    content = json.loads(text)
    content.pop("version")
    rows = [RowOutcome(**{**row, "status": Status(row["status"])}) for row in content.pop("rows")]
    return Receipt(rows=rows, **content)
