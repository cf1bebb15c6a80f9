"""From a manifest's records to rows with every default filled in, or to problems with file, row and column.

One pass does all the checking: types, ranges, sizes, samplers, tasks without their inputs, models, adapters, and that
every conditioning image exists and decodes. No model is loaded; knows nothing of Ray and torch.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchgen.errors import ImageError, InputError, StoreError, printable
from batchgen.generation.parameters import ImageRef, Parameters, decisive_cells
from batchgen.generation.rules import Defaults, RowProblems, apply_rules, choose_task, named_sampler
from batchgen.generation.suitability import Suitability
from batchgen.generation.tasks import Task
from batchgen.generation.unread import UnreadSyntax
from batchgen.identity import canonical, derive_seed, fingerprint, row_id
from batchgen.images import decode
from batchgen.index import Index
from batchgen.inputs import InputReader, Inputs, require_within
from batchgen.job import Job
from batchgen.manifest.arrow import misfit
from batchgen.manifest.cells import CellSorter, Parsed, carried_cell
from batchgen.manifest.columns import COLUMNS, MAX_SEED, WORDING, Kind, input_name
from batchgen.manifest.files import Record, folder_of, is_sweep, manifest_files, records
from batchgen.manifest.problems import ProblemLog
from batchgen.models.adapters import ADAPTERS, Finder, adapter_files
from batchgen.models.catalog import NOT_BEGUN, Model, ModelDefaults, find_model
from batchgen.places import join
from batchgen.rows import Row, decode_row
from batchgen.sharding import batch_key

__all__ = ["ImageReader", "Resolved", "misfits", "resolve"]

CHUNK_ROWS = 64  # rows whose images are fetched side by side
CHUNK_BYTES = 64 << 20  # of their texts and embedded images
IMAGE_THREADS = 16  # object stores answer in 20 to 100 ms: one at a time would be 10 to 50 images a second
LONGEST_URI = 2048  # characters; what is longer is the image itself in base64
KNOWN_IMAGES = 10_000  # images whose facts are remembered: manifests repeat them

_IMAGE_COLUMNS = tuple(column.name for column in COLUMNS.values() if column.kind is Kind.IMAGE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What the pass over the manifest found besides its rows, which are in the index."""

    files: list[str]
    models: Mapping[str, Model]  # by name
    carried: Mapping[str, pa.DataType]  # unknown columns and their types
    notices: list[str]  # one line each: aliases, names that look misspelt, syntax read as words, rows unlike the model
    read: Set[str]  # every file besides the manifest's: conditioning images, and what adapters are read from
    kept: bool = False  # its rows are those that an earlier run resolved


def resolve(job: Job, index: Index, problems: ProblemLog, begun: ModelDefaults | None = NOT_BEGUN) -> Resolved:
    """Check every row of the job's manifest and put the good ones into the index.

    Args:
        job: what to check.
        index: takes the rows.
        problems: takes what is wrong.
        begun: as for `find_model`.

    Raises:
        InputError: the manifest as a whole, or the job's model, cannot be used.
    """
    notices: dict[str, None] = {}
    files = manifest_files(job.manifest, notices.setdefault)
    sorter = CellSorter(problems, job.inputs)
    builder = _RowBuilder(job, index, problems, begun)
    builder.model(job.model)
    with ThreadPoolExecutor(IMAGE_THREADS) as pool:
        images = ImageReader(sorter, pool, job.inputs)
        for file in files:
            rows = records(file, problems, notices.setdefault, builder.read.add)
            while chunk := list(_chunk(rows)):
                for parsed, inputs in images.read([sorter.parse(record) for record in chunk], problems):
                    builder.add(parsed, inputs)
    if job.strict:
        for doubt in sorter.doubts.values():
            problems.add(doubt.file, doubt.row, doubt.column, f"{doubt.message} (the job is strict)")
        for line in builder.unread.lines():
            problems.add(job.manifest, None, None, f"{line} (the job is strict)")
    # a file with problems may not even have a schema
    carried = {} if problems.total else sorter.carried_types(files)
    if sorter.mixed and not problems.total:
        carried = _settled(carried, sorter.mixed, index, problems)
    said = [*notices, *sorter.doubts, *builder.unread.lines(), *builder.suitability.lines()]
    if builder.records == 0 and not problems.total:
        said.append(f"manifest {job.manifest} has no rows: there is nothing to make")
    said = [printable(line) for line in said]
    return Resolved(files=files, models=builder.models, carried=carried, notices=said, read=builder.read)


def _chunk(rows: Iterator[Record]) -> Iterator[Record]:
    """The next rows, as many as are looked at side by side."""
    size = 0
    for record in islice(rows, CHUNK_ROWS):
        yield record
        size += sum(map(_size, record.cells.values()))
        if size > CHUNK_BYTES:
            return


