"""Which task a row is of, and that its model can do it."""

from batchgen.generation.rules.draft import RowProblems
from batchgen.generation.tasks import TASKS, Task, find_task, infer_task
from batchgen.manifest.cells import Parsed
from batchgen.models.catalog import Model

__all__ = ["choose_task"]


def choose_task(parsed: Parsed, model: Model, problems: RowProblems) -> Task:
    """The task a row names, or the one that its columns ask for and the model can do."""
    given = parsed.cells.keys() | parsed.spoiled
    task = infer_task(given, model.family, model.unet_channels)
    if "task" in parsed.cells:
        try:
            task = find_task(parsed.cells["task"])
        except LookupError as error:
            problems.add("task", str(error.args[0]))
            return task
    for name in task.needs:
        if name not in given:
            problems.add(name, f"is null, but {task.name} needs it")
    for name in parsed.cells:
        if name not in task.columns:
            problems.add(name, _not_taken(name, task))
        elif name not in task.columns_for(model.family):
            problems.add(name, f"means nothing to {model.name!r}, which is a {model.family}; leave it null")
    if not _able(task, model):
        able = [other.name for other in TASKS.values() if _able(other, model)]
        problems.add(
            "task", f"{model.name!r} cannot do {task.name}; it is made for {' or '.join(able) or 'another program'}"
        )
    return task


def _able(task: Task, model: Model) -> bool:
    return model.family in task.pipelines and model.unet_channels in task.unet_channels


def _not_taken(name: str, task: Task) -> str:
    other = next(other for other in TASKS.values() if name in other.columns)
    need = " and ".join(repr(n) for n in other.needs if n != name)
    remedy = f"leave it null, or make the row {other.name}" + (f" by giving it {need}" if need else "")
    return f"means nothing to {task.name}; {remedy}"
