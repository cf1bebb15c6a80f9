"""The values that travel: rows, micro-batches, shards and what became of them. Knows nothing of any library."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from batchgen.errors import ErrorClass, printable
from batchgen.generation.parameters import ImageRef, Parameters
from batchgen.identity import shard_id

__all__ = [
    "DoneRow",
    "FailedRow",
    "MicroBatch",
    "Receipt",
    "Row",
    "Shard",
    "ShardProgress",
    "Status",
    "decode_row",
    "encode_row",
    "failed_row",
    "make_shard",
]


class Status(StrEnum):
    """What became of a row."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One image to make, with every default filled in.

    `inputs` are the conditioning images by column, `carried` the manifest's unknown columns unchanged.
    """

    id: str
    fingerprint: str  # sha256, 64 hexadecimal digits
    task: str
    parameters: Parameters
    inputs: Mapping[str, ImageRef] = field(default_factory=dict)
    carried: Mapping[str, Any] = field(default_factory=dict)
    sampler: str | None = None  # as it was written; what is applied, and decides pixels, are its class and options
    sample_index: int = 0  # which of a manifest row's num_images_per_prompt
    file: str = ""
    number: int = 0  # 1-based row number in `file`


def encode_row(row: Row) -> str:
    """A row as JSON, without its carried cells: no pickle, since outputs are read that others wrote."""
    inputs = {name: asdict(image) for name, image in row.inputs.items()}
    own: dict[str, Any] = {"id": row.id, "fingerprint": row.fingerprint, "task": row.task, "sampler": row.sampler}
    own |= {"sample_index": row.sample_index}
    return json.dumps(
        {**own, "file": row.file, "number": row.number, "parameters": row.parameters.to_cells(), "inputs": inputs},
        separators=(",", ":"),
    )


def decode_row(text: str, carried: Mapping[str, Any]) -> Row:
    """The row that `encode_row` wrote, with its carried cells.

    Raises:
        ValueError, TypeError, KeyError: the text is none of `encode_row`.
    """
    content = json.loads(text)
    content["parameters"] = Parameters.from_cells(content["parameters"])
    content["inputs"] = {name: ImageRef(**image) for name, image in content["inputs"].items()}
    return Row(**content, carried=carried)


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """Rows of one batch key that go through the pipeline in one call of `size` images; a short tail is padded."""

    rows: Sequence[Row]
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Whole micro-batches of one batch key: the unit of scheduling, retry and commit, named by its content."""

    id: str
    key: str  # canonical JSON of what all rows share
    batch_size: int
    rows: Sequence[Row]

    @property
    def needs(self) -> str:
        """The model's name."""
        return self.rows[0].parameters.model

    def micro_batches(self) -> list[MicroBatch]:
        """The rows in order, `batch_size` at a time."""
        size = self.batch_size
        return [MicroBatch(rows=self.rows[i : i + size], size=size) for i in range(0, len(self.rows), size)]

    def split(self) -> list["Shard"]:
        """Two halves of whole micro-batches, or single rows once it is down to one micro-batch; none for a single row.

        Halving finds the rows that break a worker, without giving up the others.
        """
        if len(self.rows) == 1:
            return []
        batches = -(-len(self.rows) // self.batch_size)
        if batches == 1:
            parts = [[row] for row in self.rows]
        else:
            middle = batches // 2 * self.batch_size
            parts = [list(self.rows[:middle]), list(self.rows[middle:])]
        return [make_shard(self.key, self.batch_size, part) for part in parts]


def make_shard(key: str, batch_size: int, rows: Sequence[Row]) -> Shard:
    """A shard of these rows, named by their ids and fingerprints."""
    name = shard_id((row.id, row.fingerprint) for row in rows)
    return Shard(id=name, key=key, batch_size=batch_size, rows=tuple(rows))


class DoneRow(NamedTuple):  # a million of them pass through a resuming run: half the time of a dataclass
    """A row that a marker names."""

    id: str
    fingerprint: str
    carried: str | None = None  # print of its carried cells; None where the output carries none, or nobody says


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedRow:
    """A row that could not be made, and why."""

    id: str
    fingerprint: str
    error_class: str
    error: str
    attempts: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What is known of a committed shard: the index by which status and resume need not read the data."""

    shard: str
    attempt: str
    run: str
    done: int  # rows that the marker names; which they are it says itself
    failures: Sequence[FailedRow]
    key: str
    device: str
    seconds: float  # on the device: conditioning, denoising and decoding of all rows
    finished: float  # Unix time
    images: int = 0  # image objects written beside the marker; 0 where the marker holds the images
    bytes: int = 0  # encoded images

    @property
    def failed(self) -> int:
        return len(self.failures)


class ShardProgress(NamedTuple):
    """How far a worker is with a shard that is not committed yet; false until a row went through the device."""

    made: int  # images that are encoded and, where the layout has image objects, stored
    computed: int  # rows that went through the device
    seconds: float  # on the device, for those

    def __bool__(self) -> bool:
        return self.computed > 0


def failed_row(row: Row, error_class: ErrorClass, error: str, attempts: int = 1) -> FailedRow:
    """The record of a row that could not be made."""
    return FailedRow(
        id=row.id, fingerprint=row.fingerprint, error_class=error_class, error=printable(error), attempts=attempts
    )
