"""An output that lost its record, as what remains of it tells: its markers have the schema of all."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import PurePosixPath

import pyarrow as pa

from batchgen.dataset.facts import marker_facts
from batchgen.dataset.format import FormatRecord, OutputFormat, format_record
from batchgen.dataset.layouts import LAYOUTS
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.schema import metadata_schema
from batchgen.dataset.tables import shared_schema
from batchgen.errors import Damaged, NotFound
from batchgen.models.catalog import NOT_BEGUN
from batchgen.options import ImageFormat
from batchgen.storage import Store

__all__ = ["record_from_markers"]

LOOKED_AT = 64  # names below data/: attempts that died leave some without a marker, and a foreign folder has any number


def record_from_markers(store: Store) -> FormatRecord | None:
    """The record of an output's format, as the first marker that is whole tells it; None where there is none.

    The models' own defaults no marker tells: they are today's.
    """
    for layout in LAYOUTS.values():
        for shard in islice(layout.shards(store), LOOKED_AT):
            with suppress(NotFound, Damaged), layout.marker_damage(store, shard):
                schema = layout.read_schema(store, shard)
                if (facts := marker_facts(schema, shard)) is not None:
                    shared = shared_schema(schema, facts.schema_version)
                    return format_record(_format(store, layout, shard, shared))
    return None


def _format(store: Store, layout: DatasetLayout, shard: str, schema: pa.Schema) -> OutputFormat:
    own = set(metadata_schema(layout, {}).names)
    carried = {field.name: field.type for field in schema if field.name not in own}
    column = layout.read(store, shard, columns=[layout.image.name], images=True)[layout.image.name]
    cell = column[0].as_py()
    name = PurePosixPath(cell["path"] if isinstance(cell, Mapping) else cell)
    return OutputFormat(
        layout=layout,
        image_format=ImageFormat(name.suffix.removeprefix(".")),
        carried=carried,
        schema=schema,
        model_defaults=NOT_BEGUN,
    )
