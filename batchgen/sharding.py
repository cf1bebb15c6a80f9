"""The plan: batch keys, micro-batch sizes, shards. Pure data in, pure data out; knows nothing of Ray, torch or stores.

A micro-batch's size is a function of its batch key and the device alone, and tails are padded, so that a row's image
does not depend on its mates, on the shard size or on what was left to do.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from batchgen.generation.tasks import TASKS
from batchgen.identity import canonical
from batchgen.manifest.columns import COLUMNS
from batchgen.models.catalog import Family, Model
from batchgen.rows import Row, Shard, make_shard

__all__ = ["KeySize", "Sizing", "batch_key", "key_model", "key_size", "make_shards", "shard_notices"]

# Pixels of one pipeline call, and of one shard. Per call: throughput of a UNet saturates at about 16 images of 512x512
# on a large GPU; a CPU core made 3.3 images of 128x128 a second at 4 a call and 3.6 at 8, and the larger call pads more
# where few rows share a key. Per shard: 1 to 10 minutes of work on the device: 1,024
# images of SD 1.5 at 10 a second, 256 of SDXL at 1.5 a second, 64 of the built-in model at 1 to 2 a second and core.
_CALL_PIXELS = {"cuda": 16 * 512 * 512, "cpu": 4 * 128 * 128}
_SHARD_PIXELS = {"cuda": 1024 * 512 * 512, "cpu": 64 * 128 * 128}
_MAX_BATCH = 64
_NULLS_IN_KEYS = frozenset(  # of the first release: their nulls are in the keys that existing outputs' receipts name
    "guidance_rescale vae loras hypernetwork refiner denoising_start denoising_end person_detector".split()
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


def shard_notices(keys: Iterable[str], sizing: Sizing) -> list[str]:
    """What to say where shards have other numbers of rows than were asked for."""
    if (asked := sizing.shard_rows) is None:
        return []
    calls = {sizing.micro_batch(key) for key in keys}
    others = sorted((max(1, asked // call) * call, call) for call in calls if asked % call)
    return [
        f"shard_rows is {asked}, but a shard is whole calls, here of {call} images: shards have {rows} rows; "
        f"--batch-size says how large a call is"
        for rows, call in others
    ]


def batch_key(row: Row, model: Model) -> str:
    """Canonical JSON of all that the rows of a micro-batch must share, what is costliest to switch first."""
    parameters = row.parameters
    shared = {
        name: value
        for name, value in parameters.to_cells().items()
        if (column := COLUMNS[name]).shared and name != "model" and not column.is_neutral(value)
    }
    control = parameters.control
    is_posed = control is not None and "pose" in control.control_preprocess
    nulls = _nulls(row.task, model.family, control is not None, is_posed)
    guided = parameters.prompting is not None and parameters.prompting.is_guided
    extra = TASKS[row.task].key(parameters)
    return canonical(
        [parameters.model, model.fingerprint, row.task, {**nulls, **shared}, guided, extra, sorted(row.inputs)]
    )


@lru_cache
def _nulls(task: str, family: Family, is_controlled: bool, is_posed: bool) -> dict[str, None]:
    """Columns that rows take and that stand in their keys also where they are null."""
    taken = TASKS[task].columns_for(family) & _NULLS_IN_KEYS
    if is_controlled:
        taken -= set(TASKS[task].uncontrolled.get(family, ()))
    return dict.fromkeys(taken if is_posed else taken - {"person_detector"})


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
