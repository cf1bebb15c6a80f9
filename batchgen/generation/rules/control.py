"""ControlNets and their images."""

from dataclasses import fields

from batchgen.generation.parameters import Control
from batchgen.generation.rules.draft import Draft, Problems
from batchgen.manifest.columns import COLUMNS, Kind, image_column

__all__ = ["control_rule"]


def control_rule(draft: Draft) -> Problems:
    """As many scales, starts and ends as ControlNets; without ControlNets none of their columns."""
    values, task, family = draft.values, draft.task, draft.model.family
    if "controlnet" not in values:
        return
    images = [name for name in draft.inputs if image_column(name) == "control_image"]
    if values["controlnet"] is None:
        if images:
            yield "control_image", "is given without a controlnet; name one, or leave it null"
        if "controlnet" not in draft.parsed.spoiled:
            yield from draft.drop([one.name for one in fields(Control)], "means nothing without a controlnet")
        return
    if task.pipeline(family, controlled=True) is None:
        yield "controlnet", f"cannot be used for {task.name} with a {family} model; leave it null"
    yield from draft.drop(task.uncontrolled.get(family, ()), f"cannot be used for {task.name} with a ControlNet")
    nets = values["controlnet"]
    nets = list(nets) if isinstance(nets, (list, tuple)) else [nets]
    values["controlnet"] = nets
    if len(images) != len(nets) and "control_image" not in draft.parsed.spoiled:
        wanted = f"{len(nets)} for as many ControlNets" if len(nets) > 1 else "one for the ControlNet"
        yield "control_image", f"holds {len(images) or 'no'} images; give {wanted}"
    for name in (one.name for one in fields(Control)):
        column, given = COLUMNS[name], values.get(name)
        if given is None or not column.listed or column.kind is Kind.ADAPTER:
            continue
        if len(given) == 1:
            given = given * len(nets)
        if len(given) != len(nets):
            yield name, f"holds {len(given)} values for {len(nets)} ControlNets; give one, or one for each"
        values[name] = given
    if "pose" not in values["control_preprocess"]:
        yield from draft.drop(("pose_estimator", "person_detector"), "means nothing without control_preprocess pose")
    elif values["pose_estimator"] is None:
        yield "pose_estimator", "is null, but control_preprocess asks for poses; name a folder of ViTPose"
    for start, end in zip(values["control_guidance_start"], values["control_guidance_end"], strict=False):
        if start >= end:
            yield "control_guidance_start", f"is {start:g}, not before control_guidance_end, {end:g}"
