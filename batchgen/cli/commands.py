"""The command line. Knows how to ask and to answer; what it asks for is imported when a command needs it.

Data goes to stdout, talk and progress to stderr. Errors are mapped to exit codes here and nowhere else.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchgen.errors import BatchgenError, ErrorClass, InfrastructureError, InputError, Interrupted
from batchgen.options import Device, Dtype, ImageFormat, Layout
from batchgen.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from batchgen.job import Job

__all__ = ["main"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

OK, ROWS_FAILED = 0, 1  # the other exit codes belong to the errors


class _Group(click.Group):
    """Maps errors to one line on stderr and to exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say Ctrl-C
        try:
            return super().invoke(ctx)
        except BatchgenError as error:
            for line in str(error).splitlines():
                click.echo(line if isinstance(error, Interrupted) else f"error: {line}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped; the same command goes on", err=True)
            ctx.exit(Interrupted.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit):
            raise
        except Exception as error:  # a mistake of ours: one line for the user, all of it for a report
            if os.environ.get("BATCHGEN_TRACEBACK"):
                raise
            text = " ".join(str(error).split())
            click.echo(
                f"error: {type(error).__name__}: {text} (unexpected; BATCHGEN_TRACEBACK=1 shows where)", err=True
            )
            ctx.exit(InfrastructureError.exit_code)


class _SourceCommand(click.Command):
    """A command on a manifest: a flag that is a column's name is answered with where that is said."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if (line := _about_column(error.option_name)) is not None:
                raise click.UsageError(f"no option {error.option_name}: {line}", ctx) from None
            raise


def _about_column(option: str) -> str | None:
    """Where a manifest or a job says what somebody looked for among the flags; None where that is no column."""
    from batchgen.job import DEFAULT_COLUMNS
    from batchgen.manifest.names import find_column

    name = find_column(option.lstrip("-"), own=True)
    if name is None:
        return None
    line = f"how a picture is made stands in the manifest, in the column {name!r}"
    return f"{line}, or for all rows in a job file, under [defaults]" if name in DEFAULT_COLUMNS else line


def _choice(options: type[StrEnum]) -> click.Choice[str]:
    """The values of a closed set, as they are written in a job."""
    return click.Choice([option.value for option in options])


def _generation_options(command: _Command) -> _Command:
    """Flags that `run` and `plan` share; each is also a key of a job file."""
    for option in reversed(
        (
            click.option("--output", "-o", metavar="URI", help="Folder or s3://bucket/prefix of the dataset."),
            click.option("--model", "-m", metavar="MODEL", help="builtin, a folder, a .safetensors file, or a hub id."),
            click.option(
                "--model-config", metavar="FOLDER", help="Diffusers folder with the layout of a .safetensors file."
            ),
            click.option("--layout", type=_choice(Layout), help="Default: files."),
            click.option("--format", type=_choice(ImageFormat), help="Default: png."),
            click.option(
                "--shard-rows",
                type=click.IntRange(min=1),
                metavar="N",
                help="Rows of one shard. Default: 1 to 10 minutes of work.",
            ),
            click.option(
                "--batch-size",
                type=click.IntRange(min=1),
                metavar="N",
                help="Images of one pipeline call. Default: from size and device.",
            ),
            click.option(
                "--dtype",
                type=_choice(Dtype),
                help="Precision of the weights; auto: float32 on CPU, float16 on CUDA.",
            ),
            click.option("--device", type=_choice(Device), help="Default: CUDA if there is one."),
            click.option(
                "--workers", type=click.IntRange(min=1), metavar="N", help="Default: one a GPU, or one a core."
            ),
        )
    ):
        command = option(command)
    return command


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="batchgen")
def main() -> None:
    """Turn a table of prompts into an image dataset.

    SOURCE is a manifest (.parquet, .csv, .tsv, .jsonl, .json, .txt, a folder or a glob) or a job file (.toml).

    \b
    Examples:
      batchgen run manifests/quickstart.parquet --output out/quickstart
      batchgen validate jobs/nightly.toml
      batchgen status s3://bucket/dataset --watch
    """


@main.command(cls=_SourceCommand)
@click.argument("source")
@_generation_options
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Make at most N images in this run.")
@click.option("--address", metavar="A", help="A running Ray cluster; without it Ray is started here and stopped.")
@click.option("--dry-run", is_flag=True, help="Print the plan of all rows and stop.")
@_json_option
def run(source: str, limit: int | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Generate what is not yet in the output.

    SOURCE is a manifest (.parquet, .csv, .tsv, .jsonl, .json, .txt, a folder or a glob) or a job file (.toml).

    A second run of a finished output does nothing, after a kill it resumes, on a longer manifest it makes the new rows.

    \b
    Examples:
      batchgen run manifests/quickstart.parquet --output out/quickstart
      batchgen run jobs/nightly.toml --output s3://bucket/2026-11-21 --workers 8
      batchgen run prompts.csv --output out/prompts --model ./my-model --limit 100
    """
    from batchgen.driver import run as run_job
    from batchgen.report.display import RunDisplay

    job = _job(source, flags)
    if dry_run:
        _print_plan(job, as_json=as_json)
        return
    try:
        counts = run_job(job, source=source, limit=limit, reporter=RunDisplay(_stderr()))
    except Interrupted as error:
        if as_json and error.counts is not None:
            click.echo(json.dumps({"output": job.output, **asdict(error.counts), "interrupted": str(error)}))
        raise
    if as_json:
        click.echo(json.dumps({"output": job.output, **asdict(counts), "interrupted": None}))
    failed = f", {counts.failed:,} failed (see failures/)" if counts.failed else ""
    left = f", {counts.pending:,} left" if counts.pending else ""
    updated = f", {counts.updated:,} updated" if counts.updated else ""
    click.echo(f"{counts.done:,} of {counts.total:,} rows done{updated}{failed}{left}: {job.output}", err=True)
    sys.exit(ROWS_FAILED if counts.failed else OK)


