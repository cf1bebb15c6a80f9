"""A job's rows, resolved and checked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from batchgen.dataset.begun import begun_with
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.fit import fit_to_output
from batchgen.dataset.kept import take_resolved
from batchgen.driver.output import mark_recorded, reach, require_columns, shortcomings, wanted_format
from batchgen.errors import ManifestProblems
from batchgen.index import Index
from batchgen.job import Job
from batchgen.manifest.problems import ProblemLog
from batchgen.models.catalog import NOT_BEGUN
from batchgen.resolve import Resolved, resolve
from batchgen.scoring.asked import require_groups, require_scorable
from batchgen.storage import Store
from batchgen.trials import try_schedulers

__all__ = ["CheckedJob", "check", "resolved_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedJob:
    """What a job without problems asks for."""

    rows: int  # images to make
    files: Sequence[str]  # of the manifest
    notices: Sequence[str]  # lines that are worth reading: columns by another name, what was filled in


def check(job: Job, *, output: bool = False) -> CheckedJob:
    """Check every row of a job; no model is loaded and nothing is written.

    Args:
        job: what to check.
        output: whether its output would take the rows, too.

    Raises:
        ManifestProblems: rows that cannot be made; all of them are in it.
        InputError: the job, the manifest as a whole or the output cannot be used.
        StoreError: the output cannot be reached.
    """
    store = reach(job) if output else None
    with resolved_rows(job, store, afresh=True) as (index, resolved):
        rows, notices = index.counts().total, list(resolved.notices)
        if store is not None and rows:
            wanted = wanted_format(job, resolved)
            dataset = Dataset.begin(store, wanted, create=False)
            notices += shortcomings(dataset, wanted, resolved)
            require_columns(dataset, wanted, index)
        return CheckedJob(rows=rows, files=resolved.files, notices=notices)


@contextmanager
def resolved_rows(job: Job, output: Store | None = None, *, afresh: bool = False) -> Iterator[tuple[Index, Resolved]]:
    """The job's rows in an index on disk.

    Args:
        job: what to make.
        output: what they are made for, with the defaults and types that it was begun with; rows may lie there that an
            earlier run resolved, and are taken where nothing changed since. What it has recorded is not refused for its
            scheduler.
        afresh: take no such rows.

    Raises:
        ManifestProblems: rows that cannot be made; all of them are in it.
        InputError: the job or the manifest as a whole cannot be used.
    """
    require_scorable(job)
    with Index() as index:
        if output is not None and not afresh and (kept := take_resolved(output, job, index)) is not None:
            found = fit_to_output(kept, output, index)
            require_groups(job, wanted_format(job, found))
            yield index, found
            return
        problems = ProblemLog()
        resolved = resolve(job, index, problems, NOT_BEGUN if output is None else begun_with(output))
        try_schedulers(index, resolved.models, problems, survey=partial(mark_recorded, output, index))
        if problems.total:
            raise ManifestProblems(problems)
        resolved = resolved if output is None else fit_to_output(resolved, output, index)
        require_groups(job, wanted_format(job, resolved))
        yield index, resolved
