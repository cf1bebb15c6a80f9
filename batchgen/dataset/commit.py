"""Making a shard visible: images first, then one create-only marker that names them, then the receipt.

A reader sees a shard whole or not at all. Images lie under keys of this attempt alone and are never overwritten; a
late attempt meets the marker, is refused, and takes over the receipt of the attempt that was first.
"""

import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from batchgen.dataset.carried import with_carried, with_prints
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.names import image_name
from batchgen.dataset.receipts import (
    failure_record,
    rebuild_receipt,
    write_books,
)
from batchgen.dataset.schema import metadata_table
from batchgen.dataset.tables import with_about
from batchgen.dataset.withdrawn import read_withdrawn, write_withdrawn
from batchgen.errors import StoreError
from batchgen.rows import FailedRow, Receipt, Row, Shard

__all__ = ["Attempt", "commit_failures", "drop_rows", "update_carried", "withdraw_failures"]


class Attempt:
    """One attempt to make a shard; images may be added from several threads."""

    def __init__(self, dataset: Dataset, shard: Shard, run: str) -> None:
        self.id = uuid4().hex[:8]
        self._dataset = dataset
        self._shard = shard
        self._run = run

    def add_image(self, row: Row, data: bytes) -> dict[str, Any]:
        """Keep an encoded image; returns the cell of the metadata that holds or names it, under its column."""
        layout = self._dataset.layout
        cells = {layout.image.name: self._keep(data, self._name(row))}
        if layout.image_path is not None:
            cells[layout.image_path.name] = layout.image_key(self._shard.id, cells[layout.image.name])
        return cells

    def add_side_image(self, row: Row, data: bytes, what: str) -> dict[str, Any]:
        """The same for an image beside the row's own, with its sha256; `what` tells it from others of the row."""
        cell = self._keep(data, self._name(row, f".{what}"))
        return {self._dataset.layout.side_image.name: cell, "sha256": hashlib.sha256(data).hexdigest()}

    def _name(self, row: Row, suffix: str = "") -> str:
        return image_name(row.id, self._dataset.format.image_format, suffix)

    def _keep(self, data: bytes, name: str) -> Any:
        return self._dataset.layout.add_image(self._dataset.store, self._shard.id, self.id, name, data)

    def commit(
        self, done: Sequence[Mapping[str, Any]], failed: Sequence[FailedRow], *, size: int, seconds: float, device: str
    ) -> Receipt:
        """Make the shard exist with these rows; the receipt is that of the attempt that was first.

        Args:
            done: the metadata's cells of the finished rows, in the shard's order.
            failed: the rows that could not be made.
            size: bytes of the encoded images.
            seconds: time on the device.
            device: its name.

        Raises:
            OutputGone: the output is not there any more.
            StoreError: it cannot be written.
        """
        finished = time.time()
        receipt = Receipt(
            shard=self._shard.id,
            attempt=self.id,
            run=self._run,
            done=len(done),
            failures=failed,
            key=self._shard.key,
            device=device,
            seconds=seconds,
            finished=finished,
            images=len(done) * self._dataset.layout.objects_a_row,
            bytes=size,
        )
        self._dataset.require_same()
        if not done:
            return _commit_without_marker(self._dataset, receipt)
        output = self._dataset.format
        table = with_about(
            with_prints(metadata_table(output.schema, done), output.carried),
            attempt=self.id,
            run=self._run,
            key=self._shard.key,
            finished=finished,
            bytes=size,
            failed=[failure_record(row) for row in failed],
        )
        try:
            self._dataset.store.create(self._marker, self._dataset.layout.encode(table))
        except StoreError as error:
            receipt = self._receipt_of_winner(receipt, error)
        with suppress(StoreError):  # the shard exists: what is missing is rebuilt by a read, instead of a generation
            write_books(self._dataset, receipt)
        return receipt

    @property
    def _marker(self) -> str:
        return self._dataset.layout.marker_key(self._shard.id)

    def _receipt_of_winner(self, mine: Receipt, error: StoreError) -> Receipt:
        """Who created the marker, where creating it failed: another attempt, or this one.

        A refusal may be the answer to a retry of a create that succeeded, and any other error may follow on one whose
        answer was lost. A marker is whole and final whoever wrote it; without one the error stands.
        """
        try:
            winner = rebuild_receipt(self._dataset, self._shard.id)
        except StoreError as unreadable:
            raise error from unreadable
        if winner is None:
            raise error
        return mine if winner.attempt == self.id else winner