@main.command(cls=_SourceCommand)
@click.argument("source")
@click.option("--model", "-m", metavar="MODEL", help="builtin, a folder, a .safetensors file, or a hub id.")
@click.option("--output", "-o", metavar="URI", help="Also say what this output, if it exists, would refuse.")
@click.option("--layout", type=_choice(Layout), help="Of the output; default: files.")
@click.option("--format", type=_choice(ImageFormat), help="Of the output's pictures; default: png.")
@_json_option
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
        checked = check(_job(source, flags), output=flags["output"] is not None)
    except InputError as error:
        log = error.log if isinstance(error, ManifestProblems) else ProblemLog.of(source, str(error))
        if as_json:
            problems = [asdict(problem) | _repeats(log.rows(problem)) for problem in log.shown]
            click.echo(json.dumps({"ok": False, "problems": problems, "count": log.total}, ensure_ascii=False))
        elif not isinstance(error, ManifestProblems):
            raise
        else:
            click.echo("\n".join(log.lines()))
            click.echo(f"{log.total:,} problem{'s' * (log.total > 1)} in {source}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps({"ok": True} | asdict(checked)))
        return
    for line in checked.notices:
        click.echo(line, err=True)
    files = len(checked.files)
    click.echo(f"{checked.rows:,} rows in {files} file{'s' * (files > 1)}, no problem found")


def _repeats(rows: int) -> dict[str, int]:
    """How many rows have a fault, where it is more than the one that is named."""
    return {"rows": rows} if rows > 1 else {}


@main.command(cls=_SourceCommand)
@click.argument("source")
@_generation_options
@_json_option
def plan(source: str, as_json: bool, **flags: Any) -> None:
    """Print what a run would do: rows, shards, switches, bytes, time.

    SOURCE is a manifest or a job file.

    With an output, what it holds already is subtracted, and its measured rate gives the time.

    \b
    Example:
      batchgen plan jobs/nightly.toml --output s3://bucket/2026-11-21
    """
    _print_plan(_job(source, flags), as_json=as_json)


@main.command()
@click.argument("output")
@click.option("--watch", is_flag=True, help="Print again every few seconds until all rows are made.")
@_json_option
def status(output: str, watch: bool, as_json: bool) -> None:
    """Print how far an output is: done, failed, left, rate, time to go, failures by class.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options].

    \b
    Examples:
      batchgen status out/quickstart
      batchgen status jobs/nightly.toml --watch
    """
    from batchgen.report.status import follow, read_status, status_table

    uri, options = _output(output)
    if as_json:
        click.echo(json.dumps(asdict(read_status(uri, options))))
    elif watch:
        follow(uri, _stdout(), options)
    else:
        _stdout().print(status_table(read_status(uri, options)))


@main.command()
@click.argument("output")
@click.option("--deep", is_flag=True, help="Decode every image, too.")
@click.option(
    "--clean", is_flag=True, help="Remove pictures that no committed shard names, where the shard is committed."
)
@_json_option
def verify(output: str, deep: bool, clean: bool, as_json: bool) -> None:
    """Check what an output promises on the stored bytes: markers, receipts, hashes, uniqueness, schema, strays.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options]. Rows that are not
    made yet are counted and no fault.

    \b
    Example:
      batchgen verify s3://bucket/dataset --deep
    """
    from batchgen.dataset.verify import verify_output

    uri, options = _output(output)
    report = verify_output(uri, deep=deep, clean=clean, storage_options=options)
    if as_json:
        click.echo(json.dumps(asdict(report) | {"ok": report.ok}, ensure_ascii=False))
    else:
        for line in report.faults:
            click.echo(line)
        click.echo(report.summary())
    sys.exit(OK if report.ok else ROWS_FAILED)


@main.command()
@click.argument("output")
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="C",
    help=f"Only rows of this error class; may be repeated. Classes: {', '.join(ErrorClass)}.",
)
def retry(output: str, classes: tuple[str, ...]) -> None:
    """Open failed rows again for the next run.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options].

    \b
    Examples:
      batchgen retry out/quickstart
      batchgen retry s3://bucket/dataset --class worker-died --class conditioning
    """
    from batchgen.driver import retry as retry_rows

    uri, options = _output(output)
    rows = retry_rows(uri, classes, options)
    click.echo(f"{rows:,} row{'s' * (rows != 1)} will be tried again by the next run", err=True)


