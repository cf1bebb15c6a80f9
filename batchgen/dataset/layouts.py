"""Where an output's objects lie: keys of markers and pictures in each layout. Pure."""

import hashlib
import re

from batchgen.options import ImageFormat, Layout
from batchgen.rows import Row

__all__ = ["FAILURES", "RECEIPTS", "RUNS", "SNAPSHOTS", "marker_key", "picture_name", "shard_of_name"]

RECEIPTS = ".batchgen/receipts"
SNAPSHOTS = ".batchgen/snapshots"
RUNS = ".batchgen/runs"
FAILURES = "failures"

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def marker_key(layout: Layout, shard: str) -> str:
    """Key of the object whose creation makes a shard exist."""
    return f"data/{shard}/metadata.parquet" if layout is Layout.FILES else f"data/{shard}.parquet"


def shard_of_name(layout: Layout, name: str) -> str:
    """The shard that a name directly below data/ belongs to."""
    return name if layout is Layout.FILES else name.removesuffix(".parquet")


def picture_name(row: Row, image_format: ImageFormat, step: int | None = None) -> str:
    """File name of a row's picture, or of that after a step.

    An id that is no safe name everywhere is cut down, and a hash of it added.
    """
    stem = row.id
    if not _SAFE_NAME.fullmatch(stem):
        own = hashlib.sha256(stem.encode()).hexdigest()[:16]
        stem = "-".join(filter(None, [re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:60].strip("-"), own]))
    suffix = "" if step is None else f".step-{step:03d}"
    return f"{stem}{suffix}.{image_format.value}"