def _size(cell: Any) -> int:
    """About how many bytes a cell holds."""
    if isinstance(cell, dict):
        return sum(map(_size, cell.values()))
    return len(cell) if isinstance(cell, (str, bytes)) else 0


def _settled(
    carried: Mapping[str, pa.DataType], mixed: Set[str], index: Index, problems: ProblemLog
) -> dict[str, pa.DataType]:
    """The types of columns that files store in several ways: whole numbers stay such where the others have but gaps.

    Cells that the type does not hold exactly become problems.
    """
    floats = {name for name in mixed if pa.types.is_floating(carried[name])}
    whole = {name for name in floats if any(isinstance(cells.get(name), int) for _, _, cells in index.encoded())}
    fractions = {name for name, *_ in misfits(index, dict.fromkeys(whole, pa.int64()))}
    found = {**carried, **dict.fromkeys(whole - fractions, pa.int64())}
    for name, file, number, why in misfits(index, {name: found[name] for name in mixed}):
        problems.add(file, number, name, f"{why}; other files of the manifest write the column so")
    return found


def misfits(index: Index, types: Mapping[str, pa.DataType]) -> Iterator[tuple[str, str, int, str]]:
    """Carried cells that columns of these types do not hold exactly: column, file, row, and why."""
    for _, text, carried in index.encoded() if types else ():
        for name, kind in types.items():
            cell = carried_cell(carried.get(name), kind)
            if cell is not None and (why := misfit(cell, kind)) is not None:
                row = decode_row(text, carried)
                yield name, row.file, row.number, why


class ImageReader:
    """Reads the conditioning images of a chunk of records side by side: they exist, decode, and have a hash."""

    def __init__(self, sorter: CellSorter, pool: ThreadPoolExecutor, inputs: Inputs) -> None:
        self._sorter = sorter
        self._pool = pool
        self._inputs = inputs
        reader = InputReader(inputs)
        self._by_uri = lru_cache(KNOWN_IMAGES)(lambda uri: _examined(reader.read(uri), uri, inputs))

    def read(self, parsed: list[Parsed], problems: ProblemLog) -> Iterable[tuple[Parsed, dict[str, ImageRef]]]:
        """Each record with its images by column; a bad image goes to `problems` and spoils its column."""
        reads = [
            {
                input_name(name, place): (name, self._pool.submit(self._one, p, name, cell))
                for name in _IMAGE_COLUMNS
                if name in p.cells
                for place, cell in enumerate(_images_of(p.cells[name]))
            }
            for p in parsed
        ]
        for one, futures in zip(parsed, reads, strict=True):
            inputs = {}
            spoiled = set(one.spoiled)
            for name, (column, future) in futures.items():
                try:
                    inputs[name] = future.result()
                except (ImageError, InputError, StoreError) as error:
                    problems.add(one.record.file, one.record.number, column, str(error))
                    spoiled.add(column)
            yield replace(one, spoiled=frozenset(spoiled)), inputs

    def _one(self, parsed: Parsed, column: str, cell: Any) -> ImageRef:
        record = parsed.record
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
        if isinstance(cell, bytes) and isinstance(parsed.cells[column], (list, tuple)):
            raise ImageError("holds embedded images in a list; write them to files and give their paths")
        if isinstance(cell, bytes):
            spelling = self._sorter.spelling(record, column)
            found = _examined(cell, "the embedded image", self._inputs)
            return replace(found, uri=record.file, column=spelling, row=record.number)
        if isinstance(cell, str):
            if len(cell) > LONGEST_URI:
                raise ImageError(f"starts with {cell[:40]!r} and is {len(cell):,} characters long, which is no URI")
            place = join(folder_of(record.file), cell)
            if not is_sweep(record.file):  # which is the job's own
                require_within(place, folder_of(record.file), self._inputs)
            return self._by_uri(place)
        raise ImageError(f"is {type(cell).__name__}, not {WORDING[Kind.IMAGE]}")


def _images_of(cell: Any) -> list[Any]:
    return list(cell) if isinstance(cell, (list, tuple)) else [cell]


def _examined(data: bytes, uri: str, inputs: Inputs) -> ImageRef:
    if len(data) > inputs.image_mib << 20:
        raise ImageError(f"{uri} is larger than {inputs.image_mib} MiB")
    try:
        image = decode(data, inputs.megapixels << 20)
    except ImageError as error:
        raise ImageError(f"{uri} {error}") from error
    return ImageRef(uri=uri, sha256=hashlib.sha256(data).hexdigest(), width=image.width, height=image.height)


