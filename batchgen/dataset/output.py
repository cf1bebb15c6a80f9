"""An output as a whole: what it was begun with, its runs, its dataset card."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from batchgen import __version__
from batchgen.dataset.commit import OutputFormat
from batchgen.dataset.layouts import RUNS
from batchgen.dataset.schema import VERSION
from batchgen.errors import AlreadyExists, InputError, NotFound, StoreError
from batchgen.identity import LEFT_OUT
from batchgen.options import ImageFormat, Layout
from batchgen.storage import Store, read_json

__all__ = ["RunRecord", "latest_run", "open_output", "read_output", "write_card", "write_run"]

KEY = ".batchgen/output.json"

# For each layout: where SQL finds the metadata, and what tells `datasets` where the images are.
_READERS = {
    Layout.FILES: ("data/*/metadata.parquet", "data_dir: data\n  drop_labels: true"),
    Layout.PARQUET: ("data/*.parquet", "data_files: data/*.parquet"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run over an output, written when it starts and again when it ends."""

    run: str
    source: str
    started: float  # Unix time
    host: str
    model: Mapping[str, str]  # fingerprints by name
    device: str
    dtype: str
    dtypes: Mapping[str, str]  # of components that have another
    workers: int
    rows: int
    done_before: int
    failed_before: int
    memory: str = "normal"
    safety: str = "off"
    batchgen: str = __version__
    finished: float | None = None
    outcome: str = "running"


def read_output(store: Store) -> OutputFormat:
    """What an existing output was begun with.

    Raises:
        InputError: there is none.
    """
    try:
        content = read_json(store, KEY)
    except NotFound:
        raise InputError(f"{store.uri} holds no batchgen output ({KEY} is missing); check the path") from None
    carried = pa.ipc.read_schema(pa.BufferReader(bytes.fromhex(content["carried"])))
    return OutputFormat(
        layout=Layout(content["layout"]),
        image_format=ImageFormat(content["format"]),
        carried={column.name: column.type for column in carried},
    )


def open_output(store: Store, wanted: OutputFormat, *, create: bool) -> OutputFormat:
    """The output's format; with `create`, a new output is begun with the wanted one.

    All shards of an output share one schema, since readers fail on a column that only later shards have.

    Raises:
        InputError: the output was begun with another layout, image format, schema version or other carried columns.
    """
    if create:
        try:
            store.create(KEY, _to_json(wanted).encode())
        except AlreadyExists:
            pass
        else:
            return wanted
    try:
        stored = read_json(store, KEY)
    except NotFound:
        _require_empty(store)
        return wanted
    asked = json.loads(_to_json(wanted))
    for name, text in (("layout", "layout"), ("format", "image format"), ("schema_version", "schema version")):
        if stored[name] != asked[name]:
            raise InputError(
                f"{store.uri} was begun with {text} {stored[name]!r}, this run asks for {asked[name]!r}; "
                "use the same, or another output"
            )
    if stored["columns"] != asked["columns"]:
        raise InputError(
            f"{store.uri} was begun with the carried columns [{stored['columns']}], this manifest brings "
            f"[{asked['columns']}]; one output has one schema: bring the same columns, or use another output"
        )
    return wanted


def _require_empty(store: Store) -> None:
    """A new output must not mix with what is there: its card, README.md, would replace another."""
    foreign = [name for name in store.names("") if not name.startswith(".")]
    if foreign:
        raise InputError(
            f"{store.uri} is no output of batchgen ({KEY} is missing) and not empty (it holds {foreign[0]!r}); "
            "choose a new or empty folder"
        )


def _to_json(output: OutputFormat) -> str:
    carried = pa.schema(sorted(output.carried.items()))
    content = {
        "batchgen": __version__,
        "schema_version": VERSION,
        "layout": output.layout.value,
        "format": output.image_format.value,
        "columns": ", ".join(f"{column.name}: {column.type}" for column in carried),
        "carried": carried.serialize().to_pybytes().hex(),
        "fingerprint_leaves_out": LEFT_OUT,
    }
    return json.dumps(content, indent=2)


def write_run(store: Store, record: RunRecord) -> None:
    """Store what a run was told and how it ended."""
    store.write(f"{RUNS}/{record.run}/run.json", json.dumps(asdict(record), indent=2).encode())


def latest_run(store: Store) -> RunRecord | None:
    """The run that started last; run names sort by time."""
    names = store.names(RUNS)
    if not names:
        return None
    key = f"{RUNS}/{names[-1]}/run.json"
    try:
        return RunRecord(**read_json(store, key))
    except TypeError as error:
        raise StoreError(f"{store.uri}/{key} is damaged: {error}") from error


def new_run_name(now: float) -> str:
    """A name that sorts by time and differs between runs of the same second."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}"


def write_card(store: Store, output: OutputFormat, *, images: int, failed: int, models: Sequence[str]) -> None:
    """The dataset card, README.md: what the dataset is, and where readers find it."""
    glob, config = _READERS[output.layout]
    failures = f" {failed:,} rows failed." if failed else ""
    card = f"""---
task_categories:
- text-to-image
tags:
- synthetic
- stable-diffusion
- batchgen
size_categories:
- {_size_category(images)}
configs:
- config_name: default
  {config}
---

# A dataset of generated images

{images:,} images made by batchgen {__version__} with {", ".join(models)}.{failures}

- `{glob}`: one row an image, with the prompt, the seed and every parameter that was applied.
- `failures/`: rows that could not be made, with the reason.
- `.batchgen/`: state by which a run resumes; readers skip it.

```python
from datasets import load_dataset
dataset = load_dataset("PATH OF THIS FOLDER", split="train")
```

```sql
SELECT prompt, seed, guidance_scale FROM '{glob}';
```
"""
    store.write("README.md", card.encode())


def _size_category(images: int) -> str:
    bounds = (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
    )
    return next((name for bound, name in bounds if images < bound), "n>10M")
