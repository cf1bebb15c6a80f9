"""From a manifest's records to rows with every default filled in, or to problems with file, row and column.

One pass does all the checking: types, ranges, sizes, samplers, tasks without their inputs, models, and that every
conditioning image exists and decodes. No model is loaded; knows nothing of Ray and torch.
"""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Any

import pyarrow as pa

from batchgen.cells import CellSorter, Parsed
from batchgen.columns import COLUMNS, MAX_SEED, MAX_SIDE, Kind
from batchgen.errors import InputError, StoreError
from batchgen.identity import canonical, derive_seed, fingerprint, row_id
from batchgen.images import ImageError, decode
from batchgen.index import Index
from batchgen.job import Job
from batchgen.manifest import Record, folder_of, manifest_files, records
from batchgen.models import Model, find_model
from batchgen.plan import batch_key
from batchgen.problems import ProblemLog
from batchgen.rows import ImageRef, Row
from batchgen.samplers import OPTIONS, UnknownSampler, find_sampler
from batchgen.storage import join, read_input
from batchgen.tasks import TASKS, Task, find_task, infer_task

__all__ = ["Resolved", "resolve"]

CHUNK_ROWS = 64  # rows whose images are fetched side by side
IMAGE_THREADS = 16  # object stores answer in 20 to 100 ms: one at a time would be 10 to 50 images a second
LONGEST_URI = 2048  # characters; what is longer is the picture itself in base64
KNOWN_IMAGES = 10_000  # images whose facts are remembered: manifests repeat them

