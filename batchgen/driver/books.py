"""The books of a run: what the output holds, what comes of shards, and the record of it all.

Knows the output and the manifest's rows in the index; nothing of workers.
"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from batchgen.dataset.card import write_card
from batchgen.dataset.carried import compare_carried
from batchgen.dataset.commit import commit_failures, drop_rows, update_carried, withdraw_failures
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.kept import forget_resolved
from batchgen.dataset.progress import FOLD_ABOVE, Damages, done_rows, fold_receipts, read_receipts
from batchgen.dataset.receipts import rebuild_receipt, write_books
from batchgen.dataset.runs import RunRecord, failure_print, latest_run, new_run_name, write_run
from batchgen.driver.output import committed_rows, kept_batches, survey
from batchgen.driver.record import OpenRecord
from batchgen.errors import Damaged, ErrorClass, StoreError, without_secrets
from batchgen.estimate import Measured
from batchgen.index import Index
from batchgen.job import Job
from batchgen.options import Device
from batchgen.resolve import Resolved
from batchgen.rows import DoneRow, Receipt, Shard, failed_row
from batchgen.work import Failure

__all__ = ["Books"]

_DEVICES = ("cpu", "cuda")


@dataclass(kw_only=True, slots=True)
class Books:
    """What one run over an output knows of it, and writes down."""

    job: Job
    source: str
    dataset: Dataset
    index: Index
    resolved: Resolved
    notice: Callable[[str], None]
    started: float = field(default_factory=time.time)
    measured: Mapping[str, Measured] = field(default_factory=lambda: {name: Measured(name) for name in _DEVICES})
    record: OpenRecord = field(init=False)
    unfolded: int = 0  # shards that were committed since receipts were folded
    updated: int = 0  # done rows whose carried cells were brought up to date
    damages: Damages = field(default_factory=Damages)
    left_alone: int = 0  # rows of shards whose markers are damaged
    met_others: bool = False  # whether a shard turned out to be committed by another run meanwhile

    def __post_init__(self) -> None:
        self.record = OpenRecord(store=self.dataset.store, record=self._first_record())

    @property
    def name(self) -> str:
        """The run's."""
        return new_run_name(self.started)

    @property
    def previous(self) -> RunRecord | None:
        """The record of the run before."""
        return self.record.previous

    def read_done(self) -> None:
        """Mark in the index what the output holds, and note how fast it was made, and how it was cut last."""
        survey(self.dataset, self.index, *self.measured.values(), repair=True, damages=self.damages)
        self.record.previous = previous = latest_run(self.dataset.store, self.damages)
        for line in self.damages.notices():
            self.notice(line)
        counts, known = self.index.counts(), self.record.record
        if previous is not None and self.job.device is Device.AUTO:
            known = replace(known, device=previous.device, paces=previous.paces)
        self.record.record = replace(
            known,
            done_before=counts.done,
            failed_before=counts.failed,
            batches=kept_batches(previous),
            **self.rows(),
        )
        self.record.rows = self.rows

    def undamaged(self, shards: Iterator[Shard]) -> Iterator[Shard]:
        """Those that can be committed: a damaged marker keeps others from its place until it is moved away."""
        for shard in shards:
            if shard.id in self.damages.shards:
                self.left_alone += len(shard.rows)
            else:
                yield shard

    def update_carried(self) -> None:
        """Bring the carried cells of done rows up to date where the manifest has changed them."""
        if not (found := compare_carried(self.dataset, self.index)):
            return
        plural = "" if found == 1 else "s"
        self.notice(f"carried columns of {found:,} done row{plural} changed in the manifest; updating the metadata")
        receipts = {receipt.shard: receipt for receipt in self._receipts()}
        for shard, changed in self.index.outdated():
            if shard in receipts:
                with self._damage_noted():
                    update_carried(self.dataset, receipts[shard], changed)
        self.index.clear_outdated()
        self.updated += found
        fold_receipts(self.dataset)

    def supersede(self) -> None:
        """Take rows out of older shards whose id now stands for another image that is done; fold receipts.

        Failures are withdrawn of rows that were made since, or whose id now stands for another row.
        """
        superseded = list(self.index.superseded())
        dropped = {
            shard: {(row.id, row.fingerprint) for row in rows}
            for shard, rows in groupby(superseded, key=lambda row: row.shard)
        }
        outdated = {(row.shard, row.id, row.fingerprint): row for row in self.index.outdated_failures()}
        for receipt in self._receipts() if dropped else ():
            if receipt.shard in dropped:
                with self._damage_noted():
                    drop_rows(self.dataset, receipt, dropped[receipt.shard])
        chosen = [
            (receipt, rows)
            for receipt in (self._receipts() if outdated else [])
            if (rows := [row for row in receipt.failures if (receipt.shard, row.id, row.fingerprint) in outdated])
        ]
        if chosen:
            with self._damage_noted():
                withdraw_failures(self.dataset, chosen)
        self.index.forget([*superseded, *outdated.values()])
        fold_receipts(self.dataset)
        if superseded:
            self.write_card()

    def _receipts(self) -> list[Receipt]:
        return list(read_receipts(self.dataset, repair=True, damages=self.damages))

    @contextmanager
    def _damage_noted(self) -> Iterator[None]:
        """What cannot be read keeps the rest from nothing."""
        try:
            yield
        except Damaged as error:
            self.damages.lines.append(str(error))
            self.notice(str(error))

    def settle_record(self) -> None:
        """Bring the latest run's record up to date, by which `status` and `verify` know the manifest.

        A run that has nothing to make leaves no record of its own.
        """
        if self.record.is_stored or self.previous is None:
            return
        current = replace(self.previous, rows=self.index.counts().total, settled=True, **self.rows())
        if current != self.previous:
            write_run(self.dataset.store, current)
            self.record.previous = current

    def rows(self) -> dict[str, Any]:
        """The rows of the manifest that are done or failed, as records hold them."""
        failed = [failure_print(id_, fingerprint) for id_, fingerprint in self.index.failed()]
        return {"done_by_shard": self.index.done_by_shard(), "failed_rows": failed}

    def write_card(self) -> None:
        """Bring the dataset card up to date."""
        counts, models = self.index.counts(), sorted(self.resolved.models)
        write_card(self.dataset, images=self.index.images(), failed=counts.failed, models=models)

    def committed(self, shard: Shard, receipt: Receipt) -> None:
        """A shard is in the dataset."""
        failed = {row.id for row in receipt.failures}
        done = [DoneRow(row.id, row.fingerprint) for row in shard.rows if row.id not in failed]
        if receipt.run != self.name or len(done) != receipt.done:
            # made by another run, perhaps long ago: its marker says which rows are left, and with which carried cells
            self.met_others = True
            done = done_rows(self.dataset, shard.id)
        self.index.mark(committed_rows(receipt, done))
        if any(row.error_class in (ErrorClass.CONDITIONING, ErrorClass.INPUT) for row in receipt.failures):
            forget_resolved(self.dataset.store)  # a file may have changed behind an unchanged look: have all read again
        self.unfolded += 1
        if self.unfolded > FOLD_ABOVE:  # each receipt is folded once, so the cost is that of folding at the end
            self.unfolded = 0
            with suppress(StoreError):  # they stay as they are, and what is wrong with them ends no run
                fold_receipts(self.dataset)

    def recovered(self, shard: Shard) -> Receipt | None:
        """The receipt of a shard that is committed although nobody said so; None where it is not."""
        receipt = rebuild_receipt(self.dataset, shard.id)
        if receipt is not None:
            write_books(self.dataset, receipt)
        return receipt

    def fail(self, shard: Shard, failure: Failure, attempts: int) -> Receipt:
        """Record that a shard is given up; the receipt of what stands now, should it be committed after all."""
        outcomes = [failed_row(row, failure.error_class, failure.message, attempts) for row in shard.rows]
        receipt = commit_failures(self.dataset, shard, self.name, outcomes)
        self.committed(shard, receipt)
        return receipt

    def _first_record(self) -> RunRecord:
        """What is known of the run before it knows what is done."""
        job = self.job
        return RunRecord(
            run=self.name,
            source=without_secrets(self.source),
            started=self.started,
            host=socket.gethostname(),
            model={model.name: model.fingerprint for model in self.resolved.models.values()},
            device=job.device,
            dtype=job.dtype,
            dtypes=job.dtypes,
            memory=job.memory,
            safety=job.safety,
            workers=job.workers or 0,
            rows=self.index.counts().total,
            done_before=None,
            failed_before=None,
        )
