"""Bad input of every kind ends in exit 2 with file, row, column and what to try, all at once, with nothing written."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import RunCli, WriteManifest, write_model_configs
from test_manifest import png, read

from batchgen.errors import InputError, ManifestProblems
from batchgen.manifest.columns import RESERVED
from batchgen.manifest.problems import EQUAL_SHOWN, Problem

BOTH = ["m.parquet", "m.csv", "m.jsonl"]


def problems(path: Path | str, model: Path, **job: Any) -> list[Problem]:
    with pytest.raises(ManifestProblems) as error:
        read(path, model, **job)
    return error.value.log.shown


BAD_CELLS: list[tuple[str, Any, str]] = [
    ("width", 65, "64 or 72"),
    ("height", 4, "between 8 and 8192"),
    ("width", 80_000, "between 8 and 8192"),
    ("steps", 0, "between 1 and 1000"),
    ("num_inference_steps", 2.5, "a whole number"),
    ("num_inference_steps", "many", "a whole number"),
    ("guidance_scale", -1.0, "between 0 and 100"),
    ("cfg", "high", "a number"),
    ("seed", -1, "leave it null"),
    ("seed", -5, "between 0"),
    ("seed", 2**63, "between 0"),
    ("strength", 1.5, "between 0 and 1"),
    ("scheduler", "Eulr a", "did you mean"),
    ("scheduler_kwargs", "{karras", "not JSON"),
    ("scheduler_kwargs", "[1]", "a JSON object"),
    ("scheduler_kwargs", '{"use_karas_sigmas": true}', "no option 'use_karas_sigmas'"),
    ("task", "text-to-imag", "did you mean 'text-to-image'"),
    ("task", "inpainting", "needs it"),
    ("task", "img2img", "needs it"),
    ("image", "absent.png", "absent.png"),
    ("image", "text.png", "no image format"),
    ("image", "cut.png", "truncated"),
    ("model", "./absent", "neither 'builtin'"),
    ("model", "s3://bucket/model", "read from this machine"),
    ("loras", "s3://bucket/lora.safetensors", "read from this machine"),
    ("class_label", 1, "means nothing to text-to-image; leave it null"),
    ("clip_skip", 0, "between 1"),
    ("prompt", "a\x00b", "NUL"),
    ("id", "   ", "blank"),
    ("num_images_per_prompt", 0, "between 1"),
]
READ_BY_FORMAT = {("num_inference_steps", 2.5), ("num_inference_steps", "many"), ("seed", 2**63), ("width", 65)}
"""Those that a format's types, or their absence, read in ways of their own."""


EXAMPLES = Path(__file__).parents[1] / "manifests"
SHIPPED = [path for path in sorted(EXAMPLES.iterdir()) if path.suffix in {".parquet", ".csv", ".jsonl"}]


@pytest.mark.parametrize("manifest", SHIPPED, ids=lambda path: path.name)
def test_the_example_manifests_are_valid(manifest: Path, batchgen: RunCli) -> None:
    """With the models and companions that they name, which ship."""
    result = batchgen("validate", manifest)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [(name, *cell) for cell in BAD_CELLS for name in (BOTH if cell[:2] in READ_BY_FORMAT else ["m.jsonl"])],
)
def test_a_bad_cell_is_named(
    name: str, column: str, value: Any, said: str, write_manifest: WriteManifest, model_configs: Path, tmp_path: Path
) -> None:
    """File, row, column, what is wrong and what to try."""
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(png(64, 64)[:60])
    (tmp_path / "i.png").write_bytes(png())
    good: dict[str, Any] = {"prompt": "a"} | ({"image": "i.png"} if column == "strength" else {})
    types = {column: pa.uint64()} if value == 2**63 else {}
    path = write_manifest(name, [good, {**good, column: value}], **types)
    found = problems(path, model_configs)
    assert any(said in problem.message for problem in found), found
    assert {(problem.file, problem.row) for problem in found} == {(str(path), 2)}
    if said != "needs it":
        assert found[0].column == column


@pytest.mark.parametrize("command", [["validate"], ["plan"], ["run", "--dry-run"]])
def test_notices_are_said_by_every_command(command: list[str], batchgen: RunCli, tmp_path: Path) -> None:
    """Incident: `plan` kept to itself that a misspelt column was carried along."""
    (tmp_path / "m.csv").write_text("prompt,Seed,stepss\na red __ball__,3,4\n")
    output = [] if command == ["validate"] else ["--output", str(tmp_path / "out")]
    result = batchgen(*command, tmp_path / "m.csv", *output, here=True)
    assert result.returncode == 0
    assert "column 'Seed' is read as 'seed'" in result.stderr
    assert "did you mean 'num_inference_steps'?" in result.stderr
    assert "1 row holds __name__ wildcards, read as words in plain syntax" in result.stderr


