"""What an evaluator elsewhere said of an output's images, brought back as side tables like those of any metric."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from batchgen.dataset.dataset import Dataset, open_dataset
from batchgen.errors import InputError, ManifestProblems
from batchgen.manifest.files import manifest_files, records
from batchgen.manifest.problems import ProblemLog
from batchgen.scoring.metrics import METRICS, Family, Metric
from batchgen.scoring.tables import forget_shards, write_all_scores

__all__ = ["Joined", "join_results"]

_FILE = "filename"  # what evaluators call an image's path
_KEYS = frozenset({"id", "fingerprint", _FILE})
_LIST = "rows.csv"  # of an export
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """What found its row."""

    name: str
    columns: Sequence[str]
    results: int
    joined: int  # rows of the output
    unknown: int  # results of no row that the output has, or of another image of it


def join_results(
    uri: str,
    results: str,
    *,
    name: str | None = None,
    exported: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Joined:
    """Write results into `scores/<name>/`, over what was joined by that name before.

    Numbers, and truth values as 1 and 0, become numbers, all else text. A column that the output has, too, is left out.

    Args:
        uri: the output.
        results: a table with `id`, or with `filename` of an export's images.
        name: of the side table and the beginning of its columns' names; the file's own where None.
        exported: the folder of that export.
        storage_options: of the output, over what the environment says.

    Raises:
        InputError: no such output, or results that cannot be read or belong to none of its rows.
        StoreError: something cannot be read or written.
    """
    name = _checked_name(name, results)
    dataset = open_dataset(uri, storage_options)
    rows, is_text = _records(results)
    places = _places(exported) if exported is not None else None
    found: dict[str, tuple[str | None, Mapping[str, Any]]] = {}
    for number, cells in enumerate(rows, 1):
        id_, fingerprint = _row_of(results, number, cells, places)
        if id_ in found:
            raise InputError(f"{results} row {number}: a second result of {id_!r}; an image has one")
        found[id_] = fingerprint, cells
    columns = _columns(name, rows, [*dataset.format.schema.names, *_KEYS], is_text=is_text)
    if not columns:
        raise InputError(f"{results}: no column but those that name the image, or that the output has already")
    metric = Metric(
        name=name,
        columns=dict(columns.values()),
        family=Family.ELSEWHERE,
        about="",
        source=results,
    )
    known = {id_: print_ for id_, print_ in _prints(dataset) if id_ in found}
    joined = {id_: found[id_][1] for id_, print_ in known.items() if found[id_][0] in (None, print_)}
    if not joined:
        raise InputError(f"{results}: none of its {len(rows):,} results is of an image that {dataset.uri} has")
    _write(dataset, metric, {id_: _scores(cells, columns) for id_, cells in joined.items()})
    unknown = len(rows) - len(joined)
    return Joined(name=name, columns=list(metric.columns), results=len(rows), joined=len(joined), unknown=unknown)


def _checked_name(name: str | None, results: str) -> str:
    given = name or re.sub(r"\W+", "_", PurePosixPath(results).name.split(".")[0].lower()).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", given):
        raise InputError(f"--name {given!r}: wants small letters, digits and underscores, a letter first")
    if given in METRICS:
        raise InputError(f"--name {given}: is a metric of `score`; name it otherwise")
    return given


def _records(results: str) -> tuple[list[Mapping[str, Any]], bool]:
    """The cells of all results, without nulls, and whether their format has no types of its own."""
    problems = ProblemLog()
    read = [record for file in manifest_files(results) for record in records(file, problems)]
    if problems.total:
        raise ManifestProblems(problems)
    return [record.cells for record in read], all(record.from_text for record in read)


def _places(exported: str) -> dict[str, tuple[str, str]]:
    """Id and fingerprint by the place of an image in an export."""
    cells, _ = _records(f"{exported.rstrip('/')}/{_LIST}")
    return {row[_FILE]: (row["id"], row["fingerprint"]) for row in cells}


def _row_of(
    results: str, number: int, cells: Mapping[str, Any], places: Mapping[str, tuple[str, str]] | None
) -> tuple[str, str | None]:
    """Whose result it is: id, and fingerprint where it is known."""
    if places is None:
        if "id" not in cells:
            hint = "; give --exported with the folder that was evaluated" if _FILE in cells else ""
            raise InputError(f"{results} row {number}: has no id{hint}")
        return str(cells["id"]), cells.get("fingerprint")
    parts = PurePosixPath(str(cells.get(_FILE, ""))).parts
    for start in range(len(parts)):
        if (found := places.get("/".join(parts[start:]))) is not None:
            return found
    raise InputError(
        f"{results} row {number}: {_FILE} {cells.get(_FILE)!r} is no image of the export; check --exported"
    )


def _columns(
    name: str, rows: Sequence[Mapping[str, Any]], taken: Sequence[str], *, is_text: bool
) -> dict[str, tuple[str, Literal["number", "text"]]]:
    """For each column of the results its name and kind in the side table."""
    kinds: dict[str, bool] = {}
    for cells in rows:
        for column, cell in cells.items():
            if column not in taken:
                kinds[column] = kinds.get(column, True) and _number(cell, is_text=is_text) is not None
    return {
        column: (column if column.startswith(name) else f"{name}_{column}", "number" if is_number else "text")
        for column, is_number in kinds.items()
    }


def _number(cell: Any, *, is_text: bool = True) -> float | None:
    """A cell as a number; None where it is none."""
    if isinstance(cell, str):
        if not is_text:
            return None
        if cell.lower() in _TRUTH:
            return _TRUTH[cell.lower()]
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _scores(
    cells: Mapping[str, Any], columns: Mapping[str, tuple[str, Literal["number", "text"]]]
) -> dict[str, float | str | None]:
    scores: dict[str, float | str | None] = {}
    for column, (name, kind) in columns.items():
        cell = cells.get(column)
        if kind == "number" or cell is None or isinstance(cell, str):
            scores[name] = None if cell is None else _number(cell) if kind == "number" else cell
        else:
            scores[name] = json.dumps(cell, ensure_ascii=False, default=str)
    return scores


def _prints(dataset: Dataset) -> Iterator[tuple[str, str]]:
    table = dataset.to_table(["id", "fingerprint"])
    return zip(table["id"].to_pylist(), table["fingerprint"].to_pylist(), strict=True)


def _write(dataset: Dataset, metric: Metric, scores: Mapping[str, Mapping[str, Any]]) -> None:
    """A side table for each shard, so that all of them have one schema."""
    forget_shards(dataset, metric.name)
    write_all_scores(dataset, metric, lambda id_: scores.get(id_, {}), lambda _cells: {"results": metric.source})
