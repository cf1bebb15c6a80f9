"""A view of an output: the rows that a condition selects, with parameters and scores, as a manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.schema import manifest_cells
from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, RESULTS, Kind
from batchgen.manifest.writer import require_place_for, write_table
from batchgen.models.catalog import find_model
from batchgen.scoring.conditions import read_condition
from batchgen.scoring.tables import join_scores
from batchgen.storage import open_store

__all__ = ["Selection", "select"]


_MADE: Mapping[str, pa.DataType] = {
    "width": pa.int32(),
    "height": pa.int32(),
    "scheduler": pa.string(),
    **{name: pa.string() for name, column in COLUMNS.items() if column.kind in (Kind.IMAGE, Kind.ADAPTER)},
}
"""Columns that the metadata has in another way than a manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """How many rows a condition selected, of how many."""

    selected: int
    rows: int


def select(uri: str, where: str, output: str, storage_options: Mapping[str, Any] | None = None) -> Selection:
    """Write the selected rows as a Parquet manifest, of which `run` makes the same images in another output.

    Columns are those of the contract, the carried ones, and, carried too, the scores. Rows, images and scores of the
    output stay as they are.

    Args:
        uri: the output.
        where: a condition: see `conditions`.
        output: where the manifest goes, ending in `.parquet`; one that was written so before is replaced.
        storage_options: of the output, over what the environment says.

    Raises:
        InputError: no such output, a condition that cannot be read or does not fit the columns, or a file at `output`
            that was made otherwise.
        StoreError: something cannot be read or written.
    """
    require_place_for(output)
    dataset = Dataset.open(open_store(uri, storage_options))
    table = join_scores(dataset, dataset.to_table())
    condition = read_condition(where, table.schema.names)
    try:
        chosen = table.filter(condition)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"--where {where!r} does not fit the columns: {why}") from error
    write_table(_manifest(chosen), output, f"{uri} where {where}")
    return Selection(selected=chosen.num_rows, rows=table.num_rows)


def _manifest(rows: pa.Table) -> pa.Table:
    """Metadata and scores as columns that a manifest may have; those that are null in every row are left out.

    Raises:
        InputError: a model that enlarges, by which the size is known that was asked for, is not at hand.
    """
    find = cache(find_model)
    made = [manifest_cells(cells, find) for cells in rows.to_pylist()]
    columns: dict[str, Any] = {name: rows[name] for name in rows.schema.names if name not in RESULTS}
    for name, kind in _MADE.items():
        columns[name] = pa.array([row.get(name) for row in made], kind)
    return pa.table({name: cells for name, cells in columns.items() if cells.null_count < len(cells) or name == "id"})
