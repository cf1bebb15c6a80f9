"""What a plan amounts to: shards, switches, objects, bytes and time. Rates come from the output's own receipts."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from batchgen.dataset.layouts import find_layout
from batchgen.index import Group
from batchgen.options import ImageFormat, Layout
from batchgen.rows import Receipt
from batchgen.sharding import Sizing, key_model, key_size

__all__ = ["Measured", "PlanSummary", "summarize"]

# Bytes a pixel where nothing is measured yet: 512x512 generated tiles took 373, 371 and 134 KiB.
_BYTES_A_PIXEL = {ImageFormat.PNG: 1.46, ImageFormat.WEBP: 1.45, ImageFormat.JPEG: 0.52}


@dataclass(kw_only=True, slots=True)
class Measured:
    """Sums over receipts, from which rates follow."""

    images: Counter[str] = field(default_factory=Counter)  # by batch key
    seconds: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    pixels: int = 0

    def add(self, receipt: Receipt) -> None:
        """Count a receipt in."""
        if receipt.done:
            self.images[receipt.key] += receipt.done
            self.seconds[receipt.key] += receipt.seconds  # type: ignore[assignment]
            self.bytes += receipt.bytes
            self.pixels += receipt.done * key_size(receipt.key).pixels

    def seconds_an_image(self, key: str) -> float | None:
        """Device seconds of one image: as measured for the key, else scaled by pixels and steps from the same model."""
        if self.images[key]:
            return self.seconds[key] / self.images[key]
        same = [other for other in self.images if key_model(other) == key_model(key)]
        work = sum(self.images[other] * key_size(other).work for other in same)
        return sum(self.seconds[other] for other in same) / work * key_size(key).work if work else None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSummary:
    """A plan in numbers."""

    rows: int
    done: int
    failed: int
    pending: int
    outdated: int  # done rows whose carried columns changed: a run brings their metadata up to date
    keys: int  # batch keys with something left to do
    shards: int
    micro_batches: int
    padded: int  # images computed only to keep micro-batches at their size
    model_switches: int
    objects: int  # to be written
    bytes: int  # to be written, estimated
    device_seconds: float | None  # over all workers; None while no rate is known
    seconds: float | None  # device_seconds over the workers
    notices: Sequence[str] = ()  # lines that are worth reading


def summarize(
    groups: Iterable[Group],
    sizing: Sizing,
    measured: Measured,
    layout: Layout,
    image_format: ImageFormat,
    *,
    failed: int,
    outdated: int,
) -> PlanSummary:
    """Count a plan up, one batch key at a time.

    Args:
        groups: batch keys with their rows.
        sizing: how shards are cut.
        measured: how quick the output was so far.
        layout: of the output.
        image_format: of its pictures.
        failed: rows that failed before.
        outdated: done rows whose carried columns changed.
    """
    total = pending = keys = shards = batches = slots = switches = 0
    size = 0.0
    seconds: float | None = 0.0
    model: str | None = None
    a_pixel = measured.bytes / measured.pixels if measured.pixels else _BYTES_A_PIXEL[image_format]
    for group in groups:
        total += group.total
        if not group.pending:
            continue
        rows, batch, shard = group.pending, sizing.micro_batch(group.key), sizing.shard(group.key, group.total)
        keys += 1
        pending += rows
        shards += -(-rows // shard)
        batches += -(-rows // batch)
        slots += -(-rows // batch) * batch
        size += rows * key_size(group.key).pixels * a_pixel
        switches += model is not None and key_model(group.key) != model
        model = key_model(group.key)
        one = measured.seconds_an_image(group.key)
        seconds = None if one is None or seconds is None else seconds + rows * one
    return PlanSummary(
        rows=total,
        done=total - pending - failed,
        failed=failed,
        pending=pending,
        outdated=outdated,
        keys=keys,
        shards=shards,
        micro_batches=batches,
        padded=slots - pending,
        model_switches=switches,
        objects=2 * shards + pending * find_layout(layout).objects_a_row,  # marker and receipt, and pictures
        bytes=int(size),
        device_seconds=seconds if pending else 0.0,
        seconds=seconds / sizing.workers if seconds is not None else None,
    )
