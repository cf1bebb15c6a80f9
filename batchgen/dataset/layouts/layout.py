"""What a layout is: one class that says where an output's objects lie and what its metadata holds of the images.

In memory a shard's table is the same for every reader of a layout; how it and the images are stored is the layout's.
A further layout is a further module beside this one, an entry of `LAYOUTS`, and a value of `options.Layout`; names of
columns that no layout had before are refused in manifests by `manifest.columns.RESERVED`.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import IO, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.dataset.records import REPAIR
from batchgen.dataset.tables import StoredFile, damage_named, decode_table, encode_table
from batchgen.storage import Store

__all__ = ["IMAGE", "DatasetLayout"]

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""An image as `datasets` stores it in Parquet."""


class DatasetLayout(ABC):
    """One arrangement of images and metadata; without state, so that equal names mean equal layouts.

    A commit calls `add_image` for each image, from several threads, then creates the marker from what `encode` gives.
    So beside the marker lie objects of one image each, under keys of the attempt, and no further one of a whole shard.
    A layout that puts images together does so in the marker: the table's cells bring their bytes to `encode`.
    """

    name: ClassVar[str]
    """The value of `options.Layout`."""

    image: ClassVar[pa.Field]
    """The metadata's column that holds or names a row's image."""

    image_path: ClassVar[pa.Field | None] = None
    """The column that says where in the output a row's image lies; None where that is in the marker itself."""

    side_image: ClassVar[pa.Field]
    """The same for an image beside a row's own, one of its `step_images` or `control_images`."""

    in_marker: ClassVar[frozenset[str]] = frozenset()
    """Columns whose cells hold bytes of images."""

    schema_metadata: ClassVar[Mapping[str, str]] = {}
    """What other readers look for in the schema."""

    objects_a_row: ClassVar[int]
    """Objects that a row costs beside its shard's marker; any is an image of its own, to which pages link."""

    glob: ClassVar[str]
    """Where the metadata lie, for the card."""

    card_config: ClassVar[str]
    """Lines of the card's front matter that tell `datasets` where the images are."""

    card_paths: ClassVar[str] = ""
    """What the card says of `image_path`, a line break before it."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(self.name)

    @abstractmethod
    def marker_key(self, shard: str) -> str:
        """Key of the object whose creation makes a shard exist."""

    @abstractmethod
    def shard_of(self, name: str) -> str:
        """The shard that a name directly below data/ belongs to."""

    @abstractmethod
    def add_image(self, store: Store, shard: str, attempt: str, name: str, data: bytes) -> Any:
        """Keep an encoded image for an attempt at a shard; returns the cell of `image` or `side_image`."""

    @abstractmethod
    def image_key(self, shard: str, cell: Any) -> str:
        """Key of the object that holds an image."""

    @abstractmethod
    def image_bytes(self, store: Store, shard: str, cell: Any) -> bytes:
        """The encoded image that a cell of `image` or `side_image` holds or names.

        Raises:
            StoreError: it cannot be read.
        """

    @abstractmethod
    def python_in_folder(self, path: str | None) -> str:
        """The card's Python by which other readers open an output in a folder, which `folder` names.

        Args:
            path: the column `image_path`; None where the output has none, as older ones have.
        """

    @abstractmethod
    def python_in_bucket(self, path: str | None) -> str:
        """The same in a bucket: `folder` is its URI, `store` the fsspec file system, `options` are that one's."""

    @abstractmethod
    def sql_in_folder(self, folder: str, path: str | None) -> str:
        """The same in SQL; empty where it reads no such output."""

    def encode(self, table: pa.Table) -> bytes:
        """The marker's bytes."""
        return encode_table(table)

    def read(
        self, store: Store, shard: str, *, columns: Collection[str] | None = None, images: bool = False
    ) -> pa.Table:
        """A shard's table.

        Args:
            store: the output.
            shard: its name.
            columns: those to read, as far as they are there; all where None.
            images: with the columns of `in_marker`.

        Raises:
            NotFound: there is no such marker.
            Exception: it is damaged; see `decode_table`.
        """
        source = self._open_marker(store, shard, whole=images)
        return decode_table(source, columns=columns, without=frozenset() if images else self.in_marker)

    def shards(self, store: Store) -> list[str]:
        """Names of the shards in data/, sorted; some may not be committed yet, and have no marker."""
        return [self.shard_of(name) for name in store.names("data") if not name.startswith(".")]

    def marker_damage(self, store: Store, shard: str) -> AbstractContextManager[None]:
        """What reading a marker raises on damaged bytes becomes `Damaged`, with the place and what to do."""
        return damage_named(f"{store.uri}/{self.marker_key(shard)}", f"{REPAIR}: the next run makes its rows again")

    def read_schema(self, store: Store, shard: str) -> pa.Schema:
        """The schema of a shard's table, images and all; raises as `read` does."""
        return pq.read_schema(self._open_marker(store, shard, whole=False))

    def _open_marker(self, store: Store, shard: str, *, whole: bool) -> IO[bytes] | StoredFile:
        """A marker with images in it may have hundreds of MiB; one without has fewer than would pay for a part."""
        key = self.marker_key(shard)
        return StoredFile(store, key) if self.in_marker and not whole else io.BytesIO(store.read(key))
