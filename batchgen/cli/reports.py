"""The command that shows outputs: report."""

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from batchgen.cli.shared import json_option, named_output, say, say_json
from batchgen.errors import InputError

if TYPE_CHECKING:
    from batchgen.report.page import ReportSummary

__all__ = ["report"]


@click.command()
@click.argument("outputs", nargs=-1, required=True, metavar="OUTPUT...")
@click.option("--output", "-o", "folder", metavar="FOLDER", help="Where it goes. Default: report/ in the one OUTPUT.")
@click.option("--push", "space", metavar="OWNER/NAME", help="Upload it into this Space of the hub, a static one.")
@click.option("--copy", is_flag=True, help="Copy the images into a report that could link to them.")
@json_option
def report(outputs: tuple[str, ...], folder: str | None, space: str | None, copy: bool, as_json: bool) -> None:
    """Show outputs as a static page: a grid over any axes, scores, charts, every parameter.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it. Several are compared: their name is one more
    axis. FOLDER may be a bucket's prefix as well. The page opens from a file and from any static host; it links to the
    images where it lies in the output that holds them, and else copies them.

    \b
    Examples:
      batchgen report out/compare
      batchgen report out/monday out/tuesday --output out/two-nights
      batchgen report out/compare --push me/compare
    """
    from batchgen.report.page import write_report
    from batchgen.report.push import push_report, require_space

    named = [named_output(output) for output in outputs]
    uris = [uri for uri, _ in named]
    if space is not None:
        if folder is not None:
            raise InputError("--push and --output: a report goes to one place; leave one of them out")
        require_space(space)
        with TemporaryDirectory() as place:
            found = write_report(uris, place, copy=True, storage_options=named[0][1])
            found = replace(found, report=push_report(Path(place), space))
        _say(found, as_json=as_json, address=found.report)
        return
    if folder is None:
        if len(uris) > 1:
            raise InputError("--output is missing: several outputs have no one folder for their report")
        folder = f"{uris[0].rstrip('/')}/report"
    found = write_report(uris, folder, copy=copy, storage_options=named[0][1])
    _say(found, as_json=as_json, address=f"{found.report}/index.html")


def _say(found: "ReportSummary", *, as_json: bool, address: str) -> None:
    if as_json:
        say_json(asdict(found))
        return
    unreadable = f", {found.unreadable:,} of them not readable" if found.unreadable else ""
    scores = f", scores {', '.join(found.scores)}" if found.scores else ", no scores"
    say(f"{found.images:,} images{unreadable} over {', '.join(found.axes)}{scores}", err=True)
    say(address)
