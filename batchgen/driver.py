"""A run from source to dataset: check, subtract what is done, plan, drive the workers, close the books."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal, Protocol

from batchgen.dataset.card import write_card
from batchgen.dataset.carried import compare_carried
from batchgen.dataset.commit import commit_failures, drop_rows, reopen_rows, update_carried
from batchgen.dataset.dataset import Dataset, begun_with
from batchgen.dataset.fit import fit_to_output
from batchgen.dataset.format import OutputFormat, new_format
from batchgen.dataset.kept import forget_resolved, keep_resolved, take_resolved
from batchgen.dataset.lease import Lease, live_holder
from batchgen.dataset.progress import FOLD_ABOVE, DoneRows, done_rows, fold_receipts, read_done, read_receipts
from batchgen.dataset.receipts import rebuild_receipt, write_books
from batchgen.dataset.runs import FINISHED, LIMIT_REACHED, RunRecord, latest_run, new_run_name, write_run
from batchgen.diffusion.kind import generation
from batchgen.diffusion.settings import WorkerSettings
from batchgen.engine.loop import Control, drive, signals
from batchgen.engine.queue import WorkQueue
from batchgen.errors import BatchgenError, ErrorClass, InputError, Interrupted, ManifestProblems, StoreError
from batchgen.estimate import Measured, PlanSummary, summarize
from batchgen.index import Committed, Counts, Index
from batchgen.job import Job
from batchgen.machine import cores, gpus
from batchgen.manifest.problems import ProblemLog
from batchgen.models.catalog import NOT_BEGUN
from batchgen.options import Device, Dtype
from batchgen.resolve import Resolved, resolve
from batchgen.rows import DoneRow, Receipt, Shard, ShardProgress, Status, failed_row
from batchgen.sampling import CANDIDATES, spread
from batchgen.sharding import Kind, Sizing, make_shards, settle_batches, settle_paces, shard_notices
from batchgen.storage import Store, open_store, pattern_in, probe, require_place
from batchgen.tally import LiveProgress, RunProgress, Tally
from batchgen.trials import try_schedulers
from batchgen.work import Failure

__all__ = ["CheckedJob", "Reporter", "check", "plan", "resolved_rows", "retry", "run"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedJob:
    """What a job without problems asks for."""

    rows: int  # images to make
    files: Sequence[str]  # of the manifest
    notices: Sequence[str]  # lines that are worth reading: columns by another name, what was filled in


def check(job: Job, *, output: bool = False) -> CheckedJob:
    """Check every row of a job; no model is loaded and nothing is written.

    Args:
        job: what to check.
        output: whether its output would take the rows, too.

    Raises:
        ManifestProblems: rows that cannot be made; all of them are in it.
        InputError: the job, the manifest as a whole or the output cannot be used.
        StoreError: the output cannot be reached.
    """
    store = _reach(job) if output else None
    with resolved_rows(job, store, afresh=True) as (index, resolved):
        rows, notices = index.counts().total, list(resolved.notices)
        if store is not None and rows:
            wanted = _wanted(job, resolved)
            notices += _shortcomings(Dataset.begin(store, wanted, create=False), wanted, resolved)
        return CheckedJob(rows=rows, files=resolved.files, notices=notices)


@contextmanager
def resolved_rows(job: Job, output: Store | None = None, *, afresh: bool = False) -> Iterator[tuple[Index, Resolved]]:
    """The job's rows in an index on disk.

    Args:
        job: what to make.
        output: what they are made for, with the defaults and types that it was begun with; rows may lie there that an
            earlier run resolved, and are taken where nothing changed since. What it has recorded is not refused for its
            scheduler.
        afresh: take no such rows.

    Raises:
        ManifestProblems: rows that cannot be made; all of them are in it.
        InputError: the job or the manifest as a whole cannot be used.
    """
    with Index() as index:
        if output is not None and not afresh and (kept := take_resolved(output, job, index)) is not None:
            yield index, fit_to_output(kept, output, index)
            return
        problems = ProblemLog()
        resolved = resolve(job, index, problems, NOT_BEGUN if output is None else begun_with(output))
        try_schedulers(index, resolved.models, problems, survey=partial(_mark_recorded, output, index))
        if problems.total:
            raise ManifestProblems(problems)
        yield index, resolved if output is None else fit_to_output(resolved, output, index)


def plan(job: Job) -> PlanSummary:
    """What `run` would do, counted up; nothing is written and no model is loaded."""
    store = None if job.output is None else _reach(job)
    with resolved_rows(job, store) as (index, resolved):
        outdated, notices = 0, list(resolved.notices)
        device = _local_device(job.device)
        measured, recorded, computed = Measured(device), None, Counter[Kind]()
        if store is not None and index.counts().total:
            wanted = _wanted(job, resolved)
            dataset = Dataset.begin(store, wanted, create=False)
            notices += _shortcomings(dataset, wanted, resolved)
            _survey(dataset, index, measured, repair=False)
            recorded = latest_run(store)
            computed = _count_live(store, measured, recorded)
            outdated = compare_carried(dataset, index)
        sizing = _sizing(job, index, resolved.models, device, job.workers or _local_workers(device), measured, recorded)
        summary = summarize(
            index.groups(),
            sizing,
            measured,
            job.layout,
            job.format,
            failed=index.counts().failed,
            outdated=outdated,
            computed=computed,
        )
        notices += shard_notices((group.key for group in index.groups() if group.pending), sizing)
        return replace(summary, notices=notices)


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
    store = _reach(job)
    hours = job.limits.max_hours
    control = Control(None if hours is None else time.monotonic() + hours * 3600)
    with resolved_rows(job, store) as (index, resolved):
        for line in resolved.notices:
            reporter.notice(line)
        if not index.counts().total:
            return index.counts()  # a night with nothing new; an output of no rows would have no columns either
        wanted = _wanted(job, resolved)
        Dataset.begin(store, wanted, create=False)  # a conflict is found before anything is written
        probe(store)
        dataset = Dataset.begin(store, wanted, create=True)
        for line in _shortcomings(dataset, wanted, resolved):
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


def retry(uri: str, classes: Collection[str], storage_options: Mapping[str, Any] | None = None) -> int:
    """Open an output's failed rows again for the next run; returns how many.

    Args:
        uri: the output.
        classes: error classes, or what earlier versions called them and this output holds; all where empty.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        InputError: there is no output, or no such error class.
        OutputBusy: a run is writing to it.
    """
    dataset = Dataset.open(open_store(uri, storage_options))
    with Lease(dataset.store, new_run_name(time.time())):
        receipts = list(read_receipts(dataset, repair=True))
        recorded = {row.error_class for receipt in receipts for row in receipt.failures}
        for name in classes:
            if name not in recorded | set(ErrorClass):
                known = ", ".join([*ErrorClass, *sorted(recorded - set(ErrorClass))])
                raise InputError(f"no error class {name!r}; known are {known}")
        return sum(reopen_rows(dataset, receipt, classes) for receipt in receipts if receipt.failed)


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
        _survey(self.dataset, self.index, *self.measured.values(), repair=True)
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
            sizing = _sizing(job, self.index, self.resolved.models, device, workers, measured, self.previous)
            totals = ((group.key, group.total) for group in self.index.groups())
            queue = WorkQueue(make_shards(self.index.pending(to_make), totals, sizing))
            shards = (-(-rows // sizing.shard(group.key, group.total)) for group, rows in self.index.shares(to_make))
            workers = min(workers, sum(shards))  # more would find nothing to do
            settings = self._worker_settings(device)
            found: dict[str, Any] = {"nodes": capacity.nodes, "cpus": capacity.cpus, "gpus": capacity.gpus}
            if job.batch_size is None and _batches(self.previous) is not None:
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
        """Take rows out of older shards whose id now stands for another picture that is done; fold receipts."""
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
            source=self.source,
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
            batches=_batches(self.previous),
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
        self.index.mark(_entries(receipt, done))
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


def _reach(job: Job) -> Store:
    """The output's store, after a first look: wrong keys, a missing bucket and a dead endpoint show within seconds."""
    require_place(job.require_output())
    store = open_store(job.require_output(), job.storage_options, quick=True)
    begun = "output.json" in store.names(".batchgen")
    if not begun and (mark := pattern_in(store.uri)) is not None:
        raise InputError(f"output {store.uri}: {_misread(mark)}; choose another name")
    return store


