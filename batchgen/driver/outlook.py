"""What a run would do, counted up."""

from collections import Counter
from dataclasses import replace

from batchgen.dataset.carried import compare_carried
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.progress import Damages
from batchgen.dataset.runs import latest_run
from batchgen.driver.output import count_live, reach, require_columns, shortcomings, sizing_of, survey, wanted_format
from batchgen.driver.resolved import resolved_rows
from batchgen.engine.capacity import Capacity
from batchgen.estimate import Measured, PlanSummary, summarize
from batchgen.job import Job
from batchgen.sharding import Kind, shard_notices

__all__ = ["plan"]


def plan(job: Job) -> PlanSummary:
    """What `run` would do, counted up; nothing is written and no model is loaded."""
    store = None if job.output is None else reach(job)
    with resolved_rows(job, store) as (index, resolved):
        outdated, notices = 0, list(resolved.notices)
        here = Capacity.of_this_machine()
        device = here.device(job.device, waits=True)  # on another machine there may be a GPU
        measured, recorded, computed = Measured(device), None, Counter[Kind]()
        if store is not None and index.counts().total:
            wanted = wanted_format(job, resolved)
            dataset = Dataset.begin(store, wanted, create=False)
            notices += shortcomings(dataset, wanted, resolved)
            damages = Damages()
            survey(dataset, index, measured, repair=False, damages=damages)
            require_columns(dataset, wanted, index)
            recorded = latest_run(store, damages)
            notices += damages.notices()
            computed = count_live(store, measured, recorded)
            outdated = compare_carried(dataset, index)
        workers = here.workers(device, job.workers)
        sizing = sizing_of(job, index, resolved.models, device, workers, measured, recorded)
        summary = summarize(
            index.groups(),
            sizing,
            measured,
            job.layout,
            job.format,
            failed=index.counts().failed,
            outdated=outdated,
            computed=computed,
        )
        notices += shard_notices((group.key for group in index.groups() if group.pending), sizing)
        return replace(summary, notices=notices)
