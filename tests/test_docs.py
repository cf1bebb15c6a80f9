"""What the documents say in tables is what the code has: commands, flags, job keys, exit codes, columns, classes."""

import csv
import re
import runpy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from conftest import RunCli

from batchgen import errors
from batchgen.builtin import model_names, model_path
from batchgen.cli import main
from batchgen.driver import check
from batchgen.generation.suitability import unknown_words
from batchgen.inputs import Inputs
from batchgen.job import Job, Limits, Scoring, WorkerResources, load_job
from batchgen.manifest.columns import COLUMNS, RESERVED
from batchgen.manifest.files import FORMATS
from batchgen.models.purpose import read_purpose
from batchgen.report.explain import SEED
from batchgen.scores import BATCH

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


def default_of(command: str, name: str) -> str | None:
    """What the code takes where a flag is absent; None where that depends on the rows or the machine."""
    value: object = None
    if command in ("run", "plan", "validate") or (command, name) == ("explain", "model"):
        value = getattr(Job(manifest="m"), name, None)
    elif command == "explain":
        value = SEED if name == "seed" else COLUMNS[name].default if name in COLUMNS else None
    elif (command, name) == ("score", "batch_size"):
        value = BATCH
    return (
        None
        if value is None or value is False or value == "auto"
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


@pytest.mark.parametrize("command", sorted(main.commands))
def test_defaults_in_help_are_those_of_the_code(command: str) -> None:
    """A literal default is said where there is one and nowhere else."""
    for flag, option in flags(command).items():
        told = re.search(r"[Dd]efault: (?:the model's, else )?(.+?)\.?$", option.help or "")
        choices = option.type.choices if isinstance(option.type, click.Choice) else model_names()
        literal = told[1] if told and (told[1] in choices or re.fullmatch(r"\d+(\.\d+)?", told[1])) else None
        wanted = None if option.is_flag else default_of(command, option.name or "")
        assert literal == wanted, f"{command} {flag}: {option.help}"


def test_defaults_of_flags_in_the_readme_are_those_of_the_code() -> None:
    for flag, _, default in table(README, "flag, or key of a job |"):
        name = names(flag)[0].removeprefix("--").replace("-", "_")
        literal = default_of("run", name)
        assert [name for name in names(default) if not name.isupper()] == ([] if literal is None else [literal]), flag


def test_what_nothing_else_checks_is_listed() -> None:
    """Jobs in jobs/README.md, parts of the package in the README's tree, endings of manifests in help texts."""
    jobs = sorted(path.name for path in (ROOT / "jobs").glob("*.toml"))
    assert sorted(re.findall(r"^\| \[(\S+\.toml)\]", JOBS, re.MULTILINE)) == jobs
    tree = README.partition("## What is here")[2].partition("```\n")[2].partition("```")[0]
    package = ROOT / "batchgen"
    shown = set(re.findall(r"\b(\w+)(?=/|\.py\b)", tree.partition("\njobs/")[0])) - {"batchgen"}
    there = {path.parent.name if path.stem == "__init__" else path.stem for path in package.rglob("*.py")}
    assert {path.parent.name for path in package.glob("*/__init__.py")} <= shown <= there
    for command in ("run", "validate", "plan"):
        for listed in re.findall(r"manifest \(([^)]*)\)", main.commands[command].help or ""):
            assert set(re.findall(r"\.\w+", listed)) <= set(FORMATS)


def test_exit_codes_are_in_the_readme() -> None:
    shown = {int(row[0]): row[1] for row in table(README, "exit code |")}
    assert shown.keys() == {0, 1} | {
        kind.exit_code
        for kind in (errors.InputError, errors.Interrupted, errors.StoreError, errors.RunDied, errors.OutputBusy)
    }
    assert "interrupted" in shown[errors.Interrupted.exit_code]
    assert "nothing was started" in shown[errors.InputError.exit_code]
    assert "store" in shown[errors.InfrastructureError.exit_code]


def test_every_key_of_a_job_is_in_its_readme() -> None:
    shown = [name.strip("[]") for row in table(JOBS, "key |") for name in names(row[0])]
    nested = {"worker": WorkerResources, "limits": Limits, "score": Scoring, "inputs": Inputs}
    wanted = {field.name for field in fields(Job) if field.compare}
    for key, kind in nested.items():
        wanted |= {field.name for field in fields(kind)}
        assert key in shown
    assert wanted <= set(shown)
    of_dtypes, of_files = {"vae", "text_encoder", "text_encoder_2"}, {"sweep"}
    assert set(shown) - wanted == of_dtypes | of_files


def test_the_table_of_columns_is_that_of_the_contract() -> None:
    """A column is documented where it is declared."""
    written = runpy.run_path(str(ROOT / "manifests" / "make_columns.py"))["with_columns"](MANIFESTS)
    assert written == MANIFESTS, "run `python manifests/make_columns.py`"


def test_every_refused_name_is_in_the_manifests_readme() -> None:
    plain = {name for name in RESERVED if not name.endswith(("_uri", "_sha256"))}
    section = MANIFESTS[MANIFESTS.index("**Any other column**") :]
    assert [name for name in sorted(plain) if f"`{name}`" not in section] == []


def test_every_error_class_is_in_the_readme() -> None:
    shown = [name for row in table(README, "class |") for name in names(row[0])]
    assert sorted(shown) == sorted(errors.ErrorClass)


def test_tab_completes(batchgen: RunCli) -> None:
    """The line of the README, as bash asks: for the commands that begin so, and for flags."""
    (variable,) = re.findall(r"eval \"\$\((\w+)=bash_source batchgen\)\"", README)
    for words, found in (("batchgen sta", "plain,status\n"), ("batchgen run --shard", "plain,--shard-rows\n")):
        env = {variable: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        assert batchgen(env=env).stdout == found


def example_prompts() -> Iterator[tuple[str, str]]:
    """Every prompt that a document, a help text or an example shows, with the file that it stands in."""
    cards = (ROOT / "batchgen" / "builtin" / "weights").glob("*/README.md")
    scripts = [*(ROOT / "batchgen" / "cli").glob("*.py"), ROOT / "manifests" / "make_examples.py"]
    documents = [*ROOT.glob("*.md"), *ROOT.glob("manifests/*.md"), *ROOT.glob("jobs/**/*.md"), *ROOT.glob("infra/*.md")]
    for path in sorted({*cards, *scripts, *documents}):
        text = path.read_text(encoding="utf-8")
        shown = re.findall(r'(?:explain |pipeline\(|prompt = |"prompt": )"([^"]+)"', text)
        for block in re.findall(r"```csv\n(.*?)```", text, re.DOTALL):
            shown += [row["prompt"] for row in csv.DictReader(block.splitlines())]
        yield from ((path.relative_to(ROOT).as_posix(), prompt) for prompt in shown)


def test_no_example_leaves_the_world_of_the_built_in_model() -> None:
    """Incident: the first prompt that a reader tried had a table in it, and the model knows none."""
    known = frozenset(read_purpose(model_path("builtin"), "builtin").words) | {
        "ink",
        "drawing",
        "ruby",
    }  # of companions
    prompts = list(example_prompts())
    assert {"README.md", "batchgen/cli/prompts.py", "manifests/make_examples.py"} <= {path for path, _ in prompts}
    unknown = {
        (path, prompt, *words)
        for path, prompt in prompts
        if (
            words := unknown_words(
                {"prompt": re.sub(r"<[^>]*>|\$\{\w+\}", " ", prompt), "prompt_syntax": "a1111"}, known
            )
        )
    }
    assert unknown == set()


KINDS = ("manifests/*.parquet", "manifests/*.csv", "manifests/*.jsonl", "jobs/*.toml")
EXAMPLES = [path for kind in KINDS for path in ROOT.glob(kind)]


@pytest.mark.parametrize("source", EXAMPLES, ids=lambda path: path.name)
def test_no_example_asks_for_what_its_model_was_not_made_for(source: Path) -> None:
    assert check(load_job(str(source))).notices == []


@pytest.mark.parametrize("text", [README, MANIFESTS], ids=["README", "manifests"])
def test_no_sweep_of_the_documents_does(text: str, tmp_path: Path) -> None:
    (sweep,) = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "[sweep.cells]" in block]
    (tmp_path / "sweep.toml").write_text(sweep)
    assert check(load_job(str(tmp_path / "sweep.toml"))).notices == []