def test_all_problems_of_all_rows_at_once(write_manifest: WriteManifest, model_configs: Path) -> None:
    """STYLE 10: validate everything, then report everything."""
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "width": 65, "scheduler": "nope", "seed": -2},
        {"prompt": None, "steps": 0},
        {"prompt": "c"},
        {"prompt": "d", "image": "absent.png", "height": 3},
    ]
    found = problems(write_manifest("m.jsonl", rows), model_configs)
    assert {(problem.row, problem.column) for problem in found} == {
        (1, "width"), (1, "scheduler"), (1, "seed"), (2, "prompt"), (2, "steps"), (4, "image"), (4, "height"),
    }  # fmt: skip


def test_equal_problems_are_capped(write_manifest: WriteManifest, model_configs: Path) -> None:
    """A million rows with the same mistake are five lines and a count; another mistake is not lost in them."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "width": 8 * n + 1} for n in range(1, 301)] + [
        {"prompt": "b", "seed": -3}
    ]
    with pytest.raises(ManifestProblems) as error:
        read(write_manifest("m.jsonl", rows), model_configs)
    lines = list(error.value.log.lines())
    assert error.value.log.total == 301
    assert len(lines) == EQUAL_SHOWN + 2
    assert any("295 more like" in line for line in lines)
    assert any("'seed'" in line for line in lines)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_are_refused(name: str, write_manifest: WriteManifest, model_configs: Path) -> None:
    """Result columns cannot be brought along; one problem for the file, however many rows."""
    (found,) = problems(write_manifest("m.jsonl", [{"prompt": "a", name: "x"}] * 3), model_configs)
    assert (found.row, found.column) == (None, name)
    assert "rename" in found.message


def test_two_names_for_one_column(write_manifest: WriteManifest, model_configs: Path) -> None:
    """An alias beside its column, or two aliases, are refused; a caption beside a prompt is carried."""
    (found,) = problems(write_manifest("a.csv", [{"prompt": "a", "steps": 3, "num_inference_steps": 4}]), model_configs)
    assert "so does" in found.message
    assert problems(write_manifest("b.csv", [{"prompt": "a", "cfg": 3, "cfg_scale": 4}]), model_configs)
    ((row,), resolved) = read(write_manifest("c.csv", [{"prompt": "a", "caption": "b"}]), model_configs)
    assert (row.parameters.to_cells()["prompt"], row.carried) == ("a", {"caption": "b"})
    assert len(resolved.notices) == 1


def test_no_prompt(write_manifest: WriteManifest, model_configs: Path) -> None:
    """A manifest without prompts says which column looks like one."""
    for column, hint in (("promt", "rename 'promt'"), ("words", "the file has words")):
        (found,) = problems(write_manifest("m.csv", [{column: "a"}]), model_configs)
        assert (found.column, hint in found.message) == ("prompt", True)
    ((row,), _) = read(write_manifest("m.csv", [{"words": "a"}]), model_configs, defaults={"prompt": "b"})
    assert row.parameters.to_cells()["prompt"] == "b"


def test_duplicate_ids_name_both_places(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Across files, too; and expanded ids count."""
    first = write_manifest("d/a.jsonl", [{"prompt": "a", "id": "x"}])
    second = write_manifest("d/b.jsonl", [{"prompt": "b"}, {"prompt": "c", "id": "x"}])
    (found,) = problems(first.parent, model_configs)
    assert (found.file, found.row, found.column) == (str(second), 2, "id")
    assert f"{first}, row 1" in found.message
    rows: list[dict[str, Any]] = [{"prompt": "a", "id": "x", "num_images_per_prompt": 2}, {"prompt": "b", "id": "x-1"}]
    assert problems(write_manifest("m.jsonl", rows), model_configs)[0].row == 2


