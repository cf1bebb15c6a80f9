"""Making a shard visible: pictures first, then one create-only marker that names them, then the receipt.

A reader sees a shard whole or not at all. Pictures lie under keys of this attempt alone and are never overwritten; a
late attempt meets the marker, is refused, and takes over the receipt of the attempt that was first.
"""

import io
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.dataset.layouts import FAILURES, RECEIPTS, marker_key, picture_name
from batchgen.dataset.receipts import read_marker, rebuild_receipt, receipt_of, write_receipt
from batchgen.dataset.schema import failures_table, metadata_schema, metadata_table
from batchgen.errors import AlreadyExists, StoreError
from batchgen.options import ImageFormat, Layout
from batchgen.rows import Receipt, Row, RowOutcome, Shard, Status
from batchgen.storage import Store

__all__ = ["Attempt", "OutputFormat", "commit_failures", "drop_rows", "reopen_rows"]

HF_ROW_GROUP = 100  # rows; `datasets` writes image sets so, and random access then reads at most some tens of MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """How an output stores what it holds; the same for all its shards."""

    layout: Layout
    image_format: ImageFormat
    carried: Mapping[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        return metadata_schema(self.layout, self.carried)


class Attempt:
    """One attempt to make a shard; pictures may be added from several threads."""

    def __init__(self, store: Store, output: OutputFormat, shard: Shard, run: str) -> None:
        self.id = uuid4().hex[:8]
        self._store = store
        self._output = output
        self._shard = shard
        self._run = run

    def add_picture(self, row: Row, data: bytes) -> dict[str, Any]:
        """Keep an encoded picture; returns the cell of the metadata that holds or names it."""
        name, image = self._keep(data, picture_name(row, self._output.image_format))
        return {"file_name": name} if image is None else {"image": image}

    def add_step_picture(self, row: Row, data: bytes, step: int) -> dict[str, Any]:
        """The same for the picture after a step; the cell is one of the row's `step_images`."""
        name, image = self._keep(data, picture_name(row, self._output.image_format, step))
        return {"path": name} if image is None else {"image": image}

    def _keep(self, data: bytes, name: str) -> tuple[str, dict[str, Any] | None]:
        """The stored object's name below the shard's folder, or the struct that holds the picture."""
        if self._output.layout is Layout.PARQUET:
            return name, {"bytes": data, "path": name}
        self._store.write(f"data/{self._shard.id}/{self.id}/{name}", data)
        return f"{self.id}/{name}", None

    def commit(
        self, done: Sequence[Mapping[str, Any]], failed: Sequence[RowOutcome], *, size: int, seconds: float, device: str
    ) -> Receipt:
        """Make the shard exist with these rows; the receipt is that of the attempt that was first.

        Args:
            done: the metadata's cells of the finished rows, in the shard's order.
            failed: the rows that could not be made.
            size: bytes of the encoded pictures.
            seconds: time on the device.
            device: its name.
        """
        finished = time.time()
        rows = [RowOutcome(id=c["id"], fingerprint=c["fingerprint"], status=Status.DONE) for c in done]
        receipt = Receipt(
            shard=self._shard.id,
            attempt=self.id,
            run=self._run,
            rows=[*rows, *failed],
            key=self._shard.key,
            device=device,
            seconds=seconds,
            finished=finished,
            images=len(done) if self._output.layout is Layout.FILES else 0,
            bytes=size,
        )
        if not done:
            return _commit_without_marker(self._store, self._output, receipt)
        about = {
            "attempt": self.id,
            "run": self._run,
            "key": self._shard.key,
            "finished": finished,
            "bytes": size,
            "failed": [asdict(row) for row in failed],
        }
        table = metadata_table(self._output.schema, done)
        try:
            self._store.create(self._marker, encode_table(table, about))
        except AlreadyExists:
            receipt = self._receipt_of_winner(receipt)
        _write_books(self._store, receipt)
        return receipt

    @property
    def _marker(self) -> str:
        return marker_key(self._output.layout, self._shard.id)

    def _receipt_of_winner(self, mine: Receipt) -> Receipt:
        """Who created the marker: another attempt, or this one, when the store's first answer was lost on the way."""
        winner = rebuild_receipt(self._store, self._output.layout, self._shard.id)
        if winner is None:
            raise StoreError(f"{self._store.uri}/{self._marker} was refused as existing and then not found")
        return mine if winner.attempt == self.id else winner


def commit_failures(
    store: Store, output: OutputFormat, shard: Shard, run: str, failed: Sequence[RowOutcome]
) -> Receipt:
    """Record that no row of a shard could be made: ledger and receipt, and no marker.

    Where the shard is committed after all, nothing changes and its receipt comes back.
    """
    receipt = Receipt(
        shard=shard.id,
        attempt="none",
        run=run,
        rows=failed,
        key=shard.key,
        device="none",
        seconds=0.0,
        finished=time.time(),
    )
    return _commit_without_marker(store, output, receipt)


def _commit_without_marker(store: Store, output: OutputFormat, receipt: Receipt) -> Receipt:
    receipt = rebuild_receipt(store, output.layout, receipt.shard) or receipt
    _write_books(store, receipt)
    return receipt


def _write_books(store: Store, receipt: Receipt) -> None:
    """Failure ledger and receipt; both say what the marker says, so that whoever writes them last changes nothing."""
    failed = [row for row in receipt.rows if row.status is Status.FAILED]
    if failed:
        stream = io.BytesIO()
        pq.write_table(failures_table(failed), stream, compression="zstd")
        store.write(f"{FAILURES}/{receipt.shard}.parquet", stream.getvalue())
    write_receipt(store, receipt)


def reopen_rows(store: Store, receipt: Receipt, classes: Collection[str]) -> int:
    """Forget the failed rows of a shard, so that the next run tries them again; returns how many.

    Args:
        store: the output.
        receipt: of the shard.
        classes: error classes to forget; all where empty.
    """
    kept = [row for row in receipt.rows if row.status is Status.DONE or (classes and row.error_class not in classes)]
    if len(kept) < len(receipt.rows):
        store.delete(f"{FAILURES}/{receipt.shard}.parquet")
        _write_books(store, replace(receipt, rows=kept))
    return len(receipt.rows) - len(kept)


def drop_rows(store: Store, output: OutputFormat, shard: str, dropped: Collection[tuple[str, str]]) -> None:
    """Take superseded rows, by id and fingerprint, out of a committed shard; pictures stay behind as strays.

    The marker is replaced in one write, so a reader sees the shard before or after. A shard with no row left loses
    its marker: readers cannot take a table without rows. A kill in between is mended by doing it again.
    """
    key = marker_key(output.layout, shard)
    marker = read_marker(store, output.layout, shard, pictures=True)
    if marker is None:
        store.delete(f"{RECEIPTS}/{shard}.json")
        return
    pairs = zip(marker.table["id"].to_pylist(), marker.table["fingerprint"].to_pylist(), strict=True)
    kept = marker.table.filter(pa.array([pair not in dropped for pair in pairs]))
    if kept.num_rows:
        store.write(key, encode_table(kept, {}))
    else:
        store.delete(key)
    receipt = receipt_of(marker, output.layout, shard)
    write_receipt(store, replace(receipt, rows=[r for r in receipt.rows if (r.id, r.fingerprint) not in dropped]))


def encode_table(table: pa.Table, about: Mapping[str, Any]) -> bytes:
    """A metadata table as a Parquet file's bytes; `about` joins what the schema says under the key `batchgen`."""
    known = table.schema.metadata
    merged = json.dumps({**json.loads(known[b"batchgen"]), **about})
    table = table.replace_schema_metadata({**known, b"batchgen": merged.encode()})
    # pictures are compressed already and all distinct: neither a codec nor a dictionary makes them smaller
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        row_group_size=HF_ROW_GROUP,
        compression=dict.fromkeys(plain, "zstd"),
        use_dictionary=plain,
        write_page_index=True,
        write_page_checksum=True,
    )
    return stream.getvalue()
