"""A run: check, subtract what is done, drive the workers, close the books."""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

from batchgen.dataset.begun import RECORD
from batchgen.dataset.card import write_card
from batchgen.dataset.carried import compare_carried
from batchgen.dataset.commit import commit_failures, drop_rows, update_carried, withdraw_failures
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.kept import forget_resolved, keep_resolved
from batchgen.dataset.lease import Lease
from batchgen.dataset.nodes import Meeting
from batchgen.dataset.progress import FOLD_ABOVE, Damages, done_rows, fold_receipts, read_receipts
from batchgen.dataset.receipts import rebuild_receipt, write_books
from batchgen.dataset.records import REPAIR
from batchgen.dataset.runs import (
    FINISHED,
    LIMIT_REACHED,
    RunRecord,
    failure_print,
    latest_run,
    new_run_name,
    write_run,
)
from batchgen.diffusion.kind import generation
from batchgen.diffusion.settings import WorkerSettings
from batchgen.driver.breaker import Breaker
from batchgen.driver.inputs import local_inputs
from batchgen.driver.output import (
    committed_rows,
    kept_batches,
    reach,
    require_listed,
    shortcomings,
    sizing_of,
    survey,
    wanted_format,
)
from batchgen.driver.record import OpenRecord
from batchgen.driver.resolved import resolved_rows
from batchgen.driver.watch import Reporter, Watch
from batchgen.engine.loop import Control, drive, signals
from batchgen.engine.queue import WorkQueue
from batchgen.errors import Damaged, ErrorClass, Interrupted, StoreError, without_secrets
from batchgen.estimate import Measured
from batchgen.index import Counts, Index
from batchgen.job import Job
from batchgen.options import Device, Dtype
from batchgen.resolve import Resolved
from batchgen.rows import DoneRow, Receipt, Shard, failed_row
from batchgen.sampling import CANDIDATES, spread
from batchgen.sharding import Sizing, make_shards, shard_notices
from batchgen.storage import open_store, probe
from batchgen.tally import Tally
from batchgen.work import Failure

__all__ = ["run"]


_DEVICES = ("cpu", "cuda")
_DTYPES: Mapping[Dtype, Literal["float16", "bfloat16", "float32"]] = {
    Dtype.FLOAT16: "float16",
    Dtype.BFLOAT16: "bfloat16",
    Dtype.FLOAT32: "float32",
}


