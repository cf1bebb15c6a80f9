"""The dataset card, README.md: what a dataset is, and where readers find it."""

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from batchgen.dataset.dataset import Dataset
from batchgen.errors import without_secrets
from batchgen.places import is_remote
from batchgen.version import __version__

__all__ = ["write_card"]


def write_card(dataset: Dataset, *, images: int, failed: int, models: Sequence[str]) -> None:
    """The dataset card, README.md: what the dataset is, and where readers find it."""
    layout = dataset.layout
    failures = f" {failed:,} rows failed." if failed else ""
    card = f"""---
task_categories:
- text-to-image
tags:
- synthetic
- stable-diffusion
- batchgen
size_categories:
- {_size_category(images)}
configs:
- config_name: default
  {layout.card_config}
---

# A dataset of generated images

{images:,} images made by batchgen {__version__} with {", ".join(map(_public, models))}.{failures}

- `{layout.glob}`: one row an image, with the prompt, the seed and every parameter that was applied.{_paths(dataset)}
- `failures/`: rows that could not be made, with the reason.
- `.batchgen/`: state by which a run resumes; readers skip it.

{_in_a_bucket(dataset) if is_remote(dataset.uri) else _in_a_folder(dataset)}"""
    dataset.store.write("README.md", card.encode())


def _paths(dataset: Dataset) -> str:
    if (path := _path_column(dataset)) is None:
        return ""
    return f"""
- `{path}` says where in this folder a row's image lies, `{dataset.layout.image.name}` the same from the folder of
  its table, by which `datasets` finds it."""


def _path_column(dataset: Dataset) -> str | None:
    """The column that leads to a row's image, where the output has it."""
    path = dataset.layout.image_path
    return None if path is None or path.name not in dataset.format.schema.names else path.name


def _in_a_folder(dataset: Dataset) -> str:
    path, tables = _path_column(dataset), dataset.layout.glob
    pandas, polars, sql = (
        ("", "", "")
        if path is None
        else (
            f'\nimages = folder + "/" + frame["{path}"]',
            f'.with_columns(image=folder + "/" + polars.col("{path}"))',
            f", 'PATH OF THIS FOLDER/' || {path} AS image",
        )
    )
    return f"""```python
folder = "PATH OF THIS FOLDER"

from datasets import load_dataset
dataset = load_dataset(folder, split="train")

from glob import glob
import pandas
frame = pandas.concat(map(pandas.read_parquet, glob(f"{{folder}}/{tables}"))){pandas}

import polars
table = polars.read_parquet(f"{{folder}}/{tables}"){polars}

import batchgen
for row, image in batchgen.open_dataset(folder).images():
    print(row.cells["prompt"], image.size)
```

```sql
SELECT prompt, seed, guidance_scale{sql} FROM 'PATH OF THIS FOLDER/{tables}';
```
"""


def _in_a_bucket(dataset: Dataset) -> str:
    path, tables, protocol = _path_column(dataset), dataset.layout.glob, dataset.uri.partition("://")[0]
    image = "" if path is None else f""", '{{folder}}/' || {path} AS image"""
    whole = (
        "# `datasets` follows no file names into a bucket"
        if dataset.layout.in_marker == frozenset()
        else f"""from datasets import load_dataset
dataset = load_dataset("parquet", data_files=f"{{folder}}/{tables}", split="train", storage_options=options)"""
    )
    return f"""Credentials and the endpoint come from the environment (`AWS_*`), or are fsspec's `options`.

```python
import fsspec
folder, options = {_quoted(without_secrets(dataset.uri))}, {{}}
store = fsspec.filesystem("{protocol}", **options)

{whole}

import pandas
tables = [store.unstrip_protocol(key) for key in store.glob(f"{{folder}}/{tables}")]
frame = pandas.concat(pandas.read_parquet(table, storage_options=options) for table in tables)

import polars
table = polars.read_parquet(f"{{folder}}/{tables}")

import duckdb
database = duckdb.connect()
database.register_filesystem(store)
rows = database.sql(f"SELECT prompt, seed{image} FROM '{{folder}}/{tables}'")

import batchgen
for row, image in batchgen.open_dataset(folder, options).images():
    print(row.cells["prompt"], image.size)
```
"""


def _public(model: str) -> str:
    """A model's name, of a local one without its place, and without what Markdown, HTML or YAML would read."""
    name = without_secrets(model)
    if name.startswith(("/", "~", ".")) or "://" in name:
        name = PurePosixPath(name).name
    return re.sub(r"[^\w.@/+ -]", "_", name) or "a local model"


def _quoted(text: str) -> str:
    """Text as Python and JSON write it, without what would end a block of code in Markdown."""
    return json.dumps(text, ensure_ascii=False).replace("`", "\\u0060")


def _size_category(images: int) -> str:
    bounds = (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
    )
    return next((name for bound, name in bounds if images < bound), "n>10M")
