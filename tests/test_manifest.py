"""From files to rows: every format, aliases, null rules, carried columns, defaults, ids and seeds."""

import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import WriteManifest
from PIL import Image

from batchgen.errors import ManifestProblems
from batchgen.generation.samplers import NAMES
from batchgen.index import Index
from batchgen.job import Job
from batchgen.manifest.cells import carried_cell
from batchgen.manifest.columns import COLUMNS
from batchgen.manifest.files import embedded_bytes, records
from batchgen.manifest.names import ALIASES
from batchgen.manifest.problems import ProblemLog
from batchgen.manifest.values import SCHEDULES
from batchgen.resolve import Resolved, resolve
from batchgen.rows import Row

HARD_PROMPTS = [
    "quoted \"double\" and 'single', with, commas; and semicolons",
    "two\nlines\r\nand a\ttab",
    "Ünïcödé 画像 🦊 \u202eright to left",
    "",
    "x" * 20_000,
    "  padded  ",
    "NULL",
    "None",
]


def read(path: Path | str, model: Path, **job: Any) -> tuple[list[Row], Resolved]:
    """The manifest's rows in its own order, and what else was found; problems raise."""
    with Index() as index:
        problems = ProblemLog()
        resolved = resolve(Job(manifest=str(path), **{"model": str(model), **job}), index, problems)
        if problems.total:
            raise ManifestProblems(problems)
        return sorted((row for _, row in index.pending()), key=lambda row: (row.file, row.number)), resolved


def png(width: int = 16, height: int = 8, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height), 127).save(stream, "PNG") if mode == "L" else Image.new(
        mode, (width, height), "teal"
    ).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["m.parquet", "m.pq", "m.csv", "m.jsonl", "m.ndjson"])
def test_every_format_gives_the_same_rows(name: str, write_manifest: WriteManifest, model_configs: Path) -> None:
    """The same table in any format is the same rows: same values, fingerprints, ids and seeds."""
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "width": 64, "guidance_scale": 3.5, "scheduler_kwargs": '{"steps_offset": 1}'}
        for prompt in HARD_PROMPTS
        if prompt
    ]
    found, _ = read(write_manifest(name, rows), model_configs)
    expected, _ = read(write_manifest("expected.jsonl", rows), model_configs)
    assert [replace(row, file="") for row in found] == [replace(row, file="") for row in expected]
    assert [row.parameters.to_cells()["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert found[0].parameters.sampling.scheduler_kwargs == {"steps_offset": 1}
    assert [row.number for row in found] == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("name", ["m.parquet", "m.jsonl"])
def test_hard_prompts_arrive_unchanged(name: str, write_manifest: WriteManifest, model_configs: Path) -> None:
    """Quotes, newlines, unicode, very long and empty prompts (an empty prompt is a prompt where there is null, too)."""
    found, _ = read(write_manifest(name, [{"prompt": prompt} for prompt in HARD_PROMPTS]), model_configs)
    assert [row.parameters.to_cells()["prompt"] for row in found] == HARD_PROMPTS


@pytest.mark.parametrize("name", ["m.parquet", "m.csv", "m.jsonl"])
def test_null_is_the_default(name: str, write_manifest: WriteManifest, model_configs: Path) -> None:
    """Null, NaN and an empty CSV cell take the job's default, then the contract's, then the model's."""
    empty = "" if name.endswith("csv") else None
    nan = "" if name.endswith("csv") else float("nan")
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "steps": 7, "guidance_scale": 2.0, "width": 128, "negative_prompt": "n"},
        {"prompt": "b", "steps": empty, "guidance_scale": nan, "width": nan, "negative_prompt": empty},
    ]
    found, _ = read(write_manifest(name, rows), model_configs, defaults={"num_inference_steps": 11})
    names = ("num_inference_steps", "guidance_scale", "width", "height", "negative_prompt", "scheduler", "eta")
    assert [found[0].parameters.to_cells()[n] for n in names] == [7, 2.0, 128, 64, "n", "DDIMScheduler", 0.0]
    assert [found[1].parameters.to_cells()[n] for n in names] == [11, 7.5, 64, 64, "", "DDIMScheduler", 0.0]


