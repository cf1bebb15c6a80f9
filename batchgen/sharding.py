"""The plan: batch keys, micro-batch sizes, shards. Pure data in, pure data out; knows nothing of Ray, torch or stores.

A micro-batch's size is a function of its batch key and the device, and on a GPU of how many rows had the key when an
output first met it; tails are padded, so that a row's image does not depend on its mates, on the shard size or on what
was left to do.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from batchgen.generation.tasks import TASKS
from batchgen.identity import canonical
from batchgen.manifest.columns import COLUMNS
from batchgen.models.catalog import Family, Model
from batchgen.models.hashing import hash_text
from batchgen.rows import Row, Shard, make_shard

__all__ = [
    "Kind",
    "Sizing",
    "batch_key",
    "is_key",
    "key_kind",
    "key_model",
    "make_shards",
    "settle_batches",
    "settle_paces",
    "shard_notices",
]

# Pixels of one pipeline call: throughput of a UNet saturates at about 16 images of 512x512 on a large GPU; a CPU core
# made 3.3 images of 128x128 a second at 4 a call and 3.6 at 8, and the larger call pads more where keys have few rows.
_CALL_PIXELS = {"cuda": 16 * 512 * 512, "cpu": 4 * 128 * 128}
_MAX_BATCH = 64
_BATCH_SIZES = (*range(1, 17), *range(18, 33, 2), *range(36, _MAX_BATCH + 1, 4))  # steps of under 10 %
_CALL_OVERHEAD = 1.0  # images: a call of n takes about as long as n + 1 would in calls without end (CPU: 0.7 measured)
_SHARD_SECONDS = 60.0  # on the device: what a worker that dies has made in vain, at most, where images are quick
_SHARD_PIXELS = 1024 * 512 * 512  # 400 MB as PNG, which one of the layouts holds in memory
_SHARD_ROWS = 4096  # a shard travels to its worker whole, 2 KB a row
# Seconds for 10^6 pixel steps before anything is measured: 10 images a second of SD 1.5 at 512x512 and 25 steps on a
# large GPU, and 1.6 of the built-in model at 128x128 and 25 steps on a CPU core.
_PACE = {"cuda": 0.015, "cpu": 1.5}
_PACE_DRIFT = 2.0  # times; what is measured otherwise changes no shards
_NULLS_IN_KEYS = frozenset(  # of the first release: their nulls are in the keys that existing outputs' receipts name
    "guidance_rescale vae loras hypernetwork refiner denoising_start denoising_end person_detector".split()
)
_SHARDS_A_WORKER = 4  # at least, while there are rows enough: a death, or a tail at the end, is a quarter of a share


class Kind(NamedTuple):
    """Images that take the same time: of one model, size and number of steps, made in the same way."""

    model: str
    width: int  # pixels
    height: int  # pixels
    steps: int
    about: str  # task, guidance and the like, as JSON

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def work(self) -> int:
        """Pixel steps: what the time of an image is about proportional to, for one model."""
        return self.pixels * self.steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """How many rows make a micro-batch and a shard; `batch_size` and `shard_rows` override the defaults."""

    device: str  # cpu or cuda
    workers: int
    paces: Mapping[str, float] = field(default_factory=dict)  # by model: seconds for 10^6 pixel steps on the device
    batches: Mapping[str, int] = field(default_factory=dict)  # by key's name: `settle_batches`
    batch_size: int | None = None
    shard_rows: int | None = None

    def micro_batch(self, key: str) -> int:
        """Images of one pipeline call."""
        return self.batch_size or self.batches.get(_name(key)) or _largest_batch(key, self.device)

    def shard(self, key: str, total: int) -> int:
        """Rows of one shard, whole micro-batches, where `total` rows of the manifest share the key."""
        batch = self.micro_batch(key)
        if self.shard_rows is not None:
            return max(1, self.shard_rows // batch) * batch
        fair = -(-total // (self.workers * _SHARDS_A_WORKER))
        kind = key_kind(key)
        timely = _SHARD_SECONDS / (kind.work / 1e6 * self.paces.get(kind.model, _PACE[self.device]))
        wanted = min(fair, int(timely), _SHARD_PIXELS // kind.pixels, _SHARD_ROWS)
        return max(1, -(-wanted // batch)) * batch


def _largest_batch(key: str, device: str) -> int:
    return max(1, min(_MAX_BATCH, _CALL_PIXELS[device] // key_kind(key).pixels))


def _name(key: str) -> str:
    return hash_text(key)[:16]


def settle_batches(
    groups: Iterable[tuple[str, int]], device: str, recorded: Mapping[str, int] | None
) -> dict[str, int] | None:
    """The sizes of micro-batches by key's name, kept with an output, so that rows that come later are made alike.

    On a GPU calls are large, and a key with few rows would fill them with images that nobody wants: 96 rows in 4 keys
    of the built-in model are 4 calls of 24, not of 64. A key's size is the one of a small fixed set that costs least
    for the rows that it has when the output first meets it. On a CPU a call is 4 images of 128 x 128, and padding a
    key costs 3 at most: there the size is that of the key alone.

    Args:
        groups: batch keys and how many rows have each.
        device: cpu or cuda.
        recorded: what was settled before; None for an output that was begun without.
    """
    if recorded is None:
        return None
    settled = dict(recorded)
    for key, rows in groups if device == "cuda" else ():
        if _name(key) not in settled:
            settled[_name(key)] = _cheapest_batch(rows, _largest_batch(key, device))
    return settled


def _cheapest_batch(rows: int, largest: int) -> int:
    costs: dict[int, float] = {
        size: -(-rows // size) * (size + _CALL_OVERHEAD) for size in _BATCH_SIZES if size <= largest
    }
    return min(costs, key=lambda size: (costs[size], -size))


def settle_paces(
    models: Iterable[str], device: str, measured: Mapping[str, float], recorded: Mapping[str, float]
) -> dict[str, float]:
    """The paces by which a run cuts its shards: those of the run before it while they hold within a factor of two.

    So a run that resumes a killed one cuts what is left as that did, and finds the folders of its unfinished shards.

    Args:
        models: names.
        device: cpu or cuda.
        measured: seconds for 10^6 pixel steps by model, on such a device.
        recorded: those of the run before; none where it ran on another device.
    """
    paces = {}
    for model in models:
        pace = recorded.get(model, _PACE[device])
        found = measured.get(model) or pace
        paces[model] = pace if 1 / _PACE_DRIFT <= found / pace <= _PACE_DRIFT else found
    return paces


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


@lru_cache(maxsize=4096)
def key_kind(key: str) -> Kind:
    """What of a batch key decides how long an image takes."""
    model, _, task, shared, *about = json.loads(key)
    return Kind(
        model=model,
        width=shared["width"],
        height=shared["height"],
        steps=shared["num_inference_steps"],
        about=canonical([task, *about]),
    )


def is_key(text: str) -> bool:
    """Whether a text is a batch key, as far as `key_kind` asks; what is damaged may hold any text."""
    try:
        model, width, height, steps, _ = key_kind(text)
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
    return isinstance(model, str) and all(isinstance(one, int) and one > 0 for one in (width, height, steps))


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
