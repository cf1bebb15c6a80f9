"""Commands on a manifest or a job: run, validate, plan."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from batchgen.cli.shared import (
    OK,
    ROWS_FAILED,
    SourceCommand,
    address_option,
    choice,
    generation_options,
    json_option,
    model_option,
    named_job,
    say,
    say_json,
    stderr,
    stdout,
    strict_option,
)
from batchgen.errors import InputError, Interrupted, LeaseLost, OutputBusy
from batchgen.options import ImageFormat, Layout

if TYPE_CHECKING:
    from batchgen.index import Counts
    from batchgen.job import Job

__all__ = ["plan", "run", "validate"]


@click.command(cls=SourceCommand)
@click.argument("source")
@generation_options
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Make at most N images in this run.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Make N images that are spread over the axes, and a sheet of them.",
)
@click.option(
    "--sample-by", multiple=True, metavar="COLUMN", help="Spread them over this column instead; may be repeated."
)
@address_option
@click.option(
    "--on-busy",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="What to do where another run is writing to the output: exit with 6 (default), or with 0 and a line.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan of all rows and stop.")
@json_option
def run(
    source: str,
    limit: int | None,
    sample: int | None,
    sample_by: tuple[str, ...],
    on_busy: str,
    dry_run: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Generate what is not yet in the output.

    SOURCE is a manifest (.parquet, .csv, .tsv, .jsonl, .json, .txt, a folder or a glob) or a job file (.toml).

    A second run of a finished output does nothing, after a kill it resumes, on a longer manifest it makes the new rows.

    \b
    Examples:
      batchgen run manifests/quickstart.parquet --output out/quickstart
      batchgen run jobs/nightly.toml --output s3://bucket/2026-11-21 --workers 8
      batchgen run prompts.csv --output out/prompts --model ./my-model --limit 100
      batchgen run jobs/compare.toml --sample 16
      batchgen run jobs/nightly.toml --on-busy skip
    """
    from batchgen.driver import run as run_job
    from batchgen.report.display import RunDisplay, print_scores
    from batchgen.report.sample import write_sheet
    from batchgen.scores import score_made

    if sample_by and sample is None:
        raise InputError("--sample-by says over which column a sample is spread; give --sample, too")
    job = named_job(source, flags)
    if dry_run:
        _print_plan(job, as_json=as_json)
        return
    try:
        reporter = RunDisplay(stderr())
        counts = run_job(job, source=source, limit=limit, reporter=reporter, sample=sample, sample_by=sample_by)
    except Interrupted as error:
        if as_json and error.counts is not None:
            say_json({"output": job.output, **_in_json(error.counts), "interrupted": str(error)})
        raise
    except LeaseLost:
        raise
    except OutputBusy as error:
        if on_busy == "fail":
            raise
        if as_json:
            say_json({"output": job.output, "busy": str(error)})
        say(f"skipped: {error}", err=True)
        return
    scores = score_made(job, reporter.notice) if counts.done else None
    if as_json:
        said = {} if scores is None else {"scores": asdict(scores)}
        say_json({"output": job.output, **_in_json(counts), "interrupted": None, **said})
    elif scores is not None:
        print_scores(scores, stderr())
    if counts.sample and (sheet := write_sheet(job.require_output(), counts.sample, job.storage_options)) is not None:
        say(f"wrote {sheet}", err=True)
    failed = f", {counts.failed:,} failed (see failures/)" if counts.failed else ""
    left = f", {counts.pending:,} left" if counts.pending else ""
    updated = f", {counts.updated:,} updated" if counts.updated else ""
    say(f"{counts.done:,} of {counts.total:,} rows done{updated}{failed}{left}: {job.output}", err=True)
    sys.exit(ROWS_FAILED if counts.failed or (scores is not None and scores.failed) else OK)


@click.command(cls=SourceCommand)
@click.argument("source")
@model_option
@click.option("--output", "-o", metavar="URI", help="Also say what this output, if it exists, would refuse.")
@click.option("--layout", type=choice(Layout), help="Of the output; default: files.")
@click.option("--format", type=choice(ImageFormat), help="Of the output's images; default: png.")
@strict_option
@json_option
def validate(source: str, as_json: bool, **flags: Any) -> None:
    """Report every problem of every row, before any model is loaded.

    SOURCE is a manifest or a job file. A job's own output is not looked at without --output.

    \b
    Examples:
      batchgen validate prompts.csv
      batchgen validate jobs/nightly.toml --json
      batchgen validate prompts.csv --output s3://bucket/dataset
    """
    from batchgen.driver import check
    from batchgen.errors import ManifestProblems
    from batchgen.manifest.problems import ProblemLog

    try:
        checked = check(named_job(source, flags), output=flags["output"] is not None)
    except InputError as error:
        log = error.log if isinstance(error, ManifestProblems) else ProblemLog.of(source, str(error))
        if as_json:
            problems = [asdict(problem) | _repeats(log.rows(problem)) for problem in log.shown]
            say_json({"ok": False, "problems": problems, "count": log.total})
        elif not isinstance(error, ManifestProblems):
            raise
        else:
            say("\n".join(log.lines()))
            say(f"{log.total:,} problem{'s' * (log.total > 1)} in {source}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        say_json({"ok": True} | asdict(checked))
        return
    for line in checked.notices:
        say(line, err=True)
    files = len(checked.files)
    say(f"{checked.rows:,} rows in {files} file{'s' * (files > 1)}, no problem found")


def _in_json(counts: "Counts") -> dict[str, Any]:
    """Where rows stand; a sample where one was asked for."""
    return {name: value for name, value in asdict(counts).items() if name != "sample" or value}


def _repeats(rows: int) -> dict[str, int]:
    """How many rows have a fault, where it is more than the one that is named."""
    return {"rows": rows} if rows > 1 else {}


@click.command(cls=SourceCommand)
@click.argument("source")
@generation_options
@json_option
def plan(source: str, as_json: bool, **flags: Any) -> None:
    """Print what a run would do: rows, shards, switches, bytes, time.

    SOURCE is a manifest or a job file.

    With an output, what it holds already is subtracted, and its measured rate gives the time.

    \b
    Example:
      batchgen plan jobs/nightly.toml --output s3://bucket/2026-11-21
    """
    _print_plan(named_job(source, flags), as_json=as_json)


def _print_plan(job: "Job", *, as_json: bool) -> None:
    from batchgen.driver import plan as plan_job
    from batchgen.report.display import plan_table

    summary = plan_job(job)
    if as_json:
        say_json(asdict(summary))
    else:
        for line in summary.notices:
            say(line, err=True)
        stdout().print(plan_table(summary))