def run(
    job: Job,
    *,
    source: str,
    limit: int | None,
    reporter: Reporter,
    sample: int | None = None,
    sample_by: Sequence[str] = (),
) -> Counts:
    """Generate what is not yet in the output.

    Args:
        job: what to make.
        source: what the user named, for the record.
        limit: make at most so many images in this run.
        sample: make no rows but so many that are spread over the manifest's axes: the same ones in each run.
        sample_by: columns to spread them over.
        reporter: reports how it goes.

    Returns:
        Where the manifest's rows stand now.

    Raises:
        InputError: nothing was started, or a node does not reach what its workers need.
        Interrupted: a signal or a limit of the job stopped the run; the same command goes on.
        OutputBusy: another run is writing to the output, or has taken it from this one.
        InfrastructureError: store, cluster or model failed.
    """
    began = time.time()
    store = reach(job)
    hours = job.limits.max_hours
    deadline = None if hours is None else time.monotonic() + hours * 3600
    control = Control(deadline, grace=60 * job.limits.grace_minutes)
    with resolved_rows(job, store) as (index, resolved):
        for line in resolved.notices:
            reporter.notice(line)
        if not index.counts().total:
            return index.counts()  # a night with nothing new; an output of no rows would have no columns either
        wanted = wanted_format(job, resolved)
        Dataset.begin(store, wanted, create=False)  # a conflict is found before anything is written
        probe(store)
        dataset = Dataset.begin(store, wanted, create=True)
        for line in shortcomings(dataset, wanted, resolved):
            reporter.notice(line)
        store = open_store(job.require_output(), job.storage_options, anchor=RECORD)  # from here on, retry patiently
        dataset = replace(dataset, store=store)
        this = _Run(job=job, source=source, dataset=dataset, index=index, resolved=resolved)
        with (
            Lease(store, this.name, progress=reporter.notice, check=dataset.require_same) as lease,
            this.record.closing(control),
        ):
            if not resolved.kept:
                with suppress(StoreError):  # it is resolved again, and what is wrong with the store shows soon
                    keep_resolved(store, job, index, resolved, before=began)
            fold_receipts(dataset)
            this.read_done(reporter)
            this.update_carried(reporter)
            pending = index.counts().pending
            chosen = [] if sample is None else spread(index.candidates(CANDIDATES), sample, sample_by)
            wanted_rows = pending if sample is None else index.defer_all_but(chosen)
            to_make = min([wanted_rows, *(n for n in (limit, job.limits.max_images) if n is not None)])
            if to_make:
                this.record.whole = LIMIT_REACHED if to_make < pending else FINISHED
                this.make(to_make, control, reporter, lease)
                require_listed(dataset, index)
            lease.require()
            this.supersede(reporter)
            if this.met_others:  # whose manifest may have had other carried cells
                this.update_carried(reporter)
            this.settle_record()
        counts = replace(index.counts(), updated=this.updated, sample=tuple(chosen))
    reason = control.reason
    if reason is None and to_make == job.limits.max_images and (limit is None or limit > to_make):
        reason = "the limit max_images is reached"
    if counts.pending and reason is not None:
        line = f"{reason}; {counts.done:,} of {counts.total:,} rows are done; the same command goes on"
        raise Interrupted(line, counts)
    if this.left_alone:
        raise StoreError(
            f"{counts.done:,} of {counts.total:,} rows are done; {this.left_alone:,} were left alone, since markers of "
            f"their shards cannot be read: {REPAIR}, and the same command makes them"
        )
    return counts


