"""The shape of the code: cheap imports, one door a library, imports that run downward, help on every command."""

import ast
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import click
import pytest
from conftest import RunCli

from batchgen.cli import main
from batchgen.dataset.dataset import Dataset
from batchgen.generation.samplers import NAMES, OPTIONS, find_sampler

PACKAGE = Path(__file__).parents[1] / "batchgen"
HEAVY = {
    "torch", "ray", "diffusers", "transformers", "peft", "pyarrow", "pandas", "fsspec", "s3fs", "numpy", "PIL", "cv2",
}  # fmt: skip

# Who may import what, wherever in the module the import stands: folders, and modules as paths below the package.
DOORS = {
    "ray": {"engine/actor", "engine/cluster", "engine/pool", "engine/probe"},
    "torch": {"diffusion", "scoring"},
    "diffusers": {"diffusion", "scoring/safety"},
    "transformers": {"diffusion", "scoring"},
    "peft": set[str](),
    "fsspec": {"reading", "storage"},
    "s3fs": {"storage"},
    "botocore": {"storage"},
    "torchmetrics": {"scoring/distances"},
    "huggingface_hub": {"models/catalog", "report/push"},
    "click": {"cli"},
    "msgspec": {"dataset"},
    "cv2": {"diffusion", "scoring/pixels"},
    "safetensors": {"diffusion", "scoring/weights", "models/compatibility"},  # without torch: headers alone
}


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted names below the package, and their files."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__") or "__init__", file


@cache
def imports(file: Path) -> set[str]:
    """Everything a module imports, at its top or inside functions; what only a type checker sees is left out."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(file.read_text(encoding="utf-8")))
    return found


def unit(name: str) -> str:
    """The folder or module directly below the package: `diffusion.host` and `diffusion` are one."""
    return name.split(".")[0]


def graph(room: Callable[[str], str]) -> dict[str, set[str]]:
    """Which rooms of the package each room imports; `room` gives that of a module's dotted name."""
    known = {name for name, _ in modules()}
    edges: dict[str, set[str]] = {room(name): set() for name in known}
    for name, file in modules():
        for imported in imports(file):
            first, *rest = imported.split(".")
            if first != "batchgen" or not rest:
                continue
            target = next(
                (".".join(rest[:n]) for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in known), "__init__"
            )
            if room(target) != room(name):
                edges[room(name)].add(room(target))
    return edges


ORDER = """
    __init__ __main__
    cli
    report
    driver scores sweeps embedded exports
    tally
    estimate engine
    scoring
    diffusion
    dataset
    resolve trials
    sharding sampling index job
    rows
    generation
    models
    manifest
    work
    inputs
    reading
    identity images machine storage builtin
    web places
    options toml_tables
    errors version
""".strip().splitlines()


def test_imports_run_downward() -> None:
    """STYLE 4: the list above is the order of the layers; who stands in a line imports only from lines under it."""
    layer = {name: number for number, line in enumerate(ORDER) for name in line.split()}
    edges = graph(unit)
    assert set(layer) == set(edges), "ORDER lists the folders and modules of the package"
    wrong = [f"{a} imports {b}" for a, targets in edges.items() for b in targets if layer[b] <= layer[a]]
    assert wrong == []


