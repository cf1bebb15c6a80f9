"""An output as a run and a plan find it: its place, its format, what it holds, how its work is cut."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import OutputFormat, new_format
from batchgen.dataset.lease import live_holder
from batchgen.dataset.progress import Damages, DoneRows, read_done
from batchgen.dataset.runs import RunRecord
from batchgen.dataset.schema import columns_needed
from batchgen.errors import InputError, StoreError
from batchgen.estimate import Measured
from batchgen.index import Committed, Index
from batchgen.job import Job
from batchgen.places import pattern_in
from batchgen.resolve import Resolved
from batchgen.rows import Receipt, Status
from batchgen.sharding import Kind, Sizing, settle_batches, settle_paces
from batchgen.storage import Store, open_store, require_place
from batchgen.tally import LiveProgress

__all__ = [
    "committed_rows",
    "count_live",
    "kept_batches",
    "mark_recorded",
    "reach",
    "require_columns",
    "require_listed",
    "shortcomings",
    "sizing_of",
    "survey",
    "wanted_format",
]


def reach(job: Job) -> Store:
    """The output's store, after a first look: wrong keys, a missing bucket and a dead endpoint show within seconds."""
    require_place(job.require_output())
    store = open_store(job.require_output(), job.storage_options, quick=True)
    begun = "output.json" in store.names(".batchgen")
    if not begun and (mark := pattern_in(store.uri)) is not None:
        raise InputError(f"output {store.uri}: {_misread(mark)}; choose another name")
    return store


def _misread(mark: str) -> str:
    return f"DuckDB, Polars or datasets take a path with {mark} in it for a pattern, and cannot read what is there"


def wanted_format(job: Job, resolved: Resolved) -> OutputFormat:
    """The format of the output, were it begun now."""
    defaults = {model.fingerprint: model.defaults for model in resolved.models.values()}
    return new_format(job.layout, job.format, resolved.carried, defaults)


def shortcomings(dataset: Dataset, wanted: OutputFormat, resolved: Resolved) -> Iterator[str]:
    """What is worth saying of an output that is there already."""
    if names := ", ".join(dataset.left_out(wanted)):
        yield f"{dataset.uri} was begun before the columns {names}; its metadata goes without"
    for model in resolved.models.values():
        kept, own = model.defaults, model.purpose.defaults
        if changed := ", ".join(sorted(name for name in {**kept, **own} if kept.get(name) != own.get(name))):
            yield f"{dataset.uri} was begun with another default of {model.name!r} for {changed}, and keeps it"
    if (mark := pattern_in(dataset.uri)) is not None:
        yield f"{dataset.uri}: {_misread(mark)}; rename the folder when no run goes on"


def require_columns(dataset: Dataset, wanted: OutputFormat, index: Index) -> None:
    """Refuse rows of which an output that is older than a column could not say how they were made.

    Raises:
        InputError: a row that is left to make has a cell there; names it and the columns.
    """
    absent = dataset.left_out(wanted)
    for _key, row in index.pending() if absent else ():
        if lost := columns_needed(row, absent):
            raise InputError(
                f"{dataset.uri} was begun by an earlier batchgen, whose metadata has no {' and no '.join(lost)}, which "
                f"row {row.id!r} names; make a new output of such rows, or leave the column out"
            )


def mark_recorded(store: Store | None, index: Index) -> None:
    """Mark in the index what an output holds, if there is one."""
    if store is not None:
        with suppress(InputError):  # nothing is there yet
            survey(Dataset.open(store), index, repair=False, damages=Damages())


def survey(dataset: Dataset, index: Index, *measured: Measured, repair: bool, damages: Damages) -> None:
    """Mark in the index what the output holds, and sum up how fast it was made; note what cannot be read."""
    for receipt, done in read_done(dataset, repair=repair, damages=damages):
        index.mark(committed_rows(receipt, done))
        for device in measured:
            device.add(receipt)


def require_listed(dataset: Dataset, index: Index) -> None:
    """Make sure that what the index says is done is there: a listing of the output shows its shards.

    Raises:
        OutputGone: the output is not there any more.
        StoreError: shards are missing that were committed.
    """
    dataset.require_same()
    present = set(dataset.shards())
    if missing := [shard for shard in index.done_shards() if shard not in present]:
        raise StoreError(
            f"{dataset.uri}: {len(missing):,} of the shards that were committed are not in data/ any more, the first "
            f"is {missing[0]}; did somebody remove them? the same command makes their rows again"
        )


def count_live(store: Store, measured: Measured, latest: RunRecord | None) -> Counter[Kind]:
    """Count in what a live run has in work; returns the rows that its devices are through with."""
    holder = live_holder(store)
    live = None if holder is None else LiveProgress.read(holder["said"])
    computed: Counter[Kind] = Counter()
    if live is not None and latest is not None and latest.device == measured.device:
        for kind, rows, seconds in live.in_work:
            measured.count(latest.run, kind, rows, seconds)
            computed[kind] += rows
    return computed


def committed_rows(receipt: Receipt, done: DoneRows) -> Iterator[Committed]:
    """A shard's rows as the index takes them: those that are done, and those that its receipt says failed."""
    for id_, fingerprint, carried in done:
        yield Committed(
            id=id_, fingerprint=fingerprint, shard=receipt.shard, status=Status.DONE, carried=carried or None
        )
    for row in receipt.failures:
        yield Committed(id=row.id, fingerprint=row.fingerprint, shard=receipt.shard, status=Status.FAILED)


def sizing_of(
    job: Job,
    index: Index,
    models: Iterable[str],
    device: str,
    workers: int,
    measured: Measured,
    previous: RunRecord | None,
) -> Sizing:
    """How the work is cut, as the run before it was as far as that holds.

    Args:
        job: says what overrides that.
        index: its rows.
        models: names of their models.
        device: cpu or cuda.
        workers: how many share the work.
        measured: how quick the output was so far on such a device.
        previous: the run before; None for a new output.
    """
    recorded = previous.paces if previous is not None and previous.device == device else {}
    batches = settle_batches(((group.key, group.total) for group in index.groups()), device, kept_batches(previous))
    return Sizing(
        device=device,
        workers=workers,
        paces=settle_paces(models, device, measured.paces(), recorded),
        batches=batches or {},
        batch_size=job.batch_size,
        shard_rows=job.shard_rows,
    )


def kept_batches(previous: RunRecord | None) -> Mapping[str, int] | None:
    """The sizes of micro-batches that an output keeps; none yet before its first run."""
    return {} if previous is None else previous.batches
