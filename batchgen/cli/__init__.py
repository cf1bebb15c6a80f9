"""The command line. Knows how to ask and to answer; what it asks for is imported when a command needs it.

Data goes to stdout, talk and progress to stderr. Errors are mapped to exit codes here and nowhere else.
"""

import atexit
import os
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from batchgen.cli import benchmarks, generating, manifests, outputs, prompts, reports, scoring
from batchgen.cli.shared import say
from batchgen.errors import BatchgenError, InfrastructureError, Interrupted, one_line
from batchgen.version import __version__

__all__ = ["main", "process"]


_PIPE_CLOSED = 128 + signal.SIGPIPE  # what a shell says of programs that such a signal ends


class _Group(click.Group):
    """Maps errors to one line on stderr and to exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say Ctrl-C
        try:
            return super().invoke(ctx)
        except BatchgenError as error:
            for line in str(error).splitlines():
                say(line if isinstance(error, Interrupted) else f"error: {line}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            say("stopped; the same command goes on", err=True)
            ctx.exit(Interrupted.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit):
            raise
        except BrokenPipeError:  # whoever read it has read enough
            ctx.exit(_PIPE_CLOSED)
        except Exception as error:  # a mistake of ours: one line for the user, all of it for a report
            if os.environ.get("BATCHGEN_TRACEBACK"):
                raise
            text = one_line(error)
            say(f"error: {type(error).__name__}: {text} (unexpected; BATCHGEN_TRACEBACK=1 shows where)", err=True)
            ctx.exit(InfrastructureError.exit_code)


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


for _group in (generating, manifests, outputs, scoring, reports, benchmarks, prompts):
    for _name in _group.__all__:
        main.add_command(getattr(_group, _name))


def process() -> NoReturn:
    """The command as a process of its own, which ends when it is done.

    Python's own end waits for threads, and aborts some processes in which those of Arrow or torch are still at work.
    """
    code: str | int | None = 0
    try:
        main(prog_name="batchgen")
    except SystemExit as ended:
        code = ended.code
    if isinstance(code, str):
        say(code, err=True)
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where they are closed
        with suppress(BrokenPipeError):  # whoever read it has read enough
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
