"""The plan: batch keys, micro-batch sizes, shards. Pure data in, pure data out; knows nothing of Ray, torch or stores.

A micro-batch's size is a function of its batch key and the device alone, and tails are padded, so that a row's image
does not depend on its mates, on the shard size or on what was left to do.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from batchgen.generation.tasks import TASKS
from batchgen.identity import canonical
from batchgen.manifest.columns import COLUMNS, Column
from batchgen.rows import Row, Shard, make_shard

__all__ = ["KeySize", "Sizing", "batch_key", "key_model", "key_size", "make_shards"]

# Pixels of one pipeline call, and of one shard. Per call: throughput of a UNet saturates at about 16 images of 512x512
# on a large GPU; a CPU core made 3.3 images of 128x128 a second at 4 a call and 3.6 at 8, and the larger call pads more
# where few rows share a key. Per shard: 1 to 10 minutes of work on the device: 1,024
# images of SD 1.5 at 10 a second, 256 of SDXL at 1.5 a second, 64 of the built-in model at 1 to 2 a second and core.
_CALL_PIXELS = {"cuda": 16 * 512 * 512, "cpu": 4 * 128 * 128}
_SHARD_PIXELS = {"cuda": 1024 * 512 * 512, "cpu": 64 * 128 * 128}
_MAX_BATCH = 64
# The shared columns of the first release, whose nulls are in the keys that receipts of existing outputs name.
_ALWAYS_IN_KEYS = frozenset(
    "width height num_inference_steps guidance_rescale eta scheduler scheduler_kwargs model refiner vae pose_estimator "
    "person_detector controlnet controlnet_conditioning_scale control_guidance_start control_guidance_end ip_adapter "
    "ip_adapter_scale loras hypernetwork denoising_start denoising_end hires_scale hires_strength noise_level "
    "classifier".split()
)
_SHARDS_A_WORKER = 2  # at least, while there are rows enough: what is left to do at the end then is half a share


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySize:
    """What of a batch key decides how much work an image is."""

    width: int  # pixels
    height: int  # pixels
    steps: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def work(self) -> int:
        """Pixel steps: what the time of an image is proportional to, for one model."""
        return self.pixels * self.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """How many rows make a micro-batch and a shard; `batch_size` and `shard_rows` override the defaults."""

    device: str  # cpu or cuda
    workers: int
    batch_size: int | None = None
    shard_rows: int | None = None

    def micro_batch(self, key: str) -> int:
        """Images of one pipeline call, from the batch key and the device alone."""
        if self.batch_size is not None:
            return self.batch_size
        return max(1, min(_MAX_BATCH, _CALL_PIXELS[self.device] // key_size(key).pixels))

    def shard(self, key: str, total: int) -> int:
        """Rows of one shard, whole micro-batches, where `total` rows of the manifest share the key."""
        batch = self.micro_batch(key)
        if self.shard_rows is not None:
            return max(1, self.shard_rows // batch) * batch
        fair = -(-total // (self.workers * _SHARDS_A_WORKER))
        wanted = min(fair, _SHARD_PIXELS[self.device] // key_size(key).pixels)
        return max(1, -(-wanted // batch)) * batch


def batch_key(row: Row, model_fingerprint: str) -> str:
    """Canonical JSON of all that the rows of a micro-batch must share, what is costliest to switch first."""
    shared = {name: value for name, value in row.values.items() if name != "model" and _in_key(COLUMNS[name], value)}
    guided = row.values.get("guidance_scale", 0) > 1  # at or below 1 the pipeline skips the unconditional pass
    extra = TASKS[row.task].key(row.values)
    return canonical([row.values["model"], model_fingerprint, row.task, shared, guided, extra, sorted(row.inputs)])


def _in_key(column: Column, value: Any) -> bool:
    """Whether a value is part of the batch key; one that changes nothing is so for columns that always were."""
    return column.shared and (column.name in _ALWAYS_IN_KEYS or not column.is_neutral(value))


def key_model(key: str) -> str:
    """The name of the model in a batch key."""
    return str(json.loads(key)[0])


def key_size(key: str) -> KeySize:
    """Image size and steps in a batch key."""
    shared = json.loads(key)[3]
    return KeySize(width=shared["width"], height=shared["height"], steps=shared["num_inference_steps"])


def make_shards(rows: Iterable[tuple[str, Row]], totals: Iterable[tuple[str, int]], sizing: Sizing) -> Iterator[Shard]:
    """Cut rows, sorted by batch key, into shards; one shard is in memory at a time.

    Args:
        rows: batch key and row, equal keys next to each other.
        totals: batch key and number of rows of the whole manifest that have it, in the same order; what is already
            done counts, so that a resumed run cuts as the first one did.
    """
    sizes = iter(totals)
    for key, group in groupby(rows, key=lambda pair: pair[0]):
        total = next(count for other, count in sizes if other == key)
        batch, limit = sizing.micro_batch(key), sizing.shard(key, total)
        chunk: list[Row] = []
        for _, row in group:
            chunk.append(row)
            if len(chunk) == limit:
                yield make_shard(key, batch, chunk)
                chunk = []
        if chunk:
            yield make_shard(key, batch, chunk)
