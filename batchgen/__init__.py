"""Turn a table of prompts into an image dataset: Stable Diffusion on Ray, resumable, to any object store."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchgen.version import __version__

if TYPE_CHECKING:
    from batchgen.dataset.dataset import Dataset

__all__ = ["__version__", "open_dataset"]


def open_dataset(uri: str, storage_options: Mapping[str, Any] | None = None) -> "Dataset":
    """The dataset at a path or URI, finished or not; nothing is written to it.

    Args:
        uri: a local folder, s3://bucket/prefix, or a URI of another protocol that fsspec knows.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        InputError: there is no dataset of batchgen.
        StoreError: the store cannot be reached.
    """
    from batchgen.dataset.dataset import open_dataset as open_at

    return open_at(uri, storage_options)
