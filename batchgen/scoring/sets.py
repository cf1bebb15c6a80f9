"""Metrics of sets, as a worker computes them: each group of an output's rows against the real images."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from batchgen.dataset.dataset import Dataset
from batchgen.errors import InputError
from batchgen.scoring.groups import Group, Members, find_members, write_groups
from batchgen.scoring.metrics import METRICS
from batchgen.scoring.models import ScoringModel
from batchgen.scoring.reference import identity_of_features, read_parts
from batchgen.scoring.tables import identity_of, read_vectors
from batchgen.version import __version__

__all__ = ["write_sets"]

_LEAST = 2  # images of a set: one has no variance


def write_sets(
    dataset: Dataset,
    metrics: Sequence[str],
    by: Sequence[str],
    models: Mapping[str, Mapping[str, ScoringModel]],
    compared: Callable[[], None],
) -> int:
    """Store each metric's table of groups by these columns; returns the number of groups.

    Args:
        dataset: the output, whose features are stored.
        metrics: of sets.
        by: columns.
        models: by metric, by part.
        compared: called after each group, for each metric.

    Raises:
        InputError: too few of the real images can be read.
        StoreError: something cannot be read or written.
    """
    from batchgen.scoring.distances import distance

    members = find_members(dataset, by)
    made, places = _features(dataset, members)
    for name in metrics:
        own = models[name]
        real = read_parts(
            dataset.store, identity_of_features(own["features"].fingerprint, own["reference"].fingerprint)
        )
        if len(real) < _LEAST:
            raise InputError(f"{own['reference'].name}: only {len(real)} of its images can be read")
        groups = []
        for labels, found in places.items():
            enough = len(found) >= _LEAST
            error = None if enough else f"{len(found)} images have features; a set has at least {_LEAST}"
            values, scores = dict(zip(by, labels, strict=True)), distance(name, real, made[found]) if enough else {}
            groups.append(Group(values=values, rows=len(found), scores=scores, error=error))
            compared()
        said = {
            **identity_of(METRICS[name], own),
            "model_names": {part: model.name for part, model in own.items()},
            "rows": members.digest,
            "reference_images": len(real),
            "dimensions": real.shape[1],
            "batchgen": __version__,
        }
        write_groups(dataset, METRICS[name], by, groups, said)
    return len(places)


def _features(
    dataset: Dataset, members: Members
) -> tuple[npt.NDArray[np.float32], Mapping[tuple[str, ...], npt.NDArray[np.int64]]]:
    """Features of all rows that have some, and which of them are each group's."""
    keys, vectors = read_vectors(dataset, "features")
    known = {key: place for place, key in enumerate(keys)}
    rows = list(zip(members.ids, members.fingerprints, strict=True))
    return vectors, {
        labels: np.array([known[rows[place]] for place in places if rows[place] in known], dtype=np.int64)
        for labels, places in members.places.items()
    }
