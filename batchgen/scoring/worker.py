"""The scoring worker: reads a shard's images, asks each metric in batches, writes a side table a metric.

Real images it reads alike, and for metrics of sets it compares what was seen of both.

An image that cannot be read or scored is a row with a null and the reason; where not one image of a shard can be
scored the reason is the metric's, and the unit fails.
"""

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
from PIL.Image import Image

from batchgen.dataset.begun import RECORD
from batchgen.dataset.dataset import READERS, Dataset, DatasetRow
from batchgen.dataset.nodes import require_files
from batchgen.errors import DeviceLost, ImageError, NotFound, one_line
from batchgen.images import decode
from batchgen.scoring.families import make_scorer
from batchgen.scoring.metrics import METRICS, Metric
from batchgen.scoring.models import ScoringModel
from batchgen.scoring.reference import identity_of_features, keep_part, read_images
from batchgen.scoring.scorers import Loading, Scorer
from batchgen.scoring.sets import write_sets
from batchgen.scoring.tables import error_column, identity_of, print_of_rows, write_scores
from batchgen.scoring.units import ReferenceUnit, Scored, ScoreUnit, ScoringSettings, SetsUnit, Unit
from batchgen.storage import open_store
from batchgen.version import __version__
from batchgen.work import Stoppable

__all__ = ["ScoringWorker"]