def test_carried_cells_are_unchanged(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Incident: NaN and structs of nulls became null, and a whole number beyond 2^53 beside 0.5 failed its row."""
    kinds: dict[str, Any] = {
        "number": pa.float64(),
        "struct": pa.struct([("a", pa.int64())]),
        "list": pa.list_(pa.int8()),
    }
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "number": float("nan"), "struct": {"a": None}, "list": []},
        {"prompt": "b", "number": None, "struct": None, "list": None},
    ]
    found, resolved = read(write_manifest("m.parquet", rows, **kinds), model_configs)
    assert {name: resolved.carried[name] for name in kinds} == kinds
    assert str(found[0].carried["number"]) == "nan"
    assert found[0].carried["struct"] == {"a": None}
    assert found[0].carried["list"] == []
    assert not found[1].carried

    large = 2**53 + 1
    lines = [{"prompt": "a", "mixed": large, "whole": 1}, {"prompt": "b", "mixed": 0.5, "whole": large}]
    found, resolved = read(write_manifest("m.jsonl", lines), model_configs)
    assert resolved.carried == {"mixed": pa.string(), "whole": pa.int64()}
    cells = [[carried_cell(row.carried[name], kind) for row in found] for name, kind in resolved.carried.items()]
    assert cells == [[str(large), "0.5"], [1, large]]


def test_a_struct_of_nulls_is_null(write_manifest: WriteManifest, model_configs: Path) -> None:
    """pandas and `datasets` write a missing image as a struct whose parts are null."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "image": {"bytes": None, "path": None}},
        {"prompt": "b", "image": None},
    ]
    found, _ = read(write_manifest("m.parquet", rows, image=kind), model_configs)
    assert [row.task for row in found] == ["text-to-image"] * 2


def test_whole_numbers_as_pandas_writes_them(write_manifest: WriteManifest, model_configs: Path) -> None:
    """A CSV of pandas with one missing seed has "12.0" for the others; Parquet has 12.0 as a float."""
    for name in ("m.parquet", "m.csv"):
        rows: list[dict[str, Any]] = [{"prompt": "a", "seed": 12.0}, {"prompt": "b", "seed": None}]
        found, _ = read(write_manifest(name, rows), model_configs)
        assert found[0].parameters.sampling.seed == 12


@pytest.mark.parametrize(("alias", "column"), sorted(ALIASES.items()))
def test_aliases(alias: str, column: str, write_manifest: WriteManifest, model_configs: Path, tmp_path: Path) -> None:
    """Each alias stands for its column, with one line of notice however many rows there are."""
    (tmp_path / "i.png").write_bytes(png(64, 64))
    value: Any = {"scheduler": "Euler a", "image": "i.png", "prompt": "p", "strength": 0.5}.get(column, 3)
    extra = {"image": "i.png"} if column == "strength" else {}
    rows: list[dict[str, Any]] = [{"prompt": "p", **extra, alias: value} if column != "prompt" else {alias: value}] * 3
    (first, *_), resolved = read(write_manifest("m.jsonl", rows), model_configs)
    assert resolved.notices == [f"column {alias!r} is read as {column!r}"]
    if column == "image":
        assert set(first.inputs) == {"image"}
    else:
        assert first.parameters.to_cells()[column] == (
            "EulerAncestralDiscreteScheduler" if column == "scheduler" else value
        )


