"""The books of a shard, receipt and failure ledger: views of its marker, less the failures that were withdrawn since.

By `.batchgen/receipts/<shard>.json` status and resume know a shard without reading its data: it holds counts, sizes and
the failed rows; which rows are done the marker says. `failures/<shard>.parquet` lists the failed rows for people. A
shard whose rows all failed has no marker; its ledger is the record then, with the receipt in its schema's metadata.
Both are written by `write_books` alone, the receipt last, so that what a kill leaves is a receipt that is missing, and
rebuilt. Receipts of version 1 named the done rows, too.
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow.parquet as pq

from batchgen.dataset.dataset import Dataset, Marker
from batchgen.dataset.facts import StoredFailure
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.records import REPAIR, Count, RecordKind, decode_record, encode_record, is_there
from batchgen.dataset.schema import FAILURES as LEDGER
from batchgen.dataset.schema import failures_table
from batchgen.dataset.tables import damage_named, decode_table, own_words
from batchgen.dataset.withdrawn import read_withdrawn
from batchgen.errors import Damaged
from batchgen.rows import FailedRow, Receipt, Status
from batchgen.sharding import is_key
from batchgen.storage import Store

__all__ = [
    "BOOK_COLUMNS",
    "FAILURES",
    "RECEIPTS",
    "failure_record",
    "ledger_shards",
    "loose_shards",
    "read_ledger",
    "read_receipt",
    "rebuild_receipt",
    "receipt_from_json",
    "receipt_of",
    "receipt_to_json",
    "write_books",
]

RECEIPTS = ".batchgen/receipts"
FAILURES = "failures"
VERSION = 2
BOOK_COLUMNS = ("id", "fingerprint", "device", "seconds")
"""Columns of a marker from which its receipt, and what is done, are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """A row as receipts of version 1 had it, done or failed."""

    id: str
    fingerprint: str
    status: str
    error_class: str | None = None
    error: str | None = None
    attempts: Count = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """A receipt as it is stored."""

    version: Count
    shard: str
    attempt: str
    run: str
    key: str
    device: str
    seconds: float
    finished: float
    images: Count
    bytes: Count
    done: Count = 0
    failures: Sequence[StoredFailure] = ()
    rows: Sequence[_Outcome] | None = None  # of version 1, in the place of the two before


_KIND = RecordKind(_Stored, VERSION)


def write_books(dataset: Dataset, receipt: Receipt) -> None:
    """Failure ledger and receipt of a shard, over older ones; no ledger where nothing failed.

    They say what the marker says, so that whoever writes them last changes nothing.
    """
    key = f"{FAILURES}/{receipt.shard}.parquet"
    if receipt.failures:
        stream = io.BytesIO()
        words = receipt_to_json(replace(receipt, failures=[]))
        table = failures_table(receipt.failures).replace_schema_metadata({b"batchgen": words})
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        dataset.store.write(key, stream.getvalue())
    elif is_there(dataset.store, key):  # of failures that count no more; else nothing is asked to be deleted
        dataset.store.delete(key)
    dataset.store.write(f"{RECEIPTS}/{receipt.shard}.json", receipt_to_json(receipt).encode())


def loose_shards(store: Store) -> list[str]:
    """Shards that have a receipt of their own, in no snapshot yet."""
    return _named(store, RECEIPTS, ".json")


def ledger_shards(store: Store) -> list[str]:
    """Shards that have a failure ledger."""
    return _named(store, FAILURES, ".parquet")


def _named(store: Store, prefix: str, suffix: str) -> list[str]:
    names = (name for name in store.names(prefix) if name.endswith(suffix) and not name.startswith("."))
    return [name.removesuffix(suffix) for name in names]


def read_receipt(store: Store, shard: str) -> Receipt:
    """A shard's own receipt.

    Raises:
        NotFound: there is none.
        LaterVersion, Damaged: it cannot be read.
    """
    place = f"{store.uri}/{RECEIPTS}/{shard}.json"
    receipt = receipt_from_json(store.read(f"{RECEIPTS}/{shard}.json"), place)
    if receipt.shard != shard:
        raise Damaged(f"{place} is damaged: it is of shard {receipt.shard!r}; {REPAIR}")
    return receipt


def read_ledger(store: Store, shard: str) -> tuple[Receipt | None, list[FailedRow]]:
    """What a failure ledger says of its shard, None where earlier code wrote it, and its rows.

    Raises:
        NotFound: there is none.
        Damaged: it cannot be read.
    """
    key = f"{FAILURES}/{shard}.parquet"
    place = f"{store.uri}/{key}"
    data = store.read(key)
    with damage_named(place, REPAIR):
        table = decode_table(io.BytesIO(data))
        rows = [FailedRow(**{name: row[name] for name in _ROW}) for row in table.cast(LEDGER).to_pylist()]
        if any(cell is None for row in rows for cell in (row.id, row.fingerprint, row.error_class)):
            raise ValueError("it names rows without an id")
    words = own_words(table.schema)
    return None if words is None else replace(receipt_from_json(words, place), failures=rows), rows


_ROW = ("id", "fingerprint", "error_class", "error", "attempts")


def rebuild_receipt(dataset: Dataset, shard: str) -> Receipt | None:
    """What a shard's receipt said, from its marker alone; None where it is not committed."""
    marker = dataset.marker(shard, columns=BOOK_COLUMNS)
    if marker is None:
        return None
    receipt = receipt_of(marker, dataset.layout)
    return read_withdrawn(dataset.store, lambda _: None).counting(receipt) if receipt.failures else receipt


def receipt_of(marker: Marker, layout: DatasetLayout) -> Receipt:
    """The receipt that a marker stands for, with all of its failures; `BOOK_COLUMNS` of it are enough."""
    table, facts = marker.table, marker.facts
    return Receipt(
        shard=marker.shard,
        attempt=facts.attempt,
        run=facts.run,
        done=table.num_rows,
        failures=[failure.row() for failure in facts.failed],
        key=facts.key,
        device=table["device"][0].as_py() or "",
        seconds=sum(table["seconds"].drop_null().to_pylist()),
        finished=facts.finished,
        images=table.num_rows * layout.objects_a_row,
        bytes=facts.bytes,
    )


def failure_record(row: FailedRow) -> dict[str, Any]:
    """A failed row as a marker says it."""
    return {**asdict(row), "status": Status.FAILED.value}


def receipt_to_json(receipt: Receipt) -> str:
    """A receipt as it is stored."""
    return encode_record({"version": VERSION, **asdict(receipt)}).decode()


def receipt_from_json(text: bytes | str, place: str) -> Receipt:
    """A stored receipt of either version.

    Args:
        text: as it is stored.
        place: where, for errors.

    Raises:
        LaterVersion, Damaged: it is none.
    """
    found = decode_record(text, _KIND, place)
    if not is_key(found.key):
        raise Damaged(f"{place} is damaged: its key is no batch key; {REPAIR}")
    done, failures = found.done, [failure.row() for failure in found.failures]
    if found.rows is not None:
        failed = [row for row in found.rows if row.status != Status.DONE.value]
        done = len(found.rows) - len(failed)
        failures = [
            FailedRow(
                id=row.id,
                fingerprint=row.fingerprint,
                error_class=row.error_class or "",
                error=row.error or "",
                attempts=row.attempts,
            )
            for row in failed
        ]
    return Receipt(
        shard=found.shard,
        attempt=found.attempt,
        run=found.run,
        done=done,
        failures=failures,
        key=found.key,
        device=found.device,
        seconds=found.seconds,
        finished=found.finished,
        images=found.images,
        bytes=found.bytes,
    )
