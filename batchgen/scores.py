"""A scoring run, from an output to its side tables: subtract what is scored, drive the workers, group, sum up."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from batchgen.dataset.begun import RECORD
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.nodes import Meeting
from batchgen.dataset.runs import new_run_name
from batchgen.engine.crew import crew
from batchgen.engine.loop import Control, Workers, drive, signals
from batchgen.engine.queue import WorkQueue
from batchgen.errors import InfrastructureError, InputError, Interrupted
from batchgen.job import Job, Limits, WorkerResources
from batchgen.options import Device, Dtype
from batchgen.scoring.groups import GroupTable, read_table
from batchgen.scoring.kind import scoring
from batchgen.scoring.metrics import Family, Metric, find_metrics
from batchgen.scoring.models import find_models, flag_of
from batchgen.scoring.pending import Models, paired_with, reference_units, require_columns, score_units, sets_units
from batchgen.scoring.tables import error_column, forget_scores, forget_shards, join_scores, write_all_scores
from batchgen.scoring.units import ReferenceUnit, Scored, ScoreUnit, ScoringSettings, SetsUnit, Unit
from batchgen.storage import open_store, require_place
from batchgen.work import Failure

__all__ = ["ColumnSummary", "ScoreSummary", "ScoringJob", "score", "score_made"]

_DTYPES: Mapping[Dtype, Literal["float16", "bfloat16", "float32"]] = {
    Dtype.AUTO: "float32",  # on every device: scores that are compared should not lose digits
    Dtype.FLOAT32: "float32",
    Dtype.FLOAT16: "float16",
    Dtype.BFLOAT16: "bfloat16",
}
_LATER = frozenset({Family.DUPLICATES, Family.SETS})  # than the images one by one
BATCH = 16  # images decoded and scored at once; 50 MB at 1024 x 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringJob:
    """What to score, with what, where."""

    output: str
    metrics: Sequence[str]
    models: Mapping[str, str] = field(default_factory=dict)  # names by part, as METRIC or METRIC.part, and reference
    by: Sequence[str] = ()  # columns whose values make the groups of fid and kid; none: one group of all
    device: Device = Device.AUTO
    dtype: Dtype = Dtype.AUTO
    batch_size: int = BATCH
    workers: int | None = None
    address: str | None = None
    worker: WorkerResources = field(default_factory=WorkerResources)
    allow_pickle: bool = False
    storage_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnSummary:
    """What the scores of a column are like; texts have no mean."""

    count: int
    mean: float | None = None
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSummary:
    """Where an output's scores stand."""

    rows: int
    scored: int  # images that this run scored
    scores: Mapping[str, ColumnSummary]  # by column
    failed: Mapping[str, int]  # rows that should have a score and have none, by metric; absent where there are none
    groups: Sequence[GroupTable]  # of metrics of sets


def score(job: ScoringJob, notice: Callable[[str], None]) -> ScoreSummary:
    """Score what is not scored yet.

    Args:
        job: what to score.
        notice: called with each line that is worth reading.

    Raises:
        InputError: no such output, metric or model; nothing was started.
        Interrupted: a signal stopped the run; the same command goes on.
        InfrastructureError: store, cluster or a model failed.
    """
    if not job.metrics:
        raise InputError("no metric; give --metric NAME")
    metrics = find_metrics(job.metrics)
    require_place(job.output)
    dataset = Dataset.open(open_store(job.output, job.storage_options, quick=True))
    models = find_models(metrics, job.models, allow_pickle=job.allow_pickle)
    sets = [metric for metric in metrics if metric.family is Family.SETS]
    require_columns(dataset.format, job.by, sets)
    for line in (*_defaults(metrics, models, job.models), *paired_with(dataset, models)):
        notice(line)
    dataset = replace(dataset, store=open_store(job.output, job.storage_options, anchor=RECORD))
    for metric in metrics:
        if metric not in sets:
            forget_shards(dataset, metric.name)
    units: list[Unit] = list(
        score_units(dataset, [metric for metric in metrics if metric.family not in _LATER], models)
    )
    units += reference_units(dataset, sets, models)
    this = _Run(job=job, dataset=dataset, models=models, notice=notice)
    this.work(units, lambda: sets_units(dataset, sets, models, job.by))
    for metric in metrics:
        if metric.family is Family.DUPLICATES:
            _group(dataset, metric)
    summary = _summary(dataset, metrics, this)
    for line in _doubts(summary):
        notice(line)
    return summary


