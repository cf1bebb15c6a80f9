"""Receipts: the small objects by which status and resume know a shard without reading its data.

`.batchgen/receipts/<shard>.json` is written after a shard's marker, and holds counts, sizes and the failed rows. Which
rows are done the marker says. One that is missing is rebuilt from it. Receipts of version 1 named the done rows, too.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from batchgen.dataset.dataset import Dataset, Marker
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.schema import failures_table
from batchgen.errors import NotFound
from batchgen.rows import FailedRow, Receipt, Status
from batchgen.storage import Store

__all__ = [
    "BOOK_COLUMNS",
    "FAILURES",
    "RECEIPTS",
    "failure_record",
    "loose_shards",
    "read_receipt",
    "rebuild_receipt",
    "receipt_from_json",
    "receipt_of",
    "receipt_to_json",
    "write_books",
    "write_receipt",
]

RECEIPTS = ".batchgen/receipts"
FAILURES = "failures"
VERSION = 2
BOOK_COLUMNS = ("id", "fingerprint", "device", "seconds")
"""Columns of a marker from which its receipt, and what is done, are read."""


def write_receipt(dataset: Dataset, receipt: Receipt) -> None:
    """Store a receipt under its shard's name, over an older one."""
    dataset.store.write(f"{RECEIPTS}/{receipt.shard}.json", receipt_to_json(receipt).encode())


def write_books(dataset: Dataset, receipt: Receipt) -> None:
    """Failure ledger and receipt; both say what the marker says, so that whoever writes them last changes nothing."""
    if receipt.failures:
        stream = io.BytesIO()
        pq.write_table(failures_table(receipt.failures), stream, compression="zstd")
        dataset.store.write(f"{FAILURES}/{receipt.shard}.parquet", stream.getvalue())
    write_receipt(dataset, receipt)


def loose_shards(store: Store) -> list[str]:
    """Shards that have a receipt of their own, in no snapshot yet."""
    names = (name for name in store.names(RECEIPTS) if name.endswith(".json") and not name.startswith("."))
    return [name.removesuffix(".json") for name in names]


def read_receipt(store: Store, shard: str) -> Receipt | None:
    """A shard's own receipt; None where there is none, or a damaged one."""
    try:
        return receipt_from_json(store.read(f"{RECEIPTS}/{shard}.json").decode())
    except (NotFound, ValueError, KeyError, TypeError):
        return None


def rebuild_receipt(dataset: Dataset, shard: str) -> Receipt | None:
    """What a shard's receipt said, from its marker alone; None where it is not committed."""
    marker = dataset.marker(shard, columns=BOOK_COLUMNS)
    return None if marker is None else receipt_of(marker, dataset.layout)


def receipt_of(marker: Marker, layout: DatasetLayout) -> Receipt:
    """The receipt that a marker stands for; `BOOK_COLUMNS` of it are enough."""
    table, about = marker.table, marker.about
    return Receipt(
        shard=marker.shard,
        attempt=about["attempt"],
        run=about["run"],
        done=table.num_rows,
        failures=[_read_failure(row) for row in about["failed"]],
        key=about["key"],
        device=table["device"][0].as_py(),
        seconds=sum(table["seconds"].to_pylist()),
        finished=about["finished"],
        images=table.num_rows * layout.objects_a_row,
        bytes=about["bytes"],
    )


def failure_record(row: FailedRow) -> dict[str, Any]:
    """A failed row as a marker and a ledger say it."""
    return {**asdict(row), "status": Status.FAILED.value}


def _read_failure(record: Mapping[str, Any]) -> FailedRow:
    return FailedRow(**{name: cell for name, cell in record.items() if name != "status"})


def receipt_to_json(receipt: Receipt) -> str:
    """A receipt as it is stored."""
    return json.dumps({"version": VERSION, **asdict(receipt)}, ensure_ascii=False)


def receipt_from_json(text: str) -> Receipt:
    """A stored receipt of either version.

    Raises:
        ValueError, KeyError, TypeError: it is damaged, or of a later version.
    """
    content = json.loads(text)
    if content.pop("version") == 1:
        rows = content.pop("rows")
        content["failures"] = [row for row in rows if row["status"] != Status.DONE.value]
        content["done"] = len(rows) - len(content["failures"])
    failures = [_read_failure(row) for row in content.pop("failures")]
    return Receipt(failures=failures, **content)
