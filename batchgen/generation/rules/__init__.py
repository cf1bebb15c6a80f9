"""The rules by which a row's task and cells become what is applied to it: a module for each group of parameters.

A value comes from the row's cell, else the job's [defaults], else the model's own, else the column contract, else what
the model brings (size, scheduler). No model is loaded; adapters are looked up and held against the model by the headers
of their files.
"""

from collections.abc import Callable, Mapping
from typing import Any

from batchgen.generation.parameters import ImageRef
from batchgen.generation.rules.adapters import adapter_rule
from batchgen.generation.rules.canvas import image_rule, size_rule, watermark_rule
from batchgen.generation.rules.classes import class_rule
from batchgen.generation.rules.control import control_rule
from batchgen.generation.rules.draft import Defaults, Draft, Problems, RowProblems, filled_in
from batchgen.generation.rules.image_prompt import image_prompt_rule
from batchgen.generation.rules.passes import hires_rule, refiner_rule
from batchgen.generation.rules.prompting import prompt_rule
from batchgen.generation.rules.sampling import named_sampler, scheduler_rule
from batchgen.generation.rules.task import choose_task
from batchgen.generation.tasks import Task
from batchgen.manifest.cells import Parsed
from batchgen.models.catalog import Model

__all__ = ["Defaults", "RowProblems", "apply_rules", "choose_task", "named_sampler"]

RULES: tuple[Callable[[Draft], Problems], ...] = (
    size_rule,
    scheduler_rule,
    prompt_rule,  # names adapters
    control_rule,
    image_prompt_rule,
    adapter_rule,
    refiner_rule,
    class_rule,  # reads the classifier that was found
    hires_rule,
    image_rule,
    watermark_rule,  # knows how large the image gets
)
"""In this order: later ones read what earlier ones filled in."""


def apply_rules(
    parsed: Parsed,
    task: Task,
    model: Model,
    inputs: Mapping[str, ImageRef],
    defaults: Defaults,
    problems: RowProblems,
) -> dict[str, Any]:
    """The row's cells with every default filled in; what breaks a rule goes to `problems`.

    Where there are none, `Parameters.from_cells` takes them, once they have a seed.
    """
    values = filled_in(parsed, task, model, defaults)
    draft = Draft(
        parsed=parsed, task=task, model=model, inputs=inputs, defaults=defaults, problems=problems, values=values
    )
    for rule in RULES:
        problems.extend(rule(draft))
    return draft.values
