"""What resolving a manifest found, kept in the output, so that resuming need not do it again.

`.batchgen/plan/<name>-<number>.parquet` hold the rows; `<name>.json`, written after them, says what they were resolved
from. They count as long as nothing that can be seen without reading has changed: the job, the models' fingerprints, and
size and version of the manifest's files, of every conditioning image and of every adapter. Workers compare the hash of
each image and each adapter that they read, so that what changed behind all that fails, and is never taken for another.
"""

import hashlib
import io
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.dataset.begun import begun_with
from batchgen.dataset.records import REPAIR, Count, RecordKind, encode_record, read_record
from batchgen.dataset.tables import damage_named
from batchgen.errors import Damaged, InputError, NotFound, StoreError, without_secrets
from batchgen.identity import VERSION, canonical
from batchgen.index import Index
from batchgen.job import Job
from batchgen.manifest.arrow import arrow_column, python_rows
from batchgen.manifest.cells import carried_cell
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.files import manifest_files
from batchgen.models.catalog import Model, find_model
from batchgen.places import is_remote
from batchgen.reading import Look, look_at_input
from batchgen.resolve import Resolved
from batchgen.rows import Row, decode_row
from batchgen.storage import Store
from batchgen.version import __version__

__all__ = ["PLANS", "damaged_plans", "forget_resolved", "keep_resolved", "take_resolved"]

PLANS = ".batchgen/plan"
FORMAT = 5  # raised when older files would be read wrong
PART_ROWS = 20_000  # of one file, at most
PART_BYTES = 16 << 20  # of one file, about: what the driver holds of it, some times over
MOST_BYTES = 256 << 20  # carried cells that are larger (thumbnails) are not stored a second time
READ_ROWS = 500  # at once
LOOKERS = 16  # files looked at side by side: at 20 ms each on an object store, 800 a second
CLOCKS_APART = 2.0  # seconds by which a store's clock and this one may differ
MOST_LOOKS = 200_000  # files; to look at more would take minutes on an object store, and then resolving may as well

_CARRIED = "carried."
_OWN = [("key", pa.string()), ("row", pa.string())]

