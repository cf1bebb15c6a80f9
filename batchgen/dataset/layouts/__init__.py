"""The layouts of an output, by name: each is a class in a module of its own."""

from collections.abc import Mapping

from batchgen.dataset.layouts.files import FilesLayout
from batchgen.dataset.layouts.layout import DatasetLayout
from batchgen.dataset.layouts.parquet import ParquetLayout
from batchgen.errors import InputError

__all__ = ["LAYOUTS", "find_layout"]

LAYOUTS: Mapping[str, DatasetLayout] = {layout.name: layout for layout in (FilesLayout(), ParquetLayout())}
"""One for each value of `options.Layout`."""


def find_layout(name: str) -> DatasetLayout:
    """The layout of that name.

    Raises:
        InputError: there is none; the output is of a newer batchgen.
    """
    if name not in LAYOUTS:
        raise InputError(f"there is no layout {name!r}, only {', '.join(LAYOUTS)}; was it made by a newer batchgen?")
    return LAYOUTS[name]