KARRAS = ("DPMSolverMultistepScheduler", "use_karras_sigmas")
TOOLS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "letter case and blanks": (
        {"Prompt": "a red cube", "Seed": 42, "Steps": 3, "CFG Scale": 1.0, "Width": 64, "Height": 72},
        {
            "prompt": "a red cube",
            "seed": 42,
            "num_inference_steps": 3,
            "guidance_scale": 1.0,
            "width": 64,
            "height": 72,
        },
    ),
    "A1111": (
        {"prompt": "p", "Negative prompt": "n", "Sampler": "DPM++ 2M", "Schedule type": "Karras", "CFG scale": 2.5},
        {
            "negative_prompt": "n",
            "scheduler": KARRAS,
            "guidance_scale": 2.5,
        },
    ),
    "ComfyUI": (
        {
            "positive": "p",
            "negative": "n",
            "noise_seed": 5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "cfg": 4.0,
        },
        {"prompt": "p", "seed": 5, "scheduler": KARRAS},
    ),
    "ComfyUI, its usual schedule": (
        {"positive": "p", "sampler_name": "euler_ancestral", "scheduler": "normal"},
        {"scheduler": ("EulerAncestralDiscreteScheduler", None)},
    ),
    "InvokeAI": (
        {"positive_prompt": "p", "cfg_scale": 2.0, "scheduler": "dpmpp_2m_k"},
        {"prompt": "p", "scheduler": KARRAS},
    ),
    "SwarmUI": (
        {"prompt": "p", "negativeprompt": "n", "cfgscale": 2.0},
        {"negative_prompt": "n", "guidance_scale": 2.0},
    ),
    "DiffusionDB": (
        {"prompt": "p", "part_id": 1, "seed": 2, "step": 4, "cfg": 6.0, "sampler": 8, "user_name": "u"},
        {"seed": 2, "num_inference_steps": 4, "guidance_scale": 6.0, "scheduler": ("LMSDiscreteScheduler", None)},
    ),
    "CompVis": (
        {"prompt": "p", "ddim_steps": 5, "scale": 3.0, "H": 64, "W": 72, "seed": 1},
        {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 64, "width": 72},
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_names_of_other_tools_are_taken(
    tool: str, format: str, write_manifest: WriteManifest, model_configs: Path
) -> None:
    """Incident: `Seed,Steps,CFG Scale` were carried along in silence, and rows made with other values."""
    cells, expected = TOOLS[tool]
    (row,), resolved = read(write_manifest(f"m.{format}", [cells]), model_configs)
    found = row.parameters.to_cells()
    for name, value in expected.items():
        if name == "scheduler":
            class_name, option = value
            assert found[name] == class_name
            assert set(row.parameters.sampling.scheduler_kwargs) == ({option} if option else set())
        else:
            assert found[name] == value
    known = {"prompt", "seed", "scheduler", "part_id", "user_name"} - (
        {"scheduler"} if "sampler_name" in cells else set()
    )
    assert len(resolved.notices) == len(cells.keys() - known)
    assert row.carried.keys() == cells.keys() & {"part_id", "user_name"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("stepss", "num_inference_steps"), ("stesp", "num_inference_steps"), ("cgf", "guidance_scale"),
        ("heigth", "height"), ("widht", "width"), ("negativ_prompt", "negative_prompt"), ("seeds", "seed"),
        ("mask", "mask_image"), ("image_path", "image"), ("Guidence Scale", "guidance_scale"),
        ("Guidence", "guidance_scale"), ("Step Count", "num_inference_steps"), ("nr_of_steps", "num_inference_steps"),
        ("meta", None), ("label", None), ("id_2", None), ("source", None), ("url", None),
    ],
)  # fmt: skip
def test_what_may_be_misspelt_is_said(
    name: str, meant: str | None, write_manifest: WriteManifest, model_configs: Path
) -> None:
    (row,), resolved = read(write_manifest("m.jsonl", [{"prompt": "p", name: 3}]), model_configs)
    assert row.carried == {name: 3}
    said = [f"column {name!r} is unknown and carried along; did you mean {meant!r}?"] if meant else []
    assert resolved.notices == said


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_samplers(schedule: str) -> None:
    assert f"DPM++ 2M {schedule}" in NAMES


def test_a_column_of_another_tool_yields_to_ours(write_manifest: WriteManifest, model_configs: Path) -> None:
    """A dataset's own `scale` is no guidance scale where there is one."""
    rows = [{"prompt": "p", "guidance_scale": 2.0, "scale": 9.0, "caption": "c"}]
    (row,), resolved = read(write_manifest("m.jsonl", rows), model_configs)
    assert row.parameters.to_cells()["guidance_scale"] == 2.0
    assert row.carried == {"scale": 9.0, "caption": "c"}
    assert len(resolved.notices) == 2


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"sampler_name": "euler", "scheduler": "simple"}, "diffusers has the schedules Karras"),
        ({"sampler_name": None, "scheduler": "karras"}, "no sampler is named beside it"),
        ({"sampler_name": "euler", "scheduler": "DDIM"}, "a sampler is to be named once"),
    ],
)
def test_a_schedule_that_is_none(
    cells: Mapping[str, Any], said: str, write_manifest: WriteManifest, model_configs: Path
) -> None:
    with pytest.raises(ManifestProblems, match=said):
        read(write_manifest("m.jsonl", [{"prompt": "p", **cells}]), model_configs)


