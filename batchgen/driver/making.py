"""A run: check, subtract what is done, drive the workers, close the books."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, Protocol

from batchgen.dataset.card import write_card
from batchgen.dataset.carried import compare_carried
from batchgen.dataset.commit import commit_failures, drop_rows, update_carried
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.kept import forget_resolved, keep_resolved
from batchgen.dataset.lease import Lease
from batchgen.dataset.progress import FOLD_ABOVE, done_rows, fold_receipts, read_receipts
from batchgen.dataset.receipts import rebuild_receipt, write_books
from batchgen.dataset.runs import FINISHED, LIMIT_REACHED, RunRecord, latest_run, new_run_name, write_run
from batchgen.diffusion.kind import generation
from batchgen.diffusion.settings import WorkerSettings
from batchgen.driver.output import committed_rows, kept_batches, reach, shortcomings, sizing_of, survey, wanted_format
from batchgen.driver.resolved import resolved_rows
from batchgen.engine.loop import Control, drive, signals
from batchgen.engine.queue import WorkQueue
from batchgen.errors import BatchgenError, ErrorClass, Interrupted, StoreError, without_secrets
from batchgen.estimate import Measured
from batchgen.index import Counts, Index
from batchgen.job import Job
from batchgen.options import Device, Dtype
from batchgen.resolve import Resolved
from batchgen.rows import DoneRow, Receipt, Shard, ShardProgress, failed_row
from batchgen.sampling import CANDIDATES, spread
from batchgen.sharding import Sizing, make_shards, shard_notices
from batchgen.storage import open_store, probe
from batchgen.tally import RunProgress, Tally
from batchgen.work import Failure

__all__ = ["Reporter", "run"]


TELL_EVERY = 1.0  # seconds
_DEVICES = ("cpu", "cuda")
_DTYPES: Mapping[Dtype, Literal["float16", "bfloat16", "float32"]] = {
    Dtype.FLOAT16: "float16",
    Dtype.BFLOAT16: "bfloat16",
    Dtype.FLOAT32: "float32",
}


class Reporter(Protocol):
    """Reports how a run goes."""

    def notice(self, line: str) -> None:
        """Something worth a line."""

    def begin(self, counts: Counts, to_make: int, workers: int, device: str) -> None:
        """Workers are starting."""

    def progressed(self, progress: RunProgress) -> None:
        """Time has passed, about a second, and images may have been made."""

    def committed(self, receipt: Receipt, progress: RunProgress) -> None:
        """A shard is in the dataset."""

    def end(self) -> None:
        """No more will come."""


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
        InputError: nothing was started.
        Interrupted: a signal or a limit of the job stopped the run; the same command goes on.
        InfrastructureError: store, cluster or model failed.
    """
    began = time.time()
    store = reach(job)
    hours = job.limits.max_hours
    control = Control(None if hours is None else time.monotonic() + hours * 3600)
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
        store = open_store(job.require_output(), job.storage_options)  # from here on, retry patiently
        dataset = replace(dataset, store=store)
        this = _Run(job=job, source=source, dataset=dataset, index=index, resolved=resolved)
        with Lease(store, this.name, progress=reporter.notice) as lease:
            if not resolved.kept:
                keep_resolved(store, job, index, resolved, before=began)
            fold_receipts(dataset)
            this.read_done()
            this.update_carried(reporter)
            pending = index.counts().pending
            chosen = [] if sample is None else spread(index.candidates(CANDIDATES), sample, sample_by)
            wanted_rows = pending if sample is None else index.defer_all_but(chosen)
            to_make = min([wanted_rows, *(n for n in (limit, job.limits.max_images) if n is not None)])
            if to_make:
                this.make(to_make, pending, control, reporter, lease)
            this.supersede()
            if this.met_others:  # whose manifest may have had other carried cells
                this.update_carried(reporter)
        counts = replace(index.counts(), updated=this.updated, sample=tuple(chosen))
    reason = control.reason
    if reason is None and to_make == job.limits.max_images and (limit is None or limit > to_make):
        reason = "the limit max_images is reached"
    if counts.pending and reason is not None:
        line = f"{reason}; {counts.done:,} of {counts.total:,} rows are done; the same command goes on"
        raise Interrupted(line, counts)
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
    previous: RunRecord | None = None  # of the run before
    unfolded: int = 0  # shards that were committed since receipts were folded
    updated: int = 0  # done rows whose carried cells were brought up to date
    met_others: bool = False  # whether a shard turned out to be committed by another run meanwhile

    @property
    def name(self) -> str:
        return new_run_name(self.started)

    def read_done(self) -> None:
        """Mark in the index what the output holds, and note how fast it was made, and how it was cut last."""
        survey(self.dataset, self.index, *self.measured.values(), repair=True)
        self.previous = latest_run(self.dataset.store)

    def make(self, to_make: int, pending: int, control: Control, reporter: Reporter, lease: Lease) -> None:
        """Start the workers, make `to_make` of the pending rows, and stop the workers."""
        # Ray takes half a second to import: only when there is work
        from batchgen.engine.cluster import autoscales, cluster
        from batchgen.engine.pool import Pool

        job = self.job
        with (
            self._recorded(control, LIMIT_REACHED if to_make < pending else FINISHED) as record,
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
            queue = WorkQueue(make_shards(self.index.pending(to_make), totals, sizing))
            shards = (-(-rows // sizing.shard(group.key, group.total)) for group, rows in self.index.shares(to_make))
            workers = min(workers, sum(shards))  # more would find nothing to do
            settings = self._worker_settings(device)
            found: dict[str, Any] = {"nodes": capacity.nodes, "cpus": capacity.cpus, "gpus": capacity.gpus}
            if job.batch_size is None and kept_batches(self.previous) is not None:
                found["batches"] = sizing.batches
            record(device=device, dtype=settings.dtype, workers=workers, paces=sizing.paces, **found)
            self._write_card()
            for line in self._shard_notices(sizing, to_make):
                reporter.notice(line)
            shares = ((group.key, rows) for group, rows in self.index.shares(to_make))
            watch = _Watch(Tally(self.name, shares, workers, measured), reporter, lease)
            pool = Pool(generation(settings), workers, job.worker, reporter.notice)
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
            finally:
                reporter.end()
                pool.close()
                self._write_card()

    @contextmanager
    def _recorded(self, control: Control, whole: str) -> Iterator[Callable[..., None]]:
        """A record of this run while it goes on, and of how it ended, whatever ends it.

        Args:
            control: says why a run stopped early.
            whole: the outcome of one that made all it was to make.

        Yields:
            Takes what becomes known of the run.
        """
        record = self._record()

        def note(**known: Any) -> None:
            nonlocal record
            record = replace(record, **known)
            write_run(self.dataset.store, record)

        note()
        outcome = "failed"
        try:
            yield note
            outcome = control.reason or whole
        except KeyboardInterrupt:
            outcome = "stopped at once"
            raise
        except BatchgenError as error:
            outcome = f"failed: {error}"
            raise
        finally:
            note(finished=time.time(), outcome=outcome)

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
        receipts = {receipt.shard: receipt for receipt in read_receipts(self.dataset, repair=True)}
        for shard, changed in self.index.outdated():
            if shard in receipts:
                update_carried(self.dataset, receipts[shard], changed)
        self.index.clear_outdated()
        self.updated += found
        fold_receipts(self.dataset)

    def supersede(self) -> None:
        """Take rows out of older shards whose id now stands for another image that is done; fold receipts."""
        superseded = list(self.index.superseded())
        dropped = {
            shard: {(row.id, row.fingerprint) for row in rows}
            for shard, rows in groupby(superseded, key=lambda row: row.shard)
        }
        for receipt in list(read_receipts(self.dataset, repair=True)) if dropped else ():
            if receipt.shard in dropped:
                drop_rows(self.dataset, receipt, dropped[receipt.shard])
        self.index.forget(superseded)
        fold_receipts(self.dataset)
        if superseded:
            self._write_card()

    def _worker_settings(self, device: Literal["cpu", "cuda"]) -> WorkerSettings:
        automatic = Dtype.FLOAT16 if device == "cuda" else Dtype.FLOAT32
        return WorkerSettings(
            run=self.name,
            store=self.dataset.uri,
            storage_options=self.job.storage_options,
            output=self.dataset.format,
            models=self.resolved.models,
            safety=self.job.safety,
            memory=self.job.memory,
            allow_pickle=self.job.allow_pickle,
            save_steps=self.job.save_steps,
            device=device,
            dtype=_DTYPES[automatic if self.job.dtype is Dtype.AUTO else self.job.dtype],
            dtypes=self.job.dtypes,
        )

    def _record(self) -> RunRecord:
        """What is known of the run before a cluster answers."""
        job, counts = self.job, self.index.counts()
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
            rows=counts.total,
            done_before=counts.done,
            batches=kept_batches(self.previous),
            failed_before=counts.failed,
        )

    def _write_card(self) -> None:
        counts, models = self.index.counts(), sorted(self.resolved.models)
        write_card(self.dataset, images=self.index.images(), failed=counts.failed, models=models)

    def _committed(self, shard: Shard, receipt: Receipt, watch: "_Watch") -> None:
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

    def _failed(self, shard: Shard, failure: Failure, attempts: int, watch: "_Watch") -> None:
        outcomes = [failed_row(row, failure.error_class, failure.message, attempts) for row in shard.rows]
        self._committed(shard, commit_failures(self.dataset, shard, self.name, outcomes), watch)


@dataclass(slots=True)
class _Watch:
    """Follows a run, and tells about once a second how far it is: the reporter, and who reads the lease."""

    tally: Tally
    reporter: Reporter
    lease: Lease
    told: float = 0.0  # of time.monotonic()

    def progressed(self, held: Sequence[Sequence[tuple[Shard, ShardProgress | None]]]) -> None:
        """Workers hold these shards and said how far each is."""
        self.tally.hold(held)
        if time.monotonic() - self.told >= TELL_EVERY:
            self.reporter.progressed(self._tell())

    def committed(self, shard: Shard, receipt: Receipt) -> None:
        """A shard is in the dataset."""
        self.tally.commit(shard, receipt)
        self.reporter.committed(receipt, self._tell())

    def _tell(self) -> RunProgress:
        self.told = time.monotonic()
        progress = self.tally.progress()
        self.lease.said = self.tally.live(progress).content()
        return progress
