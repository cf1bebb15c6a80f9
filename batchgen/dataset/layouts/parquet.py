"""The layout `parquet`: one Parquet table a shard, `data/<shard>.parquet`, that holds the images as well."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from batchgen.dataset.layouts.layout import IMAGE
from batchgen.dataset.layouts.tabular import TabularLayout
from batchgen.options import Layout
from batchgen.storage import Store

__all__ = ["ParquetLayout"]


class ParquetLayout(TabularLayout):
    """Few large objects; `datasets` reads them from a bucket as well."""

    name = Layout.PARQUET
    image = pa.field("image", IMAGE)
    side_image = pa.field("image", IMAGE)
    in_marker = frozenset({"image", "step_images", "control_images"})
    # without this key `datasets` shows the column as a struct of bytes, not as images
    schema_metadata: ClassVar[Mapping[str, str]] = {
        "huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    }
    objects_a_row = 0
    glob = "data/*.parquet"
    card_config = "data_files: data/*.parquet"
    datasets_in_bucket = f"""from datasets import load_dataset
dataset = load_dataset("parquet", data_files=f"{{folder}}/{glob}", split="train", storage_options=options)"""

    def marker_key(self, shard: str) -> str:
        return f"data/{shard}.parquet"

    def shard_of(self, name: str) -> str:
        return name.removesuffix(".parquet")

    def add_image(self, store: Store, shard: str, attempt: str, name: str, data: bytes) -> dict[str, Any]:
        return {"bytes": data, "path": name}

    def image_key(self, shard: str, cell: Any) -> str:
        return self.marker_key(shard)

    def image_bytes(self, store: Store, shard: str, cell: Any) -> bytes:
        data: bytes = cell["bytes"]
        return data
