"""A job: what to make, with what, where to put it, within which limits. Read from TOML, or a manifest with defaults.

Paths in a job file resolve against the file's own folder; those on the command line against the current one.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batchgen import builtin
from batchgen.errors import InputError
from batchgen.generation.tasks import TASKS
from batchgen.inputs import Inputs
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.manifest.names import find_column
from batchgen.manifest.values import parse_defaults
from batchgen.models.adapters import anchored
from batchgen.options import Device, Dtype, ImageFormat, Layout, Memory, Safety
from batchgen.places import is_remote, join, local_path
from batchgen.reading import read_file
from batchgen.toml_tables import ZERO, read_fields, table_keys

__all__ = ["DEFAULT_COLUMNS", "Job", "Limits", "Scoring", "WorkerResources", "load_job"]


_COMPONENTS = ("text_encoder", "text_encoder_2", "vae")
"""Parts of a model that may have a precision of their own: what comes before and after the UNet."""

DEFAULT_COLUMNS = frozenset().union(*(task.columns for task in TASKS.values())) - {
    "id",
    "task",
    *(column.name for column in COLUMNS.values() if column.kind is Kind.IMAGE),
}
"""Columns that [defaults] may set: what some task applies, and that does not make a row another row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of one run; reaching one stops it cleanly, and the next run goes on from there.

    `grace_minutes` is how long shards in work are waited for after a signal or `max_hours`; what is not committed by
    then is made by the next run. `max_failures` ends a run of which not one image could be made and so many rows failed
    in one way; 0 is no bound.
    """

    max_images: int | None = None
    max_hours: float | None = None
    grace_minutes: float = field(default=5.0, metadata=ZERO)
    max_failures: int = field(default=100, metadata=ZERO)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerResources:
    """What Ray reserves for one worker; None means one CPU core, and one GPU where the device is CUDA.

    And how long a run waits while it has no worker, in minutes; None means an hour, and not at all where no node of the
    cluster is large enough and nothing adds nodes. `hang_minutes` is how long a worker may get no further before it is
    replaced; None has it follow from what was measured (20 times the longest step, 10 minutes at least, an hour first).
    """

    num_cpus: float | None = None
    num_gpus: float | None = field(default=None, metadata=ZERO)
    memory_gib: float | None = None
    wait_minutes: float | None = None
    hang_minutes: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """What is scored of the images that a run has made, as the flags of `batchgen score` say it."""

    metrics: tuple[str, ...] = ()
    models: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    features: str | None = None
    by: tuple[str, ...] = ()
    batch_size: int | None = None

    def named_models(self) -> dict[str, str]:
        """Models and the folder of real images, by the names under which metrics take them."""
        flags = {"reference": self.reference, "features": self.features}
        return {**self.models, **{name: model for name, model in flags.items() if model is not None}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All settings of a run; the command line's flags replace the file's keys of the same name."""

    manifest: str
    output: str | None = None
    model: str = "builtin"
    model_config: str | None = None  # layout of a single-file checkpoint: a diffusers folder or hub id
    layout: Layout = Layout.FILES
    format: ImageFormat = ImageFormat.PNG
    shard_rows: int | None = None
    batch_size: int | None = None
    dtype: Dtype = Dtype.AUTO
    dtypes: Mapping[str, Any] = field(default_factory=dict)  # of single components, by diffusers' names
    device: Device = Device.AUTO
    workers: int | None = field(default=None, metadata=ZERO)  # 0: this process in their place
    address: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    worker: WorkerResources = field(default_factory=WorkerResources)
    inputs: Inputs = field(default_factory=Inputs)
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    safety: Safety = Safety.KEEP
    memory: Memory = Memory.NORMAL
    save_steps: tuple[int, ...] = ()  # images after these sampling steps too, counted from 1
    save_control_images: bool = False  # keep what ControlNets are given: edges, depth, poses
    score: Scoring | None = None  # after the images
    lora_folder: str | None = None  # of LoRAs and hypernetworks that prompts name; else the manifest's folder
    strict: bool = False  # what may have been meant otherwise than it is read is a problem, not a notice
    allow_pickle: bool = False  # read pickled weights too, with torch's weights-only loader
    file: str | None = field(default=None, compare=False)  # where it was read from, for messages; no key

    def __post_init__(self) -> None:
        for name, least in (("shard_rows", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} is {value}; give at least {least}, or leave it out")
        kinds = [kind.value for kind in Dtype if kind is not Dtype.AUTO]
        for component, dtype in self.dtypes.items():
            if component not in _COMPONENTS:
                raise InputError(f"[dtypes] names {component!r}; known are {', '.join(_COMPONENTS)}")
            if dtype not in kinds:
                raise InputError(f"[dtypes] {component} is {dtype!r}; one of {', '.join(kinds)}")

    def require_output(self) -> str:
        """Where the dataset goes.

        Raises:
            InputError: neither the job nor the command line says.
        """
        if self.output is None:
            raise InputError("no output; give --output, or the key `output` in a job file")
        return self.output


def load_job(source: str, **settings: Any) -> Job:
    """The job that a command line's SOURCE names: a `.toml` file, or a manifest with every setting at its default.

    Args:
        source: the file; paths in a job file start from its own folder.
        settings: keys of a job file, with values as one has them, laid over those of the file; None leaves a key as it
            is. Paths start from the current folder.

    Raises:
        InputError: unreadable, not TOML, unknown keys, or values of the wrong type; all at once, with the file's name.
    """
    wrong: list[str] = []
    given = _settings({name: value for name, value in settings.items() if value is not None}, wrong)
    read = {**_read_job(source, wrong), "file": source} if source.endswith(".toml") else {"manifest": source}
    if wrong:
        raise InputError("\n".join(f"job {source}: {line}" for line in wrong))
    return Job(**{**read, **given})


def _settings(table: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
    """The keys of a job as arguments of `Job`; complaints go to `wrong`."""
    settings = read_fields(Job, table, wrong, elsewhere=_elsewhere)
    if isinstance(asked := settings.get("score"), Scoring):
        if not table["score"].get("metrics"):
            wrong.append('[score] names no metrics; give it metrics = ["clip_score"], or others')
        models = {part: model for part, model in asked.models.items() if not isinstance(model, str)}
        wrong += [f"key 'score.models.{part}' is {model!r}; wants text" for part, model in models.items()]
    if "defaults" in table:
        settings["defaults"] = parse_defaults(table["defaults"], DEFAULT_COLUMNS, wrong)
    return settings


def _read_job(source: str, wrong: list[str]) -> dict[str, Any]:
    """The settings of a job file, with its paths seen from its folder; complaints go to `wrong`."""
    try:
        path = local_path(source)
    except InputError as error:
        raise InputError(f"job {error}") from None
    try:
        table = tomllib.loads(read_file(path).decode())
    except FileNotFoundError:
        raise InputError(f"job {source}: no such file") from None
    except (OSError, ValueError, RecursionError, InputError) as error:  # tomllib's errors are ValueErrors
        raise InputError(f"job {source}: {error}") from error
    settings = _settings({name: value for name, value in table.items() if name != "sweep"}, wrong)
    if "sweep" in table:
        if "manifest" in table:
            wrong.append("has a manifest and a [sweep]; keep one of the two")
        settings["manifest"] = path.name
    elif "manifest" not in table:
        wrong.append("key 'manifest' is missing; name the table of prompts, or write a [sweep]")
    for name in ("manifest", "output", "model", "model_config", "lora_folder"):
        if settings.get(name):
            try:
                settings[name] = _resolved(name, settings[name], path.parent)
            except InputError as error:
                wrong.append(f"key {name!r}: {error}")
    if isinstance(asked := settings.get("score"), Scoring):
        settings["score"] = _anchored_scoring(asked, path.parent)
    if "inputs" in settings:
        try:
            roots = tuple(str(local_path(root, str(path.parent))) for root in settings["inputs"].roots)
            settings["inputs"] = replace(settings["inputs"], roots=roots)
        except InputError as error:
            wrong.append(f"key 'inputs.roots': {error}")
    for name, value in settings.get("defaults", {}).items():
        if name in ("model", "refiner"):
            settings["defaults"][name] = _resolved("model", value, path.parent)
        elif COLUMNS[name].kind is Kind.ADAPTER:
            settings["defaults"][name] = anchored(value, str(path.parent))
    return settings


def _anchored_scoring(asked: Scoring, folder: Path) -> Scoring:
    """Its paths seen from the job file's folder; models that are no paths there stay names."""

    def model(name: str) -> str:
        return name if name.startswith("builtin-") else _resolved("model", name, folder)

    return replace(
        asked,
        models={part: model(name) if isinstance(name, str) else name for part, name in asked.models.items()},
        reference=None if asked.reference is None else _resolved("reference", asked.reference, folder),
        features=None if asked.features is None else model(asked.features),
    )


def _resolved(name: str, value: str, folder: Path) -> str:
    """A path seen from the job file's folder; a model that is no path there stays a name."""
    if name == "model" and value in builtin.model_names():
        return value  # a folder of that name beside the job is not meant
    if name in ("model", "model_config") and (is_remote(value) or not (folder / value).exists()):
        return value
    return join(str(folder), value)


def _elsewhere(key: str) -> list[str]:
    """Where a key is known that stands in another table."""
    places = {"": Job, "limits.": Limits, "worker.": WorkerResources, "score.": Scoring, "inputs.": Inputs}
    found = [place + key for place, kind in places.items() if key in table_keys(kind)]
    column = find_column(key)
    return [*found, *([f"defaults.{column}"] if column in DEFAULT_COLUMNS else [])]
