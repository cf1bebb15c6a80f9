"""What the documents say in tables is what the code has: commands, flags, job keys, exit codes, columns, classes."""

import re
import runpy
from dataclasses import fields
from pathlib import Path

import click
import pytest

from batchgen import errors
from batchgen.cli import main
from batchgen.job import Job, Limits, WorkerResources
from batchgen.manifest.columns import RESERVED

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
JOBS = (ROOT / "jobs" / "README.md").read_text(encoding="utf-8")
MANIFESTS = (ROOT / "manifests" / "README.md").read_text(encoding="utf-8")


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the Markdown table whose header begins with `first`."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(f"| {first}"))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def flags(command: str) -> dict[str, click.Option]:
    options = [parameter for parameter in main.commands[command].params if isinstance(parameter, click.Option)]
    return {max(option.opts, key=len): option for option in options}


def test_every_command_is_in_the_readme() -> None:
    shown = [names(row[0])[0].split()[1] for row in table(README, "command |")]
    assert sorted(shown) == sorted(main.commands)


def test_every_flag_of_run_and_plan_is_in_the_readme() -> None:
    rows = table(README, "flag, or key of a job |")
    shown = {names(row[0])[0]: "(`run`)" in row[0] for row in rows}
    assert shown.keys() == flags("run").keys() - {"--json"}
    assert {flag for flag, only_run in shown.items() if not only_run} == flags("plan").keys() - {"--json"}


@pytest.mark.parametrize("flag", ["--layout", "--format", "--dtype", "--device"])
def test_every_choice_of_a_flag_is_in_the_readme(flag: str) -> None:
    (row,) = [row for row in table(README, "flag, or key of a job |") if names(row[0])[0] == flag]
    kind = flags("run")[flag].type
    assert isinstance(kind, click.Choice)
    assert set(kind.choices) <= set(names(row[1]))
    default = getattr(Job(manifest="m"), flag.removeprefix("--"))
    assert names(row[2]) == ([] if default == "auto" else [default])


def test_exit_codes_are_in_the_readme() -> None:
    shown = {int(row[0]): row[1] for row in table(README, "exit code |")}
    assert shown.keys() == {0, 1} | {
        kind.exit_code for kind in (errors.InputError, errors.Interrupted, errors.StoreError, errors.RunDied)
    }
    assert "interrupted" in shown[errors.Interrupted.exit_code]
    assert "nothing was started" in shown[errors.InputError.exit_code]
    assert "store" in shown[errors.InfrastructureError.exit_code]


def test_every_key_of_a_job_is_in_its_readme() -> None:
    shown = [name.strip("[]") for row in table(JOBS, "key |") for name in names(row[0])]
    nested = {"worker": WorkerResources, "limits": Limits}
    wanted = {field.name for field in fields(Job) if field.compare}
    for key, kind in nested.items():
        wanted |= {field.name for field in fields(kind)}
        assert key in shown
    assert wanted <= set(shown)
    of_dtypes, of_files = {"vae", "text_encoder", "text_encoder_2"}, {"sweep"}
    assert set(shown) - wanted == of_dtypes | of_files


def test_the_table_of_columns_is_that_of_the_contract() -> None:
    """`python manifests/make_columns.py` writes it: a column is documented where it is declared."""
    assert runpy.run_path(str(ROOT / "manifests" / "make_columns.py"))["with_columns"](MANIFESTS) == MANIFESTS


def test_every_refused_name_is_in_the_manifests_readme() -> None:
    plain = {name for name in RESERVED if not name.endswith(("_uri", "_sha256"))}
    section = MANIFESTS[MANIFESTS.index("**Any other column**") :]
    assert [name for name in sorted(plain) if f"`{name}`" not in section] == []


def test_every_error_class_is_in_the_readme() -> None:
    shown = [name for row in table(README, "class |") for name in names(row[0])]
    assert sorted(shown) == sorted(errors.ErrorClass)
