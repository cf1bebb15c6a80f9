"""What an output was begun with: its record, `.batchgen/output.json`, a copy of that, and what its markers tell.

Knows how the record is found and kept, nothing of rows.
"""

from contextlib import suppress
from dataclasses import replace

import pyarrow as pa

from batchgen.dataset.facts import marker_facts
from batchgen.dataset.format import OUTPUT, FormatRecord, OutputFormat, read_format
from batchgen.dataset.records import REPAIR, encode_record, read_record
from batchgen.dataset.remains import record_from_markers
from batchgen.dataset.tables import shared_schema
from batchgen.errors import AlreadyExists, Damaged, LaterVersion, NotFound, one_line
from batchgen.models.catalog import NOT_BEGUN, ModelDefaults
from batchgen.storage import Store

__all__ = ["COPY", "RECORD", "begun_with", "create_begun", "read_begun", "stored_format", "write_begun"]

RECORD = ".batchgen/output.json"
COPY = ".batchgen/output.copy.json"  # read where the record itself cannot be


def read_begun(store: Store) -> FormatRecord:
    """What an output was begun with: its record, else the copy, else what the markers tell.

    Raises:
        NotFound: there is no output.
        LaterVersion, Damaged: nothing that tells it can be read.
    """
    try:
        return read_record(store, RECORD, OUTPUT)
    except LaterVersion:
        raise
    except (NotFound, Damaged) as error:
        try:
            return read_record(store, COPY, OUTPUT)
        except LaterVersion:
            raise
        except (NotFound, Damaged):
            pass
        if (found := record_from_markers(store)) is None:
            raise error from None
        return found


def create_begun(store: Store, record: FormatRecord) -> FormatRecord | None:
    """Begin an output; where another run was quicker, returns what it began with."""
    try:
        store.create(RECORD, _encode(record))
    except AlreadyExists as error:
        try:
            return read_begun(store)
        except NotFound:
            raise Damaged(f"{store.uri}/{RECORD} is there and cannot be read; {REPAIR}") from error
    store.write(COPY, _encode(record))
    return None


def write_begun(store: Store, record: FormatRecord) -> None:
    """Store what an output was begun with, and its copy, where they say other than they should or cannot be read."""
    for key in (RECORD, COPY):
        try:
            kept: FormatRecord | None = read_record(store, key, OUTPUT)
        except (NotFound, Damaged):
            kept = None
        if kept != record:
            store.write(key, _encode(record))


def begun_with(store: Store) -> ModelDefaults | None:
    """The models' defaults that an output was begun with, as `find_model` takes them."""
    try:
        return read_begun(store).model_defaults
    except NotFound:
        return NOT_BEGUN


def stored_format(store: Store, record: FormatRecord) -> OutputFormat:
    """The format that an output was begun with.

    Records of metadata versions 2 and 3 hold no schema, and neither number stands for one alone: columns came within
    it. So it is that of a marker; where there is none, no reader has seen any yet, and today's will do.
    """
    try:
        stored = read_format(record)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise Damaged(f"{store.uri}/{RECORD} is damaged: {one_line(error)}; {REPAIR}") from error
    if record.schema is not None:
        return stored
    for shard in stored.layout.shards(store):
        with suppress(NotFound, Damaged), stored.layout.marker_damage(store, shard):
            schema = stored.layout.read_schema(store, shard)
            if (facts := marker_facts(schema, shard)) is not None:
                return replace(stored, schema=shared_schema(schema, facts.schema_version))
    return stored


def _encode(record: FormatRecord) -> bytes:
    return encode_record(record, indent=2)
