"""Drawings for people: a chart of falling numbers, a sheet of labelled images. Knows nothing of what they mean."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_log_chart", "draw_sheet"]

Pixels = npt.NDArray[np.uint8]
"""An image, (H, W, 3)."""

_WIDTH, _HEIGHT = 960, 600  # pixels of a chart
_LEFT, _TOP, _RIGHT, _BOTTOM = 76, 112, 36, 64  # pixels of a chart's margins
_FINE = 3  # a chart is drawn so many times larger and then reduced: Pillow's lines have hard edges
_INK, _FAINT, _LINE = (32, 32, 36), (222, 224, 229), (31, 95, 191)
_DOTS = 60  # points of a line; more would touch each other
_TICKS = 12  # on an axis

_SHEET = 1600  # pixels, the width of a sheet: what a screen shows without scrolling
_GAP = 8  # pixels between images


def draw_log_chart(title: str, subtitle: str, values: Sequence[float | None], *, x: str, y: str) -> Pixels:
    """A line chart of positive values over 1, 2, 3, ..., with a logarithmic y axis.

    Args:
        values: None leaves a place empty.
        x: what the places are.
        y: what the values are.
    """
    canvas = Image.new("RGB", (_WIDTH * _FINE, _HEIGHT * _FINE), "white")
    _Chart(canvas, values).draw(title, subtitle, x, y)
    return np.asarray(canvas.resize((_WIDTH, _HEIGHT), Image.Resampling.BOX))


def draw_sheet(images: Sequence[Pixels], labels: Sequence[str]) -> Pixels:
    """Images of one size, pixel for pixel, in rows of equal length, each above its label."""
    height, width = images[0].shape[:2]
    font = ImageFont.load_default(size=min(20, max(10, width / 9)))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [measure.multiline_textbbox((0, 0), label, font=font) for label in labels]
    cell_width = max(width, *(math.ceil(box[2]) for box in boxes)) + _GAP
    cell_height = height + max(math.ceil(box[3]) for box in boxes) + 2 * _GAP
    rows = math.ceil(len(images) / max(1, (_SHEET - _GAP) // cell_width))
    columns = math.ceil(len(images) / rows)
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = _GAP + place % columns * cell_width, _GAP + place // columns * cell_height
        sheet.paste(Image.fromarray(image), (left, top))
        pen.multiline_text((left, top + height + _GAP // 2), label, fill=_INK, font=font)
    return np.asarray(sheet)


class _Chart:
    """The axes of a chart and what is drawn between them; lengths are in pixels of the finished chart."""

    def __init__(self, canvas: Image.Image, values: Sequence[float | None]) -> None:
        self._pen = ImageDraw.Draw(canvas)
        self._count = len(values)
        self._points = [(place, value) for place, value in enumerate(values, start=1) if value]
        known = [value for _, value in self._points] or [1.0]
        margin = max(1.15, (max(known) / min(known)) ** 0.04)  # above and below the line, as a factor
        self._low, self._high = min(known) / margin, max(known) * margin

    def draw(self, title: str, subtitle: str, x: str, y: str) -> None:
        self._text(_LEFT, 18, title, size=20)
        self._text(_LEFT, 46, subtitle, size=14)
        self._text(_LEFT, _TOP - 12, y, size=13, anchor="ls")
        self._text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, x, size=13, anchor="ms")
        for value in _log_ticks(self._low, self._high):
            height = self._y(value)
            self._line([(_LEFT, height), (_WIDTH - _RIGHT, height)], _FAINT, 1)
            self._text(_LEFT - 9, height, f"{value:g}", size=13, anchor="rm")
        for place in _whole_ticks(self._count):
            self._line([(self._x(place), _HEIGHT - _BOTTOM), (self._x(place), _HEIGHT - _BOTTOM + 5)], _INK, 1)
            self._text(self._x(place), _HEIGHT - _BOTTOM + 9, str(place), size=13, anchor="mt")
        self._line([(_LEFT, _TOP), (_LEFT, _HEIGHT - _BOTTOM), (_WIDTH - _RIGHT, _HEIGHT - _BOTTOM)], _INK, 1)
        self._curve()

    def _curve(self) -> None:
        spots = [(self._x(place), self._y(value)) for place, value in self._points]
        if len(spots) > 1:
            self._line(spots, _LINE, 2)
        for left, top in spots if len(spots) <= _DOTS else ():
            box = [(left - 4, top - 4), (left + 4, top + 4)]
            self._pen.ellipse([_enlarged(corner) for corner in box], fill=_LINE)

    def _x(self, place: float) -> float:
        return _LEFT + (place - 0.5) / self._count * (_WIDTH - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        part = math.log(value / self._low) / math.log(self._high / self._low)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _BOTTOM - _TOP)

    def _line(self, spots: Sequence[tuple[float, float]], color: tuple[int, int, int], width: int) -> None:
        self._pen.line([_enlarged(spot) for spot in spots], fill=color, width=width * _FINE, joint="curve")

    def _text(self, left: float, top: float, text: str, *, size: int, anchor: str = "la") -> None:
        font = ImageFont.load_default(size=size * _FINE)
        self._pen.text(_enlarged((left, top)), text, fill=_INK, font=font, anchor=anchor)


def _enlarged(spot: tuple[float, float]) -> tuple[float, float]:
    return spot[0] * _FINE, spot[1] * _FINE


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or the powers alone where that would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _TICKS:
            break
    return ticks or [float(f"{math.sqrt(low * high):.2g}")]


def _whole_ticks(count: int) -> list[int]:
    """1 and multiples of a round number, up to `count`."""
    widths = (digit * 10**power for power in range(6) for digit in (1, 2, 5))
    width = next(width for width in widths if count / width <= _TICKS)
    return sorted({1, *range(width, count + 1, width)})
