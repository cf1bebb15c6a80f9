"""What becomes of a prompt: its tokens, what its tags put on, the noise levels of samplers.

The row is checked as a manifest's is, by the same functions; no output, index or Ray is involved.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchgen.errors import InputError
from batchgen.generation.parameters import Adapter, Parameters
from batchgen.generation.prompt_syntax import parse_tags
from batchgen.generation.rules import Defaults, RowProblems, apply_rules, choose_task, named_sampler
from batchgen.inputs import SCHEMES, Inputs
from batchgen.manifest.cells import CellSorter
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.files import Record
from batchgen.manifest.names import find_column, near_or_known
from batchgen.manifest.problems import ProblemLog
from batchgen.models.adapters import ADAPTERS, Finder, adapter_name
from batchgen.models.catalog import Family, Model, find_model
from batchgen.models.compatibility import read_facts
from batchgen.models.lora import layers_of
from batchgen.resolve import ImageReader
from batchgen.rows import Row

if TYPE_CHECKING:
    from batchgen.diffusion.inspection import NoiseLevel, Token

__all__ = ["Explanation", "Version", "explain", "explanation_tables", "read_settings"]

SEED = 0  # where none is given: explaining the same prompt twice gives the same images
_FLAGS = {"num_inference_steps": "--steps", "prompt": "PROMPT"} | {
    name: "--" + name.replace("_", "-")
    for name in ("clip_skip", "guidance_scale", "model", "prompt_syntax", "scheduler", "seed")
}
_PARTS = {"unet": "UNet", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}
_UNSET = frozenset({"id", "model", "num_images_per_prompt", "prompt"})  # what is said otherwise, or means nothing here


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """The row as one sampler makes it. `levels` are those of the model's calls, and the one at the end."""

    row: Row
    levels: Sequence["NoiseLevel"]

    @property
    def sampler(self) -> str:
        """As it was typed."""
        return self.row.sampler or self.row.parameters.sampling.scheduler

    @property
    def calls(self) -> int:
        """How often the model is called."""
        return len(self.levels) - 1

    @property
    def steps(self) -> str:
        """How many steps, how many calls of the model if that is another number, and the scheduler's options."""
        steps = self.row.parameters.sampling.num_inference_steps
        counted = f"{steps} step{'s' * (steps != 1)}"
        if self.calls != steps:
            counted += f" in {self.calls} calls of the model, each counted as a step here"
        options = self.row.parameters.sampling.scheduler_kwargs.items()
        return ", ".join([counted, *(f"{name}={json.dumps(value)}" for name, value in options)])

    def record(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        levels = [asdict(level) for level in self.levels]
        return {
            "sampler": self.sampler,
            "applied": dict(sorted(self.row.parameters.to_cells().items())),
            "schedule": levels[:-1],
            "end": levels[-1],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """A prompt as a row of a model, and what was found out about it; `versions` differ in their samplers alone."""

    model: Model
    versions: Sequence[Version]
    tokens: Sequence["Token"]
    chunks: Sequence[int]
    adapters: Sequence[str]  # what LoRAs, and the tags that named them, did: a sentence each

    @property
    def row(self) -> Row:
        """The row, by its first sampler."""
        return self.versions[0].row

    def record(self) -> dict[str, Any]:
        """All of it as JSON takes it; further samplers stand under `compared`."""
        first, *others = [version.record() for version in self.versions]
        return {
            "model": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "task": self.row.task,
            "tokens": [asdict(token) for token in self.tokens],
            "chunks": list(self.chunks),
            "adapters": list(self.adapters),
            **first,
            "compared": others,
        }


def read_settings(settings: Sequence[str], flags: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the form COLUMN=VALUE as cells of a row, by canonical name.

    Args:
        settings: as they were typed.
        flags: what other flags say, by column; None is as good as absent.

    Raises:
        InputError: no such column, or one that is said twice.
    """
    cells: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: has no =; write COLUMN=VALUE, such as negative_prompt=blurry")
        column = find_column(name.strip(), own=True)
        if column is None:
            known = near_or_known(name.strip(), sorted(COLUMNS.keys() - _UNSET))
            raise InputError(f"--set {name}: is no column; {known}")
        if column in _UNSET:
            raise InputError(f"--set {name}: cannot be set here; {_instead(column)}")
        if flags.get(column) or column in cells:
            other = _FLAGS[column] if flags.get(column) else "another --set"
            raise InputError(f"--set {name}: {other} says it, too; keep one of the two")
        cells[column] = value
    return cells


def _instead(column: str) -> str:
    return f"give {_FLAGS[column]}" if column in _FLAGS else "one image is explained, and it needs no name"


def explain(
    cells: Mapping[str, Any],
    *,
    samplers: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    model: str,
    model_config: str | None = None,
) -> Explanation:
    """Tokens and noise levels of a prompt.

    Args:
        cells: `prompt` and whatever else a manifest's row may say of it, by column; None is as good as absent.
        samplers: those to compare; the row's own is the first.
        settings: further cells, as texts that are read like those of a CSV file.
        model: as in the command line's MODEL.
        model_config: as for `find_model`.

    Raises:
        InputError: what a manifest's row would be refused for, or no such model.
        ModelLoadError: the model cannot be loaded.
    """
    found_model = find_model(model, config=model_config)
    given = {**{name: cell for name, cell in cells.items() if cell is not None}, **(settings or {})}
    said = {**_FLAGS, **{name: f"--set {name}" for name in settings or {}}}
    wrong: dict[str, None] = {}  # lines, each once
    made = [
        _make_row(given | ({"scheduler": sampler} if sampler else {}), found_model, said, wrong)
        for sampler in samplers or (None,)
    ]
    rows = [row for row in made if row is not None]
    if wrong:
        raise InputError("\n".join(wrong))
    from batchgen.diffusion.inspection import inspect_rows  # torch takes seconds to import: after all that is checked

    found = inspect_rows(found_model, rows)
    return Explanation(
        model=found_model,
        versions=[Version(row=row, levels=levels) for row, levels in zip(rows, found.schedules, strict=True)],
        tokens=found.tokens,
        chunks=found.chunks,
        adapters=_adapters(rows[0], given["prompt"], found_model),
    )


def _make_row(cells: Mapping[str, Any], model: Model, said: Mapping[str, str], wrong: dict[str, None]) -> Row | None:
    """The row that a CSV file with these cells would give; paths start from the current folder.

    None where something is wrong with it; that goes to `wrong`, a line each.
    """
    here = Path.cwd()
    problems = ProblemLog()
    record = Record(
        file=str(here / "PROMPT"), number=1, cells=cells, columns=frozenset(cells), from_text=True, declared=False
    )
    sorter = CellSorter(problems)
    with ThreadPoolExecutor() as pool:
        reader = ImageReader(sorter, pool, Inputs(schemes=SCHEMES, roots=("/",)))  # it is the user who names them
        [(parsed, inputs)] = reader.read([sorter.parse(record)], problems)
    row_problems = RowProblems((problem.column or "prompt", problem.message) for problem in problems.shown)
    task = choose_task(parsed, model, row_problems)
    defaults = Defaults(values={"seed": SEED}, adapters=Finder(folder=str(here)), find_model=find_model)
    applied = apply_rules(parsed, task, model, inputs, defaults, row_problems)
    for name, message in row_problems:
        from_tag = name in ("loras", "hypernetwork") and name not in cells
        wrong[f"{'PROMPT' if from_tag else said.get(name, f'--set {name}')}: {message}"] = None
    if row_problems:
        return None
    return Row(
        id="explained",
        fingerprint="",
        task=task.name,
        parameters=Parameters.from_cells(applied),
        inputs=inputs,
        sampler=named_sampler(parsed, model, defaults),
    )


def _adapters(row: Row, prompt: str, model: Model) -> list[str]:
    """What each LoRA of a row changes, and what the prompt's tags did."""
    assert row.parameters.prompting is not None, "explained rows have a prompt"
    tags = parse_tags(prompt)[1] if row.parameters.prompting.prompt_syntax == "a1111" else ()
    named = {Path(tag.name).stem for tag in tags}
    said = []
    for lora in row.parameters.adapters.loras or ():
        name = adapter_name(lora["path"])
        by = "The prompt's tag put on the" if name in named else "On is the"
        said.append(f"{by} LoRA {name} at scale {lora['scale']:g}: {_changes(lora, model)}.")
    if (net := row.parameters.adapters.hypernetwork) is not None:
        said.append(f"On is the hypernetwork {adapter_name(net['path'])} at scale {net['scale']:g}.")
    if tags:
        said.append("Tags are no words: they are taken out of the prompt before it is tokenized.")
    return said


def _changes(lora: Adapter, model: Model) -> str:
    """How many layers of which part of the model a LoRA changes, by the names in its file."""
    shapes, _ = read_facts(Path(lora["path"]), ADAPTERS["loras"].weights)
    layers, _ = layers_of(shapes, xl=model.family in (Family.SDXL, Family.REFINER))
    parts = [layer.part for layer in layers]
    counted = [f"{parts.count(part)} layers of the {_PARTS.get(part, part)}" for part in dict.fromkeys(parts)]
    return f"it changes {' and '.join(counted)}" if parts else "a pickle, which names no layers"


def explanation_tables(explanation: Explanation) -> Iterator[RenderableType]:
    """Tokens, sentences on chunks and adapters, and for each sampler its noise levels and steps."""
    tokens = _table("position", "id", "token", "chunk", "weight", left="token")
    chunk = 0
    for token in explanation.tokens:
        if token.chunk != chunk:
            tokens.add_section()
            chunk = token.chunk
        tokens.add_row(str(token.position), str(token.id), token.text, str(token.chunk), f"{token.weight:.4g}")
    yield tokens
    yield Text("\n".join([_cut(explanation.chunks), *explanation.adapters]) + "\n")
    for version in explanation.versions:
        schedule = _table("step", "timestep", "sigma", "log SNR")
        *calls, end = version.levels
        for level in calls:
            sigma, log_snr = _number(level.sigma, ".4f"), _number(level.log_snr, ".3f", "-inf")
            schedule.add_row(str(level.step), f"{level.timestep:.6g}", sigma, log_snr)
        schedule.add_row(
            "end", f"{end.timestep:.6g}", _number(end.sigma, ".4f"), _number(end.log_snr, ".3f"), style="dim"
        )
        yield schedule
        yield Text(f"{version.sampler}: {version.steps}")


def _table(*columns: str, left: str = "") -> Table:
    table = Table(box=box.HORIZONTALS)
    for column in columns:
        table.add_column(column, justify="left" if column == left else "right")
    return table


def _cut(chunks: Sequence[int]) -> str:
    """How a prompt is cut, in a sentence."""
    total = sum(chunks)
    tokens = f"{total} token{'s' * (total != 1)}"
    if len(chunks) == 1:
        return f"{tokens} in 1 chunk; a text encoder reads up to 75 at once."
    held = " + ".join(map(str, chunks))
    return (
        f"{tokens} in {len(chunks)} chunks ({held}), cut at the lines: a text encoder reads up to 75 at once. "
        "Each chunk is encoded alone, and the image is made from all of them; no token is dropped."
    )


def _number(value: float | None, form: str, infinite: str = "inf") -> str:
    return infinite if value is None else format(value, form)
