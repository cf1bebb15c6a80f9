"""The sheet of a sample: its images with what they show, as one PNG in the output."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from PIL import ImageOps

from batchgen.dataset.dataset import DatasetRow, open_dataset
from batchgen.images import decode, encode
from batchgen.options import ImageFormat
from batchgen.report.grid import Grid, Tile, draw_grids, in_lines

__all__ = ["SHEET", "write_sheet"]

SHEET = "sample.png"
_SIDE = 256  # pixels of an image on the sheet
_LONGEST = 34  # characters of a line of its label
_LINES = 6


def write_sheet(uri: str, ids: Collection[str], storage_options: Mapping[str, Any]) -> str | None:
    """Write a sheet of rows' images into their output; its URI, or None where none of them is done.

    Args:
        uri: the output.
        ids: of the rows.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        StoreError: an image cannot be read, or the sheet not be written.
    """
    dataset, wanted = open_dataset(uri, storage_options), set(ids)
    rows = [row for row in dataset.rows() if row.cells["id"] in wanted]
    if not rows:
        return None
    images = [ImageOps.pad(decode(row.image()).convert("RGB"), (_SIDE, _SIDE)) for row in rows]
    tiles = [Tile(images=[image], label=_label(row)) for image, row in zip(images, rows, strict=True)]
    sheet = draw_grids([Grid(rows=in_lines(tiles))])
    dataset.store.write(SHEET, encode(np.asarray(sheet), ImageFormat.PNG))
    return f"{dataset.uri}/{SHEET}"


def _label(row: DatasetRow) -> str:
    cells = row.cells
    axes = {name.removeprefix("axis_"): cell for name, cell in cells.items() if name.startswith("axis_")}
    shown: dict[str, Any] = axes or {"prompt": cells["prompt"], "seed": cells["seed"]}
    lines = [f"{name}: {cell:g}" if isinstance(cell, float) else f"{name}: {cell}" for name, cell in shown.items()]
    return "\n".join(" ".join(line.split())[:_LONGEST] for line in lines[:_LINES])
