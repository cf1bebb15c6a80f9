"""Metadata tables as Parquet files: how they are written, and how some of their columns are read back.

Knows neither keys nor layouts. What a writer says of itself lies in the schema's metadata, as JSON under `batchgen`.
"""

import io
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import Damaged, StoreError, one_line
from batchgen.storage import Store

__all__ = [
    "StoredFile",
    "about",
    "damage_named",
    "decode_table",
    "encode_table",
    "own_words",
    "shared_schema",
    "stored_table",
    "with_about",
]

HF_ROW_GROUP = 100  # rows; `datasets` writes image sets so, and random access then reads at most some tens of MiB


def about(schema: pa.Schema) -> Mapping[str, Any] | None:
    """What the table's writer said of it; None where a table is not of batchgen."""
    own = own_words(schema)
    return None if own is None else dict(json.loads(own))


def own_words(schema: pa.Schema) -> bytes | None:
    """The same as it is stored, as JSON."""
    words: bytes | None = (schema.metadata or {}).get(b"batchgen")
    return words


def shared_schema(schema: pa.Schema, version: int) -> pa.Schema:
    """The schema of all shards of an output, from one marker's: with nothing of what that says of itself alone."""
    said = json.dumps({"schema_version": version})
    return schema.with_metadata({**schema.metadata, b"batchgen": said.encode()})


def with_about(table: pa.Table, **added: Any) -> pa.Table:
    """The table with more said of it."""
    merged = json.dumps({**(about(table.schema) or {}), **added})
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"batchgen": merged.encode()})


def encode_table(table: pa.Table) -> bytes:
    """A metadata table as a Parquet file's bytes."""
    # images are compressed already and all distinct: neither a codec nor a dictionary makes them smaller
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        row_group_size=HF_ROW_GROUP,
        compression=dict.fromkeys(plain, "zstd"),
        use_dictionary=plain,
        write_page_index=True,
        write_page_checksum=True,
    )
    return stream.getvalue()


def decode_table(
    source: Any, *, columns: Collection[str] | None = None, without: Collection[str] = frozenset()
) -> pa.Table:
    """A metadata table from a Parquet file, its pages' checksums compared.

    Args:
        source: the file, open and seekable.
        columns: names of those to read, as far as the file has them; all where None.
        without: names of those to leave out.

    Raises:
        Exception: on damaged bytes, pyarrow's own errors, OSError, UnicodeDecodeError and more.
    """
    # Arrow's threads, which read ahead, let go of Python's buffers when they please, and abort a process that ends
    parquet = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
    names = [name for name in parquet.schema_arrow.names if name not in without]
    wanted = names if columns is None else [name for name in names if name in columns]
    table = parquet.read(columns=wanted, use_threads=False)
    table.validate(full=True)
    return table


@contextmanager
def damage_named(place: str, remedy: str) -> Iterator[None]:
    """What reading Parquet raises on damaged bytes becomes one error with the place and what to do.

    Raises:
        Damaged: in place of anything but the errors of stores.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # pyarrow raises its own errors, OSError, UnicodeDecodeError and more
        raise Damaged(f"{place} is damaged: {one_line(error).rstrip('.')}; {remedy}") from error


def stored_table(store: Store, key: str, remedy: str, *, columns: Collection[str] | None = None) -> pa.Table:
    """A table of a store.

    Args:
        store: the output.
        key: where it lies.
        remedy: what to do where it is damaged.
        columns: as of `decode_table`.

    Raises:
        NotFound: there is none.
        Damaged: it cannot be read.
    """
    with damage_named(f"{store.uri}/{key}", remedy):
        return decode_table(io.BytesIO(store.read(key)), columns=columns)


class StoredFile(io.RawIOBase):
    """A stored object as a file: each read is a request for that part, so that columns are read without the rest."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self._size = store.size(key)
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._place + size, self._size)
        if end <= self._place:
            return b""
        data = self._store.read_part(self._key, self._place, end)
        self._place = end
        return data