def _misread(mark: str) -> str:
    return f"DuckDB, Polars or datasets take a path with {mark} in it for a pattern, and cannot read what is there"


def _wanted(job: Job, resolved: Resolved) -> OutputFormat:
    defaults = {model.fingerprint: model.defaults for model in resolved.models.values()}
    return new_format(job.layout, job.format, resolved.carried, defaults)


def _shortcomings(dataset: Dataset, wanted: OutputFormat, resolved: Resolved) -> Iterator[str]:
    """What is worth saying of an output that is there already."""
    if names := ", ".join(dataset.left_out(wanted)):
        yield f"{dataset.uri} was begun before the columns {names}; its metadata goes without"
    for model in resolved.models.values():
        kept, own = model.defaults, model.purpose.defaults
        if changed := ", ".join(sorted(name for name in {**kept, **own} if kept.get(name) != own.get(name))):
            yield f"{dataset.uri} was begun with another default of {model.name!r} for {changed}, and keeps it"
    if (mark := pattern_in(dataset.uri)) is not None:
        yield f"{dataset.uri}: {_misread(mark)}; rename the folder when no run goes on"


def _mark_recorded(store: Store | None, index: Index) -> None:
    """Mark in the index what an output holds, if there is one."""
    if store is not None:
        with suppress(InputError):  # nothing is there yet
            _survey(Dataset.open(store), index, repair=False)


