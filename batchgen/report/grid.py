"""Labelled grids of images, drawn for people. Knows nothing of what they mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Grid", "Tile", "columns_on_screen", "draw_grids", "in_lines"]

_WIDE = 1600  # pixels of a sheet: what a screen shows without scrolling
_TITLED = 480  # pixels, the least width of a sheet with titles
_GAP = 8  # pixels between images
_NARROWEST = 96  # pixels of a column: labels of smaller images need as much
_ASIDE = 168  # pixels of the labels to the left of rows
_LINES = 8  # of a label below a tile
_INK, _FAINT = (32, 32, 36), (110, 112, 120)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """Images side by side, pixel for pixel, above one label."""

    images: Sequence[Image.Image]
    label: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Rows of tiles; None leaves the place of one image empty."""

    rows: Sequence[Sequence[Tile | None]]
    title: str = ""  # its first line in ink, the others fainter
    across: Sequence[str] = ()  # above the columns, one an image
    down: Sequence[str] = ()  # to the left of the rows


def in_lines(tiles: Sequence[Tile], columns: int | None = None) -> list[list[Tile]]:
    """The tiles, in order, in lines of at most so many images.

    Args:
        tiles: of one image or several.
        columns: None takes so many as a screen is wide for, and shares tiles of one image each evenly over the lines.
    """
    most = columns or columns_on_screen(_column_width(tiles))
    if columns is None and tiles and all(len(tile.images) == 1 for tile in tiles):
        most = math.ceil(len(tiles) / math.ceil(len(tiles) / most))
    lines: list[list[Tile]] = []
    room = 0
    for tile in tiles:
        if not lines or len(tile.images) > room:
            lines.append([])
            room = most
        lines[-1].append(tile)
        room -= len(tile.images)
    return lines


def columns_on_screen(width: int, *, labelled: bool = False) -> int:
    """How many images of a width, in pixels, a screen shows side by side, with or without labels to their left."""
    return max(1, (_WIDE - _GAP - (_ASIDE if labelled else 0)) // (max(width, _NARROWEST) + _GAP))


def draw_grids(grids: Sequence[Grid]) -> Image.Image:
    """One sheet with the grids below each other, their columns of one width."""
    tiles = [tile for grid in grids for row in grid.rows for tile in row if tile is not None]
    width = _column_width(tiles)
    columns = max((_span(row) for grid in grids for row in grid.rows), default=1)
    aside = _ASIDE if any(any(grid.down) for grid in grids) else 0
    across = aside + _GAP + columns * (width + _GAP)
    if any(grid.title for grid in grids):
        across = max(across, _TITLED)
    drawing = _Drawing(width, aside)
    heights = [drawing.height(grid, across) for grid in grids]
    sheet = Image.new("RGB", (across, sum(heights) + _GAP), "white")
    top = _GAP
    for grid, height in zip(grids, heights, strict=True):
        drawing.draw(sheet, grid, top)
        top += height
    return sheet


def _column_width(tiles: Sequence[Tile]) -> int:
    return max([_NARROWEST, *(image.width for tile in tiles for image in tile.images)])


def _span(row: Sequence[Tile | None]) -> int:
    return sum(1 if tile is None else len(tile.images) for tile in row)


class _Drawing:
    """Fonts and widths of one sheet; lengths are in pixels."""

    def __init__(self, width: int, aside: int) -> None:
        self._width, self._aside = width, aside
        size = min(18.0, max(11.0, width / 10))
        self._font, self._title = ImageFont.load_default(size=size), ImageFont.load_default(size=size + 2)
        self._line = math.ceil(size * 1.3)
        self._title_line = math.ceil((size + 2) * 1.3)

    def height(self, grid: Grid, width: int) -> int:
        """What a grid takes of a sheet of that width."""
        return sum((self._title_height(grid, width), self._head_height(grid), *map(self._row_height, grid.rows)))

    def draw(self, sheet: Image.Image, grid: Grid, top: int) -> None:
        pen = ImageDraw.Draw(sheet)
        for number, line in enumerate(self._title_lines(grid, sheet.width)):
            fill = _INK if number == 0 else _FAINT
            pen.text((_GAP, top + number * self._title_line), line, fill=fill, font=self._title)
        top += self._title_height(grid, sheet.width)
        for number, text in enumerate(grid.across):
            self._write(pen, text, self._left(number), top, self._width)
        top += self._head_height(grid)
        for number, row in enumerate(grid.rows):
            high = max((image.height for tile in row if tile is not None for image in tile.images), default=0)
            if number < len(grid.down):
                lines = max(1, self._row_height(row) // self._line)
                self._write(pen, grid.down[number], _GAP, top, self._aside - _GAP, most=lines)
            place = 0
            for tile in row:
                self._draw_tile(sheet, pen, tile, place, top, high)
                place += 1 if tile is None else len(tile.images)
            top += self._row_height(row)

    def _draw_tile(
        self, sheet: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile | None, place: int, top: int, high: int
    ) -> None:
        if tile is None:
            return
        for number, image in enumerate(tile.images):
            sheet.paste(image.convert("RGB"), (self._left(place + number), top))
        self._write(pen, tile.label, self._left(place), top + high + _GAP // 2, self._wide(tile))

    def _left(self, place: int) -> int:
        return self._aside + _GAP + place * (self._width + _GAP)

    def _wide(self, tile: Tile) -> int:
        return len(tile.images) * (self._width + _GAP) - _GAP

    def _row_height(self, row: Sequence[Tile | None]) -> int:
        tiles = [tile for tile in row if tile is not None]
        high = max((image.height for tile in tiles for image in tile.images), default=0)
        lines = max((len(_wrapped(tile.label, self._font, self._wide(tile), _LINES)) for tile in tiles), default=0)
        return high + _GAP + (lines * self._line + _GAP // 2 if lines else 0)

    def _head_height(self, grid: Grid) -> int:
        lines = max((len(_wrapped(text, self._font, self._width, _LINES)) for text in grid.across), default=0)
        return lines * self._line + _GAP // 2 if lines else 0

    def _title_lines(self, grid: Grid, width: int) -> list[str]:
        return _wrapped(grid.title, self._title, width - 2 * _GAP, 2 * _LINES)

    def _title_height(self, grid: Grid, width: int) -> int:
        lines = self._title_lines(grid, width)
        return len(lines) * self._title_line + _GAP if lines else 0

    def _write(
        self, pen: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, *, most: int = _LINES
    ) -> None:
        for number, line in enumerate(_wrapped(text, self._font, width, most)):
            pen.text((left, top + number * self._line), line, fill=_INK, font=self._font)


def _wrapped(text: str, font: _Font, width: int, most: int) -> list[str]:
    """The text in lines of at most `width` pixels; what does not fit into `most` lines ends in dots."""
    lines = [line for part in text.splitlines() for line in _broken(part, font, width)]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "...") > width:
        last = last[:-1]
    return [*lines[: most - 1], last + "..."]


def _broken(text: str, font: _Font, width: int) -> list[str]:
    """One line broken between words, and within those that are longer than a line."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
