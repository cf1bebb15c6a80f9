#!/usr/bin/env python
"""Writes the table of columns in README.md from the column contract: `python manifests/make_columns.py`."""

from pathlib import Path

from batchgen.generation.tasks import TASKS
from batchgen.manifest.columns import COLUMNS, WORDING, Column, Kind
from batchgen.manifest.names import ALIASES
from batchgen.options import Family

BEGIN, END = "<!-- made by make_columns.py -->\n", "<!-- end of what make_columns.py makes -->\n"
README = Path(__file__).parent / "README.md"


def with_columns(text: str) -> str:
    """The README's text with the table of columns as the contract has it now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + columns_table() + END + rest.split(END)[1]


def columns_table() -> str:
    """A line for each column."""
    lines = ["| column | type | default | range | taken by |", "|---|---|---|---|---|"]
    for column in COLUMNS.values():
        others = ", ".join(f"`{alias}`" for alias, name in ALIASES.items() if name == column.name)
        name = f"`{column.name}`" + (f" [{others}]" if others else "")
        kind = {Kind.IMAGE: "image", Kind.ADAPTER: "adapter"}.get(column.kind, WORDING[column.kind])
        cells = (name, f"{kind}: {column.about}", _default(column), _range(column), _takers(column))
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _default(column: Column) -> str:
    if column.default is None:
        return column.absent
    if isinstance(column.default, bool):
        return str(column.default).lower()
    return f"`{column.default}`" if isinstance(column.default, str) else f"{column.default:g}"


def _range(column: Column) -> str:
    if column.choices:
        return ", ".join(f"`{choice}`" for choice in column.choices)
    if column.low is None:
        return ""
    low = f"{column.low:,g}"
    high = None if column.high is None else "2^63 - 1" if column.high == 2**63 - 1 else f"{column.high:,g}"
    bounds = f"at least {low}" if high is None else f"{low} to {high}"
    return bounds if column.multiple_of is None else f"multiples of {column.multiple_of}, {bounds}"


def _takers(column: Column) -> str:
    tasks = [f"`{task}`" for task in TASKS if task in column.tasks]
    others = [f"`{task}`" for task in TASKS if column.tasks and task not in column.tasks]
    text = ", ".join(tasks) if len(tasks) <= len(others) else f"all but {', '.join(others)}"
    families = [family for family in Family if family in column.families]
    missing = [family for family in Family if column.families and family not in column.families]
    if families and len(families) <= len(missing):
        return f"{text} with {' or '.join(families)}"
    return ", ".join(part for part in (text, *(f"not {family}" for family in missing)) if part)


if __name__ == "__main__":
    README.write_text(with_columns(README.read_text(encoding="utf-8")), encoding="utf-8")
