"""Settings of the generation worker, apart from the worker itself: the driver makes them and must not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchgen.dataset.format import OutputFormat
from batchgen.dataset.nodes import Meeting
from batchgen.models.catalog import Model
from batchgen.options import Memory, Safety

__all__ = ["WorkerSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """Settings that all workers of a run share; small, picklable, without secrets (workers read their environment)."""

    run: str
    store: str
    output_id: str | None = None  # of the output that was opened
    meeting: Meeting | None = None  # by which nodes show that they reach that output
    inputs: tuple[tuple[str, int | None], ...] = ()  # some local files that rows are made from: `local_inputs`
    storage_options: Mapping[str, Any]
    output: OutputFormat
    models: Mapping[str, Model]
    device: Literal["cpu", "cuda"]
    dtype: Literal["float16", "bfloat16", "float32"]
    dtypes: Mapping[str, str]
    safety: Safety = Safety.OFF
    memory: Memory = Memory.NORMAL
    allow_pickle: bool = False
    save_steps: tuple[int, ...] = ()
    save_control_images: bool = False
