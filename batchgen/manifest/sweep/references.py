"""What in a sweep refers to what: children to parents, prompts to parts; each exists, and none leads back to itself."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.names import suggest
from batchgen.manifest.sweep.axes import Axis, ByParent, Listed, label
from batchgen.manifest.sweep.sweep import PART, all_values, column_or_part, part_of, written

__all__ = ["check_names", "complaint", "meant", "near", "ordered_axes"]


def complaint(place: str, message: str) -> str:
    """A line about a place of the table."""
    return f"{place} {message}" if message.startswith(("is ", "has ", "takes ")) else f"{place}: {message}"


def ordered_axes(axes: Sequence[Axis], wrong: list[str]) -> list[Axis]:
    """The axes, each after the one that its values depend on; complaints go to `wrong`."""
    counts = Counter(name for axis in axes for name in axis.names)
    wrong += [complaint("[sweep]", f"{name!r} is an axis twice") for name, count in counts.items() if count > 1]
    ordered: list[Axis] = []
    left = list(axes)
    while left:
        known = {name for axis in ordered for name in axis.names}
        ready = [axis for axis in left if not isinstance(axis.source, ByParent) or axis.source.parent in known]
        if not ready:
            for axis in left:
                wrong += _refuse_parent(axis, axes)
            return ordered
        ordered += ready[:1]
        left.remove(ready[0])
    for axis in ordered:
        if isinstance(axis.source, ByParent):
            wrong += _check_parent(axis, axis.source, ordered)
    return ordered


def _refuse_parent(axis: Axis, axes: Sequence[Axis]) -> Iterator[str]:
    names = [name for one in axes for name in one.names]
    parent = axis.source.parent if isinstance(axis.source, ByParent) else ""
    if parent not in names:
        yield complaint(f"[sweep.axes] {axis.name}", f"is by {parent!r}, which is no axis{meant(parent, names)}")
    else:
        yield complaint(f"[sweep.axes] {axis.name}", f"is by {parent!r}, which depends on it in turn")


def _check_parent(axis: Axis, source: ByParent, axes: Sequence[Axis]) -> Iterator[str]:
    parent = next(one for one in axes if source.parent in one.names)
    match parent.source:
        case Listed(values, _):
            labels = {label(written(part_of(value, parent, source.parent))) for value in values}
        case ByParent(_, sources):
            lists = [one for one in sources.values() if isinstance(one, Listed)]
            labels = {label(written(value)) for one in lists for value in one.values}
        case _:
            yield complaint(f"[sweep.axes] {axis.name}", f"is by {parent.name!r}, whose values are not listed")
            return
    if missing := sorted(labels - source.sources.keys()):
        yield complaint(f"[sweep.axes] {axis.name}", f"has no values for {parent.name} {', '.join(missing)}")
    for value in sorted(source.sources.keys() - labels):
        said = f"has values for {value!r}, which {parent.name} never is{meant(value, labels)}"
        yield complaint(f"[sweep.axes] {axis.name}", said)


def check_names(axes: Sequence[Axis], cells: Mapping[str, Any]) -> Iterator[str]:
    """Each axis is a column, or a part that something refers to; and each reference leads to an axis or a cell."""
    names = [name for axis in axes for name in axis.names]
    for name in cells.keys() & set(names):
        yield complaint(f"[sweep.cells] {name}", "is an axis, too")
    references: dict[str, set[str]] = {name: set(_references(value)) for name, value in cells.items()}
    for axis in axes:
        for name in axis.names:
            references[name] = set(_references([part_of(value, axis, name) for value in all_values(axis.source)]))
    used = set().union(*references.values())
    for name in names:
        if name not in COLUMNS and name not in used:
            hint = near(name) or f"; as a part of a prompt it is written ${{{name}}}"
            yield complaint(f"[sweep.axes] {name}", f"is no column, and nothing refers to it{hint}")
    for name, parts in references.items():
        for part in sorted(parts - references.keys()):
            yield complaint(f"[sweep] {name}", f"has ${{{part}}}, which is no axis{meant(part, names)}")
    for name in references:
        if (loop := _loop(name, references)) is not None:
            yield complaint("[sweep]", f"{' > '.join(loop)} leads back to itself")
            return


def _references(value: Any) -> list[str]:
    """Names of the parts that a value refers to."""
    match written(value):
        case str(text):
            return [column_or_part(name) for name in PART.findall(text)]
        case list(values):
            return [name for one in values for name in _references(one)]
        case dict(values):
            return [name for one in values.values() for name in _references(one)]
        case _:
            return []


def _loop(name: str, references: Mapping[str, set[str]], path: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """The way from a name over what it refers to back to itself."""
    if name in path:
        return (*path[path.index(name) :], name)
    steps = (_loop(one, references, (*path, name)) for one in sorted(references.get(name, ())))
    return next((step for step in steps if step is not None), None)


def meant(name: str, known: Iterable[str]) -> str:
    """Which of the known names was meant, as the end of a line."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def near(name: str) -> str:
    """The same of the names of columns."""
    column = suggest(name)
    return f"; did you mean {column!r}?" if column else ""
