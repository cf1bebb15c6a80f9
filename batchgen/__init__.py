"""Turn a table of prompts into an image dataset: Stable Diffusion on Ray, resumable, to any object store.

The functions here are what the command line calls. Each imports what it needs when it is called, so that importing the
package costs nothing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batchgen.version import __version__

if TYPE_CHECKING:
    from batchgen.dataset.dataset import Dataset
    from batchgen.driver import CheckedJob, Reporter
    from batchgen.estimate import PlanSummary
    from batchgen.index import Counts
    from batchgen.job import Job

__all__ = ["__version__", "check", "load_job", "open_dataset", "plan", "run"]


def load_job(source: str, **settings: Any) -> "Job":
    """The job of a job file, or of a manifest alone with every setting at its default.

    Args:
        source: a `.toml` file, or a manifest: a `.parquet`, `.csv`, `.tsv`, `.jsonl`, `.json` or `.txt`
            file, a folder or a glob of them.
        settings: keys of a job file, laid over those of the file: `output="out/cats"`, `defaults={"steps": 30}`.

    Raises:
        InputError: unreadable, unknown keys, or values of the wrong type; all at once.
    """
    from batchgen.job import load_job as load

    return load(source, **settings)


def check(job: "Job") -> "CheckedJob":
    """Check every row of a job; no model is loaded and nothing is written.

    Raises:
        ManifestProblems: rows that cannot be made; `log` holds them with file, row and column.
        InputError: the job or the manifest as a whole cannot be used.
    """
    from batchgen.driver import check as check_job

    return check_job(job)


def plan(job: "Job") -> "PlanSummary":
    """What `run` would do, counted up: rows, shards, bytes, time. Nothing is written and no model is loaded.

    Raises:
        InputError: what `check` raises, or an output that was begun with other settings.
        StoreError: the output cannot be reached.
    """
    from batchgen.driver import plan as plan_job

    return plan_job(job)


def run(job: "Job", *, limit: int | None = None, reporter: "Reporter | None" = None) -> "Counts":
    """Generate what is not yet in the job's output, score it where the job says so, and return when all is there.

    A second call does nothing, one after a kill resumes. Ray is started and stopped, unless the job or
    RAY_ADDRESS names a cluster, or has no workers: then this process makes the images, for one run at a time.
    In the main thread, Ctrl-C and SIGTERM let the shards in work finish.

    Args:
        job: what to make; it needs an output.
        limit: make at most so many images in this call.
        reporter: reports how it goes; None shows progress on stderr, as the command does.

    Returns:
        How many of the manifest's rows are done, failed and left; failed rows are in the output's `failures/`.

    Raises:
        InputError: what `check` raises, or an output that was begun with other settings; nothing was started.
        Interrupted: a signal or a limit of the job stopped the run; the same call goes on.
        OutputBusy: another run is writing to the output, or has taken it over from this one.
        InfrastructureError: store, cluster or model failed.
    """
    from batchgen.driver import run as run_job
    from batchgen.scores import score_made

    if reporter is None:
        from batchgen.report.display import PlainConsole, RunDisplay

        reporter = RunDisplay(PlainConsole(stderr=True))
    counts = run_job(job, source=job.manifest, limit=limit, reporter=reporter)
    if counts.done:
        score_made(job, reporter.notice)
    return counts


def open_dataset(uri: str, storage_options: Mapping[str, Any] | None = None) -> "Dataset":
    """The dataset at a path or URI, finished or not; nothing is written to it.

    Args:
        uri: a local folder, s3://bucket/prefix, or a URI of another protocol that fsspec knows.
        storage_options: passed to the fsspec file system over what the environment says.

    Raises:
        InputError: there is no dataset of batchgen.
        StoreError: the store cannot be reached.
    """
    from batchgen.dataset.dataset import open_dataset as open_at

    return open_at(uri, storage_options)