def test_unknown_columns_are_carried_with_their_types(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Cells and Arrow types stay as they are; a column that looks misspelt gets a notice."""
    types = {
        "split": pa.string(), "score": pa.float32(), "tags": pa.list_(pa.string()), "when": pa.timestamp("us"),
        "box": pa.struct([("x", pa.int16())]), "none": pa.null(), "guidence_scale": pa.float64(),
    }  # fmt: skip
    row = {"split": "train", "score": 0.5, "tags": ["a", "b"], "box": {"x": 3}, "guidence_scale": 3.0}
    path = write_manifest("m.parquet", [{"prompt": "a", "none": None, "when": None, **row}], **types)
    (found,), resolved = read(path, model_configs)
    assert found.carried == row
    expected = {**types, "none": pa.string(), "tags": resolved.carried["tags"]}
    assert resolved.carried == expected
    assert any("guidence_scale" in line and "guidance_scale" in line for line in resolved.notices)


def test_carried_types_of_csv_and_jsonl(write_manifest: WriteManifest, model_configs: Path) -> None:
    """CSV holds text; JSONL columns get the type that was seen, JSON text where it was mixed or nested."""
    _, resolved = read(write_manifest("m.csv", [{"prompt": "a", "n": 1}]), model_configs)
    assert resolved.carried == {"n": pa.string()}
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "i": 1, "f": 1, "b": True, "mixed": 1, "nested": {"a": 1}},
        {"prompt": "b", "f": 0.5, "mixed": "x"},
    ]
    _, resolved = read(write_manifest("m.jsonl", rows), model_configs)
    assert resolved.carried == {
        "i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "mixed": pa.string(), "nested": pa.string(),
    }  # fmt: skip


def test_carried_columns_do_not_change_a_row(write_manifest: WriteManifest, model_configs: Path) -> None:
    """LEFT_OUT: the fingerprint ignores carried columns and the name of the model, not what is drawn."""
    base = {"prompt": "a", "seed": 1}
    ((row,), _) = read(write_manifest("a.jsonl", [base]), model_configs)
    ((same,), _) = read(write_manifest("b.jsonl", [{**base, "split": "x"}]), model_configs)
    ((named,), _) = read(write_manifest("c.jsonl", [{**base, "model": f"{model_configs}/../model"}]), model_configs)
    assert row.fingerprint == same.fingerprint == named.fingerprint
    for change in ({"seed": 2}, {"prompt": "b"}, {"steps": 3}, {"width": 72}, {"scheduler": "DDPM"}, {"eta": 0.5}):
        ((other,), _) = read(write_manifest("d.jsonl", [{**base, **change}]), model_configs)
        assert other.fingerprint != row.fingerprint, change


def test_a_default_written_out_is_the_same_row(write_manifest: WriteManifest, model_configs: Path) -> None:
    """What is applied decides, not whether it was said in the row, in the job, or nowhere."""
    ((bare,), _) = read(write_manifest("a.jsonl", [{"prompt": "a", "seed": 1}]), model_configs)
    full = {"prompt": "a", "seed": 1, "steps": 25, "cfg": 7.5, "width": 64, "height": 64, "sampler": "DDIM"}
    ((said,), _) = read(write_manifest("b.jsonl", [full]), model_configs)
    assert bare.fingerprint == said.fingerprint


# Folders and globs


def test_folders_and_globs(write_manifest: WriteManifest, model_configs: Path, tmp_path: Path) -> None:
    """Files are read in the order of their names, formats may be mixed, and what is no manifest is passed over."""
    write_manifest("d/b.csv", [{"prompt": "2"}])
    write_manifest("d/a.parquet", [{"prompt": "1"}])
    write_manifest("d/sub/c.jsonl", [{"prompt": "3"}])
    (tmp_path / "d/notes.txt").write_text("x")
    rows, resolved = read(tmp_path / "d", model_configs)
    assert [row.parameters.to_cells()["prompt"] for row in rows] == ["1", "2", "3"]
    assert [Path(file).name for file in resolved.files] == ["a.parquet", "b.csv", "c.jsonl"]
    rows, _ = read(tmp_path / "d/[ab].*", model_configs)
    assert len(rows) == 2


def test_parquet_is_read_by_batches(tmp_path: Path) -> None:
    """A manifest of many row groups keeps its row numbers, and a reader may stop at any row."""
    import pyarrow.parquet as pq

    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"prompt": [str(n) for n in range(5000)]}), path, row_group_size=700)
    problems = ProblemLog()
    stream = records(str(path), problems)
    assert next(stream).number == 1
    rest = list(stream)
    assert [(record.number, record.cells["prompt"]) for record in rest] == [(n + 1, str(n)) for n in range(1, 5000)]
    assert problems.total == 0


# Images


def test_images_beside_the_manifest_and_inside_it(
    write_manifest: WriteManifest, model_configs: Path, tmp_path: Path
) -> None:
    """Relative URIs start from the manifest, structs bring bytes or a path; the same bytes are the same row."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "i.png").write_bytes(png())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "seed": 1, "image": {"bytes": png(), "path": "whatever.png"}},
        {"prompt": "a", "seed": 1, "image": {"bytes": None, "path": "i.png"}},
    ]
    embedded, _ = read(write_manifest("sub/m.parquet", rows, image=kind), model_configs)
    beside, _ = read(write_manifest("sub/m.jsonl", [{"prompt": "a", "seed": 1, "image": "i.png"}]), model_configs)
    binary, _ = read(write_manifest("sub/n.parquet", [{**rows[0], "image": png()}], image=pa.binary()), model_configs)
    assert len({row.fingerprint for row in [*embedded, *beside, *binary]}) == 1
    assert {row.task for row in [*embedded, *beside, *binary]} == {"image-to-image"}
    assert (embedded[0].parameters.canvas.width, embedded[0].parameters.canvas.height) == (16, 8)
    ref = embedded[0].inputs["image"]
    assert (ref.uri, ref.column, ref.row) == (str(tmp_path / "sub/m.parquet"), "image", 1)
    assert embedded_bytes(ref.uri, "image", [1]) == {1: png()}
    assert beside[0].inputs["image"].uri == str(tmp_path / "sub/i.png")


