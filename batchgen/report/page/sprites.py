"""Thumbnails packed into WebP sheets: a report of 20,000 images asks for some 80 objects, and not for 20,000."""

import io
from collections.abc import Iterable, Iterator

from PIL import Image, ImageOps

from batchgen.errors import ImageError
from batchgen.images import decode

__all__ = ["ACROSS", "PER_SHEET", "SIDE", "sheets"]

SIDE = 128  # pixels of a thumbnail
ACROSS = 16
PER_SHEET = ACROSS**2
_QUALITY = 80


def sheets(images: Iterable[bytes]) -> Iterator[bytes]:
    """WebP sheets of `PER_SHEET` thumbnails, left to right and top to bottom; what does not decode stays empty."""
    sheet, place = _empty(), 0
    for data in images:
        try:
            small = ImageOps.contain(decode(data).convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        except ImageError:
            small = Image.new("RGB", (1, 1))
        left, top = place % ACROSS * SIDE, place // ACROSS * SIDE
        sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        place += 1
        if place == PER_SHEET:
            yield _encoded(sheet, place)
            sheet, place = _empty(), 0
    if place:
        yield _encoded(sheet, place)


def _empty() -> Image.Image:
    return Image.new("RGB", (ACROSS * SIDE, ACROSS * SIDE))


def _encoded(sheet: Image.Image, count: int) -> bytes:
    rows = -(-count // ACROSS)
    stream = io.BytesIO()
    sheet.crop((0, 0, sheet.width, rows * SIDE)).save(stream, "WEBP", quality=_QUALITY, method=2)
    return stream.getvalue()
