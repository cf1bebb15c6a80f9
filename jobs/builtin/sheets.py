"""Contact sheets: many small images with their prompts on one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from batchgen.report.grid import Grid, Tile, draw_grids, in_lines


def write_sheet(path: Path, images: NDArray[np.uint8], texts: Sequence[str] | None = None, *, columns: int = 8) -> None:
    """Write images uint8 (n, h, w, 3) as a grid, each above its text if there are texts."""
    labels = texts if texts is not None else [""] * len(images)
    tiles = [Tile(images=[Image.fromarray(image)], label=label) for image, label in zip(images, labels, strict=True)]
    draw_grids([Grid(rows=in_lines(tiles, columns))]).save(path)
