"""The Arrow schemas of an output: one fixed, versioned schema for every shard's metadata, one for failures.

Column names are the manifest's where a value was applied; every column has a type of its own, also where all its
cells are null, since readers join shards by schema. Knows nothing of stores.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.errors import UnknownSampler, without_secrets
from batchgen.generation.parameters import APPLIED, Parameters
from batchgen.generation.samplers import find_sampler
from batchgen.generation.tasks import TASKS
from batchgen.identity import canonical
from batchgen.manifest.arrow import arrow_column
from batchgen.manifest.cells import carried_cell
from batchgen.manifest.columns import COLUMNS, Column, Kind, image_column, input_name
from batchgen.models.catalog import Model
from batchgen.models.configs import USUAL_FACTOR
from batchgen.rows import FailedRow, Row, Status

__all__ = [
    "FAILURES",
    "VERSION",
    "applied_cells",
    "columns_needed",
    "failures_table",
    "input_prints",
    "manifest_cells",
    "metadata_schema",
    "metadata_table",
    "parameters_of",
]

VERSION = 4
"""Of the metadata. It is raised when an older batchgen would read an output wrong, since that refuses it from then on.

A column that is added needs no raise: an output keeps the schema that it was begun with.
"""

_TYPES = {
    Kind.TEXT: pa.string(),
    Kind.INTEGER: pa.int32(),
    Kind.NUMBER: pa.float64(),
    Kind.NUMBERS: pa.list_(pa.float64()),
    Kind.SIZE: pa.list_(pa.int32()),
    Kind.FLAG: pa.bool_(),
    Kind.OPTIONS: pa.string(),
    Kind.ADAPTER: pa.string(),
}
_AS_JSON = frozenset({Kind.OPTIONS, Kind.ADAPTER})
_SKIPPED = frozenset({"id", "seed", "task", "width", "height", "num_images_per_prompt"})  # placed by hand, or expanded
_APPLIED = tuple(
    column
    for column in COLUMNS.values()
    if column.name not in _SKIPPED and any(column.name in task.columns for task in TASKS.values())
)

FAILURES = pa.schema(
    [
        ("id", pa.string()),
        ("fingerprint", pa.string()),
        ("status", pa.string()),
        ("error_class", pa.string()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
    ]
)


def metadata_schema(layout: DatasetLayout, carried: Mapping[str, pa.DataType]) -> pa.Schema:
    """Schema of every shard of a new output: result columns, what was applied, then the carried columns by name.

    `step_images` holds or names the images after the job's `save_steps`, `control_images` what ControlNets were given,
    where the job says `save_control_images`; null where it does not.
    """
    step = pa.struct([("step", pa.int32()), layout.side_image, ("sha256", pa.string())])
    control = pa.struct([("name", pa.string()), layout.side_image, ("sha256", pa.string())])
    columns: list[pa.Field | tuple[str, pa.DataType]] = [
        ("id", pa.string()),
        ("fingerprint", pa.string()),
        layout.image,
        *([] if layout.image_path is None else [layout.image_path]),
        ("status", pa.string()),
        ("flagged", pa.bool_()),
        ("seed", pa.int64()),
        ("sha256", pa.string()),
        ("step_images", pa.list_(step)),
        ("control_images", pa.list_(control)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("task", pa.string()),
        *(cell for column in _APPLIED for cell in _applied_columns(column)),
        ("model_fingerprint", pa.string()),
        ("sample_index", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("batch_size", pa.int32()),
        ("dtype", pa.string()),
        ("device", pa.string()),
        ("seconds", pa.float64()),
        ("torch_version", pa.string()),
        ("diffusers_version", pa.string()),
        *sorted(carried.items()),
    ]
    about = {"batchgen": json.dumps({"schema_version": VERSION}), **layout.schema_metadata}
    return pa.schema(columns, metadata=about)


def _applied_columns(column: Column) -> list[tuple[str, pa.DataType]]:
    if column.kind is Kind.IMAGE:  # the name itself may be the result's, and the input is a reference
        return [(f"{column.name}_uri", pa.string()), (f"{column.name}_sha256", pa.string())]
    if column.kind is Kind.TEXT and column.listed:
        return [(column.name, pa.list_(pa.string()))]
    if column.name == "scheduler":
        return [("sampler", pa.string()), ("scheduler", pa.string())]
    return [(column.name, _TYPES[column.kind])]


_INPUTS = {name: column for column in _APPLIED for name, _ in _applied_columns(column) if name != "sampler"}
"""The manifest's column of each of the metadata's; samplers are other names of schedulers."""


def applied_cells(row: Row) -> dict[str, Any]:
    """What was applied to a row, as cells of the metadata; several images of one column become JSON lists."""
    cells: dict[str, Any] = {"task": row.task, "sampler": row.sampler, "sample_index": row.sample_index}
    for name, value in row.parameters.to_cells().items():
        cells[name] = canonical(value) if COLUMNS[name].kind in _AS_JSON else value
    images: dict[str, list[tuple[str, str]]] = {}
    for name, image in row.inputs.items():
        place = image.uri if image.row is None else f"{image.uri}#row={image.row}&column={image.column}"
        images.setdefault(image_column(name), []).append((without_secrets(place), image.sha256))
    for column, found in images.items():
        for part, texts in zip(("uri", "sha256"), zip(*found, strict=True), strict=True):
            cells[f"{column}_{part}"] = texts[0] if len(texts) == 1 else canonical(list(texts))
    return cells


def columns_needed(row: Row, columns: Iterable[str]) -> list[str]:
    """Those of some columns of the metadata without which a row could not be made again: not null, not neutral."""
    cells = applied_cells(row)
    return [name for name in columns if name in _INPUTS and not _INPUTS[name].is_neutral(cells.get(name))]


def parameters_of(cells: Mapping[str, Any], model: Model) -> Parameters:
    """What was applied to a row, from its cells of the metadata and the model that they name.

    The metadata says how large the image is; the size that the row asked for follows from what enlarged it.

    Raises:
        KeyError, TypeError, ValueError: cells of no row.
    """
    applied = {
        name: json.loads(cells[name]) if COLUMNS[name].kind in _AS_JSON else cells[name]
        for name in APPLIED
        if cells.get(name) is not None
    }
    scale = model.enlarges * applied.get("hires_scale", 1)
    # the hires fix rounds to whole latents
    step = model.latent_factor or USUAL_FACTOR if "hires_scale" in applied else 1
    for side in ("width", "height"):
        applied[side] = round(applied[side] / (step * scale)) * step
    return Parameters.from_cells(applied)


def manifest_cells(cells: Mapping[str, Any], find_model: Callable[[str], Model | None]) -> dict[str, Any]:
    """A row of a manifest that makes the image again, from its cells of the metadata; nulls are left out.

    Args:
        cells: of the metadata.
        find_model: the model of that name, by which the size is known that was asked for where an upscaler or the
            hires fix enlarged it; without a model it is that of the image.
    """
    row: dict[str, Any] = {}
    for name, column in COLUMNS.items():
        cell = cells.get(f"{name}_uri" if column.kind is Kind.IMAGE else name)
        if cell is not None:
            row[name] = _without_hashes(cell) if column.kind is Kind.ADAPTER else cell
    if (sampler := cells.get("sampler")) is not None and _still_means(sampler, row):
        row["scheduler"] = sampler
    enlarged = cells.get("hires_scale") is not None or cells["task"] == "upscaling"
    if enlarged and (model := find_model(cells["model"])) is not None:
        asked = parameters_of(cells, model).to_cells()
        row |= {side: asked[side] for side in ("width", "height")}
    return row


def _still_means(sampler: str, row: Mapping[str, Any]) -> bool:
    """Whether a sampler's name stands for the class and options that were applied when it was written."""
    try:
        found = find_sampler(sampler)
    except UnknownSampler:
        return False
    applied = json.loads(row.get("scheduler_kwargs") or "{}")
    return found.class_name == row.get("scheduler") and {**applied, **found.kwargs} == applied


def _without_hashes(cell: str) -> str:
    """An adapter's cell as a manifest has it: which bytes it was is the result's."""
    found = json.loads(cell)
    bare = [
        {name: value for name, value in one.items() if name != "sha256"}
        for one in (found if isinstance(found, list) else [found])
    ]
    return json.dumps(bare if isinstance(found, list) else bare[0])


def input_prints(cells: Mapping[str, Any]) -> dict[str, str]:
    """The sha256 of a row's conditioning images by their names, from its cells of the metadata."""
    prints = {}
    for column in COLUMNS.values():
        text = cells.get(f"{column.name}_sha256") if column.kind is Kind.IMAGE else None
        if text is not None:
            found = json.loads(text) if text.startswith("[") else [text]
            prints.update({input_name(column.name, place): one for place, one in enumerate(found)})
    return prints


def metadata_table(schema: pa.Schema, cells: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of the schema from one mapping a row; absent cells are null."""
    columns = [arrow_column([carried_cell(row.get(c.name), c.type) for row in cells], c.type) for c in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def failures_table(rows: Sequence[FailedRow]) -> pa.Table:
    """The failure ledger of one shard."""
    return pa.Table.from_pylist([{**asdict(row), "status": Status.FAILED.value} for row in rows], FAILURES)
