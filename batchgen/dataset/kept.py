"""What resolving a manifest found, kept in the output, so that resuming need not do it again.

`.batchgen/plan/<name>-<number>.parquet` hold the rows; `<name>.json`, written after them, says what they were resolved
from. They count as long as nothing that can be seen without reading has changed: the job, the models'
fingerprints, and size and version of the manifest's files, of every conditioning image and of every adapter. Whoever
reads a row makes sure of the bytes all the same: a worker compares the hash of each image that it fetches.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import InputError, StoreError
from batchgen.identity import VERSION, canonical
from batchgen.index import Index
from batchgen.job import Job
from batchgen.manifest.cells import carried_cell
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.files import manifest_files
from batchgen.models.adapters import ADAPTERS
from batchgen.models.catalog import find_model
from batchgen.resolve import Resolved
from batchgen.rows import Row, decode_row, encode_row
from batchgen.storage import Look, Store, is_remote, look_at_input, read_json
from batchgen.version import __version__

__all__ = ["PLANS", "forget_resolved", "keep_resolved", "take_resolved"]

PLANS = ".batchgen/plan"
FORMAT = 2  # raised when older files would be read wrong
PART_ROWS = 50_000  # of one file: about 20 MB before compression
LOOKERS = 16  # files looked at side by side: at 20 ms each on an object store, 800 a second
CLOCKS_APART = 2.0  # seconds by which a store's clock and this one may differ
MOST_LOOKS = 200_000  # files; to look at more would take minutes on an object store, and then resolving may as well


def keep_resolved(store: Store, job: Job, index: Index, resolved: Resolved, *, before: float) -> None:
    """Keep what `index` holds, where it is not kept yet.

    Nothing is kept where something changed after `before`, when resolving began (it may have been read in between), or
    cannot be looked at.

    Args:
        store: the output.
        job: what was resolved.
        index: its rows.
        resolved: what else was found.
        before: Unix time.
    """
    try:
        files = {file: look_at_input(file) for file in resolved.files}
        name = _name(job, files)
        if f"{name}.json" in store.names(PLANS):
            return
        read = _looks(_read_files(index))
    except StoreError:
        return
    if read is None or not all(_is_settled(look, before) for look in (*files.values(), *read.values())):
        return
    schema = _schema(resolved.carried)
    rows, parts = index.rows(), 0
    while chunk := list(islice(rows, PART_ROWS)):
        store.write(f"{PLANS}/{name}-{parts:05d}.parquet", _encode(chunk, schema))
        parts += 1
    record = {
        "format": FORMAT,
        "parts": parts,
        "files": {file: asdict(look) for file, look in files.items()},
        "read": {file: asdict(look) for file, look in read.items()},
        "models": {model.name: model.fingerprint for model in resolved.models.values()},
        "carried": schema.serialize().to_pybytes().hex(),
        "notices": resolved.notices,
    }
    store.write(f"{PLANS}/{name}.json", json.dumps(record).encode())
    forget_resolved(store, but=name)


def take_resolved(store: Store, job: Job, index: Index) -> Resolved | None:
    """Fill the index with rows that an earlier run resolved; None, and an index as it was, where they do not count.

    Raises:
        InputError: the manifest as a whole, or the job's model, cannot be used.
    """
    try:
        names = manifest_files(job.manifest)
        files = {file: look_at_input(file) for file in names}
        name = _name(job, files)
        record = read_json(store, f"{PLANS}/{name}.json")
        if record["format"] != FORMAT or record["files"] != {file: asdict(look) for file, look in files.items()}:
            return None
        models = {known: find_model(known, config=job.model_config) for known in record["models"]}
        if record["models"] != {model.name: model.fingerprint for model in models.values()}:
            return None
        read = _looks(set(record["read"]))
        if read is None or record["read"] != {file: asdict(look) for file, look in read.items()}:
            return None
        schema = pa.ipc.read_schema(pa.BufferReader(bytes.fromhex(record["carried"])))
        for number in range(record["parts"]):
            for key, row in _decode(store.read(f"{PLANS}/{name}-{number:05d}.parquet"), schema):
                index.add(key, row)
    except (StoreError, InputError, KeyError, TypeError, ValueError, OSError, pa.ArrowException):
        index.clear()
        return None  # resolving says what is wrong, or finds that nothing is
    carried = {field.name.removeprefix(_CARRIED): field.type for field in schema if field.name.startswith(_CARRIED)}
    return Resolved(files=names, models=models, carried=carried, notices=list(record["notices"]))


def forget_resolved(store: Store, *, but: str | None = None) -> None:
    """Remove what is kept, or all that is not of the name `but`."""
    for key in store.names(PLANS):
        if but is None or not key.startswith(but):
            store.delete(f"{PLANS}/{key}")


_CARRIED = "carried."
_OWN = [("key", pa.string()), ("row", pa.string())]


def _schema(carried: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([*_OWN, *((f"{_CARRIED}{name}", kind) for name, kind in carried.items())])


def _encode(pairs: list[tuple[str, Row]], schema: pa.Schema) -> bytes:
    columns = [pa.array([key for key, _ in pairs]), pa.array([encode_row(row) for _, row in pairs], pa.string())]
    for field in list(schema)[len(_OWN) :]:
        name = field.name.removeprefix(_CARRIED)
        cells = [carried_cell(row.carried.get(name), field.type) for _, row in pairs]
        columns.append(pa.array(cells, type=field.type))
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), stream, compression="zstd", write_page_checksum=True)
    return stream.getvalue()


def _decode(data: bytes, schema: pa.Schema) -> Iterator[tuple[str, Row]]:
    table = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True).read()
    if table.schema.names != schema.names:
        raise ValueError("columns are not those of the plan")
    for cells in table.to_pylist():
        carried = {name.removeprefix(_CARRIED): cell for name, cell in cells.items() if name.startswith(_CARRIED)}
        yield cells["key"], decode_row(cells["row"], {name: cell for name, cell in carried.items() if cell is not None})


def _name(job: Job, files: Mapping[str, Look]) -> str:
    """Names a plan by what it was resolved from: the manifest's files as they look, and what the job brings to rows."""
    facts = {
        "format": FORMAT,
        "batchgen": __version__,
        "identity": VERSION,
        "columns": repr(list(COLUMNS.values())),
        "files": {file: asdict(look) for file, look in files.items()},
        "model": job.model,
        "model_config": job.model_config,
        "defaults": dict(job.defaults),
        "lora_folder": job.lora_folder,
        "allow_pickle": job.allow_pickle,
    }
    return hashlib.sha256(canonical(facts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _read_files(index: Index) -> set[str]:
    """Every file besides the manifest's that resolving has read: conditioning images and adapters."""
    found: set[str] = set()
    for _, row in index.rows():
        found.update(image.uri for image in row.inputs.values() if image.row is None)
        cells = row.parameters.to_cells()
        for name in ADAPTERS.keys() & cells.keys():
            listed = cells[name] if isinstance(cells[name], tuple) else (cells[name],)
            found.update(one["path"] for one in listed)
    return found


def _looks(files: set[str]) -> dict[str, Look] | None:
    """How files look; None where they are too many to look at."""
    if len(files) > MOST_LOOKS and any(map(is_remote, files)):
        return None
    with ThreadPoolExecutor(LOOKERS) as pool:
        return dict(zip(sorted(files), pool.map(look_at_input, sorted(files)), strict=True))


def _is_settled(look: Look, before: float) -> bool:
    """Whether a file is known to be the one that was read."""
    return bool(look.version) and look.modified is not None and look.modified < before - CLOCKS_APART