def score_made(job: Job, notice: Callable[[str], None]) -> "ScoreSummary | None":
    """Score what a run of a job has made, as its table [score] says; None where it has none.

    Raises:
        As `score`.
    """
    if (asked := job.score) is None:
        return None
    own = ScoringJob(
        output=job.require_output(),
        metrics=asked.metrics,
        models=asked.named_models(),
        by=asked.by,
        device=job.device,
        batch_size=asked.batch_size or BATCH,
        workers=job.workers,
        address=job.address,
        worker=job.worker,
        allow_pickle=job.allow_pickle,
        storage_options=job.storage_options,
    )
    return score(own, notice)


def _doubts(summary: "ScoreSummary") -> Iterator[str]:
    for table in summary.groups:
        few = sum(group.rows <= table.about["dimensions"] for group in table.groups)
        if table.metric == "fid" and few:
            yield (
                f"fid: {few:,} of {len(table.groups):,} groups have no more images than the features have dimensions "
                f"({table.about['dimensions']}), which are biased upwards; compare groups of one size, or by kid"
            )


def _defaults(metrics: Sequence[Metric], models: Models, given: Mapping[str, str]) -> Iterator[str]:
    for metric in metrics:
        for part, model in models[metric.name].items():
            if part not in given and metric.family is not Family.SETS:  # whose features are a metric of their own
                yield (
                    f"{metric.name}: by {model.name}, which knows the built-in model's world alone; "
                    f"{flag_of(part)}... takes another"
                )


@dataclass(kw_only=True, slots=True)
class _Run:
    """One run of the workers, and its books."""

    job: ScoringJob
    dataset: Dataset
    models: Models
    notice: Callable[[str], None]
    total: int = 0  # tables to write
    ended: int = 0  # tables that are written, or given up
    images: int = 0
    given_up: Counter[str] = field(default_factory=Counter)  # rows by metric
    started: float = field(default_factory=time.monotonic)

    def work(self, units: Sequence[Unit], after: Callable[[], Sequence[Unit]]) -> None:
        """Start the workers, do the units and those that are to do then, stop the workers; start none for nothing."""
        if not (first := units or after()):
            return
        control = Control(grace=60 * Limits().grace_minutes)
        store = self.dataset.store
        with (
            crew(self.job.address, self.job.workers, self.job.worker, self.notice) as hands,
            signals(control, self.notice),
            Meeting.held(store, f"score-{new_run_name(time.time())}") as meeting,
        ):
            capacity, computes = hands.capacity, any(map(self._computes, first))
            device = capacity.device(self.job.device, waits=hands.waits) if computes else "cpu"
            num_gpus = self.job.worker.num_gpus if device == "cuda" else None
            workers = min(capacity.workers(device, self.job.workers), len(first))
            settings = ScoringSettings(
                meeting=meeting,
                store=self.dataset.uri,
                storage_options=self.job.storage_options,
                output=self.dataset.format,
                models=self.models,
                device=device,
                dtype=_DTYPES[self.job.dtype],
                batch_size=self.job.batch_size,
                allow_pickle=self.job.allow_pickle,
            )
            shards = sum(isinstance(unit, ScoreUnit) for unit in first)
            self.notice(f"{shards:,} shards to score; {workers} worker{'s' * (workers > 1)} on {device}")
            pool = hands.hire(
                scoring(settings, on_gpu=device == "cuda"),
                workers,
                replace(self.job.worker, num_gpus=num_gpus),
                lambda node: meeting.require_answer(store, node),
            )
            try:
                self._drive(first, pool, control)
                if units and control.reason is None:
                    self._drive(after(), pool, control)
            finally:
                pool.close()
        if control.reason is not None and (self.ended < self.total or after()):
            raise Interrupted(
                f"{control.reason}; {self.ended:,} of {self.total:,} tables are written; the same command goes on"
            )

    def _computes(self, unit: Unit) -> bool:
        """Whether a unit asks a model."""
        return isinstance(unit, ReferenceUnit) or (
            isinstance(unit, ScoreUnit) and any(self.models[name] for name in unit.metrics)
        )

    def _drive(self, units: Sequence[Unit], pool: Workers, control: Control) -> None:
        self.total += sum(unit.tables for unit in units)
        drive(
            WorkQueue(iter(units)),
            pool,
            control,
            recovered=lambda _unit: None,
            committed=self._committed,
            failed=self._failed,
            retried=lambda unit, why: self.notice(f"{_named(unit)} will be tried again: {why.message}"),
            progressed=lambda _in_work: None,
        )

    def _committed(self, unit: Unit, scored: Scored) -> None:
        self.ended += unit.tables
        self.images += scored.images if isinstance(unit, ScoreUnit) else 0
        if isinstance(unit, SetsUnit):
            self.notice(f"{unit.id}: in {scored.seconds:.1f} s")
            return
        failed = ", ".join(f"{count} without {name}" for name, count in scored.failed.items() if count)
        rate = self.images / max(time.monotonic() - self.started, 1e-9)
        self.notice(
            f"{_named(unit)}: {scored.images} images in {scored.seconds:.1f} s on {scored.device}"
            f"{f', {failed}' if failed else ''}; {self.ended:,}/{self.total:,} tables, {rate:.1f} images/s"
        )

    def _failed(self, unit: Unit, why: Failure, _attempts: int) -> None:
        if not isinstance(unit, ScoreUnit):
            raise InfrastructureError(f"{unit.id}: {why.message}")
        self.ended += unit.tables
        for metric in unit.metrics:
            self.given_up[metric] += unit.rows
            forget_scores(self.dataset, metric, unit.shard)
        self.notice(f"shard {unit.id} cannot be scored: {why.message}")