def test_seeds_that_count_past_the_end(write_manifest: WriteManifest, model_configs: Path) -> None:
    """The largest seed times several images leaves 64 bits; the row is at fault before anything starts."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "seed": 2**63 - 1, "num_images_per_prompt": 2}]
    assert problems(write_manifest("m.jsonl", rows), model_configs)[0].row == 1


def test_images_that_do_not_fit(write_manifest: WriteManifest, model_configs: Path, tmp_path: Path) -> None:
    """A mask of another size, and embedded bytes that are no image."""
    (tmp_path / "i.png").write_bytes(png(16, 16))
    (tmp_path / "m.png").write_bytes(png(16, 8, "L"))
    (found,) = problems(
        write_manifest("m.jsonl", [{"prompt": "a", "image": "i.png", "mask_image": "m.png"}]), model_configs
    )
    assert (found.column, "16x8" in found.message, "16x16" in found.message) == ("mask_image", True, True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows: list[dict[str, Any]] = [{"prompt": "a", "image": {"bytes": b"nothing", "path": None}}]
    (found,) = problems(write_manifest("m.parquet", rows, image=kind), model_configs)
    assert (found.row, found.column) == (1, "image")


def test_a_model_made_for_inpainting(write_manifest: WriteManifest, tmp_path: Path) -> None:
    """A UNet of nine channels cannot do text-to-image; that shows before it is loaded."""
    model = write_model_configs(tmp_path / "model", in_channels=9)
    (found,) = problems(write_manifest("m.jsonl", [{"prompt": "a"}]), model)
    assert "inpainting" in found.message


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
@pytest.mark.parametrize("column", ["prompt", "id", "note"])
def test_half_characters(text: str, column: str, tmp_path: Path, model_configs: Path) -> None:
    """JSON can spell half a surrogate pair, which no Parquet file can hold: the row is at fault, not the run."""
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a", column: text}) + "\n")
    (found,) = problems(tmp_path / "m.jsonl", model_configs)
    assert (found.row, found.column) == (1, column)


def test_numbers_that_no_column_can_hold(tmp_path: Path, model_configs: Path) -> None:
    """A carried JSON number beyond 64 bits is carried as text, or refused; it must not fail in a worker."""
    (tmp_path / "m.jsonl").write_text('{"prompt": "a", "big": 123456789012345678901234567890}\n')
    try:
        (row,), resolved = read(tmp_path / "m.jsonl", model_configs)
    except ManifestProblems:
        return
    from batchgen.manifest.cells import carried_cell

    kind = resolved.carried["big"]
    assert pa.array([carried_cell(row.carried["big"], kind)], kind).null_count == 0


FILES: list[tuple[str, bytes, str]] = [
    ("m.csv", b"", "is empty"),
    ("m.csv", b"prompt,seed\na,1,2\n", "3 cells where the header has 2"),
    ("m.csv", b"prompt,prompt\na,b\n", "twice"),
    ("m.csv", b'prompt\n"open\n', "CSV"),
    ("m.csv", "prompt\nü\n".encode("latin-1"), "UTF-8"),
    ("m.jsonl", b"{\n", "not JSON"),
    ("m.jsonl", b"[1]\n", "not a JSON object"),
    ("m.parquet", b"", "Parquet"),
    ("m.parquet", b"PAR1 this is none PAR1", "Parquet"),
]


@pytest.mark.parametrize(("name", "content", "said"), FILES)
def test_a_bad_file_is_named(name: str, content: bytes, said: str, tmp_path: Path, model_configs: Path) -> None:
    """Empty, cut, wrongly encoded or malformed: the file and what is wrong with it, never a traceback."""
    (tmp_path / name).write_bytes(content)
    found = problems(tmp_path / name, model_configs)
    assert any(said in problem.message for problem in found)
    assert {problem.file for problem in found} == {str(tmp_path / name)}


def test_a_damaged_parquet_file(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Whatever byte of a Parquet manifest is damaged, the file is named, or nothing noticed; never a traceback."""
    path = write_manifest("m.parquet", [{"prompt": f"prompt {n}"} for n in range(50)])
    whole = path.read_bytes()
    refused = 0
    for place in range(4, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read(path, model_configs)
        except InputError as error:
            refused += 1
            assert "m.parquet" in str(error)
    assert refused > 5


@pytest.mark.parametrize("source", ["absent.csv", "absent/*.csv", ".", "x.md", "absent.toml", "nothing"])
def test_no_manifest(source: str, tmp_path: Path, batchgen: RunCli) -> None:
    """Nothing there, or no manifest: one line with the name, exit 2."""
    (tmp_path / "x.md").write_text("x")
    done = batchgen("validate", source, cwd=tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert source in done.stderr
    assert "Traceback" not in done.stderr


def tree(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("command", ["validate", "run", "plan"])
def test_commands_refuse_and_write_nothing(
    command: str, write_manifest: WriteManifest, model_configs: Path, tmp_path: Path, batchgen: RunCli
) -> None:
    """Exit 2, the places on the terminal, and not a file more than before."""
    path = write_manifest("m.csv", [{"prompt": "a", "width": 65}, {"prompt": "b", "seed": -4}])
    before = tree(tmp_path)
    output = () if command == "validate" else ("--output", tmp_path / "out")
    done = batchgen(command, path, "--model", model_configs, *output, here=True)
    said = done.stdout + done.stderr
    assert done.returncode == 2
    assert f"{path}, row 1, column 'width'" in said
    assert f"{path}, row 2, column 'seed'" in said
    assert "Traceback" not in said
    assert tree(tmp_path) == before


def test_json_for_machines(
    write_manifest: WriteManifest, model_configs: Path, tmp_path: Path, batchgen: RunCli
) -> None:
    """`validate --json`: one JSON document on stdout, good or bad, with the same facts as the lines."""
    bad = write_manifest("bad.csv", [{"prompt": "ü", "width": 65}])
    done = batchgen("validate", bad, "--model", model_configs, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["count"]) == (2, False, 1)
    assert found["problems"][0] | {"message": ""} == {"file": str(bad), "row": 1, "column": "width", "message": ""}
    good = write_manifest("good.csv", [{"prompt": "a"}, {"text": "b", "prompt": "c"}])
    done = batchgen("validate", good, "--model", model_configs, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["rows"], found["files"]) == (0, True, 2, [str(good)])
    done = batchgen("validate", tmp_path / "absent.csv", "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (2, False)


def test_an_absent_model_is_told_at_once(write_manifest: WriteManifest, batchgen: RunCli) -> None:
    """A folder that is not there looks like a hub id; offline that must not take long, nor end in a traceback."""
    path = write_manifest("m.csv", [{"prompt": "a"}])
    done = batchgen("validate", path, "--model", "no/such-model", timeout=30)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "no/such-model" in done.stderr


@pytest.mark.parametrize(("name", "content"), [("m.csv", b"prompt,seed\n"), ("m.jsonl", b""), ("m.jsonl", b"\n\n")])
def test_no_rows_are_a_success_with_a_notice(name: str, content: bytes, tmp_path: Path, batchgen: RunCli) -> None:
    """A night with nothing new; also over an output that has columns which no row of it can show."""
    (tmp_path / name).write_bytes(content)
    shutil.copytree(Path(__file__).parent / "fixtures" / "outputs" / "files", tmp_path / "out")
    output = ("--output", tmp_path / "out")
    for command in (["validate"], ["validate", *output], ["plan", *output], ["run", *output], ["run", "-o", "new"]):
        done = batchgen(command[0], tmp_path / name, *command[1:], cwd=tmp_path, here=True)
        assert done.returncode == 0, done.stderr
        assert "has no rows" in done.stderr
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_of_parts_is_one_table(write_manifest: WriteManifest, model_configs: Path) -> None:
    """A part without rows beside one that has some is worth no line."""
    write_manifest("d/a.jsonl", [{"prompt": "a"}])
    (empty := write_manifest("d/b.csv", [{"prompt": ""}])).write_text("prompt\n")
    ((row,), resolved) = read(empty.parent, model_configs)
    assert row.parameters.to_cells()["prompt"] == "a" and resolved.notices == []


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_wrong_default_is_told_once(
    name: str, write_manifest: WriteManifest, model_configs: Path, tmp_path: Path, batchgen: RunCli
) -> None:
    """Incident: a misspelt scheduler in [defaults] was 120 problems of rows in a manifest without that column."""
    rows: list[dict[str, Any]] = [{"prompt": str(n), "steps": 2} for n in range(30)]
    write_manifest(name, [*rows, {"prompt": "own", "steps": 2, "scheduler": "nope"}])
    job = tmp_path / "job.toml"
    job.write_text(f'manifest = "{name}"\nmodel = "{model_configs}"\n[defaults]\nscheduler = "nosuch"\nclip_skip = 9\n')
    said = json.loads(batchgen("validate", job, "--json").stdout)
    found = [(problem["file"], problem["row"], problem["message"].partition(":")[0]) for problem in said["problems"]]
    assert found[:2] == [(str(job), None, "[defaults] scheduler"), (str(job), None, "[defaults] clip_skip")]
    assert [(file, row) for file, row, _ in found[2:]] == [(str(tmp_path / name), 31)]


def test_numbers_are_spelt_as_everywhere(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Python alone reads 1_000 and ١٢ as numbers."""
    rows = [{"prompt": "a", "seed": "1_000"}, {"prompt": "b", "seed": "١٢"}, {"prompt": "c", "seed": " 12 "}]
    found = problems(write_manifest("m.csv", [*rows, {"prompt": "d", "seed": "1_0.5"}]), model_configs)
    assert [(problem.row, problem.column) for problem in found] == [(1, "seed"), (2, "seed"), (4, "seed")]


def test_a_key_twice_in_a_map(write_manifest: WriteManifest, model_configs: Path) -> None:
    """Arrow's maps may hold one, and numbers of text have one spelling, without separators of thousands."""
    options = pa.map_(pa.string(), pa.float64())
    rows = [{"prompt": "a", "scheduler_kwargs": [("beta_end", 0.1), ("beta_end", 0.2)]}]
    (found,) = problems(write_manifest("m.parquet", rows, scheduler_kwargs=options), model_configs)
    assert "says 'beta_end' twice" in found.message
    rows = [{"prompt": "a", "seed": "1,000"}, {"prompt": "a", "guidance_scale": "7,5"}]
    said = [problem.message for problem in problems(write_manifest("m.csv", rows), model_configs)]
    assert [message.rpartition("; ")[2] for message in said] == ["write 1000", "write a point for the comma"]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"prompt": "a", "seed": 1, "seed": 2}', "seed"),
        ('{"prompt": "a", "scheduler_kwargs": {"beta_end": 0.1, "beta_end": 0.2}}', "beta_end"),
        (json.dumps({"prompt": "a", "scheduler_kwargs": '{"beta_end": 0.1, "beta_end": 0.2}'}), "beta_end"),
        (json.dumps({"prompt": "a", "loras": '[{"path": "a", "path": "b"}]'}), "path"),
    ],
)
def test_a_key_twice_is_a_mistake(line: str, key: str, tmp_path: Path, model_configs: Path) -> None:
    """Also within a cell, where JSON takes the last one in silence."""
    (tmp_path / "m.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    (found,) = problems(tmp_path / "m.jsonl", model_configs)
    assert found.row == 2 and f"key {key!r} stands twice" in found.message


def test_a_number_beyond_a_double_is_a_mistake(tmp_path: Path, model_configs: Path) -> None:
    """A carried 1e400 became infinity in silence."""
    (tmp_path / "m.jsonl").write_text('{"prompt": "a", "my_score": 1e308}\n{"prompt": "a", "my_score": 1e400}\n')
    (found,) = problems(tmp_path / "m.jsonl", model_configs)
    assert found.row == 2 and "1e400 is beyond what a double holds" in found.message


def test_validate_sees_what_an_output_would_refuse(
    tmp_path: Path, write_manifest: WriteManifest, batchgen: RunCli
) -> None:
    """Columns, layout, and a place that is none; without --output nothing of it is looked at."""
    kept = Path(__file__).parent / "fixtures" / "outputs"
    output = shutil.copytree(kept / "files", tmp_path / "out")
    manifest = write_manifest("m.jsonl", [{"prompt": "a", "label": "x"}])
    other = write_manifest("n.jsonl", [{"prompt": "a", "label": 1}])
    assert batchgen("validate", manifest, "--output", output).returncode == 0
    assert batchgen("validate", other).returncode == 0
    for refused, *flags in ((other,), (manifest, "--layout", "parquet"), (manifest, "--format", "webp")):
        done = batchgen("validate", refused, "--output", output, *flags)
        assert done.returncode == 2 and "was begun with" in done.stderr, done.stderr
    said = json.loads(batchgen("validate", other, "--output", output, "--json").stdout)
    assert not said["ok"] and "label" in said["problems"][0]["message"]


@pytest.mark.parametrize("command", [["validate"], ["plan"], ["run", "--dry-run"], ["run"]])
def test_places_that_no_run_can_use(
    command: list[str], tmp_path: Path, write_manifest: WriteManifest, batchgen: RunCli
) -> None:
    """A file, what lies below one, a folder that cannot be written to, a pattern: all commands refuse alike."""
    manifest = write_manifest("m.jsonl", [{"prompt": "a"}])
    (tmp_path / "sealed").mkdir(mode=0o555)
    places = [manifest, manifest / "out", tmp_path / "a[b", tmp_path / "a::b" / "out"]
    places += [tmp_path / "sealed", tmp_path / "sealed" / "out"] if os.geteuid() else []
    for place in places:
        done = batchgen(*command, manifest, "--output", place, here=True)
        assert done.returncode == 2 and f"output {place}" in done.stderr, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.jsonl", "sealed"}


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("stepss", "did you mean 'num_inference_steps'?"),
        ("heigth", "did you mean 'height'?"),
        ("image_path", "did you mean 'image'?"),
        ("mask", "did you mean 'mask_image'?"),
        ("cfg", "is read as 'guidance_scale'"),
        ("caption", "is carried along, since there is a column 'prompt'"),
        ("label", None),
        ("meta", None),
    ],
)
def test_strict_takes_doubts_for_problems(
    column: str, said: str | None, write_manifest: WriteManifest, model_configs: Path
) -> None:
    """What a notice says of a column is a problem of it in a job that nobody watches; other notices stay notices."""
    path = write_manifest("m.csv", [{"prompt": "a", column: "3"}] * 2)
    path.write_text(path.read_text().replace(",", ";"))  # which is worth a notice
    (_, resolved) = read(path, model_configs)
    assert [said for line in resolved.notices if column in line] == ([] if said is None else [said])
    if said is None:
        (_, strict) = read(path, model_configs, strict=True)
        assert strict.notices == resolved.notices and "semicolons" in strict.notices[0]
        return
    (found,) = problems(path, model_configs, strict=True)
    assert (found.row, found.column) == (None, column) and said in found.message and "strict" in found.message


def test_strict_takes_unread_syntax_for_a_problem(write_manifest: WriteManifest, model_configs: Path) -> None:
    path = write_manifest("m.csv", [{"prompt": "a {red|blue} ball"}] * 2)
    assert [line for line in read(path, model_configs)[1].notices if "2 rows hold {a|b}" in line]
    (found,) = problems(path, model_configs, strict=True)
    assert "2 rows hold {a|b}" in found.message


@pytest.mark.parametrize("command", [["validate"], ["plan"], ["run", "--dry-run"], ["run", "-o", "out"]])
def test_strict_of_a_job_and_of_a_command(command: list[str], tmp_path: Path, batchgen: RunCli) -> None:
    """All near misses at once, exit 2, and nothing is begun."""
    names = ["stepss", "cgf", "heigth", "widht", "sceduler", "negativ_prompt", "Seed"]
    (tmp_path / "m.csv").write_text(f"prompt,{','.join(names)}\na{',1' * len(names)}\n")
    (tmp_path / "j.toml").write_text('manifest = "m.csv"\nstrict = true\n')
    for source, *flags in (("m.csv", "--strict"), ("j.toml",)):
        done = batchgen(command[0], source, *command[1:], *flags, cwd=tmp_path, here=True)
        assert done.returncode == 2
        assert [name for name in names if f"column {name!r}" not in done.stdout + done.stderr] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "cells", "said"),
    [
        ("m.jsonl", {"seed": "12"}, "write it without quotes"),
        ("m.jsonl", {"prompt": 3}, "put it in quotes"),
        ("m.parquet", {"seed": "12"}, "write the column as int64"),
        ("m.parquet", {"guidance_scale": "x"}, "write the column as float64"),
        ("m.parquet", {"prompt": 3}, "write the column as strings"),
        ("m.csv", {"seed": "x"}, "is 'x', not a whole number"),
    ],
)
def test_types_are_said_in_the_words_of_the_format(
    name: str, cells: dict[str, Any], said: str, write_manifest: WriteManifest, model_configs: Path
) -> None:
    (found, *_) = problems(write_manifest(name, [{"prompt": "a", **cells}]), model_configs)
    assert found.message.endswith(said)


def test_nan_is_no_weight_and_no_option(tmp_path: Path, model_configs: Path) -> None:
    """Incident: NaN as a LoRA's scale was taken for 1.0. NaN in a cell of its own, or in a carried one, is a gap."""
    path = tmp_path / "m.jsonl"
    rows = [
        '{"prompt": "a", "loras": {"path": "x.safetensors", "scale": NaN}}',
        '{"prompt": "a", "scheduler_kwargs": {"beta_start": NaN}}',
        '{"prompt": "a", "seed": NaN, "notes": {"a": NaN}}',
    ]
    path.write_text("\n".join(rows) + "\n")
    found = {(problem.row, problem.column): problem.message for problem in problems(path, model_configs)}
    assert found.keys() == {(1, "loras"), (2, "scheduler_kwargs")}
    assert "nan" in found[1, "loras"]
