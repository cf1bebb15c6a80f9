"""Typed parameters: cells in, cells out, the same through JSON, pickle and an output's metadata; one field a column."""

import io
import json
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, FrozenInstanceError, fields, replace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.dataset.layouts import find_layout
from batchgen.dataset.schema import applied_cells, input_prints, metadata_schema, metadata_table, parameters_of
from batchgen.generation.parameters import (
    _GROUPS,
    _OWN,
    APPLIED,
    ImageRef,
    Parameters,
    RowAdapters,
    decisive_cells,
)
from batchgen.generation.tasks import TASKS, Task
from batchgen.identity import fingerprint
from batchgen.manifest.columns import COLUMNS, Column, Kind, input_name
from batchgen.models.adapters import ADAPTERS
from batchgen.models.catalog import Family, Model, Source
from batchgen.options import Layout
from batchgen.rows import Row

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
COMBINATIONS = [(task, family) for task in TASKS.values() for family in task.pipelines]


def model_of(family: Family) -> Model:
    return Model(
        name="m", source=Source.FOLDER, location="m", fingerprint="f" * 64, width=64, height=64,
        scheduler="DDIMScheduler", family=family, latent_factor=8,
    )  # fmt: skip


def applied_values(column: Column) -> st.SearchStrategy[Any]:
    """What a column can be once it is applied."""
    low, high = column.low or 0, 2**31 - 1 if column.high is None else column.high
    floats = st.floats(low, high, allow_nan=False, allow_subnormal=False)
    match column.kind:
        case Kind.TEXT if column.listed:
            return st.lists(st.sampled_from(column.choices), min_size=1, max_size=3).map(tuple)
        case Kind.TEXT:
            return st.sampled_from(column.choices) if column.choices else text
        case Kind.INTEGER:
            step = column.multiple_of or 1
            return st.integers(-(-int(low) // step), int(high) // step).map(lambda number: number * step)
        case Kind.NUMBER:
            return floats
        case Kind.NUMBERS:
            return st.lists(floats, min_size=1, max_size=3).map(tuple)
        case Kind.SIZE:
            return st.tuples(st.integers(1, 8192), st.integers(1, 8192))
        case Kind.FLAG:
            return st.booleans()
        case Kind.OPTIONS:
            options = st.booleans() | st.integers(-9, 9) | text | st.lists(st.floats(0, 1))
            return st.dictionaries(text, options, max_size=3)
        case Kind.ADAPTER:
            names = ADAPTERS[column.name].names
            known = {"path": text, "sha256": text, "scale": st.floats(-10, 10), "token": text}
            one = st.fixed_dictionaries({name: known[name] for name in ("path", "sha256", *names)})
            return st.lists(one, min_size=1, max_size=3).map(tuple) if column.listed else one
        case Kind.IMAGE:
            raise AssertionError(f"{column.name} is no parameter")


@st.composite
def applied(draw: st.DrawFn, task: Task, family: Family) -> dict[str, Any]:
    """Cells of a row of a task and a family: groups as a whole or not at all, optional columns or null."""
    taken = task.columns_for(family) & APPLIED
    cells = {name: "m" if name == "model" else draw(st.none() | applied_values(COLUMNS[name])) for name in _OWN}
    for group in _GROUPS.values():
        names = [name for name in group.names if name in taken]
        needed = {one.name for one in fields(cast(Any, group.kind)) if one.default is MISSING}
        optional = needed and needed.isdisjoint({"width", "seed", "prompt"}) and not draw(st.booleans())
        if not optional and needed <= taken:
            for name in names:
                values = applied_values(COLUMNS[name])
                cells[name] = draw(values if name in needed else st.none() | values)
    return cells


@st.composite
def rows(draw: st.DrawFn, task: Task | None = None, family: Family | None = None) -> Row:
    """Rows of every task and family, with images."""
    if task is None or family is None:
        task, family = draw(st.sampled_from(COMBINATIONS))
    images = ["image", *(input_name("control_image", place) for place in range(draw(st.integers(0, 3))))]
    return Row(
        id="r", fingerprint="0" * 64, task=task.name, parameters=Parameters.from_cells(draw(applied(task, family))),
        inputs={name: ImageRef(uri=f"{name}.png", sha256="a" * 64, width=8, height=8) for name in images},
        sample_index=2, file="m.csv", number=9,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("task", "family"), COMBINATIONS, ids=lambda one: getattr(one, "name", str(one)))
@settings(max_examples=25)  # each, of some hundred
@given(data=st.data())
def test_cells_and_parameters_are_inverse(task: Task, family: Family, data: st.DataObject) -> None:
    cells = data.draw(applied(task, family))
    parameters = Parameters.from_cells(cells)
    assert parameters.to_cells() == {name: value for name, value in cells.items() if value is not None}
    again = replace(parameters)  # which has forgotten its cells
    assert again.to_cells() == parameters.to_cells()
    assert Parameters.from_cells(again.to_cells()) == parameters == pickle.loads(pickle.dumps(parameters))
    assert Parameters.from_cells(json.loads(json.dumps(cells))) == parameters


@pytest.mark.slow
@settings(deadline=None, max_examples=50)  # the first one imports what writes Parquet
@given(st.sampled_from(COMBINATIONS), st.data())
def test_metadata_gives_the_same_parameters_and_fingerprint(made: tuple[Task, Family], data: st.DataObject) -> None:
    """A row can be made again from its line of a Parquet shard."""
    task, family = made
    row, model = data.draw(rows(task, family)), model_of(family)
    cells = applied_cells(row)
    hires = row.parameters.hires
    for side in ("width", "height"):
        whole = cells[side] // 8 if hires else cells[side]
        cells[side] = round(whole * hires.hires_scale) * 8 if hires else whole * model.enlarges
    again = read_back(cells)
    assert parameters_of(again, model) == row.parameters
    assert printed(parameters_of(again, model), task, input_prints(again)) == printed(
        row.parameters, task, {name: ref.sha256 for name, ref in row.inputs.items()}
    )


def read_back(cells: Mapping[str, Any]) -> dict[str, Any]:
    stream = io.BytesIO()
    pq.write_table(metadata_table(metadata_schema(find_layout(Layout.FILES), {}), [cells]), stream)
    table: pa.Table = pq.read_table(stream)
    found: dict[str, Any] = table.to_pylist()[0]
    return found


def printed(parameters: Parameters, task: Task, inputs: Mapping[str, str]) -> str:
    refiner = None if parameters.refining.refiner is None else "e" * 64
    return fingerprint(task.name, decisive_cells(parameters.to_cells(), refiner=refiner), "f" * 64, inputs)


def test_every_applied_column_is_a_field_of_one_group() -> None:
    """That each has a field, and each field an entry, the import says."""
    names = [*_OWN, *(name for group in _GROUPS.values() for name in group.names)]
    assert [name for name, times in Counter(names).items() if times > 1] == [], "fields of two groups"
    taken = frozenset().union(*(task.columns for task in TASKS.values()))
    assert sorted(COLUMNS.keys() - taken) == [], "columns that no task takes; TASKS has no task of their `tasks`"


def test_parameters_are_values() -> None:
    """Frozen; a change by `replace` is seen in the cells."""
    cells = {
        "model": "m", "width": 8, "height": 8, "seed": 1, "num_inference_steps": 1, "scheduler": "S",
        "scheduler_kwargs": {}, "vae": {"path": "a", "sha256": "b"},
    }  # fmt: skip
    parameters = Parameters.from_cells(cells)
    with pytest.raises(FrozenInstanceError):
        parameters.model = "other"  # type: ignore[misc]
    assert "vae" not in replace(parameters, adapters=RowAdapters()).to_cells()
    with pytest.raises(KeyError, match="unheard_of"):
        Parameters.from_cells({**cells, "unheard_of": 1})
    with pytest.raises(TypeError, match="hires_strength"):
        Parameters.from_cells({**cells, "hires_scale": 2.0})