def _survey(dataset: Dataset, index: Index, *measured: Measured, repair: bool) -> None:
    """Mark in the index what the output holds, and sum up how fast it was made."""
    for receipt, done in read_done(dataset, repair=repair):
        index.mark(_entries(receipt, done))
        for device in measured:
            device.add(receipt)


def _count_live(store: Store, measured: Measured, latest: RunRecord | None) -> Counter[Kind]:
    """Count in what a live run has in work; returns the rows that its devices are through with."""
    holder = live_holder(store)
    live = None if holder is None else LiveProgress.read(holder["said"])
    computed: Counter[Kind] = Counter()
    if live is not None and latest is not None and latest.device == measured.device:
        for kind, rows, seconds in live.in_work:
            measured.count(latest.run, kind, rows, seconds)
            computed[kind] += rows
    return computed


def _entries(receipt: Receipt, done: DoneRows) -> Iterator[Committed]:
    for id_, fingerprint, carried in done:
        yield Committed(
            id=id_, fingerprint=fingerprint, shard=receipt.shard, status=Status.DONE, carried=carried or None
        )
    for row in receipt.failures:
        yield Committed(id=row.id, fingerprint=row.fingerprint, shard=receipt.shard, status=Status.FAILED)


def _sizing(
    job: Job,
    index: Index,
    models: Iterable[str],
    device: str,
    workers: int,
    measured: Measured,
    previous: RunRecord | None,
) -> Sizing:
    recorded = previous.paces if previous is not None and previous.device == device else {}
    batches = settle_batches(((group.key, group.total) for group in index.groups()), device, _batches(previous))
    return Sizing(
        device=device,
        workers=workers,
        paces=settle_paces(models, device, measured.paces(), recorded),
        batches=batches or {},
        batch_size=job.batch_size,
        shard_rows=job.shard_rows,
    )


def _batches(previous: RunRecord | None) -> Mapping[str, int] | None:
    """The sizes of micro-batches that an output keeps; none yet before its first run."""
    return {} if previous is None else previous.batches


def _local_device(wanted: Device) -> str:
    """What `auto` would mean on this machine, without asking CUDA: whether the driver shows a GPU."""
    if wanted is not Device.AUTO:
        return wanted.value
    return "cuda" if gpus() else "cpu"


def _local_workers(device: str) -> int:
    return max(1, gpus() if device == "cuda" else cores())
