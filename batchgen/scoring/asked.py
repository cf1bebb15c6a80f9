"""Whether what a job's table [score] asks for can be done, before anything is made."""

from batchgen.dataset.format import OutputFormat
from batchgen.errors import InputError
from batchgen.job import Job
from batchgen.scoring.metrics import Family, find_metrics
from batchgen.scoring.models import find_models
from batchgen.scoring.pending import require_columns

__all__ = ["require_groups", "require_scorable"]


def require_scorable(job: Job) -> None:
    """Refuse metrics that there are not, and models that are not at hand.

    Raises:
        InputError: there are such; a line for each.
    """
    if job.score is None:
        return
    try:
        find_models(find_metrics(job.score.metrics), job.score.named_models(), allow_pickle=job.allow_pickle)
    except InputError as error:
        raise InputError("\n".join(f"[score] {line}" for line in str(error).splitlines())) from None


def require_groups(job: Job, wanted: OutputFormat) -> None:
    """Refuse columns to group images by that the output will not have.

    Raises:
        InputError: there are such.
    """
    if job.score is None:
        return
    sets = [metric for metric in find_metrics(job.score.metrics) if metric.family is Family.SETS]
    try:
        require_columns(wanted, job.score.by, sets)
    except InputError as error:
        raise InputError(f"[score] {error}") from None
