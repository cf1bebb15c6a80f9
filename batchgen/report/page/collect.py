"""What a report shows of outputs: a record an image, the axes that images differ in, and their scores."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from batchgen.dataset.dataset import DatasetRow
from batchgen.manifest.sweep import label

__all__ = ["Axis", "Shown", "find_axes", "finite", "plain_cells"]

_AXIS = "axis_"
OUTPUT = "output"  # the axis of several outputs
_VARIED = (  # columns that make axes where no sweep named any, and the most values that an axis has
    ("model", 30),
    ("prompt", 2000),
    ("scheduler", 30),
    ("num_inference_steps", 30),
    ("guidance_scale", 30),
    ("strength", 30),
    ("width", 30),
    ("height", 30),
    ("seed", 64),
)
_KEPT_APART = frozenset({"step_images", "control_images", "status"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Something that images differ in."""

    name: str
    values: Sequence[Any]  # numbers in order, None after them, others as they were met
    is_number: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """An image of a report."""

    cells: Mapping[str, Any]  # its metadata, without images and what is null
    output: str
    link: str | None  # to the image, seen from the report's folder; None where it cannot be read
    scores: Mapping[str, float]
    controls: Mapping[str, str] = field(default_factory=dict)  # links to what ControlNets were given, by what it is
    at: dict[str, str] = field(default_factory=dict)  # labels by axis


def plain_cells(row: DatasetRow) -> dict[str, Any]:
    """A row's metadata without images and what is null."""
    apart = _KEPT_APART | {row.dataset.layout.image.name}
    return {name: cell for name, cell in row.cells.items() if cell is not None and name not in apart}


def finite(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores that are numbers."""
    numbers = {name: score for name, score in scores.items() if isinstance(score, (int, float))}
    return {name: float(score) for name, score in numbers.items() if math.isfinite(score) and score is not True}


def find_axes(shown: Sequence[Shown]) -> list[Axis]:
    """What images differ in: the axes of sweeps, else columns with few values; and their outputs, where several.

    Each image's place is noted in it.
    """
    swept = [name for name in dict.fromkeys(name for one in shown for name in one.cells) if name.startswith(_AXIS)]
    named = {name.removeprefix(_AXIS): name for name in swept}
    columns = named or {name: name for name, most in _VARIED if 1 < len(_labels(shown, name)) <= most}
    columns = columns or {"model": "model"}  # of one image, or of images that differ in nothing of these
    if len(swept) > 1 and "model" not in named and len(_labels(shown, "model")) > 1:
        columns = {**columns, "model": "model"}
    axes = [_axis(shown, name, [_cell(one, column, name) for one in shown]) for name, column in columns.items()]
    if len({one.output for one in shown}) > 1:
        axes.append(
            _axis(shown, OUTPUT if OUTPUT not in columns else f"{OUTPUT} folder", [one.output for one in shown])
        )
    return [axis for axis in axes if len(axis.values) > 1] or axes[:1]


def _cell(one: Shown, column: str, name: str) -> Any:
    """An image's value on an axis; what was applied, in outputs that no sweep made."""
    return one.cells[column] if column.startswith(_AXIS) and column in one.cells else _applied(one, name)


def _applied(one: Shown, name: str) -> Any:
    """What was applied; samplers by their names, where the output has them, since several have one class."""
    own = "sampler" if name == "scheduler" and "sampler" in one.cells else name
    return one.cells.get(own)


def _labels(shown: Sequence[Shown], column: str) -> set[str]:
    return {label(_applied(one, column)) for one in shown}


def _axis(shown: Sequence[Shown], name: str, cells: Sequence[Any]) -> Axis:
    values: dict[str, Any] = {}
    for one, cell in zip(shown, cells, strict=True):
        if isinstance(cell, (list, dict)):
            cell = json.dumps(cell, ensure_ascii=False)
        elif isinstance(cell, float) and not math.isfinite(cell):
            cell = label(cell)  # no number of JSON
        values.setdefault(label(cell), cell)
        one.at[name] = label(cell)
    known = [cell for cell in values.values() if cell is not None]
    in_order = all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in known)
    is_number = in_order and len(known) == len(values)
    absent = [None] * (len(values) - len(known))  # in an output whose sweep has no such axis
    ordered = [*sorted(known), *absent] if in_order else list(values.values())
    return Axis(name=name, values=ordered, is_number=is_number)