_NOT_APPLIED = frozenset({"id", "task", "num_images_per_prompt"})  # columns of a task that are no argument of it
_IMAGE_COLUMNS = tuple(column.name for column in COLUMNS.values() if column.kind is Kind.IMAGE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What the pass over the manifest found besides its rows, which are in the index."""

    files: list[str]
    models: Mapping[str, Model]  # by name
    carried: Mapping[str, pa.DataType]  # unknown columns and their types
    notices: list[str]  # one line each: aliases used, columns that look misspelt


def resolve(job: Job, index: Index, problems: ProblemLog) -> Resolved:
    """Check every row of the job's manifest and put the good ones into the index.

    Raises:
        InputError: the manifest as a whole, or the job's model, cannot be used.
    """
    files = manifest_files(job.manifest)
    sorter = CellSorter(problems, job.defaults)
    builder = _RowBuilder(job, index, problems)
    builder.model(job.model)
    with ThreadPoolExecutor(IMAGE_THREADS) as pool:
        images = _ImageReader(sorter, pool)
        for file in files:
            rows = records(file, problems)
            while chunk := list(islice(rows, CHUNK_ROWS)):
                for parsed, inputs in images.read([sorter.parse(record) for record in chunk], problems):
                    builder.add(parsed, inputs)
    # a file with problems may not even have a schema
    carried = {} if problems.total else sorter.carried_types(files)
    return Resolved(files=files, models=builder.models, carried=carried, notices=list(sorter.notices))


class _ImageReader:
    """Reads the conditioning images of a chunk of records side by side: they exist, decode, and have a hash."""

    def __init__(self, sorter: CellSorter, pool: ThreadPoolExecutor) -> None:
        self._sorter = sorter
        self._pool = pool
        self._by_uri = lru_cache(KNOWN_IMAGES)(lambda uri: _examined(read_input(uri), uri))

    def read(self, parsed: list[Parsed], problems: ProblemLog) -> Iterable[tuple[Parsed, dict[str, ImageRef]]]:
        """Each record with its images by column; a bad image goes to `problems` and spoils its column."""
        reads = [
            {name: self._pool.submit(self._one, p, name) for name in _IMAGE_COLUMNS if name in p.cells} for p in parsed
        ]
        for one, futures in zip(parsed, reads, strict=True):
            inputs = {}
            for column, future in futures.items():
                try:
                    inputs[column] = future.result()
                except (ImageError, StoreError) as error:
                    problems.add(one.record.file, one.record.number, column, str(error))
            yield replace(one, spoiled=one.spoiled | (futures.keys() - inputs.keys())), inputs

    def _one(self, parsed: Parsed, column: str) -> ImageRef:
        cell, record = parsed.cells[column], parsed.record
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
        if isinstance(cell, bytes):
            spelling = self._sorter.spelling(record, column)
            return replace(_examined(cell, "the embedded image"), uri=record.file, column=spelling, row=record.number)
        if isinstance(cell, str):
            if len(cell) > LONGEST_URI:
                raise ImageError(f"starts with {cell[:40]!r} and is {len(cell):,} characters long, which is no URI")
            return self._by_uri(join(folder_of(record.file), cell))
        raise ImageError(f"is {type(cell).__name__}, not {Kind.IMAGE}")


def _examined(data: bytes, uri: str) -> ImageRef:
    try:
        image = decode(data)
    except ImageError as error:
        raise ImageError(f"{uri} {error}") from error
    return ImageRef(uri=uri, sha256=hashlib.sha256(data).hexdigest(), width=image.width, height=image.height)


class _Complaints(list[tuple[str, str]]):
    """Columns and what is wrong with their cells in one row."""

    def add(self, column: str, message: str) -> None:
        self.append((column, message))


class _RowBuilder:
    """Fills in defaults, applies the rules of the task, and appends to the index."""

    def __init__(self, job: Job, index: Index, problems: ProblemLog) -> None:
        self.models: dict[str, Model] = {}
        self._job = job
        self._index = index
        self._problems = problems
        self._missing_models: dict[str, str] = {}

    def model(self, name: str) -> Model:
        """The model of that name, looked up and fingerprinted once.

        Raises:
            InputError: there is none.
        """
        if name not in self.models:
            self.models[name] = find_model(name, config=self._job.model_config)
        return self.models[name]

    def add(self, parsed: Parsed, inputs: Mapping[str, ImageRef]) -> None:
        """Append the rows of one record; where a rule is broken, note the problems instead."""
        complaints = _Complaints()
        task = _task_of(parsed, complaints)
        model = self._model_of(parsed.cells, complaints)
        values = self._applied(parsed.cells, task, model, inputs, complaints) if model is not None else {}
        copies = parsed.cells.get("num_images_per_prompt") or self._job.defaults.get("num_images_per_prompt", 1)
        if (values.get("seed") or 0) + copies - 1 > MAX_SEED:
            complaints.add("seed", f"is {values['seed']}, and {copies} images would count it past {MAX_SEED}")
        for column, message in complaints:
            self._note(parsed.record, column, message)
        if complaints or parsed.spoiled or model is None:
            return
        for copy in range(copies):
            self._add_row(parsed, task, model, values, inputs, copy if copies > 1 else None)

    def _add_row(
        self,
        parsed: Parsed,
        task: Task,
        model: Model,
        shared: Mapping[str, Any],
        inputs: Mapping[str, ImageRef],
        copy: int | None,
    ) -> None:
        id_ = parsed.cells.get("id")
        decisive = {name: value for name, value in shared.items() if name != "model" and value is not None}
        prints = {name: ref.sha256 for name, ref in inputs.items()}
        if "seed" in decisive:
            decisive["seed"] += copy or 0
        else:
            content = fingerprint(task.name, decisive, model.fingerprint, prints)
            content = content if id_ is None else canonical([content, id_])
            decisive["seed"] = derive_seed(content, self._index.occurrence(content))
        print_ = fingerprint(task.name, decisive, model.fingerprint, prints)
        row = Row(
            id=row_id(print_) if id_ is None else id_ if copy is None else f"{id_}-{copy}",
            fingerprint=print_,
            task=task.name,
            values={**shared, "seed": decisive["seed"]},
            inputs=inputs,
            carried=parsed.carried,
            sample_index=copy or 0,
            file=parsed.record.file,
            number=parsed.record.number,
        )
        key = batch_key(row, model.fingerprint)
        holder = self._index.add(key, row)
        if holder is not None and id_ is None:
            # an entirely equal row: it counts as a row of its own all the same
            holder = self._index.add(key, replace(row, id=row_id(print_, self._index.occurrence(print_) + 1)))
        if holder is not None:
            self._note(parsed.record, "id", f"{row.id!r} names {holder[0]}, row {holder[1]}, too; make ids unique")

    def _note(self, record: Record, column: str, message: str) -> None:
        self._problems.add(record.file, record.number, column, message)

    def _model_of(self, cells: Mapping[str, Any], complaints: _Complaints) -> Model | None:
        name = cells.get("model") or self._job.defaults.get("model") or self._job.model
        if name not in self._missing_models:
            try:
                return self.model(name)
            except InputError as error:
                self._missing_models[name] = str(error)
        complaints.add("model", self._missing_models[name])
        return None

    def _applied(
        self,
        cells: Mapping[str, Any],
        task: Task,
        model: Model,
        inputs: Mapping[str, ImageRef],
        complaints: _Complaints,
    ) -> dict[str, Any]:
        """Every argument of the task by column name: from the cell, the job, the contract, or the model."""
        values: dict[str, Any] = {}
        for name in sorted(task.columns - _NOT_APPLIED - set(_IMAGE_COLUMNS)):
            value = cells.get(name)
            if value is None:
                value = self._job.defaults.get(name, COLUMNS[name].default)
            values[name] = value
        values["model"] = model.name
        if model.unet_channels not in task.unet_channels:
            able = " or ".join(other.name for other in TASKS.values() if model.unet_channels in other.unet_channels)
            complaints.add(
                "task", f"{model.name!r} cannot do {task.name}; its UNet is made for {able or 'another task'}"
            )
        if (values["clip_skip"] or 0) >= model.text_layers:
            complaints.add("clip_skip", f"is {values['clip_skip']}; {model.name!r} has {model.text_layers} text layers")
        values["width"], values["height"] = _size(values, model, inputs, complaints)
        values["scheduler"], values["scheduler_kwargs"] = _scheduler(values, model, complaints)
        if inputs.keys() >= {"image", "mask_image"} and _wh(inputs["mask_image"]) != _wh(inputs["image"]):
            mask, image = _wh(inputs["mask_image"]), _wh(inputs["image"])
            complaints.add("mask_image", f"is {mask}, but the image is {image}; make them the same size")
        return values


def _task_of(parsed: Parsed, complaints: _Complaints) -> Task:
    """The task a row names, or the one that its columns ask for."""
    given = parsed.cells.keys() | parsed.spoiled
    task = infer_task(given)
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
    return task


def _not_taken(name: str, task: Task) -> str:
    others = [other for other in TASKS.values() if name in other.columns]
    if not others:
        return "is not supported by any task of this version; leave it null"
    need = " and ".join(repr(n) for n in others[0].needs if n != name)
    remedy = f"leave it null, or make the row {others[0].name}" + (f" by giving it {need}" if need else "")
    return f"means nothing to {task.name}; {remedy}"


def _size(
    values: Mapping[str, Any], model: Model, inputs: Mapping[str, ImageRef], complaints: _Complaints
) -> tuple[int, int]:
    """Width and height in pixels: as asked, else the init image's (cut to a multiple of 8), else the model's."""
    native = (model.width, model.height)
    if (image := inputs.get("image")) is not None:
        if image.width < 8 or image.height < 8:
            complaints.add("image", f"is {_wh(image)}; at least 8x8")
        native = (max(8, image.width // 8 * 8), max(8, image.height // 8 * 8))
        for name, given, side in (("width", values["width"], native[0]), ("height", values["height"], native[1])):
            if given is None and side > MAX_SIDE:
                complaints.add(name, f"is null, and the image is {_wh(image)}; give a {name} of at most {MAX_SIDE}")
    return values["width"] or native[0], values["height"] or native[1]


def _wh(image: ImageRef) -> str:
    return f"{image.width}x{image.height}"


def _scheduler(values: Mapping[str, Any], model: Model, complaints: _Complaints) -> tuple[str, dict[str, Any]]:
    """Scheduler class and options: a sampler's name brings options of its own, `scheduler_kwargs` adds to them."""
    try:
        sampler = find_sampler(values["scheduler"] or model.scheduler)
    except UnknownSampler as error:
        complaints.add("scheduler", str(error))
        return model.scheduler, {}
    options = {**sampler.kwargs, **(values["scheduler_kwargs"] or {})}
    for name in options:
        if name == "noise_sampler_seed":
            complaints.add("scheduler_kwargs", "noise_sampler_seed follows from the row's seed; leave it out")
        elif name not in OPTIONS[sampler.class_name]:
            near = get_close_matches(name, OPTIONS[sampler.class_name], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see diffusers' page of the class"
            complaints.add("scheduler_kwargs", f"{sampler.class_name} takes no option {name!r}; {hint}")
    return sampler.class_name, options
