"""What a layout of another program says of an output."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Placed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Where everything goes, by key below the export's folder."""

    keys: Mapping[str, str]  # of images, by the row's id
    texts: Mapping[str, str]  # of the files beside them
