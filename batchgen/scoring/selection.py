"""A view of an output: the rows that a condition selects, with parameters and scores, as a manifest."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.schema import parameters_of
from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, RESERVED, Kind
from batchgen.manifest.files import folder_of
from batchgen.models.catalog import Model, find_model
from batchgen.scoring.conditions import read_condition
from batchgen.scoring.tables import join_scores
from batchgen.storage import open_store

__all__ = ["Selection", "select"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """How many rows a condition selected, of how many."""

    selected: int
    rows: int


def select(uri: str, where: str, output: str, storage_options: Mapping[str, Any] | None = None) -> Selection:
    """Write the selected rows as a Parquet manifest, of which `run` makes the same pictures in another output.

    Columns are those of the contract, the carried ones, and, carried too, the scores. Rows, pictures and scores of the
    output stay as they are.

    Args:
        uri: the output.
        where: a condition: see `conditions`.
        output: where the manifest goes, ending in `.parquet`; what lies there is replaced.
        storage_options: of the output, over what the environment says.

    Raises:
        InputError: no such output, or a condition that cannot be read or does not fit the columns.
        StoreError: something cannot be read or written.
    """
    if not output.lower().endswith((".parquet", ".pq")):
        raise InputError(f"--output {output}: rows are written as Parquet; name a file that ends in .parquet")
    dataset = Dataset.open(open_store(uri, storage_options))
    table = join_scores(dataset, dataset.to_table())
    condition = read_condition(where, table.schema.names)
    try:
        chosen = table.filter(condition)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"--where {where!r} does not fit the columns: {why}") from error
    stream = io.BytesIO()
    pq.write_table(_manifest(chosen), stream, compression="zstd")
    open_store(folder_of(output)).write(PurePosixPath(output).name, stream.getvalue())
    return Selection(selected=chosen.num_rows, rows=table.num_rows)


def _manifest(rows: pa.Table) -> pa.Table:
    """Metadata and scores as columns that a manifest may have; those that are null in every row are left out."""
    columns: dict[str, Any] = {name: rows[name] for name in rows.schema.names if name not in RESERVED}
    columns |= _row_sizes(rows)
    for name, column in COLUMNS.items():
        if column.kind is Kind.IMAGE and f"{name}_uri" in rows.schema.names:
            columns[name] = rows[f"{name}_uri"]
        elif column.kind is Kind.ADAPTER and name in columns:
            columns[name] = pa.array([_without_hashes(cell) for cell in columns[name].to_pylist()], pa.string())
    return pa.table({name: cells for name, cells in columns.items() if cells.null_count < len(cells) or name == "id"})


def _row_sizes(rows: pa.Table) -> dict[str, pa.Array]:
    """The size that each row asked for; the metadata has that of the picture, which an upscaler or hires enlarged.

    Raises:
        InputError: a model that enlarges, by which the size is known, is not at hand.
    """
    models: dict[str, Model] = {}
    sizes: dict[str, list[int]] = {"width": [], "height": []}
    for cells in rows.drop_columns([name for name in rows.schema.names if name in RESERVED]).to_pylist():
        if cells.get("hires_scale") is not None or cells["task"] == "upscaling":
            name = cells["model"]
            models[name] = models.get(name) or find_model(name)
            cells |= parameters_of(cells, models[name]).to_cells()
        for side, found in sizes.items():
            found.append(cells[side])
    return {side: pa.array(found, pa.int32()) for side, found in sizes.items()}


def _without_hashes(cell: str | None) -> str | None:
    """An adapter's cell as a manifest has it: which bytes it was is the result's."""
    if cell is None:
        return None
    found = json.loads(cell)
    bare = [{name: value for name, value in one.items() if name != "sha256"} for one in _listed(found)]
    return json.dumps(bare if isinstance(found, list) else bare[0])


def _listed(found: Any) -> list[dict[str, Any]]:
    return found if isinstance(found, list) else [found]
