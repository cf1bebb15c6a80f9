"""Models that say what they are for: rows that ask for something else are counted, null cells take their defaults."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from batchgen.builtin import model_path
from batchgen.dataset.begun import RECORD
from batchgen.dataset.dataset import Dataset
from batchgen.dataset.format import new_format
from batchgen.dataset.kept import keep_resolved, take_resolved
from batchgen.driver import check, plan, resolved_rows
from batchgen.errors import InputError
from batchgen.generation.suitability import is_far, unknown_words
from batchgen.index import Index
from batchgen.job import Job
from batchgen.models.catalog import find_model
from batchgen.models.purpose import FILE
from batchgen.options import ImageFormat, Layout
from batchgen.report.explain import _make_row
from batchgen.storage import Store, open_store

KNOWN = frozenset({"red", "cube", "sphere", "left", "3d", "render"})
PURPOSE = """
about = "a cube or a sphere"
words = ["Red", "cube", "sphere", "blue"]
sizes = [64]
[defaults]
cfg = 3
steps = 4
"""


@pytest.fixture
def model(model_configs: Path, tmp_path: Path) -> Path:
    """A model that says what it is for."""
    folder = Path(shutil.copytree(model_configs, tmp_path / "model"))
    (folder / FILE).write_text(PURPOSE)
    return folder


def job(tmp_path: Path, model: Path, rows: list[dict[str, Any]], **settings: Any) -> Job:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(manifest, (1e9, 1e9))
    return Job(manifest=str(manifest), model=str(model), output=str(tmp_path / "out"), **settings)


def applied(job: Job, store: Store | None = None) -> list[dict[str, Any]]:
    with resolved_rows(job, store) as (index, _):
        return [row.parameters.to_cells() for _, row in index.pending()]


@pytest.mark.parametrize(
    ("cells", "unknown"),
    [
        ({"prompt": "A red CUBE, left of the sphere: 3d render!"}, set()),
        ({"prompt": "Oil-painting of 2 red_cubes, by 8k"}, {"oil", "painting", "cubes", "8k"}),
        ({"prompt": "猫 and the cat's cube"}, {"猫", "cat's"}),
        ({"prompt": "(red:1.3) [cube] BREAK sphere", "prompt_syntax": "a1111"}, set()),
        ({"prompt": "(rose:1.3)", "prompt_syntax": "a1111"}, {"rose"}),
        ({"prompt": "red cube", "negative_prompt": "blurry", "prompt_2": "a horse"}, {"horse"}),
        ({"prompt": "a <ruby-ring> cube of gold", "embeddings": [{"token": "<ruby-ring>"}]}, {"gold"}),
        ({"prompt": "ink drawing", "loras": [{"path": "ink"}]}, set()),
        ({"prompt": "17 🦊 --"}, set()),
        ({}, set()),
    ],
)
def test_words_that_a_model_does_not_know(cells: Mapping[str, Any], unknown: set[str]) -> None:
    """Whole words without regard to case; what is syntax, habit, or taught by an adapter is none."""
    assert unknown_words({"prompt_syntax": "plain", **cells}, KNOWN) == unknown


@pytest.mark.parametrize(
    ("size", "side", "far"),
    [
        ((512, 512), 512, False),
        ((512, 768), 512, False),
        ((768, 768), 512, True),
        ((256, 256), 512, True),
        ((1280, 256), 512, True),  # an area of 1.25
        ((1024, 1024), 1024, False),
        ((2048, 512), 1024, False),
        ((512, 512), 1024, True),
    ],
)
def test_sizes_far_from_those_that_were_trained(size: tuple[int, int], side: int, far: bool) -> None:
    width, height = size
    assert is_far(width, height, side) is is_far(height, width, side) is far


def test_rows_that_ask_for_something_else_are_counted(model: Path, tmp_path: Path) -> None:
    """One line a kind, with counts, the commonest words, the first row; a hires fix counts where sizes are named."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a red cube"},
        {"prompt": "a blue cat", "hires_scale": 2},
        {"prompt": "a cat, oil painting", "width": 128, "height": 128, "num_images_per_prompt": 3},
        {"prompt": "a sphere", "width": 32, "height": 32},
    ]
    found = check(job(tmp_path, model, rows))
    words, sizes = found.notices
    assert words.startswith(f"2 of 4 rows have words that '{model}' was not trained on: \"cat\", ")
    assert '"oil"' in words and "m.jsonl, row 2" in words and words.endswith("it makes a cube or a sphere")
    assert sizes.startswith(f"3 of 4 rows have sizes far from the 64x64 that '{model}' was trained at: 128x128, 32x32")
    assert "m.jsonl, row 2" in sizes
    assert check(job(tmp_path, model, rows[:1])).notices == []
    (model / FILE).unlink()
    (said,) = check(job(tmp_path, model, rows)).notices  # its size follows from its UNet, its words from nothing
    assert said.startswith("2 of 4 rows have sizes")


