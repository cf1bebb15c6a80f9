"""The rules by which a row's task and cells become what is applied to it.

A value comes from the row's cell, else the job's [defaults], else the model's own, else the column contract, else what
the model brings (size, scheduler). No model is loaded; adapters are looked up and held against the model by the headers
of their files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from batchgen.errors import CellError, InputError, PromptSyntaxError, UnknownSampler
from batchgen.generation.parameters import PROMPTS, Control, ImagePrompt, ImageRef
from batchgen.generation.prompt_syntax import find_unsupported, parse_tags
from batchgen.generation.samplers import OPTIONS, find_sampler, option_problems
from batchgen.generation.tasks import TASKS, Task, find_task, infer_task
from batchgen.generation.watermark import capacity
from batchgen.manifest.cells import Parsed, missing_prompt
from batchgen.manifest.columns import COLUMNS, MAX_SIDE, Kind, image_column
from batchgen.models.adapters import ADAPTERS, Finder, find_adapters
from batchgen.models.catalog import Family, Model
from batchgen.models.compatibility import read_classifier

__all__ = ["Defaults", "RowProblems", "apply_rules", "choose_task", "named_sampler"]

_NOT_APPLIED = frozenset({"id", "task", "num_images_per_prompt"})  # columns of a task that are no argument of it
_IMAGE_COLUMNS = frozenset(column.name for column in COLUMNS.values() if column.kind is Kind.IMAGE)
_LISTED_CONTROL = (
    "control_preprocess",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
)
_HANDOFF = 0.8  # of the noise schedule: where SDXL's authors let the refiner take over (Podell et al. 2023)
_LEAST_SIDE = 8  # pixels
_TAGGED = {"lora": "loras", "lyco": "loras", "hypernet": "hypernetwork"}  # columns, by the kinds of tags in prompts

Values = dict[str, Any]
"""Cells of a row while the rules are applied: null where a column is taken and nothing stands for it."""

Problems = Iterator[tuple[str, str]]
"""Columns and what is wrong with their cells."""


class RowProblems(list[tuple[str, str]]):
    """Columns and what is wrong with their cells in one row."""

    def add(self, column: str, message: str) -> None:
        self.append((column, message))


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What the job brings to every row: values of columns, where adapters are looked for, and how models are found.

    `find_model` raises InputError when there is no such model.
    """

    values: Mapping[str, Any]
    adapters: Finder
    find_model: Callable[[str], Model]


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


def apply_rules(
    parsed: Parsed,
    task: Task,
    model: Model,
    inputs: Mapping[str, ImageRef],
    defaults: Defaults,
    problems: RowProblems,
) -> Values:
    """The row's cells with every default filled in; what breaks a rule goes to `problems`.

    Where there are none, `Parameters.from_cells` takes them, once they have a seed.
    """
    values: Values = {}
    for name in sorted(task.columns_for(model.family) - _NOT_APPLIED - _IMAGE_COLUMNS):
        values[name] = _asked(name, parsed, model, defaults)
    values["model"] = model.name
    problems.extend(_size_problems(values, model, inputs))
    values["width"], values["height"] = _size(values, model, inputs)
    values["scheduler"], values["scheduler_kwargs"] = _scheduler(values, model, problems)
    if "prompt" in values:
        _apply_prompts(values, parsed, model, defaults, problems)
    _apply_control(values, parsed, task, model, inputs, problems)
    _apply_image_prompt(values, parsed, inputs, problems)
    _apply_adapters(values, model, defaults, problems)
    problems.extend(_refiner_problems(values, model, defaults))
    if values.get("refiner") is not None and values["denoising_end"] is None:
        values["denoising_end"] = _HANDOFF
    _apply_class(values, parsed, model, problems)
    _apply_hires(values, parsed, problems)
    problems.extend(_image_problems(task, model, inputs))
    problems.extend(_watermark_problems(values, model))
    return values


def named_sampler(parsed: Parsed, model: Model, defaults: Defaults) -> str:
    """The sampler as it was written, whose class and options are what is applied; the model's class where none was."""
    name: str | None = _asked("scheduler", parsed, model, defaults)
    return name or model.scheduler


def _asked(name: str, parsed: Parsed, model: Model, defaults: Defaults) -> Any:
    """What the row, the job, the model or the column contract says of a column, the first that does."""
    value = parsed.cells.get(name)
    if value is None or (COLUMNS[name].kind is Kind.ADAPTER and value in ([], ())):
        value = defaults.values.get(name, model.defaults.get(name, COLUMNS[name].default))
    return value


