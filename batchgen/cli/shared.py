"""What commands have in common: flags, how SOURCE and OUTPUT are taken, and the two consoles."""

import json
import re
from collections.abc import Callable, Mapping, Set
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import click

from batchgen.errors import InputError, printable, without_secrets
from batchgen.options import Device, Dtype, ImageFormat, Layout

if TYPE_CHECKING:
    from batchgen.job import Job
    from batchgen.report.display import PlainConsole

__all__ = [
    "OK",
    "ROWS_FAILED",
    "SourceCommand",
    "address_option",
    "choice",
    "generation_options",
    "json_option",
    "model_option",
    "named_job",
    "named_output",
    "say",
    "say_json",
    "stderr",
    "stdout",
    "strict_option",
    "workers_option",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

OK, ROWS_FAILED = 0, 1  # the other exit codes belong to the errors


class SourceCommand(click.Command):
    """A command on a manifest: a flag that is a column's name is answered with where that is said."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flags = {parameter.name for parameter in self.params}
            if (line := _about_column(error.option_name, flags)) is not None:
                raise click.UsageError(f"no option {error.option_name}: {line}", ctx) from None
            raise


def _about_column(option: str, flags: Set[str | None]) -> str | None:
    """Where a manifest or a job says what somebody looked for among the flags; None where that is no column."""
    from batchgen.job import DEFAULT_COLUMNS
    from batchgen.manifest.names import find_column, suggest

    name = find_column(option.lstrip("-")) or suggest(option.lstrip("-"))
    if name is None or name in flags:
        return None
    line = f"how an image is made stands in the manifest, in the column {name!r}"
    return f"{line}, or for all rows in a job file, under [defaults]" if name in DEFAULT_COLUMNS else line


def choice(options: type[StrEnum]) -> click.Choice[str]:
    """The values of a closed set, as they are written in a job."""
    return click.Choice([option.value for option in options])


model_option = click.option(
    "--model", "-m", metavar="MODEL", help="A folder, a .safetensors file, or a hub id. Default: builtin."
)
strict_option = click.option(
    "--strict",
    is_flag=True,
    default=None,
    help="Take columns by other names, near misses and the like for problems, not notices.",
)
address_option = click.option(
    "--address", metavar="A", help="A running Ray cluster, or local; default: RAY_ADDRESS, else local."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Default: one a GPU, or one a core. 0: none, this process does the work, without Ray.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def generation_options(command: _Command) -> _Command:
    """Flags that `run` and `plan` share; each is also a key of a job file."""
    for option in reversed(
        (
            click.option("--output", "-o", metavar="URI", help="Folder or s3://bucket/prefix of the dataset."),
            model_option,
            click.option(
                "--model-config", metavar="FOLDER", help="Diffusers folder with the layout of a .safetensors file."
            ),
            click.option("--layout", type=choice(Layout), help="Default: files."),
            click.option("--format", type=choice(ImageFormat), help="Default: png."),
            click.option(
                "--shard-rows",
                type=click.IntRange(min=1),
                metavar="N",
                help="Rows of one shard. Default: about a minute of work.",
            ),
            click.option(
                "--batch-size",
                type=click.IntRange(min=1),
                metavar="N",
                help="Images of one pipeline call. Default: from size and device.",
            ),
            click.option(
                "--dtype",
                type=choice(Dtype),
                help="Precision of the weights; auto: float32 on CPU, float16 on CUDA.",
            ),
            click.option("--device", type=choice(Device), help="Default: CUDA if there is one."),
            workers_option,
            click.option(
                "--save-control-images",
                is_flag=True,
                default=None,
                help="Keep what ControlNets are given (edges, depth, poses) beside each image.",
            ),
            strict_option,
        )
    ):
        command = option(command)
    return command


def named_job(source: str, flags: dict[str, Any]) -> "Job":
    """The job that SOURCE names, with the flags that were given laid over it."""
    from batchgen.job import load_job

    if flags.get("output") == "":
        raise InputError("--output is empty; is a variable unset?")
    return load_job(source, **flags)


def named_output(named: str) -> tuple[str, Mapping[str, Any]]:
    """An output's URI and storage options; a job file names both."""
    if not named.endswith(".toml"):
        return named, {}
    job = named_job(named, {})
    return job.require_output(), job.storage_options


def say(text: str, *, err: bool = False) -> None:
    """A line or several on stdout, or on stderr."""
    click.echo(printable(text), err=err)


def say_json(value: Any) -> None:
    """Data on stdout; what JSON leaves as it is and a terminal takes for a code is written as an escape."""
    text = without_secrets(json.dumps(value, ensure_ascii=False))
    click.echo(re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text))


def stderr() -> "PlainConsole":
    from batchgen.report.display import PlainConsole

    return PlainConsole(stderr=True)


def stdout() -> "PlainConsole":
    from batchgen.report.display import PlainConsole

    return PlainConsole()
