"""Commands on an output: status, verify, retry."""

import sys
from contextlib import nullcontext
from dataclasses import asdict

import click

from batchgen.cli.shared import OK, ROWS_FAILED, json_option, named_output, say, say_json, stdout
from batchgen.errors import ErrorClass

__all__ = ["retry", "status", "verify"]


@click.command()
@click.argument("output")
@click.option("--watch", is_flag=True, help="Print again every few seconds until no run goes on.")
@json_option
def status(output: str, watch: bool, as_json: bool) -> None:
    """Print how far an output is: done, failed, left, rate, time to go, failures by class.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options].

    With --watch the exit code says how the run ended: 0, 1 where rows failed, 3 where it was stopped, 4 where it
    failed, 5 where it died without a word. With --json too, each look is a line.

    \b
    Examples:
      batchgen status out/quickstart
      batchgen status jobs/nightly.toml --watch
    """
    from rich.live import Live

    from batchgen.report.status import follow, raise_for_end, read_status, status_table

    uri, options = named_output(output)
    if not watch:
        now = read_status(uri, options)
        if as_json:
            say_json(asdict(now))
        else:
            stdout().print(status_table(now))
        return
    with nullcontext() if as_json else Live(console=stdout(), auto_refresh=False) as live:
        for now in follow(uri, options):
            if live is None:
                say_json(asdict(now))
            else:
                live.update(status_table(now), refresh=True)
    raise_for_end(now)
    sys.exit(ROWS_FAILED if now.failed else OK)


@click.command()
@click.argument("output")
@click.option("--deep", is_flag=True, help="Decode every image, too.")
@click.option(
    "--clean", is_flag=True, help="Remove images that no committed shard names, where the shard is committed."
)
@click.option(
    "--repair",
    is_flag=True,
    help="Mend what is found: move what is damaged below .batchgen/damaged, and rebuild receipts and ledgers.",
)
@json_option
def verify(output: str, deep: bool, clean: bool, repair: bool, as_json: bool) -> None:
    """Check what an output promises on the stored bytes: markers, books, hashes, uniqueness, schema, strays.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options]. Rows that are not
    made yet are counted and no fault. What --repair takes out of the output the next run makes again.

    \b
    Examples:
      batchgen verify s3://bucket/dataset --deep
      batchgen verify out/quickstart --repair
    """
    from batchgen.dataset.verify import verify_output

    uri, options = named_output(output)
    report = verify_output(uri, deep=deep, clean=clean, repair=repair, storage_options=options)
    if as_json:
        say_json(asdict(report) | {"ok": report.ok})
    else:
        for line in report.faults:
            say(line)
        for line in report.repaired:
            say(f"repaired: {line}")
        say(report.summary())
    sys.exit(OK if report.ok else ROWS_FAILED)


@click.command()
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

    uri, options = named_output(output)
    rows = retry_rows(uri, classes, options)
    say(f"{rows:,} row{'s' * (rows != 1)} will be tried again by the next run", err=True)