class _RowBuilder:
    """Fills in defaults, applies the rules of the task, and appends to the index."""

    def __init__(self, job: Job, index: Index, problems: ProblemLog, begun: ModelDefaults | None) -> None:
        self.models: dict[str, Model] = {}
        self.records = 0
        self.read: set[str] = set()  # files of the rows' images and adapters
        self.unread = UnreadSyntax()
        self.suitability = Suitability()
        self._job = job
        self._index = index
        self._problems = problems
        self._begun = begun
        self._missing_models: dict[str, str] = {}
        self._wrong_defaults: set[tuple[str, str]] = set()

    def model(self, name: str) -> Model:
        """The model of that name, looked up and fingerprinted once.

        Raises:
            InputError: there is none.
        """
        if name not in self.models:
            self.models[name] = find_model(name, config=self._job.model_config, begun=self._begun)
        return self.models[name]

    def add(self, parsed: Parsed, inputs: Mapping[str, ImageRef]) -> None:
        """Append the rows of one record; where a rule is broken, note the problems instead."""
        self.records += 1
        row_problems = RowProblems()
        model = self._model_of(parsed.cells, row_problems)
        if model is None:
            self._note_all(parsed, row_problems)
            return
        task = choose_task(parsed, model, row_problems)
        defaults = self._defaults_for(parsed.record)
        cells = apply_rules(parsed, task, model, inputs, defaults, row_problems)
        copies = parsed.cells.get("num_images_per_prompt") or self._job.defaults.get("num_images_per_prompt", 1)
        if (cells.get("seed") or 0) + copies - 1 > MAX_SEED:
            row_problems.add("seed", f"is {cells['seed']}, and {copies} images would count it past {MAX_SEED}")
        self._note_all(parsed, row_problems)
        if row_problems or parsed.spoiled:
            return
        self._note_read(cells, inputs)
        self.unread.add(cells, parsed.record.file, parsed.record.number)
        self.suitability.add(cells, model, parsed.record.file, parsed.record.number)
        sampler = named_sampler(parsed, model, defaults)
        for copy in range(copies):
            self._add_row(parsed, task, model, cells, inputs, sampler, copy if copies > 1 else None)

    def _note_read(self, cells: Mapping[str, Any], inputs: Mapping[str, ImageRef]) -> None:
        self.read.update(image.uri for image in inputs.values() if image.row is None)
        for name in ADAPTERS.keys() & cells.keys():
            listed = cells[name] if isinstance(cells[name], tuple) else (cells[name],)
            for one in filter(None, listed):
                self.read.update(map(str, adapter_files(Path(one["path"]))))

    def _add_row(
        self,
        parsed: Parsed,
        task: Task,
        model: Model,
        cells: Mapping[str, Any],
        inputs: Mapping[str, ImageRef],
        sampler: str,
        copy: int | None,
    ) -> None:
        id_ = parsed.cells.get("id")
        refiner = cells.get("refiner")
        decisive = decisive_cells(cells, refiner=None if refiner is None else self.model(refiner).fingerprint)
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
            parameters=Parameters.from_cells({**cells, "seed": decisive["seed"]}),
            inputs=inputs,
            carried=parsed.carried,
            sampler=sampler,
            sample_index=copy or 0,
            file=parsed.record.file,
            number=parsed.record.number,
        )
        key = batch_key(row, model)
        holder = self._index.add(key, row)
        if holder is not None and id_ is None:
            # an entirely equal row: it counts as a row of its own all the same
            holder = self._index.add(key, replace(row, id=row_id(print_, self._index.occurrence(print_) + 1)))
        if holder is not None:
            self._note(parsed.record, "id", f"{row.id!r} names {holder[0]}, row {holder[1]}, too; make ids unique")

    def _defaults_for(self, record: Record) -> Defaults:
        job = self._job
        finder = Finder(folder=folder_of(record.file), lora_folder=job.lora_folder, allow_pickle=job.allow_pickle)
        return Defaults(values=job.defaults, adapters=finder, find_model=self.model)

    def _note_all(self, parsed: Parsed, row_problems: RowProblems) -> None:
        for column, message in row_problems:
            if column in self._job.defaults and column not in parsed.cells.keys() | parsed.spoiled:
                self._note_default(parsed.record, column, message)
            else:
                self._note(parsed.record, column, message)

    def _note_default(self, record: Record, column: str, message: str) -> None:
        """What is wrong with a value of the job is said once, and not of each row that takes it."""
        if (column, message) not in self._wrong_defaults:
            self._wrong_defaults.add((column, message))
            met = f"met first in {record.file}, row {record.number}"
            place = self._job.file or self._job.manifest
            self._problems.add(place, None, None, f"[defaults] {column}: {message} ({met})")

    def _note(self, record: Record, column: str, message: str) -> None:
        self._problems.add(record.file, record.number, column, message)

    def _model_of(self, cells: Mapping[str, Any], row_problems: RowProblems) -> Model | None:
        name = cells.get("model") or self._job.defaults.get("model") or self._job.model
        if name not in self._missing_models:
            try:
                return self.model(name)
            except InputError as error:
                self._missing_models[name] = str(error)
        row_problems.add("model", self._missing_models[name])
        return None
