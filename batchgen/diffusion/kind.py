"""Generation as a kind of work that a pool is handed. Imports nothing heavy: torch belongs into the workers."""

from functools import partial
from typing import TYPE_CHECKING

from batchgen.diffusion.settings import WorkerSettings
from batchgen.work import Work

if TYPE_CHECKING:
    from batchgen.diffusion.worker import GenerationWorker

__all__ = ["generation"]

SHARDS_BESIDE = 6  # that a worker may hold besides its two while the store is slow or away; each is about a minute's


def generation(settings: WorkerSettings) -> Work:
    """The work of workers that share these settings."""
    return Work(make_worker=partial(_make_worker, settings), on_gpu=settings.device == "cuda", spool=SHARDS_BESIDE)


def _make_worker(settings: WorkerSettings) -> "GenerationWorker":
    from batchgen.diffusion.worker import GenerationWorker  # torch and diffusers, in the worker's process

    return GenerationWorker(settings)
