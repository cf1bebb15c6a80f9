"""What is applied to a row: its task, every argument of the task by column name, and the rules between them.

A value comes from the row's cell, else the job's [defaults], else the column contract, else the model. No model is
loaded; adapters are looked up and held against the model by the headers of their files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from batchgen.adapters import ADAPTERS, Finder, find_adapters
from batchgen.cells import Parsed, missing_prompt
from batchgen.columns import COLUMNS, MAX_SIDE, CellError, Kind, image_column, input_name
from batchgen.errors import InputError
from batchgen.fitting import read_classifier
from batchgen.models import Family, Model
from batchgen.prompt_syntax import LoraTagError, parse_loras
from batchgen.rows import ImageRef
from batchgen.samplers import OPTIONS, UnknownSampler, find_sampler
from batchgen.tasks import CONTROL, IMAGE_PROMPT, TASKS, Task, find_task, infer_task
from batchgen.watermark import capacity

__all__ = ["Complaints", "Defaults", "apply_arguments", "choose_task"]

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

Values = dict[str, Any]


class Complaints(list[tuple[str, str]]):
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


def choose_task(parsed: Parsed, model: Model, complaints: Complaints) -> Task:
    """The task a row names, or the one that its columns ask for and the model can do."""
    given = parsed.cells.keys() | parsed.spoiled
    task = infer_task(given, model.family, model.unet_channels)
    if "task" in parsed.cells:
        try:
            task = find_task(parsed.cells["task"])
        except LookupError as error:
            complaints.add("task", str(error.args[0]))
            return task
    for name in task.needs:
        if name not in given:
            complaints.add(name, f"is null, but {task.name} needs it")
    for name in parsed.cells:
        if name not in task.columns:
            complaints.add(name, _not_taken(name, task))
        elif name not in task.columns_for(model.family):
            complaints.add(name, f"means nothing to {model.name!r}, which is a {model.family}; leave it null")
    if not _able(task, model):
        able = [other.name for other in TASKS.values() if _able(other, model)]
        complaints.add(
            "task", f"{model.name!r} cannot do {task.name}; it is made for {' or '.join(able) or 'another program'}"
        )
    return task


def _able(task: Task, model: Model) -> bool:
    return model.family in task.pipelines and model.unet_channels in task.unet_channels


def _not_taken(name: str, task: Task) -> str:
    others = [other for other in TASKS.values() if name in other.columns]
    if not others:
        return "is not supported by any task of this version; leave it null"
    need = " and ".join(repr(n) for n in others[0].needs if n != name)
    remedy = f"leave it null, or make the row {others[0].name}" + (f" by giving it {need}" if need else "")
    return f"means nothing to {task.name}; {remedy}"


def apply_arguments(
    parsed: Parsed,
    task: Task,
    model: Model,
    inputs: Mapping[str, ImageRef],
    defaults: Defaults,
    complaints: Complaints,
) -> Values:
    """Every argument of the task by column name; what breaks a rule goes to `complaints`."""
    values: Values = {}
    for name in sorted(task.columns_for(model.family) - _NOT_APPLIED - _IMAGE_COLUMNS):
        value = parsed.cells.get(name)
        if value is None:
            value = defaults.values.get(name, COLUMNS[name].default)
        values[name] = value
    values["model"] = model.name
    values["width"], values["height"] = _size(values, model, inputs, complaints)
    values["scheduler"], values["scheduler_kwargs"] = _scheduler(values, model, complaints)
    if task.reads_text:
        _apply_prompts(values, parsed, model, defaults, complaints)
    _apply_control(values, task, model, inputs, complaints)
    _apply_image_prompt(values, inputs, complaints)
    _apply_adapters(values, model, defaults, complaints)
    _apply_refiner(values, model, defaults, complaints)
    _apply_class(values, model, complaints)
    _check_images(values, task, model, inputs, complaints)
    if values["watermark"] is not None:
        most, length = capacity(values["width"], values["height"]), len(values["watermark"].encode())
        if not 0 < length <= most:
            size = f"{values['width']}x{values['height']}"
            complaints.add("watermark", f"is {length} bytes long; a picture of {size} carries 1 to {most}")
    if values.get("hires_scale") in (None, 1.0):
        values.pop("hires_scale", None)
        values.pop("hires_strength", None)
    return values


def _size(
    values: Mapping[str, Any], model: Model, inputs: Mapping[str, ImageRef], complaints: Complaints
) -> tuple[int, int]:
    """Width and height in pixels: as asked, else the init image's (cut to what the model takes), else the model's."""
    native = (model.width, model.height)
    if (image := inputs.get("image")) is not None:
        if image.width < _LEAST_SIDE or image.height < _LEAST_SIDE:
            complaints.add("image", f"is {_wh(image)}; at least 8x8")
        step = _side_step(model)
        native = (max(step, image.width // step * step), max(step, image.height // step * step))
        for name in ("width", "height"):
            if step > _LEAST_SIDE and values[name] and values[name] % step:
                complaints.add(name, f"is {values[name]}; {model.name!r} takes multiples of {step}")
        for name, given, side in (("width", values["width"], native[0]), ("height", values["height"], native[1])):
            if given is None and side > MAX_SIDE:
                complaints.add(name, f"is null, and the image is {_wh(image)}; give a {name} of at most {MAX_SIDE}")
    return values["width"] or native[0], values["height"] or native[1]


def _side_step(model: Model) -> int:
    """What a side must be a multiple of: the latent upscaler's net halves latents of twice the picture's evenly."""
    return 4 * 2 ** (len(model.unet_widths) - 1) if model.family is Family.LATENT_UPSCALER else _LEAST_SIDE


def _wh(image: ImageRef) -> str:
    return f"{image.width}x{image.height}"


def _scheduler(values: Mapping[str, Any], model: Model, complaints: Complaints) -> tuple[str, dict[str, Any]]:
    """Scheduler class and options: a sampler's name brings options of its own, `scheduler_kwargs` adds to them."""
    try:
        sampler = find_sampler(values["scheduler"] or model.scheduler)
    except UnknownSampler as error:
        complaints.add("scheduler", str(error))
        return model.scheduler, {}
    if model.family is Family.LATENT_UPSCALER and sampler.class_name != "EulerDiscreteScheduler":
        complaints.add("scheduler", f"is {sampler.class_name}; a {model.family} takes EulerDiscreteScheduler only")
    options = {**sampler.kwargs, **(values["scheduler_kwargs"] or {})}
    for name in options:
        if name == "noise_sampler_seed":
            complaints.add("scheduler_kwargs", "noise_sampler_seed follows from the row's seed; leave it out")
        elif name not in OPTIONS[sampler.class_name]:
            near = get_close_matches(name, OPTIONS[sampler.class_name], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see diffusers' page of the class"
            complaints.add("scheduler_kwargs", f"{sampler.class_name} takes no option {name!r}; {hint}")
    return sampler.class_name, options


def _apply_prompts(values: Values, parsed: Parsed, model: Model, defaults: Defaults, complaints: Complaints) -> None:
    """Size conditioning and the second prompt of SDXL; LoRAs named in a prompt of A1111's syntax."""
    if values["prompt"] is None and "prompt" not in parsed.spoiled:
        complaints.add("prompt", missing_prompt(parsed.record))
    if (values["clip_skip"] or 0) >= model.text_layers:
        complaints.add("clip_skip", f"is {values['clip_skip']}; {model.name!r} has {model.text_layers} text layers")
    if model.family in (Family.SDXL, Family.REFINER):
        size = (values["height"], values["width"])
        values["original_size"] = values.get("original_size") or size
        values["target_size"] = values.get("target_size") or size
        values["crops_coords_top_left"] = values.get("crops_coords_top_left") or (0, 0)
    elif values["negative_prompt"] is None:
        values["negative_prompt"] = ""  # the same to one tower; SDXL takes zeros for a missing one
    if values["prompt_syntax"] != "a1111":
        return
    try:
        values["prompt"], tags = parse_loras(values["prompt"] or "")
    except LoraTagError as error:
        complaints.add("prompt", str(error))
        return
    if tags:
        listed = values["loras"] or ()
        listed = listed if isinstance(listed, (list, tuple)) else (listed,)
        values["loras"] = [*listed, *({"path": defaults.adapters.lora(tag.name), "scale": tag.scale} for tag in tags)]


def _apply_control(
    values: Values, task: Task, model: Model, inputs: Mapping[str, ImageRef], complaints: Complaints
) -> None:
    """As many scales, starts and ends as ControlNets; without ControlNets none of their columns."""
    if "controlnet" not in values:
        return
    nets = values["controlnet"]
    images = [name for name in inputs if image_column(name) == "control_image"]
    if nets is None:
        if images:
            complaints.add("control_image", "is given without a controlnet; name one, or leave it null")
        for name in CONTROL:
            values.pop(name, None)
        return
    if task.pipeline(model.family, controlled=True) is None:
        complaints.add("controlnet", f"cannot be used for {task.name} with a {model.family} model; leave it null")
    nets = list(nets) if isinstance(nets, (list, tuple)) else [nets]
    values["controlnet"] = nets
    if len(images) != len(nets):
        wanted = f"{len(nets)} for as many ControlNets" if len(nets) > 1 else "one for the ControlNet"
        complaints.add("control_image", f"holds {len(images) or 'no'} images; give {wanted}")
    for name in _LISTED_CONTROL:
        given = values[name] if isinstance(values[name], tuple) else (values[name],)
        if len(given) == 1:
            given = given * len(nets)
        if len(given) != len(nets):
            complaints.add(name, f"holds {len(given)} values for {len(nets)} ControlNets; give one, or one for each")
        values[name] = given
    if "pose" not in values["control_preprocess"]:
        del values["pose_estimator"], values["person_detector"]
    elif values["pose_estimator"] is None:
        complaints.add("pose_estimator", "is null, but control_preprocess asks for poses; name a folder of ViTPose")
    for start, end in zip(values["control_guidance_start"], values["control_guidance_end"], strict=False):
        if start >= end:
            complaints.add("control_guidance_start", f"is {start:g}, not before control_guidance_end, {end:g}")


def _apply_image_prompt(values: Values, inputs: Mapping[str, ImageRef], complaints: Complaints) -> None:
    if "ip_adapter" not in values:
        return
    if values["ip_adapter"] is None:
        if "ip_adapter_image" in inputs:
            complaints.add("ip_adapter_image", "is given without an ip_adapter; name one, or leave it null")
        for name in IMAGE_PROMPT:
            values.pop(name, None)
    elif "ip_adapter_image" not in inputs:
        complaints.add("ip_adapter_image", "is null, but the ip_adapter needs it")


def _apply_adapters(values: Values, model: Model, defaults: Defaults, complaints: Complaints) -> None:
    for column in ADAPTERS.keys() & values.keys():
        if values[column] is None:
            continue
        try:
            values[column] = find_adapters(column, values[column], model, defaults.adapters)
        except CellError as error:
            complaints.add(column, str(error))


def _apply_refiner(values: Values, model: Model, defaults: Defaults, complaints: Complaints) -> None:
    """Where a refiner takes over, and that it is one."""
    if values.get("refiner") is None:
        return
    try:
        refiner = defaults.find_model(values["refiner"])
    except InputError as error:
        complaints.add("refiner", str(error))
        return
    if refiner.family is not Family.REFINER:
        complaints.add("refiner", f"is {refiner.name!r}, a {refiner.family} model; name a refiner")
    if model.family is not Family.SDXL:
        complaints.add("refiner", f"cannot follow {model.name!r}, a {model.family} model; leave it null")
    values["denoising_end"] = _HANDOFF if values["denoising_end"] is None else values["denoising_end"]


def _apply_class(values: Values, model: Model, complaints: Complaints) -> None:
    """A label where the model or a classifier wants one, and one that they know."""
    if "class_label" not in values:
        return
    label, found = values["class_label"], values["classifier"]
    known = {f"{model.name!r}": model.classes} if model.classes else {}
    if isinstance(found, Mapping):
        facts = read_classifier(found["path"])
        known["the classifier"] = facts.classes
        if {values["width"], values["height"]} != {facts.image_size}:
            size = f"{values['width']}x{values['height']}"
            complaints.add("classifier", f"reads pictures of {facts.image_size} pixels a side, and the row's is {size}")
    elif found is None:
        del values["classifier"], values["classifier_scale"]
    if label is None and known:
        name, classes = next(iter(known.items()))
        complaints.add("class_label", f"is null, but {name} wants one from 0 to {classes - 1}")
    elif label is not None and found is None and not known:
        complaints.add("class_label", f"means nothing to {model.name!r}; name a classifier, or leave it null")
    for name, classes in known.items():
        if label is not None and label >= classes:
            complaints.add("class_label", f"is {label}; {name} knows 0 to {classes - 1}")


def _check_images(
    values: Values, task: Task, model: Model, inputs: Mapping[str, ImageRef], complaints: Complaints
) -> None:
    if inputs.keys() >= {"image", "mask_image"} and _wh(inputs["mask_image"]) != _wh(inputs["image"]):
        mask, image = _wh(inputs["mask_image"]), _wh(inputs["image"])
        complaints.add("mask_image", f"is {mask}, but the image is {image}; make them the same size")
    if task.name == "depth-to-image" and "depth_map" not in inputs and not model.estimates_depth:
        complaints.add("depth_map", f"is null, and {model.name!r} has no depth estimator; give a depth map")
    controls = {_wh(inputs[input_name("control_image", place)])
                for place in range(len(inputs)) if input_name("control_image", place) in inputs}  # fmt: skip
    if len(controls) > 1:
        complaints.add("control_image", f"holds images of {' and '.join(sorted(controls))}; make them the same size")
