"""Snapshots of many receipts: what a run resumes from without a request for each shard.

One is two Parquet files: `.batchgen/snapshots/<name>.parquet` holds the receipts, `<name>.rows.parquet`, written before
it, the done rows of their shards by id, fingerprint and print of the carried cells. Names sort by time, and a shard
counts as the newest says. Those that earlier code wrote have no rows, or rows without prints.
"""

import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.dataset.receipts import receipt_from_json, receipt_to_json
from batchgen.dataset.records import REPAIR
from batchgen.dataset.tables import StoredFile, damage_named
from batchgen.errors import NotFound
from batchgen.rows import DoneRow, Receipt
from batchgen.storage import Store

__all__ = ["SNAPSHOTS", "Snapshot", "list_snapshots", "write_snapshot"]

SNAPSHOTS = ".batchgen/snapshots"
ROW_GROUP = 1 << 16  # rows: some 8 MiB in memory, however many a snapshot has
BATCH = 1 << 12  # rows at a time as Python's strings, which take three times as much
_RECEIPTS, _ROWS = ".parquet", ".rows.parquet"
_NAME = re.compile(r"[0-9]{20}\.parquet")
_ROW_COLUMNS = ["shard", "id", "fingerprint", "carried"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One snapshot of an output."""

    store: Store
    name: str
    has_rows: bool

    @property
    def uri(self) -> str:
        """Where its receipts lie."""
        return f"{self.store.uri}/{self.key(_RECEIPTS)}"

    def receipts(self) -> list[Receipt]:
        """Its receipts, each of another shard.

        Raises:
            Damaged: it cannot be read.
        """
        # not `read_table`, which loads 50 MiB of libraries for reading many files
        with self._open(_RECEIPTS) as file:
            texts = file.read(["receipt"])["receipt"].to_pylist()
            return [receipt_from_json(text, self.uri) for text in texts]

    def has_prints(self) -> bool:
        """Whether its rows say the prints of their carried cells; reads the end of a file alone.

        Raises:
            Damaged: they cannot be read.
        """
        key = self.key(_ROWS)
        with damage_named(f"{self.store.uri}/{key}", REPAIR):
            return "carried" in pq.read_schema(StoredFile(self.store, key)).names

    def done_rows(self) -> Iterator[tuple[str, list[DoneRow]]]:
        """Shards that have done rows, with these rows in the marker's order.

        Raises:
            Damaged: they cannot be read.
        """
        with self._open(_ROWS) as file:
            names = [name for name in _ROW_COLUMNS if name in file.schema_arrow.names]
            cells = (
                row
                for batch in file.iter_batches(batch_size=BATCH, columns=names, use_threads=False)
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
            )
            for shard, rows in groupby(cells, key=lambda row: row[0]):
                yield shard, [DoneRow(*row) for _, *row in rows]

    @contextmanager
    def _open(self, suffix: str) -> Iterator[pq.ParquetFile]:
        key = self.key(suffix)
        with damage_named(f"{self.store.uri}/{key}", REPAIR):
            try:
                data = self.store.read(key)
            except NotFound as error:  # it is listed
                raise ValueError("it cannot be read") from error
            yield pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True, pre_buffer=False)

    def key(self, suffix: str) -> str:
        """Key of one of its files."""
        return f"{SNAPSHOTS}/{self.name}{suffix}"

    def keys(self) -> list[str]:
        """Keys of its files, the receipts first: without them the rows count for nothing."""
        return [self.key(suffix) for suffix in (_RECEIPTS, _ROWS)]

    def delete(self) -> None:
        """Remove it."""
        for key in self.keys():
            self.store.delete(key)


def list_snapshots(store: Store) -> list[Snapshot]:
    """All snapshots of an output, the newest first."""
    found = set(store.names(SNAPSHOTS))
    names = sorted(n.removesuffix(_RECEIPTS) for n in found if _NAME.fullmatch(n))
    return [Snapshot(store=store, name=name, has_rows=f"{name}{_ROWS}" in found) for name in reversed(names)]


def write_snapshot(store: Store, folded: Iterable[tuple[Receipt, Sequence[DoneRow]]]) -> list[Receipt]:
    """Store a snapshot, newer than all there are, and return its receipts; none is stored of nothing.

    Args:
        store: the output.
        folded: receipts, each with its shard's done rows.
    """
    receipts: list[Receipt] = []
    stream = io.BytesIO()
    schema = pa.schema([(name, pa.string()) for name in _ROW_COLUMNS])
    with pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True) as writer:
        waiting: list[pa.Table] = []
        for receipt, rows in folded:
            receipts.append(receipt)
            cells = [[receipt.shard] * len(rows), *map(list, zip(*rows, strict=True))] if rows else [[]] * len(schema)
            waiting.append(pa.table([pa.array(column, pa.string()) for column in cells], schema=schema))
            if sum(table.num_rows for table in waiting) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    if receipts:
        latest = max((int(snapshot.name) for snapshot in list_snapshots(store)), default=0)
        name = f"{max(time.time_ns(), latest + 1):020d}"  # whatever this machine's clock says
        table = pa.table({"shard": [r.shard for r in receipts], "receipt": [receipt_to_json(r) for r in receipts]})
        index = io.BytesIO()
        pq.write_table(table, index, compression="zstd", write_page_checksum=True)
        store.write(f"{SNAPSHOTS}/{name}{_ROWS}", stream.getvalue())
        store.write(f"{SNAPSHOTS}/{name}{_RECEIPTS}", index.getvalue())
    return receipts
