"""Side tables: `scores/<name>/<shard>.parquet`, what is known of a shard's images beside their metadata.

Each has `id`, `fingerprint`, columns of its own and `<name>_error`. Knows nothing of what they mean. Readers take what
is said of the rows there are, by id and fingerprint, whatever else lies in the tables.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from batchgen.dataset.tables import stored_table
from batchgen.storage import Store

__all__ = ["SIDE_TABLES", "join_side_tables", "read_side_tables", "side_key", "side_names", "side_shards"]

SIDE_TABLES = "scores"
READERS = 16  # objects fetched side by side


def side_key(name: str, shard: str) -> str:
    """Where a side table lies."""
    return f"{SIDE_TABLES}/{name}/{shard}.parquet"


def side_names(store: Store) -> list[str]:
    """Names of what has tables, sorted."""
    return [name for name in store.names(SIDE_TABLES) if not name.startswith(".")]


def side_shards(store: Store, name: str) -> list[str]:
    """The shards that have a table of that name, and whatever else lies there as Parquet."""
    names = store.names(f"{SIDE_TABLES}/{name}")
    return [shard.removesuffix(".parquet") for shard in names if shard.endswith(".parquet") and shard[0] != "."]


def read_side_tables(store: Store, name: str, shards: Collection[str]) -> Iterator[pa.Table]:
    """The tables of that name that these shards have.

    Raises:
        Damaged: one of them cannot be read.
    """
    present = frozenset(shards)

    def read(shard: str) -> pa.Table:
        return stored_table(store, side_key(name, shard), "remove it, and score again")

    with ThreadPoolExecutor(READERS) as pool:
        for table in pool.map(read, [shard for shard in side_shards(store, name) if shard in present]):
            yield table.replace_schema_metadata(None)


def join_side_tables(store: Store, shards: Collection[str], rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """A table of rows with the columns of side tables added, but for vectors; null where nothing is said of a row.

    Args:
        store: of the dataset.
        shards: that it has.
        rows: with `id` and `fingerprint`.
        names: of the side tables, in order.

    Raises:
        Damaged: a table cannot be read.
    """
    import pyarrow.compute as pc  # a tenth of a second, which commands that read no rows do without

    rows = rows.combine_chunks()
    for name in names:
        plain = [table.select(_plain(table.schema)) for table in read_side_tables(store, name, shards)]
        if not plain:
            continue
        said = pa.concat_tables(plain, promote_options="default").combine_chunks()
        places = pc.index_in(_keys(rows), value_set=_keys(said)).combine_chunks()
        for column in said.schema.names[2:]:
            rows = rows.append_column(said.schema.field(column), said[column].combine_chunks().take(places))
    return rows


def _plain(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if not pa.types.is_nested(field.type)]


def _keys(table: pa.Table) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(table["fingerprint"], table["id"], "")  # fingerprints are of one length