def test_a_models_defaults_come_after_the_jobs(model: Path, tmp_path: Path) -> None:
    """Cell, [defaults], model, contract."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2, "guidance_scale": 9.0}]
    first, second = applied(job(tmp_path, model, rows, defaults={"num_inference_steps": 7}))
    assert (first["guidance_scale"], first["num_inference_steps"], first["eta"]) == (3.0, 7, 0.0)
    assert second["guidance_scale"] == 9.0
    row = _make_row({"prompt": "a"}, find_model(str(model)), {}, {})
    assert row is not None
    explained = row.parameters.to_cells()
    assert (explained["guidance_scale"], explained["num_inference_steps"]) == (3.0, 4)


def test_what_a_model_is_for_is_no_part_of_it(model: Path) -> None:
    before = find_model(str(model))
    (model / FILE).unlink()
    assert find_model(str(model)) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("word = ['a']", "unknown key 'word'; did you mean 'words'"),
        ("sizes = [1.5]", "key 'sizes' has a value that is 1.5; .*it wants a list of whole numbers"),
        ("words = 'a'", "key 'words' is 'a'; wants a list of texts"),
        ("[defaults]\nprompt = 'a'", "takes no 'prompt'"),
        ("[defaults]\nguidance_scale = 900", r"guidance_scale is 900.*100"),
        ("sizes =", FILE),
    ],
)
def test_a_file_that_is_wrong_is_refused(text: str, said: str, model: Path) -> None:
    (model / FILE).write_text(text)
    with pytest.raises(InputError, match=said):
        find_model(str(model))


def begin(job: Job, store: Store) -> Dataset:
    """What a run does before it makes anything."""
    with resolved_rows(job, store) as (index, resolved):
        defaults = {model.fingerprint: model.defaults for model in resolved.models.values()}
        wanted = new_format(Layout.FILES, ImageFormat.PNG, resolved.carried, defaults)
        dataset = Dataset.begin(store, wanted, create=True)
        keep_resolved(store, job, index, resolved, before=2e9)
        return dataset


def test_an_output_keeps_the_defaults_that_it_was_begun_with(model: Path, tmp_path: Path) -> None:
    """What a model says later changes no row of it, kept or resolved anew; a model that it meets later joins."""
    asked = job(tmp_path, model, [{"prompt": "a", "seed": 1}])
    store = open_store(str(tmp_path / "out"))
    before, dataset = applied(asked), begin(asked, store)
    assert Dataset.open(store).format.model_defaults == dataset.format.model_defaults
    other = Path(shutil.copytree(model, tmp_path / "other"))
    (other / "more.json").write_text("{}")  # another fingerprint
    (model / FILE).write_text("[defaults]\nguidance_scale = 5")
    assert applied(asked, store) == before
    assert [cells["guidance_scale"] for cells in applied(asked)] == [5.0]
    assert "another default" in check(asked, output=True).notices[-1]
    longer = job(tmp_path, model, [{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2, "model": str(other)}])
    begin(longer, store)
    (other / FILE).write_text("[defaults]\nguidance_scale = 6")
    assert [cells["guidance_scale"] for cells in applied(longer, store)] == [3.0, 3.0]


def test_an_output_of_earlier_code_goes_without(model: Path, tmp_path: Path) -> None:
    """Its record has no such key: null cells take the contract's defaults, or all its rows would be made again."""
    asked = job(tmp_path, model, [{"prompt": "a", "seed": 1}])
    store = open_store(str(tmp_path / "out"))
    begin(asked, store)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    del record["model_defaults"]
    (tmp_path / "out" / RECORD).write_text(json.dumps(record))
    with Index() as index:
        assert take_resolved(store, asked, index) is None  # rows that were resolved with other defaults
    (cells,) = applied(asked, store)
    assert (cells["guidance_scale"], cells["num_inference_steps"]) == (7.5, 25)
    begin(asked, store)
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == record
    assert applied(asked, store) == [cells]


def test_what_was_kept_goes_with_what_the_model_says(model: Path, tmp_path: Path) -> None:
    """Notices come back with kept rows, and are those of today."""
    asked = job(tmp_path, model, [{"prompt": "a cat", "seed": 1}])
    store = open_store(str(tmp_path / "out"))
    begin(asked, store)
    with resolved_rows(asked, store) as (_, resolved):
        assert resolved.kept and '"cat"' in resolved.notices[0]
    (model / FILE).write_text(PURPOSE.replace('"Red"', '"Red", "cat"'))
    with resolved_rows(asked, store) as (_, resolved):
        assert not resolved.kept and resolved.notices == []


@pytest.mark.parametrize("look", [check, plan])
def test_the_built_in_model_says_what_it_was_not_made_for(look: Callable[[Job], Any], tmp_path: Path) -> None:
    """Incident: a cat became a yellow ball in a meadow, without a word."""
    (tmp_path / "m.csv").write_text('prompt,width,height\n"a cat, oil painting",256,256\na red cube on grass,,\n')
    words, sizes = look(Job(manifest=str(tmp_path / "m.csv"))).notices
    assert words.startswith("1 of 2 rows has words that 'builtin' was not trained on: \"")
    assert "256x256" in sizes


def test_the_built_in_models_say_what_the_recipe_says() -> None:
    """`python -m jobs.builtin.purpose` writes them."""
    from jobs.builtin.purpose import DEFAULTS, render_purpose

    for name in DEFAULTS:
        folder = model_path("builtin" if name == "base" else f"builtin-{name}")
        assert (folder / FILE).read_text(encoding="utf-8") == render_purpose(name)


def test_the_vocabulary_is_that_of_captions() -> None:
    import numpy as np

    from jobs.builtin.captions import draw_caption, vocabulary
    from jobs.builtin.scenes import draw_scene

    rng, known, met = np.random.default_rng(1), frozenset(vocabulary()), set[str]()
    for number in range(3000):
        met |= set(draw_caption(rng, draw_scene(1, number)).text.replace(",", " ").split())
    assert met == known
