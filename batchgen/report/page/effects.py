"""How scores depend on axes: means with confidence intervals, main effects, means of cells. Pure.

Where every value of an axis was tried in the same blocks, of equal seeds and other values, the interval of its mean is
paired: blocks are brought to a common mean first, and the variance is corrected for it (Cousineau 2005; Morey 2008).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from batchgen.report.page.collect import Axis

__all__ = ["Effect", "cell_means", "effects"]

# Two-sided 95 % quantiles of Student's t by degrees of freedom; between them the next lower degree counts.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
_T |= {12: 2.179, 15: 2.131, 20: 2.086, 25: 2.060, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980, 10**9: 1.960}


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A score at one value of an axis."""

    axis: str
    value: str  # label
    score: str
    rows: int
    mean: float
    low: float  # 95 % confidence interval of the mean; the mean itself where there is one row
    high: float
    above: float  # the mean less that of all rows
    paired: bool


Point = tuple[Mapping[str, str], Mapping[str, float]]
"""An image: labels by axis, and scores."""


def effects(points: Sequence[Point], axes: Sequence[Axis], scores: Sequence[str]) -> list[Effect]:
    """The effect of each value of each axis on each score."""
    return [
        effect
        for score in scores
        if (scored := [(at, values[score]) for at, values in points if score in values])
        for axis in axes
        for effect in _of_axis(scored, axis.name, score)
    ]


def _of_axis(scored: Sequence[tuple[Mapping[str, str], float]], axis: str, score: str) -> list[Effect]:
    overall = fmean(value for _, value in scored)
    by_value: dict[str, list[float]] = defaultdict(list)
    blocks: dict[tuple[tuple[str, str], ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for at, value in scored:
        by_value[at[axis]].append(value)
        block = tuple((name, place) for name, place in at.items() if name != axis)
        blocks[block][at[axis]].append(value)
    paired = len(by_value) > 1 and len(blocks) > 1
    paired = paired and all(len(own) == len(by_value) for own in blocks.values())
    paired = paired and all(len(values) == 1 for own in blocks.values() for values in own.values())
    centred: dict[str, list[float]] = defaultdict(list)
    if paired:
        for own in blocks.values():
            middle = fmean(values[0] for values in own.values())
            for name, values in own.items():
                centred[name].append(values[0] - middle)
    correction = math.sqrt(len(by_value) / (len(by_value) - 1)) if paired else 1.0
    found = []
    for name, values in by_value.items():
        mean = fmean(values)
        half = _half_width(centred[name] if paired else values) * correction
        found.append(
            Effect(
                axis=axis,
                value=name,
                score=score,
                rows=len(values),
                mean=mean,
                low=mean - half,
                high=mean + half,
                above=mean - overall,
                paired=paired,
            )
        )
    return found


def _half_width(values: Sequence[float]) -> float:
    """Half of the 95 % confidence interval of a mean."""
    if len(values) < 2:
        return 0.0
    degrees = len(values) - 1
    quantile = _T[max(known for known in _T if known <= degrees)]
    return quantile * math.sqrt(variance(values) / len(values))


def cell_means(
    points: Sequence[Point], first: str, second: str, score: str
) -> dict[tuple[str, str], tuple[float, int]]:
    """Mean of a score and number of rows for each pair of values of two axes."""
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for at, values in points:
        if score in values:
            cells[at[first], at[second]].append(values[score])
    return {place: (fmean(values), len(values)) for place, values in cells.items()}