_NOT_FINITE = ArithmeticError("the score is NaN or infinity; try --dtype float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """What a metric says of a shard, row by row."""

    metric: Metric
    seen: dict[str, int]  # of the unit: images that each of its metrics was asked of
    cells: list[Mapping[str, Any]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)  # of the metric, not of images

    @property
    def failed(self) -> int:
        return sum(error_column(self.metric.name) in cells for cells in self.cells)


class ScoringWorker(Stoppable):
    """Holds the models of the metrics, each loaded when it is first needed; of two threads one computes at a time."""

    def __init__(self, settings: ScoringSettings) -> None:
        self._settings = settings
        store = open_store(settings.store, settings.storage_options, anchor=RECORD)
        self._dataset = Dataset(store=store, format=settings.output)
        self._scorers: dict[str, Scorer] = {}
        self._in_work: dict[str, dict[str, int]] = {}  # by unit, by metric: images that it was asked of, or groups
        self._lock = Lock()

    def ready(self, node: str, /) -> None:
        """Make sure that this node reaches output and models; see `Worker`."""
        if self._settings.meeting is not None:
            self._settings.meeting.answer(self._dataset.store, node)
        models = (model for parts in self._settings.models.values() for model in parts.values())
        require_files((model.place, None) for model in models if model.revision is None)

    def progress(self) -> Mapping[str, int]:
        """How far the units in work are, by id: 0 until each metric was asked, since a model may not be there yet.

        Then images, once for each metric; of metrics of sets, groups.
        """
        return {unit: sum(seen.values()) if all(seen.values()) else 0 for unit, seen in list(self._in_work.items())}

    def stored(self) -> Collection[str]:
        """None: tables are small."""
        return ()

    def run(self, unit: Unit, /) -> Scored:
        """Do a unit and store its tables.

        Raises:
            DeviceLost: the process cannot go on.
            StoreError, ModelLoadError: the store or a model cannot be used.
            Exception: of a metric that cannot score a single image of the shard.
        """
        started = time.monotonic()
        try:
            images, failed = self._run(unit)
        finally:
            self._in_work.pop(unit.id, None)
        device = "cpu" if isinstance(unit, SetsUnit) else self._settings.device
        seconds = time.monotonic() - started
        return Scored(images=images, failed=failed, seconds=seconds, device=f"{device} of {platform.node()}")

    def _run(self, unit: Unit) -> tuple[int, Mapping[str, int]]:
        """Do a unit; returns how many images were scored, and how many of them have no score, by metric."""
        if isinstance(unit, ScoreUnit):
            seen = self._in_work[unit.id] = dict.fromkeys(unit.metrics, 0)
            return self._score(unit, seen)
        if isinstance(unit, ReferenceUnit):
            seen = self._in_work[unit.id] = {"features": 0}
            return self._see(unit, seen)
        seen = self._in_work[unit.id] = {"groups": 0}

        def compared() -> None:
            self.require_run()
            seen["groups"] += 1

        with self._lock:
            write_sets(self._dataset, unit.metrics, unit.by, self._settings.models, compared)
        return 0, {}

    def _score(self, unit: ScoreUnit, seen: dict[str, int]) -> tuple[int, Mapping[str, int]]:
        """Score a shard; returns as `_run`."""
        marker = self._dataset.marker(unit.shard, images=True)
        if marker is None:  # its rows were made anew meanwhile, in another shard
            return 0, {}
        columns = [_Column(metric=METRICS[name], seen=seen) for name in unit.metrics]
        rows = self._dataset.rows_of(marker)
        with ThreadPoolExecutor(READERS) as pool:
            while batch := list(islice(rows, self._settings.batch_size)):
                images = list(pool.map(_image, batch))
                with self._lock:
                    for column in columns:
                        self._add(column, [row.cells for row in batch], images)
        for column in columns:
            if column.errors and column.failed == len(column.cells):
                raise column.errors[0]
        self.require_run()
        for column in columns:
            said = {
                **identity_of(column.metric, self._models(column.metric)),
                "model_names": {part: model.name for part, model in self._models(column.metric).items()},
                "rows": print_of_rows(marker.table),
                "failed": column.failed,
                "dtype": self._settings.dtype,
                "device": self._settings.device,
                "batchgen": __version__,
            }
            write_scores(self._dataset.store, column.metric, unit.shard, marker.table, column.cells, said)
        return marker.table.num_rows, {column.metric.name: column.failed for column in columns}

    def _see(self, unit: ReferenceUnit, seen: dict[str, int]) -> tuple[int, Mapping[str, int]]:
        """See a part of the real images; returns as `_run`."""
        models = next(models for models in self._settings.models.values() if {"features", "reference"} <= models.keys())
        folder, column = open_store(models["reference"].place), _Column(metric=METRICS["features"], seen=seen)
        for start in range(0, len(unit.keys), self._settings.batch_size):
            images = read_images(folder, unit.keys[start : start + self._settings.batch_size])
            with self._lock:
                self._add(column, [{}] * len(images), images)
        if column.errors and column.failed == len(column.cells):
            raise column.errors[0]
        identity = identity_of_features(models["features"].fingerprint, models["reference"].fingerprint)
        keep_part(self._dataset.store, identity, unit.part, unit.keys, column.cells)
        return len(unit.keys), {"features of real images": column.failed}

    def _models(self, metric: Metric) -> Mapping[str, ScoringModel]:
        return self._settings.models[metric.name]

    def _scorer(self, metric: Metric) -> Scorer:
        if metric.name not in self._scorers:
            loading = Loading(
                models=self._models(metric),
                device=self._settings.device,
                dtype=self._settings.dtype,
                allow_pickle=self._settings.allow_pickle,
            )
            self._scorers[metric.name] = make_scorer(metric, loading)
        return self._scorers[metric.name]

    def _add(self, column: _Column, rows: Sequence[Mapping[str, Any]], images: Sequence[Image | ImageError]) -> None:
        """Append a batch's cells to a column; a batch that fails is taken apart by its images."""
        self.require_run()
        score = self._scorer(column.metric).score
        found: list[Mapping[str, Any] | None] = [
            None if isinstance(image, Image) else _failed(column.metric, image) for image in images
        ]
        good = [number for number, cells in enumerate(found) if cells is None]
        for number, cells in zip(good, self._scored(column, score, rows, images, good), strict=True):
            found[number] = cells
        column.cells.extend(cells for cells in found if cells is not None)

    def _scored(
        self,
        column: _Column,
        score: Callable[..., Sequence[Mapping[str, Any]]],
        rows: Sequence[Mapping[str, Any]],
        images: Sequence[Image | ImageError],
        numbers: Sequence[int],
    ) -> Sequence[Mapping[str, Any]]:
        if not numbers:
            return ()
        try:
            found = score([images[number] for number in numbers], [rows[number] for number in numbers])
            column.seen[column.metric.name] += len(numbers)
            return [cells if _is_finite(cells) else _failed(column.metric, _NOT_FINITE) for cells in found]
        except DeviceLost:
            raise
        except Exception as error:  # whatever a model raises belongs to an image, or to the call's size
            if len(numbers) == 1:
                column.seen[column.metric.name] += 1
                column.errors.append(error)
                return [_failed(column.metric, error)]
        return [cells for number in numbers for cells in self._scored(column, score, rows, images, [number])]


def _image(row: DatasetRow) -> Image | ImageError:
    """A row's image as RGB, or why there is none."""
    try:
        return decode(row.image()).convert("RGB")
    except ImageError as error:
        return error
    except NotFound as error:
        return ImageError(str(error))


def _is_finite(cells: Mapping[str, Any]) -> bool:
    return all(np.isfinite(value).all() for value in cells.values() if isinstance(value, (float, np.ndarray)))


def _failed(metric: Metric, error: Exception) -> Mapping[str, str]:
    kind = "" if isinstance(error, ImageError) else f"{type(error).__name__}: "
    return {error_column(metric.name): kind + one_line(error)}