@main.command()
@click.argument("prompt")
@click.option("--model", "-m", metavar="MODEL", help="builtin, a folder, a .safetensors file, or a hub id.")
@click.option("--model-config", metavar="FOLDER", help="Diffusers folder with the layout of a .safetensors file.")
@click.option("--scheduler", metavar="NAME", help='Class or name, like "DPM++ 2M Karras". Default: the model\'s.')
@click.option("--steps", "num_inference_steps", type=int, metavar="N", help="Sampling steps. Default: 25.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of the noise. Default: 0.")
@click.option("--guidance-scale", type=float, metavar="X", help="How strongly to follow the prompt. Default: 7.5.")
@click.option(
    "--prompt-syntax", type=click.Choice(["plain", "a1111"]), help="Whether (word:1.2) is a weight. Default: plain."
)
@click.option("--clip-skip", type=int, metavar="N", help="Last layers of the text encoder to leave out. Default: none.")
@click.option("--output", "-o", metavar="FOLDER", help="Write explain.json, schedule.png and steps.png here.")
@_json_option
def explain(
    prompt: str, model: str | None, model_config: str | None, output: str | None, as_json: bool, **cells: Any
) -> None:
    """Show a prompt's tokens, where it is cut, the sampler's noise levels and, in a folder, a picture of every step.

    \b
    Examples:
      batchgen explain "a red cube on a table"
      batchgen explain "a (red:1.3) cube" --prompt-syntax a1111 --scheduler "Euler a" --steps 8 --output out/cube
    """
    from batchgen.report.explain import explain as explain_prompt
    from batchgen.report.explain import explanation_tables, write_explanation

    if output == "":
        raise InputError("--output is empty; is a variable unset?")
    explanation = explain_prompt({"prompt": prompt, **cells}, model=model or "builtin", model_config=model_config)
    if as_json:
        click.echo(json.dumps(explanation.record(), ensure_ascii=False))
    else:
        for part in explanation_tables(explanation):
            _stdout().print(part)
    for place in () if output is None else write_explanation(explanation, output):
        click.echo(f"wrote {place}", err=True)


def _job(source: str, flags: dict[str, Any]) -> "Job":
    """The job that SOURCE names, with the flags that were given laid over it."""
    from batchgen.job import load_job

    if flags.get("output") == "":
        raise InputError("--output is empty; is a variable unset?")
    return load_job(source, **flags)


def _output(named: str) -> tuple[str, Mapping[str, Any]]:
    """An output's URI and storage options; a job file names both."""
    if not named.endswith(".toml"):
        return named, {}
    job = _job(named, {})
    return job.require_output(), job.storage_options


def _print_plan(job: "Job", *, as_json: bool) -> None:
    from batchgen.driver import plan as plan_job
    from batchgen.report.display import plan_table

    summary = plan_job(job)
    if as_json:
        click.echo(json.dumps(asdict(summary)))
    else:
        for line in summary.notices:
            click.echo(line, err=True)
        _stdout().print(plan_table(summary))


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _stdout() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


if __name__ == "__main__":
    main()
