"""The dataset card, README.md: what a dataset is, and where readers find it."""

from collections.abc import Sequence

from batchgen.dataset.dataset import Dataset
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

{images:,} images made by batchgen {__version__} with {", ".join(models)}.{failures}

- `{layout.glob}`: one row an image, with the prompt, the seed and every parameter that was applied.
- `failures/`: rows that could not be made, with the reason.
- `.batchgen/`: state by which a run resumes; readers skip it.

```python
from datasets import load_dataset
dataset = load_dataset("PATH OF THIS FOLDER", split="train")
```

```sql
SELECT prompt, seed, guidance_scale FROM '{layout.glob}';
```
"""
    dataset.store.write("README.md", card.encode())


def _size_category(images: int) -> str:
    bounds = (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
    )
    return next((name for bound, name in bounds if images < bound), "n>10M")
