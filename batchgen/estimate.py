"""How long work takes, by how long images took so far, and what a plan amounts to.

One estimate for `plan`, `run` and `status`: rows that are left, by kind, times seconds an image on the device, as the
latest run measured it. Reading models is not in it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchgen.dataset.layouts import find_layout
from batchgen.index import Group
from batchgen.options import ImageFormat, Layout
from batchgen.rows import Receipt
from batchgen.sharding import Kind, Sizing, key_kind

__all__ = ["Estimate", "Measured", "PlanSummary", "Remaining", "summarize"]

# Bytes a pixel where nothing is measured yet: 512x512 generated tiles took 373, 371 and 134 KiB.
_BYTES_A_PIXEL = {ImageFormat.PNG: 1.46, ImageFormat.WEBP: 1.45, ImageFormat.JPEG: 0.52}


@dataclass(kw_only=True, slots=True)
class _Sum:
    """What the latest run took for something; machines change, so that earlier runs do not count beside it."""

    run: str = ""
    images: int = 0
    seconds: float = 0.0  # on the device
    work: int = 0  # pixel steps

    def add(self, run: str, images: int, seconds: float, work: int) -> None:
        if run > self.run:
            self.run, self.images, self.seconds, self.work = run, 0, 0.0, 0
        if run == self.run:
            self.images += images
            self.seconds += seconds
            self.work += work


class Measured:
    """How long images took on a device: `cpu` or `cuda`; those of another kind of device do not count."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._kinds: dict[Kind, _Sum] = {}
        self._models: dict[str, _Sum] = {}
        self._all = _Sum()
        self._bytes = self._pixels = 0

    def add(self, receipt: Receipt) -> None:
        """Count a receipt in."""
        kind = key_kind(receipt.key)
        self._bytes += receipt.bytes
        self._pixels += receipt.done * kind.pixels
        if receipt.done and (receipt.device == "cpu") == (self.device == "cpu"):
            self.count(receipt.run, kind, receipt.done, receipt.seconds)

    def count(self, run: str, kind: Kind, images: int, seconds: float) -> None:
        """Count images in that took so many seconds on such a device."""
        sums = (self._kinds.setdefault(kind, _Sum()), self._models.setdefault(kind.model, _Sum()), self._all)
        for sum_ in sums:
            sum_.add(run, images, seconds, images * kind.work)

    def seconds_an_image(self, kind: Kind) -> tuple[float, bool] | None:
        """Device seconds of one image, and whether they are measured; else they are scaled by pixels and steps.

        None where no image of the model was made.
        """
        if (own := self._kinds.get(kind)) is not None and own.images > 0:
            return own.seconds / own.images, True
        same = self._models.get(kind.model)
        return None if same is None or same.work <= 0 else (same.seconds / same.work * kind.work, False)

    def paces(self) -> dict[str, float]:
        """Seconds for 10^6 pixel steps, by model."""
        return {model: sum_.seconds / sum_.work * 1e6 for model, sum_ in self._models.items() if sum_.work > 0}

    def images_a_second(self, run: str, workers: int) -> float | None:
        """What so many workers make together at the pace of a run; None where it made nothing on such a device."""
        latest = self._all
        return workers * latest.images / latest.seconds if latest.run == run and latest.seconds > 0 else None

    def bytes_a_pixel(self, image_format: ImageFormat) -> float:
        """Of encoded images: measured, or else what the format usually takes."""
        return self._bytes / self._pixels if self._pixels else _BYTES_A_PIXEL[image_format]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """How long what is left will take."""

    device_seconds: float  # over all workers
    seconds: float  # until the last worker is through
    is_measured: bool  # images of each kind were made; else some are scaled from other sizes and steps


class Remaining:
    """Adds up the device time of what is left."""

    def __init__(self, measured: Measured) -> None:
        self._measured = measured
        self._seconds: float | None = 0.0
        self._is_measured = True

    def add(self, kind: Kind, rows: int) -> float:
        """Count rows in that are left; returns their device seconds, 0 while unknown."""
        if rows <= 0:
            return 0.0
        one, is_measured = self._measured.seconds_an_image(kind) or (None, False)
        self._is_measured &= is_measured
        self._seconds = None if one is None or self._seconds is None else self._seconds + rows * one
        return rows * (one or 0.0)

    def estimate(self, workers: int, longest: float) -> Estimate | None:
        """How long all of it takes; None where nothing of some model is measured.

        Args:
            workers: that share it.
            longest: seconds of the largest part that one of them has to do alone.
        """
        if self._seconds is None:
            return None
        return Estimate(
            device_seconds=self._seconds,
            seconds=max(self._seconds / max(workers, 1), longest),
            is_measured=self._is_measured,
        )


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
    seconds: float | None  # until the last worker is through
    estimated: bool  # some of the time is scaled from images of other sizes or steps
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
    computed: Mapping[Kind, int],
) -> PlanSummary:
    """Count a plan up, one batch key at a time.

    Args:
        groups: batch keys with their rows.
        sizing: how shards are cut.
        measured: how quick the output was so far.
        layout: of the output.
        image_format: of its images.
        failed: rows that failed before.
        outdated: done rows whose carried columns changed.
        computed: pending rows that a live run has behind it already; their time is over.
    """
    total = pending = keys = shards = batches = slots = switches = 0
    size = longest = 0.0
    model: str | None = None
    a_pixel = measured.bytes_a_pixel(image_format)
    remaining, ahead = Remaining(measured), Counter(computed)
    for group in groups:
        total += group.total
        if not group.pending:
            continue
        kind = key_kind(group.key)
        rows, batch, shard = group.pending, sizing.micro_batch(group.key), sizing.shard(group.key, group.total)
        keys += 1
        pending += rows
        shards += -(-rows // shard)
        batches += -(-rows // batch)
        slots += -(-rows // batch) * batch
        size += rows * kind.pixels * a_pixel
        switches += model is not None and kind.model != model
        model = kind.model
        over = min(rows, ahead[kind])
        ahead[kind] -= over
        longest = max(longest, remaining.add(kind, rows - over) * min(1.0, shard / max(rows - over, 1)))
    estimate = remaining.estimate(min(sizing.workers, shards), longest)
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
        objects=2 * shards + pending * find_layout(layout).objects_a_row,  # marker and receipt, and images
        bytes=int(size),
        device_seconds=None if estimate is None else estimate.device_seconds,
        seconds=None if estimate is None else estimate.seconds,
        estimated=estimate is not None and not estimate.is_measured,
    )
