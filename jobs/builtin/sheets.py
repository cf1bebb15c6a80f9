"""Contact sheets: many small images with their prompts on one PNG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MARGIN = 4
LINES, LINE_HEIGHT, LINE_LETTERS = 4, 10, 27
LETTER_SIZE = 9


def write_sheet(path: Path, images: NDArray[np.uint8], texts: Sequence[str] | None = None, *, columns: int = 8) -> None:
    """Write images uint8 (n, h, w, 3) as a grid, each above its text if there are texts."""
    height, width = images.shape[1:3]
    strip = LINES * LINE_HEIGHT + 2 if texts is not None else 0
    rows = -(-len(images) // columns)
    size = (columns * (width + MARGIN) + MARGIN, rows * (height + strip + MARGIN) + MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=LETTER_SIZE)
    for number, image in enumerate(images):
        left = MARGIN + (number % columns) * (width + MARGIN)
        top = MARGIN + (number // columns) * (height + strip + MARGIN)
        sheet.paste(Image.fromarray(image), (left, top))
        if texts is not None:
            lines = textwrap.wrap(texts[number], LINE_LETTERS)[:LINES]
            pen.multiline_text((left, top + height + 1), "\n".join(lines), fill="black", font=font, spacing=1)
    sheet.save(path)
