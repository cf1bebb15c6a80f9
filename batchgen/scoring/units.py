"""What the driver and the workers of a scoring run tell each other: units, their receipts, the workers' settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from batchgen.dataset.format import OutputFormat
from batchgen.dataset.nodes import Meeting
from batchgen.scoring.models import ScoringModel

__all__ = ["ReferenceUnit", "ScoreUnit", "Scored", "ScoringSettings", "SetsUnit", "Unit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreUnit:
    """A shard, and the metrics that it lacks: images are read and decoded once for all of them."""

    shard: str
    rows: int
    metrics: tuple[str, ...]

    @property
    def id(self) -> str:
        return f"{self.shard} ({', '.join(self.metrics)})"

    @property
    def needs(self) -> str:
        return ", ".join(self.metrics)

    @property
    def key(self) -> str:
        return self.needs

    def split(self) -> Sequence["ScoreUnit"]:
        """A unit for each metric: which of them breaks workers is not known."""
        if len(self.metrics) == 1:
            return ()
        return [replace(self, metrics=(metric,)) for metric in self.metrics]

    @property
    def tables(self) -> int:
        return len(self.metrics)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceUnit:
    """A part of the folder of real images, whose features are wanted."""

    part: int
    keys: tuple[str, ...]  # of the images
    tables: int = 1

    @property
    def id(self) -> str:
        return f"part {self.part} of the real images"

    @property
    def needs(self) -> str:
        return "features of real images"

    @property
    def key(self) -> str:
        return self.needs

    def split(self) -> Sequence["ReferenceUnit"]:
        return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SetsUnit:
    """Groups of images by columns, whose distances from the real ones are wanted: after all features."""

    metrics: tuple[str, ...]
    by: tuple[str, ...]

    @property
    def id(self) -> str:
        return (
            f"{' and '.join(self.metrics)} of groups by {', '.join(self.by)}" if self.by else " and ".join(self.metrics)
        )

    @property
    def needs(self) -> str:
        return " and ".join(self.metrics)

    @property
    def key(self) -> str:
        return self.needs

    def split(self) -> Sequence["SetsUnit"]:
        return () if len(self.metrics) == 1 else [replace(self, metrics=(metric,)) for metric in self.metrics]

    @property
    def tables(self) -> int:
        return len(self.metrics)


Unit = ScoreUnit | ReferenceUnit | SetsUnit


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A unit that is done."""

    images: int
    failed: Mapping[str, int]  # images without a score that should have one, by metric
    seconds: float
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringSettings:
    """Settings that all workers share; small, picklable, without secrets."""

    store: str
    storage_options: Mapping[str, Any]
    output: OutputFormat
    models: Mapping[str, Mapping[str, ScoringModel]]  # by metric, by part
    device: Literal["cpu", "cuda"]
    dtype: Literal["float16", "bfloat16", "float32"]
    batch_size: int
    allow_pickle: bool
    meeting: Meeting | None = None  # by which nodes show that they reach the output
