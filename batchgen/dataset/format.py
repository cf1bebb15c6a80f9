"""How an output stores what it holds, and the record of that, `.batchgen/output.json`. Knows nothing of stores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from batchgen.dataset.layouts import find_layout
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.records import Count, RecordKind
from batchgen.dataset.schema import VERSION, metadata_schema
from batchgen.identity import LEFT_OUT
from batchgen.models.catalog import NOT_BEGUN, ModelDefaults
from batchgen.options import ImageFormat
from batchgen.version import __version__

__all__ = [
    "OUTPUT",
    "FormatRecord",
    "OutputFormat",
    "conflict",
    "format_record",
    "left_out",
    "new_format",
    "read_format",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """How an output stores what it holds; the same for all its shards.

    `model_defaults` are those that its rows were resolved with: they stay, whatever a model's folder says later. None
    is an output that was begun before models had any.
    """

    layout: DatasetLayout
    image_format: ImageFormat
    carried: Mapping[str, pa.DataType]
    schema: pa.Schema  # of every shard's metadata
    model_defaults: ModelDefaults | None


def new_format(
    layout: str,
    image_format: ImageFormat,
    carried: Mapping[str, pa.DataType],
    model_defaults: ModelDefaults | None = NOT_BEGUN,
) -> OutputFormat:
    """The format of an output that is begun today.

    Args:
        layout: name of the layout.
        image_format: of its images.
        carried: types of the manifest's unknown columns, by name.
        model_defaults: what stands for null cells.
    """
    found = find_layout(layout)
    return OutputFormat(
        layout=found,
        image_format=image_format,
        carried=carried,
        schema=metadata_schema(found, carried),
        model_defaults=model_defaults,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatRecord:
    """What is written of a format where an output is begun. Schemas are Arrow's own serialization, in hexadecimal."""

    batchgen: str  # version
    schema_version: Count
    layout: str
    format: str
    columns: str = ""  # the carried ones, for people
    carried: str
    schema: str | None = None  # of every shard's metadata; records of early versions have none
    fingerprint_leaves_out: Any = None
    model_defaults: Mapping[str, Mapping[str, Any]] | None = None
    id: str | None = None  # which output it is; None in those that earlier code began


OUTPUT = RecordKind(FormatRecord, VERSION, "schema_version")


def format_record(output: OutputFormat) -> FormatRecord:
    """What is written of a format where an output is begun."""
    carried = pa.schema(sorted(output.carried.items()))
    defaults = output.model_defaults
    return FormatRecord(
        batchgen=__version__,
        schema_version=VERSION,
        layout=output.layout.name,
        format=output.image_format.value,
        columns=_listed(output.carried),
        carried=_as_text(carried),
        schema=_as_text(output.schema),
        fingerprint_leaves_out=LEFT_OUT,
        model_defaults=None if defaults is None else {print_: dict(one) for print_, one in defaults.items()},
    )


def read_format(record: FormatRecord) -> OutputFormat:
    """The format that was written as a record; its schema is today's where the record holds none.

    Raises:
        InputError: its layout is unknown.
        ValueError, OSError, pa.ArrowException: it holds no schema, or names no image format.
    """
    carried = {column.name: column.type for column in _from_text(record.carried)}
    output = new_format(record.layout, ImageFormat(record.format), carried, record.model_defaults)
    return output if record.schema is None else replace(output, schema=_from_text(record.schema))


def conflict(stored: OutputFormat, wanted: OutputFormat) -> str | None:
    """Why what is wanted cannot be written to an output; None where it can.

    All shards of an output share one schema, since readers fail on a column that only later shards have.
    """
    for what, begun, asked in (
        ("layout", stored.layout.name, wanted.layout.name),
        ("image format", stored.image_format.value, wanted.image_format.value),
    ):
        if begun != asked:
            return f"was begun with {what} {begun!s}, this run asks for {asked!s}; use the same, or another output"
    if dict(stored.carried) != dict(wanted.carried):  # as types: Parquet has names of its own for what lists hold
        return (
            f"was begun with the carried columns [{_listed(stored.carried)}], this manifest brings "
            f"[{_listed(wanted.carried)}]; one output has one schema: bring the same columns, or use another output"
        )
    for column in wanted.schema:
        if column.name in stored.schema.names and stored.schema.field(column.name).type != column.type:
            begun = stored.schema.field(column.name).type
            return f"was begun with {column.name} as {begun}, this batchgen writes {column.type}; use another output"
    return None


def left_out(stored: OutputFormat, wanted: OutputFormat) -> list[str]:
    """Columns that newer code would write and an output that is older than they are does not take."""
    return [name for name in wanted.schema.names if name not in stored.schema.names]


def _as_text(schema: pa.Schema) -> str:
    text: str = schema.serialize().to_pybytes().hex()
    return text


def _from_text(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.BufferReader(bytes.fromhex(text)))


def _listed(carried: Mapping[str, pa.DataType]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in sorted(carried.items()))
