"""The layout `files`: images as objects of their own, and over each shard's a Parquet table that names them.

`data/<shard>/metadata.parquet` is the marker, `data/<shard>/<attempt>/<id>.png` an image.
"""

from typing import Any

import pyarrow as pa

from batchgen.dataset.layouts.tabular import TabularLayout
from batchgen.errors import AlreadyExists
from batchgen.options import Layout
from batchgen.storage import Store

__all__ = ["FilesLayout"]


class FilesLayout(TabularLayout):
    """Every image viewer opens the images, and `datasets` the folder."""

    name = Layout.FILES
    image = pa.field("file_name", pa.string())  # which `datasets` takes from the folder of the table
    image_path = pa.field("picture_path", pa.string())  # `image_path` is an init image where the table is a manifest
    side_image = pa.field("path", pa.string())  # `datasets` looks for `file_name` in lists, and fails where it is null
    objects_a_row = 1
    glob = "data/*/metadata.parquet"
    card_config = "data_dir: data\n  drop_labels: true"
    card_paths = f"""
- `{image_path.name}` says where in this folder a row's image lies, `{image.name}` the same from the folder of
  its table, by which `datasets` finds it."""
    datasets_in_bucket = "# `datasets` follows no file names into a bucket"

    def marker_key(self, shard: str) -> str:
        return f"data/{shard}/metadata.parquet"

    def shard_of(self, name: str) -> str:
        return name

    def add_image(self, store: Store, shard: str, attempt: str, name: str, data: bytes) -> str:
        key = f"data/{shard}/{attempt}/{name}"
        try:
            store.create(key, data)
        except AlreadyExists:
            if store.read(key) != data:  # else the answer to this very create was lost, and it came again
                raise AlreadyExists(f"{store.uri}/{key} holds another image; two rows have one file name") from None
        return f"{attempt}/{name}"

    def image_key(self, shard: str, cell: Any) -> str:
        return f"data/{shard}/{cell}"

    def image_bytes(self, store: Store, shard: str, cell: Any) -> bytes:
        return store.read(self.image_key(shard, cell))