def commit_failures(dataset: Dataset, shard: Shard, run: str, failed: Sequence[FailedRow]) -> Receipt:
    """Record that no row of a shard could be made: ledger and receipt, and no marker.

    Where the shard is committed after all, nothing changes and its receipt comes back.
    """
    receipt = Receipt(
        shard=shard.id,
        attempt=uuid4().hex[:8],
        run=run,
        done=0,
        failures=failed,
        key=shard.key,
        device="none",
        seconds=0.0,
        finished=time.time(),
    )
    dataset.require_same()
    return _commit_without_marker(dataset, receipt)


def _commit_without_marker(dataset: Dataset, receipt: Receipt) -> Receipt:
    receipt = rebuild_receipt(dataset, receipt.shard) or receipt
    write_books(dataset, receipt)
    return receipt


def withdraw_failures(dataset: Dataset, chosen: Sequence[tuple[Receipt, Sequence[FailedRow]]]) -> None:
    """Let failures count no more, so that the next run tries their rows, or since they were made in other shards.

    After a kill in between they count no more, and the next run sets the books of their shards right.

    Args:
        dataset: the output.
        chosen: receipts of shards, with some of the failures that they name.

    Raises:
        Damaged: what was withdrawn before cannot be read.
    """
    withdrawn = read_withdrawn(dataset.store).joined(chosen)
    write_withdrawn(dataset.store, withdrawn)
    for receipt, _ in chosen:
        write_books(dataset, withdrawn.counting(receipt))


def drop_rows(dataset: Dataset, receipt: Receipt, dropped: Collection[tuple[str, str]]) -> None:
    """Take superseded rows, by id and fingerprint, out of a committed shard; images stay behind as strays.

    The marker is replaced in one write, so a reader sees the shard before or after. A shard with no row left loses
    its marker: readers cannot take a table without rows. The receipt is written before that: from then on no snapshot
    is asked which rows the shard has. After a kill in between, doing it again completes it.

    Args:
        dataset: the output.
        receipt: of the shard.
        dropped: the rows.
    """
    marker = dataset.marker(receipt.shard, images=True)
    if marker is None:
        write_books(dataset, replace(receipt, done=0))
        return
    key = dataset.layout.marker_key(receipt.shard)
    pairs = zip(marker.table["id"].to_pylist(), marker.table["fingerprint"].to_pylist(), strict=True)
    kept = marker.table.filter(pa.array([pair not in dropped for pair in pairs]))
    write_books(dataset, replace(receipt, done=kept.num_rows))
    if kept.num_rows:
        dataset.store.write(key, dataset.layout.encode(with_prints(kept, dataset.format.carried)))
    else:
        dataset.store.delete(key)


def update_carried(dataset: Dataset, receipt: Receipt, changed: Mapping[str, Mapping[str, Any]]) -> None:
    """Give rows of a committed shard other carried cells; images and all other columns stay as they are.

    The marker is replaced in one write, as `drop_rows` does it, and for its reason the receipt is written before.

    Args:
        dataset: the output.
        receipt: of the shard.
        changed: the new cells by the row's id.
    """
    marker = dataset.marker(receipt.shard, images=True)
    if marker is None:
        return
    write_books(dataset, receipt)
    table = with_carried(marker.table, dataset.format.carried, changed)
    dataset.store.write(dataset.layout.marker_key(receipt.shard), dataset.layout.encode(table))
