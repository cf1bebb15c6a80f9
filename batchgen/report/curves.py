"""Line charts over the calls of a model, drawn for people. Knows nothing of what they mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Panel", "draw_panels"]

_WIDTH, _PANEL = 960, 300  # pixels of a chart, and of each panel's height
_LEFT, _RIGHT, _HEAD, _FOOT = 84, 36, 34, 12  # pixels around a panel's axes
_AXIS = 48  # pixels below the last panel
_FINE = 2  # a chart is drawn so many times larger and then reduced: Pillow's lines have hard edges
_INK, _FAINT, _GRID = (32, 32, 36), (110, 112, 120), (222, 224, 229)
_COLORS = (  # of Okabe and Ito (2008), told apart by all eyes
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (0, 0, 0),
)  # fmt: skip
_DOTS = 60  # points of a line; more would touch each other
_TICKS = 8  # on an axis of values
_PLACES = 12  # named below the last panel

_Spot = tuple[float, float]
_Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Curves over 1, 2, 3, ...; what an axis does not hold (infinity, or 0 by logarithm) is a ring at its edge."""

    title: str
    curves: Sequence[Sequence[float]]
    is_log: bool = False


def draw_panels(panels: Sequence[Panel], *, title: str, names: Sequence[str], x: str) -> Image.Image:
    """Panels below each other over one axis.

    Args:
        panels: each with as many curves.
        title: above all of them, of several lines perhaps.
        names: of the curves, in the legend.
        x: what the places are; the last place of a curve is its end.
    """
    heading = [line for line in title.splitlines() if line]
    top = 14 + 24 * (len(heading) + len(names)) + 6
    size = _WIDTH, top + _PANEL * len(panels) + _AXIS
    canvas = Image.new("RGB", (size[0] * _FINE, size[1] * _FINE), "white")
    pen = _Pen(canvas)
    for number, line in enumerate(heading):
        pen.text((14, 14 + 24 * number), line, size=17 if number == 0 else 14, fill=_INK if number == 0 else _FAINT)
    for number, name in enumerate(names):
        height = 26 + 24 * (len(heading) + number)
        pen.line([(14, height), (40, height)], _color(number), 3)
        pen.text((48, height), name, size=14, anchor="lm")
    places = max(len(curve) for panel in panels for curve in panel.curves)
    for number, panel in enumerate(panels):
        _draw_panel(pen, panel, top + number * _PANEL, places)
    _draw_places(pen, top + len(panels) * _PANEL, places, x)
    return canvas.resize(size, Image.Resampling.BOX)


class _Pen:
    """Draws in pixels of the finished chart."""

    def __init__(self, canvas: Image.Image) -> None:
        self._pen = ImageDraw.Draw(canvas)

    def line(self, spots: Sequence[_Spot], color: _Color, width: float) -> None:
        self._pen.line([_enlarged(spot) for spot in spots], fill=color, width=round(width * _FINE), joint="curve")

    def dot(self, spot: _Spot, color: _Color, *, ring: bool = False) -> None:
        box = [_enlarged((spot[0] + by, spot[1] + by)) for by in (-4, 4)]
        self._pen.ellipse(box, fill="white" if ring else color, outline=color, width=2 * _FINE)

    def text(self, spot: _Spot, text: str, *, size: int, anchor: str = "la", fill: _Color = _INK) -> None:
        font = ImageFont.load_default(size=size * _FINE)
        self._pen.text(_enlarged(spot), text, fill=fill, font=font, anchor=anchor)


class _Scale:
    """From values to heights of a panel; what the axis does not hold goes to the edge where it would be."""

    def __init__(self, values: Sequence[float], top: float, bottom: float, *, is_log: bool) -> None:
        self._is_log, self._top, self._bottom = is_log, top, bottom
        held = [value for value in values if self.holds(value)] or [1.0]
        low, high = (math.log10(min(held)), math.log10(max(held))) if is_log else (min(held), max(held))
        margin = (high - low) * 0.05 or abs(high) * 0.05 or 0.5
        # edges stay free for what lies beyond them
        self._low = low - margin * (2 if any(value < min(held) for value in values) else 1)
        self._high = high + margin * (2 if any(value > max(held) for value in values) else 1)

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self._is_log)

    def height(self, value: float) -> float:
        if not self.holds(value):
            return self._top if value > 0 else self._bottom
        along = ((math.log10(value) if self._is_log else value) - self._low) / (self._high - self._low)
        return self._bottom - along * (self._bottom - self._top)

    def ticks(self) -> list[float]:
        if self._is_log:
            return _log_ticks(10**self._low, 10**self._high)
        return _even_ticks(self._low, self._high)


def _draw_panel(pen: _Pen, panel: Panel, top: float, places: int) -> None:
    upper, lower = top + _HEAD, top + _PANEL - _FOOT
    scale = _Scale([value for curve in panel.curves for value in curve], upper, lower, is_log=panel.is_log)
    pen.text((_LEFT, upper - 10), panel.title, size=14, anchor="ls")
    for value in scale.ticks():
        height = scale.height(value)
        pen.line([(_LEFT, height), (_WIDTH - _RIGHT, height)], _GRID, 1)
        pen.text((_LEFT - 9, height), f"{value:g}", size=13, anchor="rm")
    pen.line([(_LEFT, upper), (_LEFT, lower), (_WIDTH - _RIGHT, lower)], _INK, 1)
    for number, curve in enumerate(panel.curves):
        spots = [(_x(place, places), scale.height(value)) for place, value in enumerate(curve, start=1)]
        if len(spots) > 1:
            pen.line(spots, _color(number), 2 + 1.5 * (len(panel.curves) - 1 - number))  # none hides those before it
        for (left, height), value in zip(spots, curve, strict=True):
            if not scale.holds(value):
                pen.dot((left, height), _color(number), ring=True)
                at = height - 9 if height == lower else height
                pen.text((left + 8, at), f"{value:g}".removeprefix("-"), size=13, anchor="lm", fill=_FAINT)
            elif len(spots) <= _DOTS:
                pen.dot((left, height), _color(number))


def _draw_places(pen: _Pen, top: float, places: int, x: str) -> None:
    for place in _whole_ticks(places):
        pen.line([(_x(place, places), top - _FOOT), (_x(place, places), top - _FOOT + 5)], _INK, 1)
        pen.text((_x(place, places), top - _FOOT + 9), str(place), size=13, anchor="mt")
    pen.text(((_LEFT + _WIDTH - _RIGHT) / 2, top + _AXIS - 14), x, size=13, anchor="ms")


def _color(number: int) -> _Color:
    return _COLORS[number % len(_COLORS)]


def _x(place: float, places: int) -> float:
    return _LEFT + (place - 0.5) / places * (_WIDTH - _LEFT - _RIGHT)


def _enlarged(spot: _Spot) -> _Spot:
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


def _even_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10((high - low) / _TICKS))
    width = next(digit * power for digit in (1, 2, 5, 10) if (high - low) / (digit * power) <= _TICKS)
    return [number * width for number in range(math.ceil(low / width), math.floor(high / width) + 1)]


def _whole_ticks(count: int) -> list[int]:
    """1 and multiples of a round number, up to `count`."""
    widths = (digit * 10**power for power in range(6) for digit in (1, 2, 5))
    width = next(width for width in widths if count / width <= _PLACES)
    return sorted({1, *range(width, count + 1, width)})