@dataclass(kw_only=True, slots=True)
class _Run:
    """One run over an output: its parts, and the books it keeps."""

    job: Job
    source: str
    dataset: Dataset
    index: Index
    resolved: Resolved
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
        return new_run_name(self.started)

    @property
    def previous(self) -> RunRecord | None:
        """The record of the run before."""
        return self.record.previous

    def read_done(self, reporter: Reporter) -> None:
        """Mark in the index what the output holds, and note how fast it was made, and how it was cut last."""
        survey(self.dataset, self.index, *self.measured.values(), repair=True, damages=self.damages)
        self.record.previous = previous = latest_run(self.dataset.store, self.damages)
        for line in self.damages.told():
            reporter.notice(line)
        counts, known = self.index.counts(), self.record.record
        if previous is not None and self.job.device is Device.AUTO:
            known = replace(known, device=previous.device, paces=previous.paces)
        self.record.record = replace(
            known,
            done_before=counts.done,
            failed_before=counts.failed,
            batches=kept_batches(previous),
            **self._rows(),
        )
        self.record.rows = self._rows

    def make(self, to_make: int, control: Control, reporter: Reporter, lease: Lease) -> None:
        """Start the workers, make `to_make` of the pending rows, and stop the workers."""
        # Ray takes half a second to import: only when there is work
        from batchgen.engine.cluster import autoscales, cluster
        from batchgen.engine.pool import Pool

        job = self.job
        self.record.note()
        with (
            cluster(job.address, job.workers, reporter.notice) as capacity,
            signals(control, reporter.notice),
        ):
            waits = job.worker.wait_minutes is not None or autoscales()
            device = capacity.device(job.device, waits=waits)
            if waits and device == "cpu" and job.device is Device.AUTO:
                reporter.notice("the cluster has no GPU now, so workers use CPUs; --device cuda waits for GPUs")
            workers = job.workers or capacity.workers(device)
            measured = self.measured[device]
            sizing = sizing_of(job, self.index, self.resolved.models, device, workers, measured, self.previous)
            totals = ((group.key, group.total) for group in self.index.groups())
            queue = WorkQueue(self._undamaged(make_shards(self.index.pending(to_make), totals, sizing)))
            shards = (-(-rows // sizing.shard(group.key, group.total)) for group, rows in self.index.shares(to_make))
            workers = min(workers, sum(shards))  # more would find nothing to do
            meeting = Meeting.call(self.dataset.store, self.name)
            settings = self._worker_settings(device, meeting)
            found: dict[str, Any] = {"nodes": capacity.nodes, "cpus": capacity.cpus, "gpus": capacity.gpus}
            if job.batch_size is None and kept_batches(self.previous) is not None:
                found["batches"] = sizing.batches
            self.record.note(device=device, dtype=settings.dtype, workers=workers, paces=sizing.paces, **found)
            self._write_card()
            for line in self._shard_notices(sizing, to_make):
                reporter.notice(line)
            shares = ((group.key, rows) for group, rows in self.index.shares(to_make))
            breaker = Breaker(most=job.limits.max_failures, control=control)
            watch = Watch(Tally(self.name, shares, workers, measured), reporter, lease, breaker)
            pool = Pool(generation(settings), workers, job.worker, reporter.notice, partial(self._arrived, meeting))
            reporter.notice(f"{capacity}; {pool.uses}")
            reporter.begin(self.index.counts(), to_make, workers, device)
            try:
                drive(
                    queue,
                    pool,
                    control,
                    recovered=self._recovered,
                    committed=lambda shard, receipt: self._committed(shard, receipt, watch),
                    failed=lambda shard, failure, attempts: self._failed(shard, failure, attempts, watch),
                    retried=lambda shard, failure: reporter.notice(
                        f"shard {shard.id} ({len(shard.rows)} rows) will be tried again: {failure.message}"
                    ),
                    progressed=watch.progressed,
                )
            except BaseException:
                with suppress(StoreError):  # what ended the run matters more
                    self._write_card()
                raise
            finally:
                reporter.end()
                pool.close()
            self._write_card()

    def _arrived(self, meeting: Meeting, node: str) -> None:
        meeting.require_answer(self.dataset.store, node)

    def _undamaged(self, shards: Iterator[Shard]) -> Iterator[Shard]:
        """Those that can be committed: a damaged marker keeps others from its place until it is moved away."""
        for shard in shards:
            if shard.id in self.damages.shards:
                self.left_alone += len(shard.rows)
            else:
                yield shard

    def _shard_notices(self, sizing: Sizing, to_make: int) -> Iterator[str]:
        """Where shards have other numbers of rows than were asked for, those at the end of what is made included."""
        if sizing.shard_rows is None:
            return
        yield from shard_notices((group.key for group in self.index.groups() if group.pending), sizing)
        for group, rows in self.index.shares(to_make):
            if rows < group.pending and (rest := rows % sizing.shard(group.key, group.total)):
                yield f"the limit ends within a shard: the last one has {rest} row{'s' * (rest > 1)}"

    def update_carried(self, reporter: Reporter) -> None:
        """Bring the carried cells of done rows up to date where the manifest has changed them."""
        if not (found := compare_carried(self.dataset, self.index)):
            return
        plural = "" if found == 1 else "s"
        reporter.notice(f"carried columns of {found:,} done row{plural} changed in the manifest; updating the metadata")
        receipts = {receipt.shard: receipt for receipt in self._receipts()}
        for shard, changed in self.index.outdated():
            if shard in receipts:
                with self._damage_told(reporter):
                    update_carried(self.dataset, receipts[shard], changed)
        self.index.clear_outdated()
        self.updated += found
        fold_receipts(self.dataset)

    def supersede(self, reporter: Reporter) -> None:
        """Take rows out of older shards whose id now stands for another image that is done; fold receipts.

        Failures are withdrawn of rows that were made since, or whose id now stands for another row.
        """
        superseded = list(self.index.superseded())
        dropped = {
            shard: {(row.id, row.fingerprint) for row in rows}
            for shard, rows in groupby(superseded, key=lambda row: row.shard)
        }
        mended = {(row.shard, row.id, row.fingerprint): row for row in self.index.mended()}
        for receipt in self._receipts() if dropped else ():
            if receipt.shard in dropped:
                with self._damage_told(reporter):
                    drop_rows(self.dataset, receipt, dropped[receipt.shard])
        chosen = [
            (receipt, rows)
            for receipt in (self._receipts() if mended else [])
            if (rows := [row for row in receipt.failures if (receipt.shard, row.id, row.fingerprint) in mended])
        ]
        if chosen:
            with self._damage_told(reporter):
                withdraw_failures(self.dataset, chosen)
        self.index.forget([*superseded, *mended.values()])
        fold_receipts(self.dataset)
        if superseded:
            self._write_card()

    def _receipts(self) -> list[Receipt]:
        return list(read_receipts(self.dataset, repair=True, damages=self.damages))

    @contextmanager
    def _damage_told(self, reporter: Reporter) -> Iterator[None]:
        """What cannot be read keeps the rest from nothing."""
        try:
            yield
        except Damaged as error:
            self.damages.lines.append(str(error))
            reporter.notice(str(error))

    def settle_record(self) -> None:
        """Bring the latest run's record up to date, by which `status` and `verify` know the manifest.

        A run that has nothing to make leaves no record of its own.
        """
        if self.record.is_stored or self.previous is None:
            return
        current = replace(self.previous, rows=self.index.counts().total, settled=True, **self._rows())
        if current != self.previous:
            write_run(self.dataset.store, current)
            self.record.previous = current

    def _rows(self) -> dict[str, Any]:
        """The rows of the manifest that are done or failed, as records hold them."""
        failed = [failure_print(id_, fingerprint) for id_, fingerprint in self.index.failed()]
        return {"done_by_shard": self.index.done_by_shard(), "failed_rows": failed}

    def _worker_settings(self, device: Literal["cpu", "cuda"], meeting: Meeting) -> WorkerSettings:
        automatic = Dtype.FLOAT16 if device == "cuda" else Dtype.FLOAT32
        return WorkerSettings(
            run=self.name,
            store=self.dataset.uri,
            output_id=self.dataset.id,
            meeting=meeting,
            inputs=local_inputs(self.resolved, self.index),
            storage_options=self.job.storage_options,
            output=self.dataset.format,
            models=self.resolved.models,
            safety=self.job.safety,
            memory=self.job.memory,
            allow_pickle=self.job.allow_pickle,
            save_steps=self.job.save_steps,
            save_control_images=self.job.save_control_images,
            device=device,
            dtype=_DTYPES[automatic if self.job.dtype is Dtype.AUTO else self.job.dtype],
            dtypes=self.job.dtypes,
        )

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

    def _write_card(self) -> None:
        counts, models = self.index.counts(), sorted(self.resolved.models)
        write_card(self.dataset, images=self.index.images(), failed=counts.failed, models=models)

    def _committed(self, shard: Shard, receipt: Receipt, watch: "Watch") -> None:
        failed = {row.id for row in receipt.failures}
        done = [DoneRow(row.id, row.fingerprint) for row in shard.rows if row.id not in failed]
        if receipt.run != self.name or len(done) != receipt.done:
            # made by another run, perhaps long ago: its marker says which rows are left, and with which carried cells
            self.met_others = True
            done = done_rows(self.dataset, shard.id)
        self.index.mark(committed_rows(receipt, done))
        if any(row.error_class in (ErrorClass.CONDITIONING, ErrorClass.INPUT) for row in receipt.failures):
            forget_resolved(self.dataset.store)  # a file may have changed behind an unchanged look: have all read again
        watch.committed(shard, receipt)
        self.unfolded += 1
        if self.unfolded > FOLD_ABOVE:  # each receipt is folded once, so the cost is that of folding at the end
            self.unfolded = 0
            with suppress(StoreError):  # they stay as they are, and what is wrong with them ends no run
                fold_receipts(self.dataset)

    def _recovered(self, shard: Shard) -> Receipt | None:
        receipt = rebuild_receipt(self.dataset, shard.id)
        if receipt is not None:
            write_books(self.dataset, receipt)
        return receipt

    def _failed(self, shard: Shard, failure: Failure, attempts: int, watch: "Watch") -> None:
        outcomes = [failed_row(row, failure.error_class, failure.message, attempts) for row in shard.rows]
        self._committed(shard, commit_failures(self.dataset, shard, self.name, outcomes), watch)