def _drop(values: Values, names: Iterable[str], parsed: Parsed, reason: str, problems: RowProblems) -> None:
    """Take out columns that mean nothing to this row; a cell that was given all the same is a problem."""
    for name in names:
        values.pop(name, None)
        if name in parsed.cells:
            problems.add(name, f"{reason}; leave it null")


def _size_problems(values: Mapping[str, Any], model: Model, inputs: Mapping[str, ImageRef]) -> Problems:
    """What is wrong with the size that is asked for, or that the init image brings."""
    step = _side_step(model)
    for name in ("width", "height"):
        if values[name] and values[name] % step:
            yield name, f"is {values[name]}; {model.name!r} takes multiples of {step}"
    if (image := inputs.get("image")) is None:
        return
    if image.width < step or image.height < step:
        yield "image", f"is {_wh(image)}; at least {step}x{step}"
    for name, side in (("width", image.width), ("height", image.height)):
        if values[name] is None and side // step * step > MAX_SIDE:
            yield name, f"is null, and the image is {_wh(image)}; give a {name} of at most {MAX_SIDE}"


def _size(values: Mapping[str, Any], model: Model, inputs: Mapping[str, ImageRef]) -> tuple[int, int]:
    """Width and height in pixels: as asked, else the init image's (cut to what the model takes), else the model's."""
    native, step = (model.width, model.height), _side_step(model)
    if (image := inputs.get("image")) is not None:
        native = (max(step, image.width // step * step), max(step, image.height // step * step))
    return values["width"] or native[0], values["height"] or native[1]


def _side_step(model: Model) -> int:
    """What a side must be a multiple of: two kinds of nets halve what they see at each level but the last, evenly.

    The latent upscaler sees latents of twice the image's size: 4 pixels a latent.
    """
    halved = 1 << max(0, len(model.unet_widths) - 1)
    steps = {Family.LATENT_UPSCALER: 4 * halved, Family.PIXELS: halved}
    return max(_LEAST_SIDE, steps.get(model.family, _LEAST_SIDE))


def _wh(image: ImageRef) -> str:
    return f"{image.width}x{image.height}"


def _scheduler(values: Mapping[str, Any], model: Model, problems: RowProblems) -> tuple[str, dict[str, Any]]:
    """Scheduler class and options: a sampler's name brings options of its own, `scheduler_kwargs` adds to them."""
    try:
        sampler = find_sampler(values["scheduler"] or model.scheduler)
    except UnknownSampler as error:
        problems.add("scheduler", str(error))
        return model.scheduler, {}
    if model.family is Family.LATENT_UPSCALER and sampler.class_name != "EulerDiscreteScheduler":
        problems.add("scheduler", f"is {sampler.class_name}; a {model.family} takes EulerDiscreteScheduler only")
    options = {**sampler.kwargs, **(values["scheduler_kwargs"] or {})}
    for name in options:
        if name == "noise_sampler_seed":
            problems.add("scheduler_kwargs", "noise_sampler_seed follows from the row's seed; leave it out")
        elif name not in OPTIONS[sampler.class_name]:
            near = get_close_matches(name, OPTIONS[sampler.class_name], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see diffusers' page of the class"
            problems.add("scheduler_kwargs", f"{sampler.class_name} takes no option {name!r}; {hint}")
    for problem in option_problems(options):
        problems.add("scheduler_kwargs", problem)
    return sampler.class_name, options


def _apply_prompts(values: Values, parsed: Parsed, model: Model, defaults: Defaults, problems: RowProblems) -> None:
    """Size conditioning and the second prompt of SDXL; what a prompt of A1111's syntax asks for besides."""
    if values["prompt"] is None and "prompt" not in parsed.spoiled:
        problems.add("prompt", missing_prompt(parsed.record))
    for name in PROMPTS:
        if "{prompt}" in (values.get(name) or ""):
            problems.add(
                name, "holds {prompt}, as A1111's styles do, where a prompt is to stand; write one row for each prompt"
            )
    if values["clip_skip"] is not None and values["clip_skip"] >= model.text_layers:
        problems.add("clip_skip", f"is {values['clip_skip']}; {model.name!r} has {model.text_layers} text layers")
    if model.family in (Family.SDXL, Family.REFINER):
        size = (values["height"], values["width"])
        values["original_size"] = values.get("original_size") or size
        values["target_size"] = values.get("target_size") or size
        values["crops_coords_top_left"] = values.get("crops_coords_top_left") or (0, 0)
    elif values["negative_prompt"] is None:
        values["negative_prompt"] = ""  # the same to one tower; SDXL takes zeros for a missing one
    if values["prompt_syntax"] == "a1111":
        _apply_syntax(values, model, defaults, problems)


def _apply_syntax(values: Values, model: Model, defaults: Defaults, problems: RowProblems) -> None:
    """Adapters that a prompt of A1111's syntax names go to their columns; what is not done of it is refused."""
    for name in PROMPTS:
        if reason := find_unsupported(values.get(name) or "", negative=name.startswith("negative")):
            problems.add(name, reason)
    try:
        values["prompt"], tags = parse_tags(values["prompt"] or "")
    except PromptSyntaxError as error:
        problems.add("prompt", str(error))
        return
    for tag in tags:
        column = _TAGGED[tag.kind]
        kind, given = ADAPTERS[column], values.get(column)
        named = {"path": defaults.adapters.named(tag.name), "scale": tag.scale}
        if column not in values:
            problems.add("prompt", f"names the {kind.what} {tag.name!r}; a {model.family} takes none")
        elif kind.in_list:
            listed = given if isinstance(given, (list, tuple)) else () if given is None else (given,)
            values[column] = [*listed, named]
        elif given is None:
            values[column] = named
        else:
            problems.add("prompt", f"names the {kind.what} {tag.name!r} beside another; a row takes one")


def _apply_control(
    values: Values,
    parsed: Parsed,
    task: Task,
    model: Model,
    inputs: Mapping[str, ImageRef],
    problems: RowProblems,
) -> None:
    """As many scales, starts and ends as ControlNets; without ControlNets none of their columns."""
    if "controlnet" not in values:
        return
    nets = values["controlnet"]
    images = [name for name in inputs if image_column(name) == "control_image"]
    if nets is None:
        if images:
            problems.add("control_image", "is given without a controlnet; name one, or leave it null")
        idle = [one.name for one in fields(Control)]
        if "controlnet" not in parsed.spoiled:
            _drop(values, idle, parsed, "means nothing without a controlnet", problems)
        return
    if task.pipeline(model.family, controlled=True) is None:
        problems.add("controlnet", f"cannot be used for {task.name} with a {model.family} model; leave it null")
    reason = f"cannot be used for {task.name} with a ControlNet"
    _drop(values, task.uncontrolled.get(model.family, ()), parsed, reason, problems)
    nets = list(nets) if isinstance(nets, (list, tuple)) else [nets]
    values["controlnet"] = nets
    if len(images) != len(nets):
        wanted = f"{len(nets)} for as many ControlNets" if len(nets) > 1 else "one for the ControlNet"
        problems.add("control_image", f"holds {len(images) or 'no'} images; give {wanted}")
    for name in _LISTED_CONTROL:
        given = values[name] if isinstance(values[name], tuple) else (values[name],)
        if len(given) == 1:
            given = given * len(nets)
        if len(given) != len(nets):
            problems.add(name, f"holds {len(given)} values for {len(nets)} ControlNets; give one, or one for each")
        values[name] = given
    if "pose" not in values["control_preprocess"]:
        reason = "means nothing without control_preprocess pose"
        _drop(values, ("pose_estimator", "person_detector"), parsed, reason, problems)
    elif values["pose_estimator"] is None:
        problems.add("pose_estimator", "is null, but control_preprocess asks for poses; name a folder of ViTPose")
    for start, end in zip(values["control_guidance_start"], values["control_guidance_end"], strict=False):
        if start >= end:
            problems.add("control_guidance_start", f"is {start:g}, not before control_guidance_end, {end:g}")


def _apply_image_prompt(values: Values, parsed: Parsed, inputs: Mapping[str, ImageRef], problems: RowProblems) -> None:
    if "ip_adapter" not in values:
        return
    if values["ip_adapter"] is None:
        if "ip_adapter_image" in inputs:
            problems.add("ip_adapter_image", "is given without an ip_adapter; name one, or leave it null")
        idle = [one.name for one in fields(ImagePrompt)]
        if "ip_adapter" not in parsed.spoiled:
            _drop(values, idle, parsed, "means nothing without an ip_adapter", problems)
    elif "ip_adapter_image" not in inputs:
        problems.add("ip_adapter_image", "is null, but the ip_adapter needs it")


def _apply_adapters(values: Values, model: Model, defaults: Defaults, problems: RowProblems) -> None:
    for column in ADAPTERS.keys() & values.keys():
        if values[column] is None:
            continue
        try:
            values[column] = find_adapters(column, values[column], model, defaults.adapters)
        except CellError as error:
            problems.add(column, str(error))


def _refiner_problems(values: Mapping[str, Any], model: Model, defaults: Defaults) -> Problems:
    """Where a refiner takes over, and that it is one."""
    start, end = values.get("denoising_start"), values.get("denoising_end")
    if start is not None and end is not None and start >= end:
        yield "denoising_start", f"is {start:g}, not before denoising_end, {end:g}"
    if values.get("refiner") is None:
        return
    if end in (0.0, 1.0):
        yield "denoising_end", f"is {end:g}, which leaves one of base and refiner without a step"
    try:
        refiner = defaults.find_model(values["refiner"])
    except InputError as error:
        yield "refiner", str(error)
        return
    if refiner.family is not Family.REFINER:
        yield "refiner", f"is {refiner.name!r}, a {refiner.family} model; name a refiner"
    if model.family is not Family.SDXL:
        yield "refiner", f"cannot follow {model.name!r}, a {model.family} model; leave it null"


def _apply_class(values: Values, parsed: Parsed, model: Model, problems: RowProblems) -> None:
    """A label where the model or a classifier wants one, and one that they know."""
    wrong = parsed.spoiled | {column for column, _ in problems}
    if "class_label" not in values or not wrong.isdisjoint({"class_label", "classifier"}):
        return
    label, found = values["class_label"], values["classifier"]
    known = {f"{model.name!r}": model.classes} if model.classes else {}
    if found is not None:
        facts = read_classifier(found["path"])
        known["the classifier"] = facts.classes
        if {values["width"], values["height"]} != {facts.image_size}:
            size = f"{values['width']}x{values['height']}"
            problems.add("classifier", f"reads images of {facts.image_size} pixels a side, and the row's is {size}")
    else:
        _drop(values, ("classifier", "classifier_scale"), parsed, "means nothing without a classifier", problems)
    if label is None and known:
        name, classes = next(iter(known.items()))
        problems.add("class_label", f"is null, but {name} wants one from 0 to {classes - 1}")
    elif label is not None and found is None and not known:
        problems.add("class_label", f"means nothing to {model.name!r}; name a classifier, or leave it null")
    for name, classes in known.items():
        if label is not None and label >= classes:
            problems.add("class_label", f"is {label}; {name} knows 0 to {classes - 1}")


def _apply_hires(values: Values, parsed: Parsed, problems: RowProblems) -> None:
    """Without a scale of more than 1 there is no second pass; with one, the first goes to its end."""
    if "hires_scale" not in values:
        return
    if values["hires_scale"] is None:
        _drop(values, ("hires_scale", "hires_strength"), parsed, "means nothing without a hires_scale", problems)
    elif values["hires_scale"] == 1.0:
        del values["hires_scale"], values["hires_strength"]
    else:
        problems.extend(_hires_problems(values))


def _hires_problems(values: Mapping[str, Any]) -> Problems:
    scale = values["hires_scale"]
    for name in ("width", "height"):
        if values[name] * scale > MAX_SIDE:
            yield "hires_scale", f"is {scale:g}, which makes the {name} {values[name] * scale:g} pixels"
    for name in ("refiner", "denoising_end"):
        if values.get(name) is not None:
            yield "hires_scale", f"cannot be used together with a {name}; leave one of them null"
            return


def _watermark_problems(values: Mapping[str, Any], model: Model) -> Problems:
    """That the finished image has room for it."""
    if (text := values["watermark"]) is None:
        return
    scale = model.enlarges * (values.get("hires_scale") or 1)
    width, height = (round(values[name] * scale) for name in ("width", "height"))
    most, length = capacity(width, height), len(text.encode())
    if most == 0:
        yield "watermark", f"has no room in an image of {width}x{height}; leave it null"
    elif not 0 < length <= most:
        yield "watermark", f"takes {length} bytes; an image of {width}x{height} carries 1 to {most}"


def _image_problems(task: Task, model: Model, inputs: Mapping[str, ImageRef]) -> Problems:
    """Images that are missing, or of other sizes than those that they go with."""
    if inputs.keys() >= {"image", "mask_image"} and _wh(inputs["mask_image"]) != _wh(inputs["image"]):
        mask, image = _wh(inputs["mask_image"]), _wh(inputs["image"])
        yield "mask_image", f"is {mask}, but the image is {image}; make them the same size"
    if task.name == "depth-to-image" and "depth_map" not in inputs and not model.estimates_depth:
        yield "depth_map", f"is null, and {model.name!r} has no depth estimator; give a depth map"
    controls = {_wh(image) for name, image in inputs.items() if image_column(name) == "control_image"}
    if len(controls) > 1:
        yield "control_image", f"holds images of {' and '.join(sorted(controls))}; make them the same size"