_Encoded = tuple[str, str, Mapping[str, Any]]
"""A batch key, a row as `encode_row` writes it, and the row's carried cells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """What kept rows were resolved from."""

    format: Count
    parts: Annotated[int, msgspec.Meta(ge=0, lt=100_000)]
    files: Mapping[str, Look]  # of the manifest
    read: Mapping[str, Look]  # other files
    models: Mapping[str, str]  # prints by name
    carried: str  # the files' schema, in hexadecimal
    notices: Sequence[str]


_KIND = RecordKind(_Record, FORMAT, "format")


def keep_resolved(store: Store, job: Job, index: Index, resolved: Resolved, *, before: float) -> str | None:
    """Keep what `index` holds, over what may be kept already; returns why not, if it never would be.

    Nothing is kept where something changed after `before`, when resolving began (it may have been read in between),
    cannot be looked at, or is too large.

    Args:
        store: the output.
        job: what was resolved.
        index: its rows.
        resolved: what else was found.
        before: Unix time.
    """
    if any(without_secrets(place) != place for place in (*resolved.files, *resolved.read)):
        return "places of inputs hold secrets, and what is kept is published with the output"
    if _are_too_many(resolved.read):
        return f"{len(resolved.read):,} files are more than are looked at for changes where some are remote"
    try:
        files = {file: look_at_input(file) for file in resolved.files}
        read = _looks(resolved.read)
    except StoreError:
        return None
    if not all(_is_settled(look, before) for look in (*files.values(), *read.values())):
        return None
    forget_resolved(store)  # so that no record ever stands over other rows
    name, schema, parts, size = _name(job, files), _schema(resolved.carried), 0, 0
    for chunk in _chunks(index.encoded()):
        data = _encode(chunk, schema)
        size += len(data)
        if size > MOST_BYTES:
            forget_resolved(store)
            return f"rows with their carried cells are more than {MOST_BYTES >> 20} MiB"
        store.write(f"{PLANS}/{name}-{parts:05d}.parquet", data)
        parts += 1
    record = _Record(
        format=FORMAT,
        parts=parts,
        files=files,
        read=read,
        models=_prints(resolved.models),
        carried=schema.serialize().to_pybytes().hex(),
        notices=resolved.notices,
    )
    store.write(f"{PLANS}/{name}.json", encode_record(record))
    return None


def take_resolved(store: Store, job: Job, index: Index) -> Resolved | None:
    """Fill the index with rows that an earlier run resolved; None, and an index as it was, where they do not count."""
    try:
        names = manifest_files(job.manifest)
        files = {file: look_at_input(file) for file in names}
        name = _name(job, files)
        record = read_record(store, f"{PLANS}/{name}.json", _KIND)
        if not _looks_as_it_did(record, files):
            return None
        begun = begun_with(store)
        with damage_named(f"{store.uri}/{PLANS}/{name}", "the manifest is resolved anew"):
            models = {known: find_model(known, config=job.model_config, begun=begun) for known in record.models}
            if record.models != _prints(models):
                return None
            schema = pa.ipc.read_schema(pa.BufferReader(bytes.fromhex(record.carried)))
            for number in range(record.parts):
                for key, row in _decode(store.read(f"{PLANS}/{name}-{number:05d}.parquet"), schema):
                    index.add(key, row)
    except (StoreError, InputError):
        index.clear()  # whatever is missing or damaged: resolving says what is wrong, or finds that nothing is
        return None
    carried = {field.name.removeprefix(_CARRIED): field.type for field in schema if field.name.startswith(_CARRIED)}
    return Resolved(
        files=names,
        models=models,
        carried=carried,
        notices=list(record.notices),
        read=set(record.read),
        kept=True,
    )


def _looks_as_it_did(record: _Record, files: Mapping[str, Look]) -> bool:
    """Whether all files that the kept rows were resolved from look as they did."""
    if record.format != FORMAT or record.files != files:
        return False
    return not _are_too_many(record.read) and _looks(record.read) == record.read


def _prints(models: Mapping[str, Model]) -> dict[str, str]:
    """All of each model that rows and notices depend on."""
    return {
        name: canonical([model.fingerprint, model.defaults, asdict(model.purpose)]) for name, model in models.items()
    }


def _as_json(looks: Mapping[str, Look]) -> dict[str, Any]:
    return {file: asdict(look) for file, look in looks.items()}


def forget_resolved(store: Store) -> None:
    """Remove what is kept, its record first."""
    for key in sorted(store.names(PLANS), key=lambda key: not key.endswith(".json")):
        store.delete(f"{PLANS}/{key}")


def damaged_plans(store: Store) -> Iterator[tuple[str, StoreError]]:
    """What is kept and cannot be read: keys, and why."""
    names = store.names(PLANS)
    for key in (f"{PLANS}/{name}" for name in names if name.endswith(".json") and not name.startswith(".")):
        try:
            record = read_record(store, key, _KIND)
            with damage_named(f"{store.uri}/{key}", REPAIR):
                schema = pa.ipc.read_schema(pa.BufferReader(bytes.fromhex(record.carried)))
                for number in range(record.parts):
                    deque(_decode(store.read(f"{key.removesuffix('.json')}-{number:05d}.parquet"), schema), maxlen=0)
        except (Damaged, NotFound) as error:
            yield key, error


def _chunks(rows: Iterator[_Encoded]) -> Iterator[list[_Encoded]]:
    """Rows by the files that they go to."""
    chunk: list[_Encoded] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += sum(len(cell) for cell in row[2].values() if isinstance(cell, (bytes, str)))
        if len(chunk) == PART_ROWS or size > PART_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _schema(carried: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([*_OWN, *((f"{_CARRIED}{name}", kind) for name, kind in carried.items())])


def _encode(rows: list[_Encoded], schema: pa.Schema) -> bytes:
    columns = [pa.array([key for key, _, _ in rows]), pa.array([text for _, text, _ in rows], pa.string())]
    for field in list(schema)[len(_OWN) :]:
        name = field.name.removeprefix(_CARRIED)
        cells = [carried_cell(carried.get(name), field.type) for _, _, carried in rows]
        columns.append(arrow_column(cells, field.type))
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), stream, compression="zstd", write_page_checksum=True)
    return stream.getvalue()


def _decode(data: bytes, schema: pa.Schema) -> Iterator[tuple[str, Row]]:
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True, pre_buffer=False)
    if file.schema_arrow.names != schema.names:
        raise ValueError("columns are not those of the plan")
    for batch in file.iter_batches(READ_ROWS):
        for cells in python_rows(batch):
            carried = {name: cell for name, cell in cells.items() if name.startswith(_CARRIED) and cell is not None}
            named = {name.removeprefix(_CARRIED): cell for name, cell in carried.items()}
            yield cells["key"], decode_row(cells["row"], named)


def _name(job: Job, files: Mapping[str, Look]) -> str:
    """Names a plan by what it was resolved from: the manifest's files as they look, and what the job brings to rows."""
    facts = {
        "format": FORMAT,
        "batchgen": __version__,
        "identity": VERSION,
        "columns": repr(list(COLUMNS.values())),
        "files": _as_json(files),
        "model": job.model,
        "model_config": job.model_config,
        "defaults": dict(job.defaults),
        "lora_folder": job.lora_folder,
        "allow_pickle": job.allow_pickle,
        "inputs": asdict(job.inputs),
        "strict": job.strict,
    }
    return hashlib.sha256(canonical(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _are_too_many(files: Collection[str]) -> bool:
    return len(files) > MOST_LOOKS and any(map(is_remote, files))


def _looks(files: Collection[str]) -> dict[str, Look]:
    with ThreadPoolExecutor(LOOKERS) as pool:
        return dict(zip(sorted(files), pool.map(look_at_input, sorted(files)), strict=True))


def _is_settled(look: Look, before: float) -> bool:
    """Whether a file is known to be the one that was read."""
    return bool(look.version) and look.modified is not None and look.modified < before - CLOCKS_APART
