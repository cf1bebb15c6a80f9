"""A run: check, subtract what is done, drive the workers, close the books."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from batchgen.dataset.begun import RECORD
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.kept import keep_resolved
from batchgen.dataset.lease import Lease
from batchgen.dataset.nodes import Meeting
from batchgen.dataset.progress import fold_receipts
from batchgen.dataset.records import REPAIR
from batchgen.dataset.runs import FINISHED, LIMIT_REACHED
from batchgen.diffusion.kind import generation
from batchgen.diffusion.settings import WorkerSettings
from batchgen.driver.books import Books
from batchgen.driver.breaker import Breaker
from batchgen.driver.inputs import local_inputs
from batchgen.driver.output import (
    kept_batches,
    reach,
    require_columns,
    require_listed,
    shortcomings,
    sizing_of,
    wanted_format,
)
from batchgen.driver.resolved import resolved_rows
from batchgen.driver.watch import Reporter, Watch
from batchgen.engine.crew import crew
from batchgen.engine.loop import Control, drive, signals
from batchgen.engine.queue import WorkQueue
from batchgen.errors import Interrupted, StoreError
from batchgen.index import Counts, Index
from batchgen.job import Job
from batchgen.options import Device, Dtype
from batchgen.rows import Receipt, Shard
from batchgen.sampling import CANDIDATES, spread
from batchgen.sharding import Sizing, make_shards, shard_notices
from batchgen.storage import open_store, probe
from batchgen.tally import Tally
from batchgen.work import Failure

__all__ = ["run"]


_MAX_IMAGES = "the limit max_images is reached"
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
        books = Books(job=job, source=source, dataset=dataset, index=index, resolved=resolved, notice=reporter.notice)
        with (
            Lease(store, books.name, progress=reporter.notice, check=dataset.require_same) as lease,
            books.record.closing(control, lambda: index.counts().pending),
        ):
            if not resolved.kept:
                with suppress(StoreError):  # it is resolved again, and what is wrong with the store shows soon
                    if (why := keep_resolved(store, job, index, resolved, before=began)) is not None:
                        reporter.notice(f"the next run resolves these rows anew: {why}")
            fold_receipts(dataset)
            books.read_done()
            require_columns(dataset, wanted, index)
            books.update_carried()
            pending = index.counts().pending
            chosen = [] if sample is None else spread(index.candidates(CANDIDATES), sample, sample_by)
            wanted_rows = pending if sample is None else index.defer_all_but(chosen)
            to_make = min([wanted_rows, *(n for n in (limit, job.limits.max_images) if n is not None)])
            if to_make:
                is_the_jobs = to_make == job.limits.max_images and (limit is None or limit > to_make)
                limited = _MAX_IMAGES if is_the_jobs else LIMIT_REACHED
                books.record.whole = limited if to_make < pending else FINISHED
                _make(books, to_make, control, reporter, lease)
                require_listed(dataset, index)
            lease.renew()  # the last one may be ten seconds old
            books.supersede()
            if books.met_others:  # whose manifest may have had other carried cells
                books.update_carried()
            books.settle_record()
            if books.left_alone and control.reason is None:
                counts = index.counts()
                raise StoreError(
                    f"{counts.done:,} of {counts.total:,} rows are done; {books.left_alone:,} were left alone, since "
                    f"markers of their shards cannot be read: {REPAIR}, and the same command makes them"
                )
        counts = replace(index.counts(), updated=books.updated, sample=tuple(chosen))
    reason = control.reason
    if reason is None and to_make == job.limits.max_images and (limit is None or limit > to_make):
        reason = _MAX_IMAGES
    if counts.pending and reason is not None:
        line = f"{reason}; {counts.done:,} of {counts.total:,} rows are done; the same command goes on"
        raise Interrupted(line, counts)
    return counts


def _make(books: Books, to_make: int, control: Control, reporter: Reporter, lease: Lease) -> None:
    """Start the workers, make `to_make` of the pending rows, and stop the workers."""
    job, index, store = books.job, books.index, books.dataset.store
    books.record.note()
    with (
        crew(job.address, job.workers, job.worker, reporter.notice) as hands,
        signals(control, reporter.notice),
        Meeting.held(store, books.name) as meeting,
    ):
        capacity = hands.capacity
        device = capacity.device(job.device, waits=hands.waits)
        if hands.waits and device == "cpu" and job.device is Device.AUTO:
            reporter.notice("the cluster has no GPU now, so workers use CPUs; --device cuda waits for GPUs")
        workers = capacity.workers(device, job.workers)
        measured = books.measured[device]
        sizing = sizing_of(job, index, books.resolved.models, device, workers, measured, books.previous)
        totals = ((group.key, group.total) for group in index.groups())
        queue = WorkQueue(books.undamaged(make_shards(index.pending(to_make), totals, sizing)))
        shards = (-(-rows // sizing.shard(group.key, group.total)) for group, rows in index.shares(to_make))
        workers = min(workers, sum(shards))  # more would find nothing to do
        settings = _worker_settings(books, device, meeting)
        found: dict[str, Any] = {"nodes": capacity.nodes, "cpus": capacity.cpus, "gpus": capacity.gpus}
        if job.batch_size is None and kept_batches(books.previous) is not None:
            found["batches"] = sizing.batches
        books.record.note(device=device, dtype=settings.dtype, workers=workers, paces=sizing.paces, **found)
        books.write_card()
        for line in _shard_notices(index, sizing, to_make):
            reporter.notice(line)
        shares = ((group.key, rows) for group, rows in index.shares(to_make))
        breaker = Breaker(most=job.limits.max_failures, control=control)
        watch = Watch(Tally(books.name, shares, workers, measured), reporter, lease, breaker)

        def committed(shard: Shard, receipt: Receipt) -> None:
            books.committed(shard, receipt)
            watch.committed(shard, receipt)

        def failed(shard: Shard, failure: Failure, attempts: int) -> None:
            watch.committed(shard, books.fail(shard, failure, attempts))

        def retried(shard: Shard, failure: Failure) -> None:
            reporter.notice(f"shard {shard.id} ({len(shard.rows)} rows) will be tried again: {failure.message}")

        def arrived(node: str) -> None:
            meeting.require_answer(store, node)

        pool = hands.hire(generation(settings), workers, job.worker, arrived)
        reporter.notice(f"{capacity}; {pool.uses}")
        reporter.begin(index.counts(), to_make, workers, device)
        try:
            drive(
                queue,
                pool,
                control,
                recovered=books.recovered,
                committed=committed,
                failed=failed,
                retried=retried,
                progressed=watch.progressed,
            )
        except BaseException:
            with suppress(StoreError):  # what ended the run matters more
                books.write_card()
            raise
        finally:
            reporter.end()
            pool.close()
        books.write_card()


def _shard_notices(index: Index, sizing: Sizing, to_make: int) -> Iterator[str]:
    """Where shards have other numbers of rows than were asked for, those at the end of what is made included."""
    if sizing.shard_rows is None:
        return
    yield from shard_notices((group.key for group in index.groups() if group.pending), sizing)
    for group, rows in index.shares(to_make):
        if rows < group.pending and (rest := rows % sizing.shard(group.key, group.total)):
            yield f"the limit ends within a shard: the last one has {rest} row{'s' * (rest > 1)}"


def _worker_settings(books: Books, device: Literal["cpu", "cuda"], meeting: Meeting) -> WorkerSettings:
    job = books.job
    automatic = Dtype.FLOAT16 if device == "cuda" else Dtype.FLOAT32
    return WorkerSettings(
        run=books.name,
        store=books.dataset.uri,
        output_id=books.dataset.id,
        meeting=meeting,
        inputs=local_inputs(books.resolved, books.index),
        storage_options=job.storage_options,
        output=books.dataset.format,
        models=books.resolved.models,
        safety=job.safety,
        memory=job.memory,
        allow_pickle=job.allow_pickle,
        save_steps=job.save_steps,
        save_control_images=job.save_control_images,
        device=device,
        dtype=_DTYPES[automatic if job.dtype is Dtype.AUTO else job.dtype],
        dtypes=job.dtypes,
    )
