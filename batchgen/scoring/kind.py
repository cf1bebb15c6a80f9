"""Scoring as a kind of work that a pool is handed. Imports nothing heavy: models belong into the workers."""

from functools import partial
from typing import TYPE_CHECKING

from batchgen.scoring.units import ScoringSettings
from batchgen.work import Work

if TYPE_CHECKING:
    from batchgen.scoring.worker import ScoringWorker

__all__ = ["scoring"]


def scoring(settings: ScoringSettings, *, on_gpu: bool) -> Work:
    """The work of workers that share these settings."""
    return Work(make_worker=partial(_make_worker, settings), on_gpu=on_gpu)


def _make_worker(settings: ScoringSettings) -> "ScoringWorker":
    from batchgen.scoring.worker import ScoringWorker

    return ScoringWorker(settings)
