"""What is left to score: the units of a scoring run, from what its tables say; and what it cannot begin with."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from batchgen.dataset.dataset import READERS, Dataset
from batchgen.dataset.format import OutputFormat
from batchgen.errors import InputError
from batchgen.manifest.names import near_or_known
from batchgen.scoring.groups import find_members, is_current, read_table
from batchgen.scoring.metrics import Metric
from batchgen.scoring.models import ScoringModel
from batchgen.scoring.reference import PART, Reference, identity_of_features, kept_parts
from batchgen.scoring.tables import MARKER_COLUMNS, identity_of, print_of_rows, read_about, says
from batchgen.scoring.units import ReferenceUnit, ScoreUnit, SetsUnit

__all__ = ["Models", "paired_with", "reference_units", "require_columns", "score_units", "sets_units"]

Models = Mapping[str, Mapping[str, ScoringModel]]
"""By metric, by part."""


def require_columns(format_: OutputFormat, by: Sequence[str], sets: Sequence[Metric]) -> None:
    """Refuse columns that an output of this format has not, and those that group nothing.

    Raises:
        InputError: there are such.
    """
    if by and not sets:
        raise InputError("--by groups images for metrics of sets; give --metric fid or --metric kid, too")
    known = [name for name in format_.schema.names if name not in format_.layout.in_marker]
    for name in by:
        if name not in known:
            raise InputError(f"--by {name!r}: there is no such column; {near_or_known(name, known)}")


def paired_with(dataset: Dataset, models: Models) -> Iterator[str]:
    """How many images have a real one of their name.

    Raises:
        InputError: none has.
    """
    if "lpips" not in models:
        return
    ids, model = dataset.to_table(["id"])["id"].to_pylist(), models["lpips"]["reference"]
    names = Reference.open(model.place).names
    found = sum(id_ in names for id_ in ids)
    if ids and not found:
        raise InputError(f"--reference {model.name}: no image there has a row's id for its name, such as {ids[0]}.png")
    if found < len(ids):
        yield f"lpips: {found:,} of {len(ids):,} rows have a real image of their name"


def score_units(dataset: Dataset, metrics: Sequence[Metric], models: Models) -> Iterator[ScoreUnit]:
    """The shards, each with the metrics whose tables are missing, of other rows or models, or not whole."""
    wanted = {metric.name: identity_of(metric, models[metric.name]) for metric in metrics}

    def lacking(shard: str) -> ScoreUnit | None:
        if (marker := dataset.marker(shard, columns=MARKER_COLUMNS)) is None:
            return None
        rows = print_of_rows(marker.table)
        missing = tuple(
            name
            for name, identity in wanted.items()
            if not says(read_about(dataset.store, name, shard), {**identity, "rows": rows, "failed": 0})
        )
        return ScoreUnit(shard=shard, rows=marker.table.num_rows, metrics=missing) if missing else None

    with ThreadPoolExecutor(READERS) as pool:
        yield from (unit for unit in pool.map(lacking, dataset.shards()) if unit is not None)


def reference_units(dataset: Dataset, sets: Sequence[Metric], models: Models) -> Iterator[ReferenceUnit]:
    """The parts of the real images whose features are not stored."""
    if not sets:
        return
    own = models[sets[0].name]
    keys = sorted(Reference.open(own["reference"].place).names.values())
    done = kept_parts(dataset.store, identity_of_features(own["features"].fingerprint, own["reference"].fingerprint))
    for part, start in enumerate(range(0, len(keys), PART)):
        if part not in done:
            yield ReferenceUnit(part=part, keys=tuple(keys[start : start + PART]))


def sets_units(dataset: Dataset, sets: Sequence[Metric], models: Models, by: Sequence[str]) -> list[SetsUnit]:
    """The metrics of sets whose tables are missing, or of other rows, groups, images or models."""
    if not sets:
        return []
    members = find_members(dataset, by)
    missing = tuple(
        metric.name
        for metric in sets
        if not is_current(read_table(dataset, metric, by), metric, models[metric.name], members)
    )
    return [SetsUnit(metrics=missing, by=tuple(by))] if missing else []
