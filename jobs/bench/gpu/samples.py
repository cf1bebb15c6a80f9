"""What the phases generate: rows that went through the checks of the real command, and their conditioning images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from batchgen.driver import resolved_rows
from batchgen.job import Job
from batchgen.manifest.columns import COLUMNS, image_column
from batchgen.models.catalog import Model
from batchgen.rows import MicroBatch, Row, Shard
from batchgen.sharding import Sizing, make_shards

__all__ = ["Sample", "reordered", "sample"]

_SUBJECTS = ("a red cube", "a green sphere in a meadow", "a blue cone beside a white ball", "a purple ring at night")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Rows of one batch key with their decoded conditioning images, and the model they ask for."""

    model: Model
    shard: Shard
    inputs: Sequence[Mapping[str, Image.Image]]

    @property
    def batch(self) -> MicroBatch:
        """All rows as one micro-batch."""
        return MicroBatch(rows=self.shard.rows, size=self.shard.batch_size)


def sample(
    model: Path,
    scratch: Path,
    *,
    count: int,
    side: int,
    first: int = 0,
    batch_size: int | None = None,
    device: str = "cpu",
    **cells: Any,
) -> Sample:
    """Rows with prompts, seeds and guidance scales of their own.

    Args:
        model: folder of a model.
        scratch: where a manifest and images may be written.
        count: rows.
        side: pixels a side.
        first: number of the first row; other numbers make other rows.
        batch_size: of one call; by default what the command takes for the batch key on the device.
        device: cpu or cuda.
        cells: more columns; `True` for an image column has one drawn for each row.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        drawn = {
            name: str(_draw(scratch / f"{name}-{side}-{number}.png", side, number)) if cell is True else cell
            for name, cell in cells.items()
        }
        prompt = f"{_SUBJECTS[number % len(_SUBJECTS)]}, {number}"
        guidance = 5.0 + number % 5 / 2
        rows.append(
            {
                "prompt": prompt,
                "seed": 1000 + number,
                "width": side,
                "height": side,
                "guidance_scale": guidance,
                **drawn,
            }
        )
    manifest = scratch / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    sizing = Sizing(device=device, workers=1, batch_size=batch_size, shard_rows=count)
    with resolved_rows(Job(manifest=str(manifest), model=str(model))) as (index, resolved):
        totals = [(group.key, group.total) for group in index.groups()]
        (shard,) = make_shards(index.pending(count), totals, sizing)
    assert len(shard.rows) == count
    return Sample(model=resolved.models[str(model)], shard=shard, inputs=[_inputs(row) for row in shard.rows])


def reordered(whole: Sample, places: Sequence[int]) -> tuple[MicroBatch, list[Mapping[str, Image.Image]]]:
    """A micro-batch of the same size with only these rows, in this order."""
    batch = replace(whole.batch, rows=[whole.shard.rows[place] for place in places])
    return batch, [whole.inputs[place] for place in places]


def _inputs(row: Row) -> dict[str, Image.Image]:
    modes = {name: COLUMNS[image_column(name)].mode for name in row.inputs}
    return {name: Image.open(image.uri).convert(modes[name]) for name, image in row.inputs.items()}


def _draw(file: Path, side: int, number: int) -> Path:
    """Smooth colors with a disc; as a mask, the disc is what is repainted."""
    if not file.exists():
        y, x = np.mgrid[0:side, 0:side] / side
        disc = (x - 0.3 - 0.1 * (number % 4)) ** 2 + (y - 0.5) ** 2 < 0.08
        shades = np.stack([x, y, (x + y) / 2], axis=-1) * (0.5 + 0.1 * (number % 5))
        pixels = np.where(disc[..., None], 1.0, shades * (not file.name.startswith("mask")))
        Image.fromarray((pixels * 255).astype(np.uint8)).save(file)
    return file
