"""Adapters are looked up, and held against the model."""

from batchgen.errors import CellError
from batchgen.generation.rules.draft import Draft, Problems
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.models.adapters import ADAPTERS, find_adapters

__all__ = ["adapter_rule"]

_UNPAIRED = sorted({column.name for column in COLUMNS.values() if column.kind is Kind.ADAPTER} ^ ADAPTERS.keys())
assert not _UNPAIRED, (
    f"{', '.join(_UNPAIRED)}: an adapter column is an entry of COLUMNS in manifest/columns.py and one of ADAPTERS in "
    "models/adapters.py; add the one that is missing"
)


def adapter_rule(draft: Draft) -> Problems:
    """What cells name by a path becomes what is applied and recorded: path, hash, scale, token."""
    for column in ADAPTERS:
        if draft.values.get(column) is None:
            continue
        try:
            draft.values[column] = find_adapters(column, draft.values[column], draft.model, draft.defaults.adapters)
        except CellError as error:
            yield column, str(error)