def test_embedded_images_under_an_alias(write_manifest: WriteManifest, model_configs: Path) -> None:
    """A worker finds the bytes again under the name that the file has."""
    rows: list[dict[str, Any]] = [{"prompt": str(n), "init_image": png(8 * (n + 1))} for n in range(3)]
    found, _ = read(write_manifest("m.parquet", rows), model_configs)
    for number, row in enumerate(found):
        ref = row.inputs["image"]
        assert ref.column is not None
        assert embedded_bytes(ref.uri, ref.column, [ref.row or 0]) == {ref.row: png(8 * (number + 1))}


def test_tasks_are_inferred_or_said(write_manifest: WriteManifest, model_configs: Path, tmp_path: Path) -> None:
    """The task follows from the inputs of a row; names and common spellings are understood."""
    (tmp_path / "i.png").write_bytes(png())
    (tmp_path / "m.png").write_bytes(png(mode="L"))
    rows: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "a", "image": "i.png"},
        {"prompt": "a", "image": "i.png", "mask_image": "m.png"},
        {"prompt": "a", "image": "i.png", "task": "img2img"},
        {"prompt": "a", "image": "i.png", "mask_image": "m.png", "task": "Inpaint"},
    ]
    found, _ = read(write_manifest("m.jsonl", rows), model_configs)
    assert [row.task for row in found] == [
        "text-to-image", "image-to-image", "inpainting", "image-to-image", "inpainting",
    ]  # fmt: skip


# Ids and seeds


def by_prompt(rows: Sequence[Row]) -> Mapping[str, list[tuple[int, str, str]]]:
    found: dict[str, list[tuple[int, str, str]]] = {}
    for row in rows:
        found.setdefault(row.parameters.to_cells()["prompt"], []).append(
            (row.parameters.sampling.seed, row.id, row.fingerprint)
        )
    return {prompt: sorted(cells) for prompt, cells in found.items()}


