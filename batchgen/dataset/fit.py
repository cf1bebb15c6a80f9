"""Carried columns of a manifest as an output has them that was begun with other types for the same values.

pandas writes whole numbers as int64 one night and, with a gap, as float64 the next; other writers have texts of three
kinds. Knows nothing of shards.
"""

from dataclasses import replace

import pyarrow as pa

from batchgen.dataset.dataset import Dataset
from batchgen.errors import InputError, ManifestProblems
from batchgen.index import Index
from batchgen.manifest.arrow import common_type
from batchgen.manifest.problems import ProblemLog
from batchgen.resolve import Resolved, misfits
from batchgen.storage import Store

__all__ = ["fit_to_output"]


def fit_to_output(resolved: Resolved, store: Store, index: Index) -> Resolved:
    """What was resolved, with the output's types for carried columns whose every cell they hold exactly.

    Columns of another kind stay as they are, for the output to refuse.

    Raises:
        ManifestProblems: cells that a column of the same kind does not hold exactly.
    """
    try:
        stored = Dataset.open(store).format.carried
    except InputError:  # nothing is there yet
        return resolved
    differing = {
        name: stored[name] for name, kind in resolved.carried.items() if name in stored and stored[name] != kind
    }
    if not differing:
        return resolved
    alike = {name for name, kind in differing.items() if common_type(kind, resolved.carried[name]) is not None}
    problems = ProblemLog()
    for name, file, number, why in misfits(index, {name: differing[name] for name in alike}):
        problems.add(file, number, name, f"{why}; {store.uri} was begun with that type, use another output")
    if problems.total:
        raise ManifestProblems(problems)
    rows = index.encoded() if len(alike) < len(differing) else ()
    filled = {name for _, _, cells in rows for name, cell in cells.items() if cell == cell}  # NaN marks a gap
    fitting: dict[str, pa.DataType] = {
        name: kind for name, kind in differing.items() if name in alike or name not in filled
    }
    return replace(resolved, carried={**resolved.carried, **fitting})
