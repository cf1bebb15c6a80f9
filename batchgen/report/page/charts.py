"""Charts of a report as Vega-Lite specifications: plain data, whose numbers are those of `effects`. Draws nothing."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from batchgen.report.page.collect import Axis
from batchgen.report.page.effects import Effect, Point, cell_means

__all__ = ["charts"]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_MOST_VALUES = 60  # of an axis in a chart
_MOST_AXES = 6  # pairs of which make heat maps
_SHORT = 40  # characters of a label


def charts(
    points: Sequence[Point], axes: Sequence[Axis], scores: Sequence[str], found: Sequence[Effect]
) -> list[dict[str, Any]]:
    """A chart of each score against each axis, and a heat map for each pair of axes; each with a title."""
    shown = [axis for axis in axes if 1 < len(axis.values) <= _MOST_VALUES]
    drawn: dict[str, dict[str, Any]] = {}  # by title
    for score in scores:
        for axis in shown:
            if own := [one for one in found if one.axis == axis.name and one.score == score]:
                drawn[f"{score} by {axis.name}"] = _effect(axis, score, own)
        for first, second in combinations(shown[:_MOST_AXES], 2):
            if cells := cell_means(points, first.name, second.name, score):
                drawn[f"{score} by {first.name} and {second.name}"] = _heat(first, second, score, cells)
    return [{"title": title, "spec": spec} for title, spec in drawn.items()]


def _effect(axis: Axis, score: str, own: Sequence[Effect]) -> dict[str, Any]:
    values = [
        {"value": _typed(axis, one.value), "mean": one.mean, "low": one.low, "high": one.high, "rows": one.rows}
        for one in own
    ]
    x = _position(axis, ordinal=axis.name == "seed")  # a name, and no quantity
    y = {"type": "quantitative", "title": score, "scale": {"zero": False}}
    paired = "paired" if own[0].paired else "not paired"
    tooltip = [{"field": name} for name in ("value", "mean", "low", "high", "rows")]
    mark = (
        {"type": "line", "point": True}
        if x["type"] == "quantitative"
        else {"type": "point", "filled": True, "size": 60}
    )
    return {
        "$schema": _SCHEMA,
        "description": f"Mean {score} for each {axis.name}, with its 95 % confidence interval, {paired}",
        "data": {"values": values},
        "width": 320,
        "height": 200,
        "encoding": {"x": x},
        "layer": [
            {"mark": {"type": "rule"}, "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}}},
            {"mark": mark, "encoding": {"y": {"field": "mean", **y}, "tooltip": tooltip}},
        ],
    }


def _heat(first: Axis, second: Axis, score: str, cells: Mapping[tuple[str, str], tuple[float, int]]) -> dict[str, Any]:
    values = [
        {"x": _typed(second, place[1]), "y": _typed(first, place[0]), "mean": mean, "rows": rows}
        for place, (mean, rows) in cells.items()
    ]
    return {
        "$schema": _SCHEMA,
        "description": f"Mean {score} for each {first.name} and {second.name}",
        "data": {"values": values},
        "width": {"step": 34},
        "height": {"step": 24},
        "mark": "rect",
        "encoding": {
            "x": {**_position(second, ordinal=True), "field": "x"},
            "y": {**_position(first, ordinal=True), "field": "y"},
            "color": {"field": "mean", "type": "quantitative", "title": score, "scale": {"scheme": "viridis"}},
            "tooltip": [{"field": name} for name in ("y", "x", "mean", "rows")],
        },
    }


def _position(axis: Axis, *, ordinal: bool = False) -> dict[str, Any]:
    kind = "quantitative" if axis.is_number and not ordinal else "ordinal"
    sort = None if axis.is_number else [_short(value) for value in axis.values]
    scale = {"zero": False} if kind == "quantitative" else None
    found = {"field": "value", "type": kind, "title": axis.name, "axis": {"labelLimit": 160}}
    return found | ({"sort": sort} if sort else {}) | ({"scale": scale} if scale else {})


def _typed(axis: Axis, label: str) -> Any:
    return float(label) if axis.is_number else _short(label)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"
