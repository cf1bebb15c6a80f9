"""The dataset card, README.md: what a dataset is, and where readers find it; how they open it its layout says."""

import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from batchgen.dataset.dataset import Dataset
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.errors import without_secrets
from batchgen.places import is_remote
from batchgen.version import __version__

__all__ = ["write_card"]

_BATCHGEN = """
import batchgen
for row, image in batchgen.open_dataset(folder{options}).images():
    print(row.cells["prompt"], image.size)
"""


def write_card(dataset: Dataset, *, images: int, failed: int, models: Sequence[str]) -> None:
    """The dataset card, README.md: what the dataset is, and where readers find it."""
    layout, path = dataset.layout, _path_column(dataset)
    paths = "" if path is None else layout.card_paths
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

- `{layout.glob}`: one row an image, with the prompt, the seed and every parameter that was applied.{paths}
- `failures/`: rows that could not be made, with the reason.
- `.batchgen/`: state by which a run resumes; readers skip it.

{_in_a_bucket(layout, path, dataset.uri) if is_remote(dataset.uri) else _in_a_folder(layout, path)}"""
    dataset.store.write("README.md", card.encode())


def _path_column(dataset: Dataset) -> str | None:
    """The column that leads to a row's image, where the output has it."""
    path = dataset.layout.image_path
    return None if path is None or path.name not in dataset.format.schema.names else path.name


def _in_a_folder(layout: DatasetLayout, path: str | None) -> str:
    folder = "PATH OF THIS FOLDER"
    sql = layout.sql_in_folder(folder, path)
    return f"""```python
folder = "{folder}"

{layout.python_in_folder(path)}
{_BATCHGEN.format(options="")}```
""" + (f"\n```sql\n{sql}\n```\n" if sql else "")


def _in_a_bucket(layout: DatasetLayout, path: str | None, uri: str) -> str:
    return f"""Credentials and the endpoint come from the environment (`AWS_*`), or are fsspec's `options`.

```python
import fsspec
folder, options = {_quoted(without_secrets(uri))}, {{}}
store = fsspec.filesystem("{uri.partition("://")[0]}", **options)

{layout.python_in_bucket(path)}
{_BATCHGEN.format(options=", options")}```
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
