"""Frozen identities: fingerprint, id, seed and batch key of rows of every task and family of models.

`goldens/files.json` holds what rows are resolved against: configs of the tiny models, tensor shapes of adapters, sizes
of images. They are written here byte for byte, so that no library's version is in any hash. `goldens/rows.json` holds,
by case, a job, its manifest, and what resolving them gave when they were frozen; `hashed` is what was hashed, as JSON.
`goldens/filled.json` says which values that no cell names are part of fingerprints.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest

from batchgen.dataset.schema import applied_cells, input_prints, parameters_of
from batchgen.errors import ManifestProblems
from batchgen.generation import parameters, tasks
from batchgen.generation.parameters import Control, Sampling, decisive_cells
from batchgen.generation.rules import control, draft
from batchgen.generation.tasks import TASKS
from batchgen.identity import fingerprint
from batchgen.images import FORMATS
from batchgen.index import Index
from batchgen.job import load_job
from batchgen.manifest.columns import COLUMNS, Column, Kind
from batchgen.manifest.names import ALIASES
from batchgen.manifest.problems import ProblemLog
from batchgen.models.catalog import Family, find_model
from batchgen.resolve import resolve
from batchgen.rows import Row

Json = dict[str, Any]

GOLDENS = Path(__file__).parent / "goldens"
CASES: Mapping[str, Json] = json.loads((GOLDENS / "rows.json").read_text(encoding="utf-8"))
FILLED: Mapping[str, Json] = json.loads((GOLDENS / "filled.json").read_text(encoding="utf-8"))
CHANGED = "every output that holds such rows would make them again; see `hashed` of this case in goldens/rows.json"


# Files to resolve against


@pytest.fixture(autouse=True)
def netpbm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the goldens are of a format that no library encodes in two ways, and that is not read any more."""
    monkeypatch.setattr("batchgen.images.FORMATS", (*FORMATS, "PPM"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models, adapters and images of `goldens/files.json`.

    Models have what counts for their fingerprints; their tokenizers are not among it, and are folders alone.
    """
    root = tmp_path_factory.mktemp("goldens").resolve()
    for name, content in json.loads((GOLDENS / "files.json").read_text(encoding="utf-8")).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix:
            case ".json":
                path.write_text(json.dumps(content), encoding="utf-8")
                if path.name == "model_index.json":
                    for part in {"scheduler", "tokenizer", "tokenizer_2"} & content.keys():
                        (path.parent / part).mkdir(exist_ok=True)
                        (path.parent / part / "README.md").touch()
            case ".safetensors":
                path.write_bytes(_zero_tensors(content))
            case suffix:
                path.write_bytes(_gradient(path.stem, *content, channels={".ppm": 3, ".pgm": 1}[suffix]))
    return root


def _zero_tensors(shapes: Mapping[str, list[int]]) -> bytes:
    """A .safetensors file whose numbers are all zero."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(end)


def _gradient(name: str, width: int, height: int, *, channels: int) -> bytes:
    """A netpbm image, which no encoder's version changes; names of other lengths give other images."""
    pixels = bytes((7 * len(name) + place) % 256 for place in range(width * height * channels))
    return b"P%d %d %d 255\n" % ({3: 6, 1: 5}[channels], width, height) + pixels


# What rows are today


def resolved(case: Json, root: Path) -> list[tuple[str, Row]]:
    """Batch keys and rows of a case, in the manifest's order; paths in keys start from `root`."""
    rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in case["manifest"])
    (root / "manifest.jsonl").write_text("".join(rows), encoding="utf-8")
    settings = {"manifest": "manifest.jsonl", **case["job"]}
    defaults = settings.pop("defaults", {})
    lines = [*_assignments(settings), "[defaults]", *_assignments(defaults)]
    (root / "job.toml").write_text("\n".join(lines), encoding="utf-8")
    with Index() as index:
        problems = ProblemLog()
        resolve(load_job(str(root / "job.toml")), index, problems)
        if problems.total:
            raise ManifestProblems(problems)
        found = sorted(index.pending(), key=lambda pair: (pair[1].number, pair[1].sample_index))
    return [(key.replace(f"{root}/", ""), row) for key, row in found]


@cache
def unchanged(name: str, root: Path) -> list[tuple[str, Row]]:
    """`resolved`, of a case as it is."""
    return resolved(CASES[name], root)


def _assignments(table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} = {json.dumps(value)}" for name, value in table.items())  # JSON's scalars are TOML's, too


def changes(row: Row, golden: Json) -> list[str]:
    """One line for each column of which something else is applied than what was hashed."""
    found, frozen = named_by_content(row), golden["hashed"][3]
    return [
        f"{golden['id']}: {column} is {found.get(column)!r}, was {frozen.get(column)!r}"
        for column in sorted(found.keys() | frozen.keys() - {"refiner"})
        if found.get(column) != frozen.get(column)
    ]


def named_by_content(row: Row) -> Json:
    """What is applied to a row as JSON, without nulls and without what names a thing by its place."""
    applied = json.loads(json.dumps(row.parameters.to_cells()))
    for name, value in applied.items():
        listed = value if isinstance(value, list) else [value]
        if isinstance(listed[0], dict) and "sha256" in listed[0]:
            applied[name] = [{key: part for key, part in one.items() if key != "path"} for one in listed]
    return {name: value for name, value in applied.items() if name not in ("model", "refiner")}


@pytest.mark.parametrize("name", CASES)
def test_fingerprints_ids_and_seeds_are_frozen(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide what an existing output has done already; where one changes, the columns at fault are listed."""
    monkeypatch.chdir(files)
    for (_, row), golden in zip(unchanged(name, files), CASES[name]["rows"], strict=True):
        found = {"id": row.id, "seed": row.parameters.sampling.seed, "fingerprint": row.fingerprint}
        assert found == {key: golden[key] for key in found}, "\n".join([CHANGED, *changes(row, golden)])


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_made_again_from_its_metadata(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells as a Parquet reader gives them: lists, not tuples; the size is that of the finished image."""
    monkeypatch.chdir(files)
    for (_, row), golden in zip(unchanged(name, files), CASES[name]["rows"], strict=True):
        model = find_model(row.parameters.model)
        cells = json.loads(json.dumps(applied_cells(row)))
        scale = model.enlarges * (row.parameters.hires.hires_scale if row.parameters.hires else 1)
        factor = model.latent_factor or 8 if row.parameters.hires else 1
        for side in ("width", "height"):
            cells[side] = round(cells[side] // factor * scale) * factor
        again = parameters_of(cells, model)
        assert again == row.parameters
        refiner = again.refining.refiner
        decisive = decisive_cells(again.to_cells(), refiner=refiner and find_model(refiner).fingerprint)
        print_ = fingerprint(cells["task"], decisive, model.fingerprint, input_prints(cells))
        assert print_ == row.fingerprint == golden["fingerprint"]


@pytest.mark.parametrize("name", CASES)
def test_batch_keys_are_frozen(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide the batch size, and with it last bits of images."""
    monkeypatch.chdir(files)
    found = [json.loads(key) for key, _ in unchanged(name, files)]
    assert found == [row["batch_key"] for row in CASES[name]["rows"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _FreeU(Sampling):
    """Sampling with a column that is new."""

    added: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Guessing(Control):
    """ControlNets with a value for each that is new."""

    added: tuple[float, ...] | None = None


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("default", [None, 0.0])
@pytest.mark.parametrize("group", [_FreeU, _Guessing])
def test_a_column_that_is_added_has_nothing_made_again(
    group: type[_FreeU | _Guessing],
    shared: bool,
    default: float | None,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Incident: a new column with a default changed every fingerprint, and made every image of every output again.

    Incident: so did one with a value for each ControlNet for all their rows, since (0.0,) is not 0.0.
    """
    listed = group is _Guessing
    added = Column(
        name="added", about="new", kind=Kind.NUMBERS if listed else Kind.NUMBER, default=default, neutral=0.0,
        shared=shared, listed=listed, tasks=COLUMNS["controlnet"].tasks if listed else (),
    )  # fmt: skip
    monkeypatch.setitem(cast(Json, COLUMNS), added.name, added)
    tasks._taken.cache_clear()
    request.addfinalizer(tasks._taken.cache_clear)
    place = "control" if listed else "sampling"
    monkeypatch.setitem(parameters._GROUPS, place, parameters._group(group))
    monkeypatch.setitem(parameters._GROUP_OF, added.name, place)
    monkeypatch.setattr(draft, "APPLIED", parameters.APPLIED | {added.name})
    if listed:
        monkeypatch.setattr(parameters, "_TUPLES", parameters._TUPLES | {added.name})
        monkeypatch.setattr(control, "Control", group)
    monkeypatch.chdir(files)
    for case in CASES.values():
        for (key, row), golden in zip(resolved(case, files), case["rows"], strict=True):
            cells = row.parameters.to_cells()
            nets = len(cells.get("controlnet", ()))
            assert cells.get(added.name) == ((default,) * nets or None if listed and default is not None else default)
            assert (row.id, row.fingerprint, json.loads(key)) == (
                golden["id"],
                golden["fingerprint"],
                golden["batch_key"],
            )
    case = CASES["two ControlNets, Stable Diffusion 1"]
    for value, same in ((0.0, True), ([0.0, 0.5] if listed else 0.5, False)):
        changed = {**case, "manifest": [{**cells, added.name: value} for cells in case["manifest"]]}
        ((key, row),) = resolved(changed, files)
        assert (row.fingerprint == case["rows"][0]["fingerprint"]) == same
        assert (json.loads(key) == case["rows"][0]["batch_key"]) == (same or not shared)


# What the goldens themselves say


def golden_rows(files: Path) -> Iterator[tuple[Json, Json, Family]]:
    """Every frozen row with its case and its model's family."""
    for case in CASES.values():
        for row in case["rows"]:
            yield case, row, _family(files / row["batch_key"][0])


@cache
def _family(model: Path) -> Family:
    return find_model(str(model)).family


def test_every_task_has_a_golden_for_every_family_that_does_it(files: Path) -> None:
    """With ControlNets and without."""
    wanted = {(task.name, family, False) for task in TASKS.values() for family in task.pipelines}
    wanted |= {(task.name, family, True) for task in TASKS.values() for family in task.controlled}
    found = {(row["hashed"][1], family, "controlnet" in row["hashed"][3]) for _, row, family in golden_rows(files)}
    assert found == wanted


def test_a_fingerprint_is_the_hash_of_what_the_goldens_say() -> None:
    """Canonical JSON of version, task, model, values and inputs: a second implementation could follow it."""
    for case in CASES.values():
        for row in case["rows"]:
            text = json.dumps(row["hashed"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            assert hashlib.sha256(text.encode()).hexdigest() == row["fingerprint"]


def test_every_default_says_whether_fingerprints_hold_it() -> None:
    """A column with a default that is new: outputs must not be made again for it, so decide, and say so there.

    Where the default is the neutral value none holds it.
    """
    filled = {column.name for column in COLUMNS.values() if column.default not in (None, column.neutral)}
    assert sorted(filled - FILLED.keys()) == [], "add them to goldens/filled.json, or make `neutral` their default"


@pytest.mark.parametrize("column", FILLED)
def test_filled_values_are_held_as_said(column: str, files: Path) -> None:
    """`held` is always, never, or the column that brings this one along; `value` what stands for a null cell."""
    said = FILLED[column]
    spellings = {column, *(alias for alias, name in ALIASES.items() if name == column)}
    filled = 0
    for case, row, family in golden_rows(files):
        _, task, _, values, _ = row["hashed"]
        taken = column in TASKS[task].columns_for(family) and family not in said.get("not_for", ())
        held = {"always": True, "never": False}.get(said["held"], said["held"] in values)
        named = any(spellings & cells.keys() for cells in (*case["manifest"], case["job"].get("defaults", {})))
        if not named:
            assert (column in values) is (taken and held)
        if column in values and not named and "value" in said:
            found = values[column]
            assert found == said["value"] or set(found) == {said["value"]}  # one for each ControlNet
        filled += taken and not named
    assert filled, "no golden leaves this column null"
