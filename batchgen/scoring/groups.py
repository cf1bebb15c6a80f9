"""Tables of groups: `scores/<metric>/by-<columns>.parquet`, what a metric of sets says of groups of an output's rows.

Like side tables they say of which rows they are, by which models, so that one of other rows is not taken for this one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.side_tables import SIDE_TABLES, side_key
from batchgen.dataset.tables import about, encode_table, stored_table, with_about
from batchgen.errors import Damaged, NotFound
from batchgen.manifest.sweep import label
from batchgen.scoring.metrics import METRICS, Family, Metric
from batchgen.scoring.models import ScoringModel
from batchgen.scoring.tables import MARKER_COLUMNS, error_column, identity_of, says

__all__ = ["Group", "GroupTable", "Members", "find_members", "is_current", "read_groups", "read_table", "write_groups"]

_ALL = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What a metric says of the rows that are alike in some columns."""

    values: Mapping[str, str]  # labels by column; none where the group is of all rows
    rows: int  # with features
    scores: Mapping[str, float]  # by column of the metric
    error: str | None  # why there are none


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupTable:
    """What a metric says of all groups, and of what it is."""

    metric: str
    by: Sequence[str]
    groups: Sequence[Group]
    about: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """Which rows a group has: their places, by its labels; and a digest of all that."""

    ids: Sequence[str]
    fingerprints: Sequence[str]
    places: Mapping[tuple[str, ...], npt.NDArray[np.int64]]
    digest: str


def find_members(dataset: Dataset, by: Sequence[str]) -> Members:
    """Group an output's rows by columns.

    Raises:
        InputError: there is no such column.
    """
    table = dataset.to_table(list(dict.fromkeys([*MARKER_COLUMNS, *by])))
    table = table.take(pc.sort_indices(table["id"]))  # not sort_by, whose threads may outlive a short process
    columns = [[label(cell) for cell in table[name].to_pylist()] for name in by]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    digest = hashlib.sha256()
    for place in range(table.num_rows):
        labels = tuple(column[place] for column in columns)
        places[labels].append(place)
    known = [table[name].to_pylist() for name in MARKER_COLUMNS]
    for row in zip(*known, *columns, strict=True):
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return Members(
        ids=known[0],
        fingerprints=known[1],
        places={labels: np.array(found) for labels, found in sorted(places.items())},
        digest=digest.hexdigest(),
    )


def write_groups(
    dataset: Dataset,
    metric: Metric,
    by: Sequence[str],
    groups: Sequence[Group],
    said: Mapping[str, Any],
) -> None:
    """Store what a metric says of groups, over what it said of groups by the same columns.

    Args:
        dataset: the output.
        metric: which.
        by: columns.
        groups: what it says.
        said: what the table is to say of itself: as of side tables, with the digest of the members as `rows`.
    """
    columns = {name: pa.array([group.values[name] for group in groups], pa.string()) for name in by}
    columns["rows" if "rows" not in by else "number of rows"] = pa.array([group.rows for group in groups], pa.int64())
    for name in metric.columns:
        columns[name] = pa.array([group.scores.get(name) for group in groups], pa.float64())
    columns[error_column(metric.name)] = pa.array([group.error for group in groups], pa.string())
    dataset.store.write(_key(metric.name, by), encode_table(with_about(pa.table(columns), **said)))


def read_table(dataset: Dataset, metric: Metric, by: Sequence[str]) -> GroupTable | None:
    """What was stored of groups by these columns; None where there is nothing, or nothing readable."""
    try:
        table = stored_table(dataset.store, _key(metric.name, by), "it is made again")
    except (NotFound, Damaged):
        return None
    number = len(by)
    groups = [
        Group(
            values={name: row[name] for name in by},
            rows=row[table.schema.names[number]],
            scores={name: row[name] for name in metric.columns if row[name] is not None},
            error=row[error_column(metric.name)],
        )
        for row in table.to_pylist()
    ]
    return GroupTable(metric=metric.name, by=by, groups=groups, about=about(table.schema) or {})


def read_groups(dataset: Dataset) -> Iterator[GroupTable]:
    """All tables of groups that an output has and that are of the rows that it has now."""
    digests: dict[tuple[str, ...], str] = {}
    for metric in METRICS.values():
        if metric.family is not Family.SETS:
            continue
        for name in dataset.store.names(f"{SIDE_TABLES}/{metric.name}"):
            if (by := _columns(name)) is None or (table := read_table(dataset, metric, by)) is None:
                continue
            digest = digests.get(tuple(by)) or digests.setdefault(tuple(by), find_members(dataset, by).digest)
            if table.about.get("rows") == digest:
                yield table


def is_current(table: GroupTable | None, metric: Metric, models: Mapping[str, ScoringModel], members: Members) -> bool:
    """Whether a table says what would be computed now."""
    wanted = {**identity_of(metric, models), "rows": members.digest}
    return says(None if table is None else table.about, wanted)


def _key(metric: str, by: Sequence[str]) -> str:
    return side_key(metric, "by-" + ",".join(quote(column, safe="") for column in by) if by else _ALL)


def _columns(name: str) -> list[str] | None:
    """The columns that a table's name says; None where it is none."""
    stem = name.removesuffix(".parquet")
    if stem == name or not (stem == _ALL or stem.startswith("by-")):
        return None
    return [] if stem == _ALL else [unquote(column) for column in stem.removeprefix("by-").split(",")]
