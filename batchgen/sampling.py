"""A few rows that show what a manifest asks for: spread over its axes, the same ones every time. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.names import find_column
from batchgen.rows import Row

__all__ = ["CANDIDATES", "spread"]

CANDIDATES = 20_000  # rows of a longer manifest among which a sample is chosen
_USUAL = ("model", "scheduler", "num_inference_steps", "guidance_scale", "strength", "width", "height", "prompt")


def spread(rows: Iterable[Row], count: int, columns: Sequence[str] = ()) -> list[str]:
    """Ids of rows whose values are shown as evenly as may be: each next one has those that were shown least so far.

    Args:
        rows: the candidates, in an order that does not depend on the manifest's.
        count: how many to choose.
        columns: what to spread over; without them a sweep's axes, else what usually differs.

    Raises:
        InputError: no row has one of the columns.
    """
    found = [(row.id, _cells(row)) for row in rows]
    columns = [find_column(name, own=True) or name for name in columns]
    names = columns or _axes(found)
    for name in columns:
        if found and not any(name in cells for _, cells in found):
            known = ", ".join(dict.fromkeys(column for _, cells in found[:100] for column in cells))
            raise InputError(f"--sample-by {name}: no row has such a column; rows have {known}")
    shown = Counter[tuple[str, str]]()
    values = [[(name, repr(cells.get(name))) for name in names] for _, cells in found]
    waiting = [(0, place) for place in range(len(found))]
    heapify(waiting)
    chosen: list[str] = []
    while waiting and len(chosen) < count:
        shown_before, place = waiting[0]
        now = sum(shown[value] for value in values[place])  # only grows: what is least by an old count may not be now
        if now > shown_before:
            heapreplace(waiting, (now, place))
            continue
        chosen.append(found[place][0])
        shown.update(values[place])
        heappop(waiting)
    return chosen


def _cells(row: Row) -> dict[str, Any]:
    """What rows differ in; samplers by their names, since several have one class."""
    applied = row.parameters.to_cells()
    return {**applied, "scheduler": row.sampler or applied["scheduler"], **row.carried}


def _axes(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    names = dict.fromkeys(name for _, cells in found for name in cells if name.startswith("axis_"))
    return list(names) or list(_USUAL)
