"""What an image says of how it was made: cells of a manifest, and what has no column. Knows no format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchgen.errors import CellError, UnknownSampler
from batchgen.generation.samplers import find_sampler
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.values import parse_cell, scheduled

__all__ = ["Said"]


@dataclass(slots=True)
class Said:
    """The cells of a row, filled in one after the other; what does not fit is kept apart."""

    cells: dict[str, Any] = field(default_factory=dict)  # by column; `source_...` are carried
    unread: list[str] = field(default_factory=list)  # as it stands in the image

    def take(self, column: str, value: Any, spelled: str) -> None:
        """A value for a column; one that the column does not take is unread.

        Args:
            column: of the contract.
            value: text or number; None says nothing.
            spelled: its name in the image.
        """
        if value is None or value == "":
            return
        try:
            self.cells[column] = parse_cell(COLUMNS[column], value, from_text=isinstance(value, str))
        except CellError as error:
            self.unread.append(f"{spelled} {error}")

    def take_all(self, values: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        """Take the values whose names stand for columns, and out of the mapping no others."""
        for name, column in columns.items():
            self.take(column, values.get(name), name)

    def take_sampler(self, sampler: Any, schedule: Any = None) -> None:
        """A sampler by another program's name, and the schedule of its noise levels."""
        if not isinstance(sampler, str) or not sampler:
            return
        try:
            name = sampler if schedule is None else scheduled(sampler, schedule)
            find_sampler(name)
        except (CellError, UnknownSampler):
            beside = "" if schedule is None else f", schedule {schedule}"
            self.unread.append(f"sampler {sampler}{beside}")
        else:
            self.cells["scheduler"] = name

    def take_size(self, text: Any) -> None:
        """A size as `512x768`, width first."""
        if isinstance(text, str) and (match := re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", text)):
            self.take("width", match[1], "width")
            self.take("height", match[2], "height")

    def lacks(self, what: str) -> None:
        """Something that is needed to make the image and that it does not hold."""
        self.unread.append(what)
