"""Side tables: `scores/<metric>/<shard>.parquet` with `id`, `fingerprint`, the metric's columns and `<metric>_error`.

A table stands for one shard as it was when it was scored: it says of itself which rows, which metric, which models.
Where any of them is another now it is not current, and is made again. Readers take the scores of the rows there are, by
id and fingerprint, whatever else lies in the tables.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.dataset.dataset import READERS, Dataset
from batchgen.dataset.side_tables import (
    join_side_tables,
    read_side_tables,
    side_key,
    side_names,
    side_shards,
)
from batchgen.dataset.tables import about, damage_named, encode_table, with_about
from batchgen.errors import Damaged, NotFound
from batchgen.identity import shard_id
from batchgen.scoring.metrics import METRICS, Metric
from batchgen.scoring.models import ScoringModel
from batchgen.storage import Store
from batchgen.version import __version__

__all__ = [
    "MARKER_COLUMNS",
    "error_column",
    "forget_scores",
    "forget_shards",
    "identity_of",
    "join_scores",
    "print_of_rows",
    "read_about",
    "read_vectors",
    "says",
    "scores_of",
    "write_all_scores",
    "write_scores",
]

MARKER_COLUMNS = ("id", "fingerprint", "sha256")
"""Those of a shard's marker by which its rows are told from others: a repaired image has another sha256."""

_TYPES = {"number": pa.float64(), "text": pa.string(), "vector": pa.list_(pa.float32())}


def error_column(metric: str) -> str:
    """The column that says why a row has no score; null where it has one, or needs none."""
    return f"{metric}_error"


def identity_of(metric: Metric, models: Mapping[str, ScoringModel]) -> dict[str, Any]:
    """What decides a metric's scores beside the images, as its tables say it.

    Args:
        metric: which.
        models: by part.
    """
    prints = {part: model.fingerprint for part, model in models.items()}
    return {"metric": metric.name, "version": metric.version, "models": prints}


def print_of_rows(marker: pa.Table) -> str:
    """A digest of a shard's rows and images, from `MARKER_COLUMNS`."""
    names, prints, images = (marker[name].to_pylist() for name in MARKER_COLUMNS)
    return shard_id((name, f"{print_}{image}") for name, print_, image in zip(names, prints, images, strict=True))


def write_scores(
    store: Store,
    metric: Metric,
    shard: str,
    marker: pa.Table,
    cells: Sequence[Mapping[str, Any]],
    said: Mapping[str, Any],
) -> None:
    """Store what a metric says of a shard, over what it said before.

    Args:
        store: the output.
        metric: which.
        shard: its name.
        marker: the shard's table.
        cells: the metric's columns and `error_column`, for each row of the marker; absent ones are null.
        said: what the table is to say of itself: see `read_about`.
    """
    fields = [
        ("id", pa.string()),
        ("fingerprint", pa.string()),
        *((name, _TYPES[kind]) for name, kind in metric.columns.items()),
        (error_column(metric.name), pa.string()),
    ]
    own = [pa.array([row.get(name) for row in cells], kind) for name, kind in fields[2:]]
    identity = [marker[name].combine_chunks().cast(pa.string()) for name in ("id", "fingerprint")]
    table = with_about(pa.Table.from_arrays([*identity, *own], schema=pa.schema(fields)), **said)
    store.write(side_key(metric.name, shard), encode_table(table))


def write_all_scores(
    dataset: Dataset,
    metric: Metric,
    cells_of: Callable[[str], Mapping[str, Any]],
    said_of: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
) -> None:
    """Store what is known of all rows, a table for each shard.

    Args:
        dataset: the output.
        metric: what it is of; no model decides it.
        cells_of: a row's cells by its id, as for `write_scores`.
        said_of: what a table of such rows is to say of itself besides.
    """

    def write(shard: str) -> None:
        if (marker := dataset.marker(shard, columns=MARKER_COLUMNS)) is None:
            return
        cells = [cells_of(id_) for id_ in marker.table["id"].to_pylist()]
        said = {**identity_of(metric, {}), "rows": print_of_rows(marker.table), **said_of(cells)}
        write_scores(dataset.store, metric, shard, marker.table, cells, {**said, "batchgen": __version__})

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(write, dataset.shards()))


def says(about_it: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """Whether a table is there, and says all that is wanted of itself."""
    return about_it is not None and all(about_it.get(name) == value for name, value in wanted.items())


def read_about(store: Store, metric: str, shard: str) -> Mapping[str, Any] | None:
    """What a table says of itself: `metric`, `version`, `models`, `rows` and `failed`; None where it does not count."""
    key = side_key(metric, shard)
    try:
        with damage_named(f"{store.uri}/{key}", "it is made again"):
            return about(pq.read_schema(io.BytesIO(store.read(key))))
    except (NotFound, Damaged):
        return None


def forget_scores(dataset: Dataset, metric: str, shard: str) -> None:
    """Remove what a metric said of a shard: another model's scores must not stand for this one's."""
    dataset.store.delete(side_key(metric, shard))


def forget_shards(dataset: Dataset, metric: str) -> None:
    """Remove the tables of shards that are no more: their rows are others' now, or nobody's."""
    present = set(dataset.shards())
    for shard in side_shards(dataset.store, metric):
        if shard not in present:
            dataset.store.delete(side_key(metric, shard))


def join_scores(dataset: Dataset, rows: pa.Table, metrics: Sequence[str] | None = None) -> pa.Table:
    """A table of rows with every column of the scores added, but for vectors; null where a row is not scored.

    Args:
        dataset: whose rows they are.
        rows: with `id` and `fingerprint`.
        metrics: those to add; all that the output has where None, in the order of the list of metrics, others last.

    Raises:
        Damaged: a table cannot be read.
    """
    if metrics is None:
        places = {name: place for place, name in enumerate(METRICS)}
        metrics = sorted(side_names(dataset.store), key=lambda name: (places.get(name, len(places)), name))
    return join_side_tables(dataset.store, dataset.shards(), rows, metrics)


def scores_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """The scores of all rows by id, by column, each a number, a text or None; those that nobody asked for are absent.

    Raises:
        Damaged: a table cannot be read.
    """
    table = join_scores(dataset, dataset.to_table(["id", "fingerprint"])).drop_columns("fingerprint")
    return {row.pop("id"): row for row in table.to_pylist()}


def read_vectors(dataset: Dataset, metric: str) -> tuple[list[tuple[str, str]], npt.NDArray[np.float32]]:
    """The vectors of all images that have one, (n, d), and of which rows they are, by id and fingerprint.

    Raises:
        Damaged: a table cannot be read.
    """
    keys: list[tuple[str, str]] = []
    found: list[npt.NDArray[np.float32]] = []
    for table in read_side_tables(dataset.store, metric, dataset.shards()):
        own = table.filter(pc.is_valid(table[metric]))
        if own.num_rows:
            keys += zip(own["id"].to_pylist(), own["fingerprint"].to_pylist(), strict=True)
            found.append(np.stack(own[metric].to_numpy()))
    return keys, np.concatenate(found) if found else np.zeros((0, 0), np.float32)