def test_derived_seeds_survive_shuffle_and_append(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Equal rows without seeds give different images, the same ones every time, in any order, and with rows added."""
    rows: list[dict[str, Any]] = [{"prompt": prompt} for prompt in ["a", "b", "a", "c", "a", "b"]]
    first, _ = read(write_manifest("m.jsonl", rows), model_configs)
    assert len({row.fingerprint for row in first}) == len({row.id for row in first}) == 6
    assert all(0 <= row.parameters.sampling.seed < 2**32 for row in first)
    for chance in range(5):
        shuffled = random.Random(chance).sample(rows, len(rows))
        again, _ = read(write_manifest("m.jsonl", shuffled), model_configs)
        assert by_prompt(again) == by_prompt(first)
    longer, _ = read(write_manifest("m.jsonl", [*rows, {"prompt": "a"}, {"prompt": "d"}]), model_configs)
    assert longer[:6] == first
    assert len({row.fingerprint for row in longer}) == 8


def test_named_rows_keep_their_seed_wherever_they_stand(write_manifest: WriteManifest, model_configs: Path) -> None:
    """With an id the seed belongs to the row, not to its place among equal ones."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "id": name} for name in "xyz"]
    first, _ = read(write_manifest("m.jsonl", rows), model_configs)
    again, _ = read(write_manifest("m.jsonl", rows[::-1]), model_configs)
    assert {row.id: row.parameters.sampling.seed for row in first} == {
        row.id: row.parameters.sampling.seed for row in again
    }
    assert len({row.parameters.sampling.seed for row in first}) == 3


def test_equal_rows_with_equal_seeds_are_rows_of_their_own(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Every row of the manifest is in the metadata once, entirely equal ones included."""
    found, _ = read(write_manifest("m.jsonl", [{"prompt": "a", "seed": 1}] * 4), model_configs)
    assert len({row.id for row in found}) == 4
    assert len({row.fingerprint for row in found}) == 1


def test_several_images_a_prompt(write_manifest: WriteManifest, model_configs: Path) -> None:
    """num_images_per_prompt expands to rows: seeds count up from a given one, ids get the sample's number."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "id": "x", "seed": 5, "num_images_per_prompt": 3},
        {"prompt": "a", "num_images_per_prompt": 2},
        {"prompt": "b", "id": "y", "num_images_per_prompt": 1},
    ]
    found, _ = read(write_manifest("m.jsonl", rows), model_configs)
    assert [row.id for row in found if row.number == 1] == ["x-0", "x-1", "x-2"]
    assert [row.parameters.sampling.seed for row in found if row.number == 1] == [5, 6, 7]
    assert [row.sample_index for row in found] == [0, 1, 2, 0, 1, 0]
    assert found[-1].id == "y"
    assert len({row.fingerprint for row in found}) == 6


def test_a_defaults_number_of_images(write_manifest: WriteManifest, model_configs: Path) -> None:
    """As jobs/nightly.toml does: the job asks for many of each."""
    path = write_manifest("m.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    found, _ = read(path, model_configs, defaults={"num_images_per_prompt": 50})
    assert len({row.fingerprint for row in found}) == 100


def test_every_column_has_its_place(model_configs: Path, write_manifest: WriteManifest) -> None:
    """DESIGN's columns, and those added since, are all known, so that none is carried along by mistake."""
    listed = """id prompt negative_prompt prompt_2 negative_prompt_2 seed num_images_per_prompt width height
        num_inference_steps guidance_scale guidance_rescale eta clip_skip scheduler scheduler_kwargs model vae task
        image
        strength mask_image control_image controlnet controlnet_conditioning_scale control_guidance_start
        control_guidance_end depth_map ip_adapter_image ip_adapter_scale image_guidance_scale loras embeddings
        hypernetwork denoising_start denoising_end class_label prompt_syntax refiner keep_unmasked control_preprocess
        ip_adapter hires_scale hires_strength original_size crops_coords_top_left target_size noise_level
        classifier classifier_scale watermark pose_estimator person_detector""".split()
    assert set(listed) <= COLUMNS.keys()
    rows: list[dict[str, Any]] = [json.loads('{"prompt": "a", "class_label": null}')]
    _, resolved = read(write_manifest("m.jsonl", rows), model_configs)
    assert resolved.carried == {}
