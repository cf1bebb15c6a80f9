"""What becomes of a prompt: its tokens, the noise levels of its sampler, an image after every step.

The prompt is checked as a manifest's row is, by the same functions; no output, index or Ray is involved.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from batchgen.errors import InputError
from batchgen.generation.parameters import Parameters
from batchgen.generation.rules import Defaults, RowProblems, apply_rules, choose_task
from batchgen.images import encode
from batchgen.machine import gpus
from batchgen.manifest.cells import CellSorter
from batchgen.manifest.files import Record
from batchgen.manifest.problems import ProblemLog
from batchgen.models.adapters import Finder
from batchgen.models.catalog import Model, find_model
from batchgen.options import ImageFormat
from batchgen.report.sheets import draw_log_chart, draw_sheet
from batchgen.rows import Row
from batchgen.storage import Store, open_store

if TYPE_CHECKING:
    from batchgen.diffusion.inspection import Inspection

__all__ = ["Explanation", "explain", "explanation_tables", "write_explanation"]

SEED = 0  # where none is given: explaining the same prompt twice gives the same images
_FLAGS = {"num_inference_steps": "--steps", "loras": "PROMPT", "hypernetwork": "PROMPT"} | {
    name: "--" + name.replace("_", "-")
    for name in ("clip_skip", "guidance_scale", "prompt_syntax", "scheduler", "seed")
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """A prompt as a row of a model, and what was found out about it."""

    model: Model
    row: Row
    found: "Inspection"

    @property
    def steps(self) -> str:
        """How many steps, how many calls of the model if that is another number, and the scheduler's options."""
        steps, calls = self.row.parameters.sampling.num_inference_steps, len(self.found.schedule)
        counted = f"{steps} step{'s' * (steps != 1)}"
        if calls != steps:
            counted += f" in {calls} calls of the model, each counted as a step here"
        options = self.row.parameters.sampling.scheduler_kwargs.items()
        return ", ".join([counted, *(f"{name}={json.dumps(value)}" for name, value in options)])

    def record(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {
            "model": self.model.name,
            "model_fingerprint": self.model.fingerprint,
            "task": self.row.task,
            "applied": dict(sorted(self.row.parameters.to_cells().items())),
            **asdict(self.found),
        }


def explain(cells: Mapping[str, Any], *, model: str, model_config: str | None = None) -> Explanation:
    """Tokens and noise levels of a prompt.

    Args:
        cells: `prompt` and whatever else a manifest's row may say of it, by column; None is as good as absent.
        model: as in the command line's MODEL.
        model_config: as for `find_model`.

    Raises:
        InputError: what a manifest's row would be refused for, or no such model.
        ModelLoadError: the model cannot be loaded.
    """
    found_model = find_model(model, config=model_config)
    row = _make_row({name: cell for name, cell in cells.items() if cell is not None}, found_model)
    from batchgen.diffusion.inspection import inspect_row  # torch takes seconds to import: after everything is checked

    return Explanation(model=found_model, row=row, found=inspect_row(found_model, row))


def write_explanation(explanation: Explanation, output: str) -> Iterator[str]:
    """Write `explain.json`, `schedule.png` and `steps.png` to a folder or a prefix; yields the place of each.

    Raises:
        StoreError: the place cannot be written to.
        InputError: the model cannot make the row.
    """
    store = open_store(output)
    yield _write(store, "explain.json", json.dumps(explanation.record(), ensure_ascii=False, indent=2).encode() + b"\n")
    levels = explanation.found.schedule
    chart = draw_log_chart(
        explanation.row.parameters.sampling.scheduler,
        explanation.steps,
        [level.sigma for level in levels],
        x="step",
        y="sigma at the start of the step: noise over signal, on a logarithmic scale",
    )
    yield _write(store, "schedule.png", encode(chart, ImageFormat.PNG))
    labels = [f"step {level.step}\nfrom sigma {_number(level.sigma, '.3g')}" for level in levels]
    sheet = draw_sheet(_watch(explanation), labels)
    yield _write(store, "steps.png", encode(sheet, ImageFormat.PNG))


def explanation_tables(explanation: Explanation) -> Iterator[RenderableType]:
    """Tokens, a sentence on chunks, noise levels, a sentence on steps."""
    found = explanation.found
    tokens = _table("position", "id", "token", "chunk", "weight", left="token")
    chunk = 0
    for token in found.tokens:
        if token.chunk != chunk:
            tokens.add_section()
            chunk = token.chunk
        tokens.add_row(str(token.position), str(token.id), token.text, str(token.chunk), f"{token.weight:.4g}")
    yield tokens
    yield Text(_cut(found.chunks) + "\n")
    schedule = _table("step", "timestep", "sigma", "log SNR")
    for level in found.schedule:
        sigma, log_snr = _number(level.sigma, ".4f"), _number(level.log_snr, ".3f", "-inf")
        schedule.add_row(str(level.step), f"{level.timestep:.6g}", sigma, log_snr)
    yield schedule
    yield Text(f"{explanation.row.parameters.sampling.scheduler}: {explanation.steps}")


def _table(*columns: str, left: str = "") -> Table:
    table = Table(box=box.HORIZONTALS)
    for column in columns:
        table.add_column(column, justify="left" if column == left else "right")
    return table


def _make_row(cells: Mapping[str, Any], model: Model) -> Row:
    """The row that a manifest with these cells would give; paths in the prompt start from the current folder.

    Raises:
        InputError: all that is wrong, a line each.
    """
    problems = ProblemLog()
    record = Record(file="", number=1, cells=cells, columns=frozenset(cells), from_text=False, declared=False)
    parsed = CellSorter(problems).parse(record)
    row_problems = RowProblems((problem.column or "prompt", problem.message) for problem in problems.shown)
    task = choose_task(parsed, model, row_problems)
    defaults = Defaults(values={"seed": SEED}, adapters=Finder(folder=str(Path.cwd())), find_model=find_model)
    cells_applied = apply_rules(parsed, task, model, {}, defaults, row_problems)
    if row_problems:
        raise InputError("\n".join(f"{_FLAGS.get(name, name.upper())}: {message}" for name, message in row_problems))
    return Row(id="explained", fingerprint="", task=task.name, parameters=Parameters.from_cells(cells_applied))


def _watch(explanation: Explanation) -> Any:
    """The images after every step, made alone: a micro-batch of one."""
    from batchgen.diffusion.host import PipelineHost

    device: Literal["cpu", "cuda"] = "cuda" if gpus() else "cpu"
    host = PipelineHost(device=device, dtype="float16" if device == "cuda" else "float32")
    return host.watch(explanation.model, explanation.row, {})


def _write(store: Store, name: str, data: bytes) -> str:
    store.write(name, data)
    return f"{store.uri}/{name}"


def _cut(chunks: tuple[int, ...]) -> str:
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
