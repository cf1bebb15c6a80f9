"""One row of a manifest as its file has it. Knows nothing of formats and of what a column means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Notice", "Record", "no_notice", "without_nulls"]

Notice = Callable[[str], None]
"""Takes a line that is worth reading; equal lines count once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row as the file has it; cells that are null are left out."""

    file: str
    number: int  # 1-based, header not counted
    cells: Mapping[str, Any]
    columns: frozenset[str]  # names of all columns of the file (JSONL: of this line), null here or not
    from_text: bool  # the format has no types of its own
    declared: bool = True  # the file says which columns it has
    partitions: Mapping[str, str] = field(default_factory=dict)  # cells that folder names give, as they are written


def no_notice(line: str) -> None:
    """Takes notices where nobody reads them."""


def without_nulls(cells: Mapping[str, Any]) -> dict[str, Any]:
    """The cells that are not null."""
    return {name: cell for name, cell in cells.items() if cell is not None}