def test_modules_import_each_other_in_no_circle() -> None:
    edges = graph(str)
    assert list(TopologicalSorter(edges).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", sorted(DOORS))
def test_one_door_a_library(library: str) -> None:
    """DESIGN: each heavy library has one door."""
    users = {name.replace(".", "/") for name, file in modules() if library in {i.split(".")[0] for i in imports(file)}}
    assert [user for user in users if not {user, user.split("/")[0]} & DOORS[library]] == []


def loaded_by(statement: str) -> set[str]:
    """Modules, and the packages that they are of."""
    script = f"import sys\n{statement}\nprint(*sys.modules, *{{m.split('.')[0] for m in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_command_line_is_cheap_to_import() -> None:
    """Issue 2: `import batchgen.cli` loads none of torch, ray, diffusers, transformers; nor any other heavy library."""
    assert not HEAVY & loaded_by("import batchgen.cli")


def test_the_package_is_cheap_to_import() -> None:
    """`import batchgen` offers its functions without the libraries that they need."""
    assert not HEAVY & loaded_by("import batchgen")


def test_the_driver_loads_no_torch() -> None:
    """What a run and its reports need in the driver comes without the libraries of the workers."""
    found = loaded_by("import batchgen.driver, batchgen.report.status, batchgen.dataset.verify")
    assert not {"torch", "diffusers", "transformers", "ray"} & found
    assert "pyarrow.compute" not in loaded_by("import batchgen.report.status"), "a tenth of a second of each look"


def test_help_is_quick(batchgen: RunCli) -> None:
    """Issue 2: `batchgen --help` answers in under 0.4 s; of a core, since others may be busy with other tests."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    seconds = []
    for _ in range(3):  # the first may have to compile what it imports
        before = used()
        assert batchgen("--help").returncode == 0
        seconds.append(used() - before)
    assert min(seconds) < 0.4


@pytest.mark.slow
def test_streams_that_are_closed_change_no_answer(begun: Dataset) -> None:
    """Incident: exit 1 where stdout was closed, and 4, "unexpected", where its reader had left."""
    status = f"{sys.executable} -m batchgen status {begun.uri} --json"
    assert subprocess.run(["bash", "-c", status], capture_output=True).returncode == 0
    for closed, code in ((">&-", 0), ("2>&-", 0), ("| true; exit ${PIPESTATUS[0]}", 128 + signal.SIGPIPE)):
        done = subprocess.run(["bash", "-c", f"{status} {closed}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, ""), closed


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_says_what_it_does(name: str, batchgen: RunCli) -> None:
    """Every command and option has help, and every command an example that parses."""
    command = main.commands[name]
    assert command.help
    assert "Example" in command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []
    examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith("batchgen ")]
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[1] == name
        command.make_context(name, words[2:], parent=main.make_context("batchgen", [name]))
    done = batchgen(name, "-h", here=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_usage_errors_are_exit_2(batchgen: RunCli) -> None:
    """DESIGN: wrong usage is exit 2, on stderr, with the option named."""
    for arguments in (["rum"], ["run"], ["run", "m.csv", "--workers", "-1"], ["run", "m.csv", "--layout", "tar"]):
        done = batchgen(*arguments, here=True)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert done.stderr


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_flags_that_are_columns_are_answered(command: str, batchgen: RunCli) -> None:
    """Somebody who looks for an image's settings among the flags learns where they are said."""
    for flag, column in (
        ("--steps", "num_inference_steps"),
        ("--scheduler", "scheduler"),
        ("--cfg-scale", "guidance_scale"),
        ("--stesp", "num_inference_steps"),
        ("--widht", "width"),
    ):
        done = batchgen(command, "m.csv", flag, "3", here=True)
        assert done.returncode == 2
        assert f"column {column!r}" in done.stderr and "[defaults]" in done.stderr
    done = batchgen(command, "m.csv", "--mask-image", "3", here=True)
    assert "column 'mask_image'" in done.stderr and "[defaults]" not in done.stderr
    assert "column" not in batchgen(command, "m.csv", "--nonsense", "3", here=True).stderr
    assert "'--model'" in batchgen(command, "m.csv", "--modle", "3", here=True).stderr


def test_every_sampler_name_is_found() -> None:
    """Class names and A1111 names, whatever the case and whatever joins the words; options fit the class."""
    for name, sampler in NAMES.items():
        for spelling in (name, name.lower(), name.upper(), name.replace(" ", "_"), f" {name} "):
            assert find_sampler(spelling) == sampler
        assert set(sampler.kwargs) <= OPTIONS[sampler.class_name]
    with pytest.raises(LookupError, match=r"DPM\+\+ 2M Karras"):
        find_sampler("DPM++ 2M Karas")