def _named(unit: Unit) -> str:
    return f"shard {unit.shard}" if isinstance(unit, ScoreUnit) else unit.id


def _group(dataset: Dataset, metric: Metric) -> None:
    """Write near duplicates: the second pass, over the hashes of all rows in the order of their ids."""
    from batchgen.scoring.duplicates import first_alike

    rows = join_scores(dataset, dataset.to_table(["id", "fingerprint"]), metric.after)
    hashed = rows.filter(pc.is_valid(rows["phash"])).sort_by("id") if "phash" in rows.schema.names else rows.slice(0, 0)
    ids = hashed["id"].to_pylist()
    alike = first_alike(hashed["phash"].to_pylist()) if ids else []
    groups = {id_: ids[first] for id_, first in zip(ids, alike, strict=True)}

    def counted(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        return {"failed": sum(error_column(metric.name) in row for row in cells)}

    write_all_scores(dataset, metric, lambda id_: _membership(metric, id_, groups.get(id_)), counted)


def _membership(metric: Metric, id_: str, group: str | None) -> dict[str, str | None]:
    if group is None:
        return {error_column(metric.name): "has no perceptual hash"}
    return {"duplicate_of": None if group == id_ else group, "duplicate_group": group}


def _summary(dataset: Dataset, metrics: Sequence[Metric], run: _Run) -> ScoreSummary:
    rows = dataset.to_table(["id", "fingerprint"])
    table = join_scores(dataset, rows, [metric.name for metric in metrics])
    columns: dict[str, ColumnSummary] = {}
    failed = Counter(run.given_up)
    tables = [read_table(dataset, metric, run.job.by) for metric in metrics if metric.family is Family.SETS]
    for metric in metrics:
        if metric.family is Family.SETS:
            continue
        if error_column(metric.name) in table.schema.names:
            failed[metric.name] += len(table[error_column(metric.name)].drop_null())
        for name, kind in metric.columns.items():
            columns[name] = (
                ColumnSummary(count=rows.num_rows - failed[metric.name])
                if kind == "vector"
                else _column_summary(table, name, is_number=kind == "number")
            )
    return ScoreSummary(
        rows=rows.num_rows,
        scored=run.images,
        scores=columns,
        failed=dict(+failed),
        groups=[found for found in tables if found is not None],
    )


def _column_summary(table: pa.Table, name: str, *, is_number: bool) -> ColumnSummary:
    values = table[name].drop_null() if name in table.schema.names else ()
    if not len(values) or not is_number:
        return ColumnSummary(count=len(values))
    least, most = pc.min_max(values).as_py().values()
    return ColumnSummary(count=len(values), mean=pc.mean(values).as_py(), min=least, max=most)
