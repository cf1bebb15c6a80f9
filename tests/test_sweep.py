"""Sweeps: templates against the library whose syntax they have, cells against tables by hand, draws, files, the CLI."""

import json
import random
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import RunCli
from hypothesis import given
from hypothesis import strategies as st

from batchgen.driver import resolved_rows
from batchgen.errors import InputError
from batchgen.index import Index
from batchgen.inputs import Inputs
from batchgen.job import load_job
from batchgen.manifest.sweep import count_cells, read_sweep, sweep_rows
from batchgen.manifest.sweep.axes import Distribution, Listed, read_source, share
from batchgen.manifest.sweep.templates import Wildcards, draw, parse_template


def no_files(file: str, column: str) -> list[Any]:
    raise InputError(f"{file} is not there")


def rows_of(toml: str, folder: Path | str = ".") -> list[dict[str, Any]]:
    sweep = read_sweep(tomllib.loads(toml)["sweep"], str(folder), no_files)
    rows = list(sweep_rows(sweep))
    if not sweep.skips:
        assert len(rows) == count_cells(sweep)
    return rows


def texts(template: str, folder: Path, *, drawn: bool = False) -> list[str]:
    found = parse_template(template, Wildcards(folder, drawn=drawn))
    all_ = [draw(variant, random.Random(0)) for variant in found.variants()]
    assert found.count() == len(all_)
    return all_


# Templates

BOTH = (
    "{a|b} c",
    "{a|{b|c}} d",
    "{|x} y",
    "{2$$a|b|c}",
    "{1-2$$a|b|c}",
    "{-2$$a|b}",
    "{2-$$a|b|c}",
    "{0$$a|b}",
    "{2$$ and $$a|b|c}",
    "{2$$a|{b|c}}",
    "{0.5::a|3::b}",
    "a # a comment\n b",
    "{a|b} {c|{d|e} f}",
    "__color__ {cube|cone}",
    "{2$$__color__}",
    "{__color__|z}",
    "__deep/er__",
)


@pytest.mark.filterwarnings("ignore")  # the library warns wherever it is used
@pytest.mark.parametrize("template", BOTH)
def test_templates_mean_what_they_mean_to_dynamicprompts(template: str, tmp_path: Path) -> None:
    from dynamicprompts.generators import CombinatorialPromptGenerator
    from dynamicprompts.wildcards import WildcardManager

    (tmp_path / "deep").mkdir()
    (tmp_path / "color.txt").write_text("# a note\nred\n\n{light|dark} blue\n")
    (tmp_path / "deep" / "er.txt").write_text("a __color__ thing\n")
    oracle = CombinatorialPromptGenerator(WildcardManager(tmp_path)).generate(template, 1000)
    assert sorted(texts(template, tmp_path)) == sorted(" ".join(text.split()) for text in oracle)


def test_the_order_of_files_and_equal_lines_are_kept(tmp_path: Path) -> None:
    (tmp_path / "z.txt").write_text("b\na\nb\n")
    assert texts("{x|__z__|x}", tmp_path) == ["x", "b", "a", "b", "x"]


def test_escapes_parts_and_brackets_of_other_syntaxes_stay(tmp_path: Path) -> None:
    assert texts(r"\{a\|b\} \__c\__ (word:1.2) \(x\) [y] ${part} #1", tmp_path) == [
        r"{a|b} __c__ (word:1.2) \(x\) [y] ${part} #1"
    ]


_TEMPLATE = st.recursive(
    st.sampled_from(["a", "b c", ""]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda options: "{" + "|".join(options) + "}"),
        st.lists(inner, min_size=2, max_size=3).map(lambda options: "{1-2$$" + "|".join(options) + "}"),
        st.lists(inner, min_size=1, max_size=2).map(" ".join),
    ),
    max_leaves=6,
)


@given(_TEMPLATE)
def test_the_count_is_that_of_the_variants(template: str) -> None:
    found = parse_template(template, Wildcards(Path()))
    assert found.count() == sum(1 for _ in found.variants())


def test_draws_follow_the_weights(tmp_path: Path) -> None:
    (variant,) = parse_template("{3::a|1::b|0::c}", Wildcards(tmp_path, drawn=True)).variants()
    drawn = Counter(draw(variant, random.Random(number)) for number in range(4000))
    assert drawn["a"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert drawn["c"] == 0


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a {b|c", "character 3: { is not closed"),
        ("a b}", "character 4: } closes nothing"),
        ("{3$$a|b}", "asks for 3 of 2 options"),
        ("{3-2$$a|b}", "takes 3 to 2 options"),
        ("{0::a}", "weights of 0"),
        ("{@a|b}", "taking turns (@) is not supported"),
        ("__colour__", "did you mean __color__?"),
        ("__../color__", "leads out of"),
        ("__loop__", "__loop__ leads back to itself: loop > again > loop"),
        ("__bad__", "bad.txt, line 2: character 1: { is not closed"),
        ("__empty__", "__empty__ has no lines"),
        (f"__{'w' * 300}__", "can be no file"),
        ("__c**__", "can be no file"),
    ],
)
def test_a_wrong_template_says_where(template: str, said: str, tmp_path: Path) -> None:
    files = {"color": "red\n", "loop": "x __again__\n", "again": "__loop__\n", "bad": "ok\n{a\n", "empty": "# no\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(InputError) as raised:
        parse_template(template, Wildcards(tmp_path))
    assert said in str(raised.value)


# Axes


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1..4", (1, 2, 3, 4)),
        ("1..10 step 4", (1, 5, 9)),
        ("10..1 step 4", (10, 6, 2)),
        ("0..1 step 0.1", tuple(number / 10 for number in range(11))),
        ("-1..1", (-1, 0, 1)),
        ("5 values from 1 to 10", (1.0, 3.25, 5.5, 7.75, 10.0)),
        ("3 values from 4 to 10", (4, 7, 10)),
    ],
)
def test_ranges_are_counted_exactly(text: str, values: tuple[float, ...]) -> None:
    source = read_source(text)
    assert isinstance(source, Listed)
    assert source.values == values


@pytest.mark.parametrize(
    ("spec", "mean", "low", "high"),
    [
        ({"uniform": [2, 4]}, 3.0, 2.0, 4.0),
        ({"normal": [7.5, 2.0], "min": 1, "max": 14}, 7.5, 1.0, 14.0),
        ({"log_uniform": [0.1, 10]}, 9.9 / 4.605, 0.1, 10.0),
        ({"uniform": [1, 10], "step": 4}, 5.78, 4, 8),
        ({"normal": [0, 1], "min": 5, "max": 6, "step": 1}, 5.1, 5, 6),
        ({"normal": [0, 1], "min": 5}, 5.19, 5, 8),
    ],
)
def test_distributions(spec: Mapping[str, Any], mean: float, low: float, high: float) -> None:
    source = read_source(spec)
    assert isinstance(source, Distribution)
    drawn = [source.at(share("key", number)) for number in range(5000)]
    assert sum(drawn) / 5000 == pytest.approx(mean, rel=0.05)
    assert low <= min(drawn) and max(drawn) <= high


# Cells

FOUR_AXES = """
[sweep.cells]
prompt = "a ${color} {cube|cone} __style__"
[sweep.axes]
color = ["red", "green"]
steps = "2..6 step 2"
seed = [7, 8]
eta = {values = [0.0, 0.5], weights = [1, 3]}
[[sweep.zip]]
width = [64, 128]
height = [128, 64]
[[sweep.skip]]
num_inference_steps = "< 4"
color = "green"
[[sweep.skip]]
steps = 6
width = [128]
"""


def test_cells_are_those_of_a_table_by_hand(tmp_path: Path) -> None:
    (tmp_path / "style.txt").write_text("at dawn\nat dusk\n")
    rows = rows_of(FOUR_AXES, tmp_path)
    found = Counter(
        (row["prompt"], row["num_inference_steps"], row["seed"], row["width"], row["height"]) for row in rows
    )
    wanted = Counter(
        (f"a {color} {shape} {style}", steps, seed, *size)
        for color, steps, seed, size, shape, style in product(
            ["red", "green"], [2, 4, 6], [7, 8], [(64, 128), (128, 64)], ["cube", "cone"], ["at dawn", "at dusk"]
        )
        if not (color == "green" and steps < 4) and not (steps == 6 and size[0] == 128)
    )
    assert found == wanted
    assert {row["eta"] for row in rows} == {0.0, 0.5}
    assert {row["axis_prompt"] for row in rows} == {
        f"a ${{color}} {shape} {style}" for shape in ("cube", "cone") for style in ("at dawn", "at dusk")
    }
    assert [row["axis_color"] for row in rows] == sorted((row["axis_color"] for row in rows), reverse=True)


def test_seeds_change_the_noise_and_nothing_that_is_drawn(tmp_path: Path) -> None:
    rows = rows_of(
        'sweep.cells.prompt = "a {~red|green|blue} cube"\n'
        'sweep.axes = {seed = {fresh = 3}, guidance_scale = "1..40", eta = {uniform = [0, 1]}}',
        tmp_path,
    )
    cells = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    by_guidance = {row["guidance_scale"] for row in rows}
    assert len(by_guidance) == 40
    for guidance in by_guidance:
        same = [row for row in rows if row["guidance_scale"] == guidance]
        assert len({(row["prompt"], row["eta"]) for row in same}) == 1
        assert [row["axis_seed"] for row in same] == [0, 1, 2]
    assert len({row["seed"] for row in rows}) == 120
    assert len({row["prompt"] for row in rows}) == 3
    assert len(cells) == 40


PARTS = 'sweep.cells.prompt = "${weather}, a ${kind} ${animal}"\n'
ANIMALS = """
[sweep.axes]
kind = {by = "animal", values = {cat = ["tabby"], dog = ["pug", "collie"]}}
animal = ["cat", "dog"]
weather = ["sun", "rain"]
"""


def test_values_by_the_value_of_another_axis() -> None:
    found = Counter(row["prompt"] for row in rows_of(PARTS + ANIMALS))
    wanted = [f"{weather}, a {pair}" for weather in ("sun", "rain") for pair in ("tabby cat", "pug dog", "collie dog")]
    assert found == Counter(wanted)


def test_a_part_alone_keeps_its_type_wherever_it_stands() -> None:
    (row, _) = rows_of(
        'sweep.cells = {prompt = "x ${weight}", loras = [{path = "a.safetensors", scale = "${weight}"}]}\n'
        "sweep.axes.weight = [0.5, 1]"
    )
    assert row["loras"] == [{"path": "a.safetensors", "scale": 0.5}]
    assert row["prompt"] == "x 0.5"


def _without_order(rows: list[dict[str, Any]]) -> set[str]:
    return {json.dumps(row, sort_keys=True) for row in rows}


@pytest.mark.parametrize(
    ("toml", "kept"),
    [
        ('{V}\nsweep.cells.prompt = "{{~a|b|c}} ${{x}}"\nsweep.axes.eta = {{uniform = [0, 1]}}', 1.0),
        ('{V}\nsweep.cells.prompt = "${{x}}"\nsweep.samples = 30\nsweep.axes.guidance_scale = "1..20"', 0.7),
    ],
)
def test_a_value_added_later_leaves_the_cells_there_were(toml: str, kept: float) -> None:
    values = [f"v{number}" for number in range(10)]
    before = _without_order(rows_of(toml.format(V=f"sweep.axes.x = {json.dumps(values)}")))
    after = _without_order(rows_of(toml.format(V=f"sweep.axes.x = {json.dumps(['new', *values])}")))
    assert len(before & after) >= kept * len(before)
    assert after - before


def test_samples_differ_and_follow_the_weights() -> None:
    rows = rows_of(
        "sweep.samples = 400\n"
        'sweep.cells.prompt = "a ${color} cube"\n'
        'sweep.axes = {color = {values = ["red", "blue"], weights = [3, 1]}, guidance_scale = {uniform = [1, 9]}}'
    )
    assert len(_without_order(rows)) == 400
    assert Counter(row["axis_color"] for row in rows)["red"] / 400 == pytest.approx(0.75, abs=0.07)


WRONG = {
    "sweep.axes.guidence_scale = [1]": "did you mean 'guidance_scale'?",
    "sweep.axes.steps = []": "has no values",
    "sweep.axes.steps = 5": "write a list",
    'sweep.axes.steps = "1..3 step 0"': "a step is above 0",
    'sweep.cells.prompt = "${colour}"\nsweep.axes.seed = [1]': "has ${colour}, which is no axis",
    'sweep.cells = {prompt = "${a}"}\nsweep.axes = {a = ["${b}"], b = ["${a}"]}': "a > b > a leads back to itself",
    "sweep.zip = [{width = [64], height = [64, 128]}]": "lists of different lengths: width 1, height 2",
    "sweep.axes = {steps = [1], num_inference_steps = [2]}": "stands there already",
    "sweep.axes.sha256 = [1]": "is the name of a result column",
    'sweep.axes = {steps = "1..1000", guidance_scale = "1..1000"}': "1,000,000 cells (num_inference_steps 1000, ",
    'sweep.cells.prompt = "{a|b|c|d|e|f|g|h|i|j} {a|b|c|d|e} {a|b|c|d|e|f|g|h} {a|b|c|d|e} {a|b|c|d|e|f|g|h|i|j}'
    ' {a|b|c|d|e|f|g|h|i|j}"': "200,000 variants, over max_rows = 100,000",
    "sweep.samples = 5\nsweep.axes.steps = [1, 2]": "have only 2 cells that differ",
    "sweep.samples = 2\nsweep.axes.steps = [1, 2]\nsweep.skip = [{steps = 1}]": "found only 1 cells that differ",
    "sweep.axes.steps = [1]\nsweep.axes.width = {by = 'steps', values = {1 = {uniform = [66, 70]}}}": "no multiple",
    "sweep.axxes = {}": "unknown key 'sweep.axxes'; did you mean 'sweep.axes'?",
    'sweep.cells.prompt = "${k} ${a}"\nsweep.axes = {a = ["x", "y"], k = {by = "a", values = {x = ["1"]}}}': (
        "has no values for a y"
    ),
    "sweep.axes.guidance_scale = {values = [1, 2], weights = [1]}": "give as many weights",
    "sweep.axes.guidance_scale = {normal = [1, 0]}": "the standard deviation",
    "sweep.axes.eta = {fresh = 2}": "which seeds alone can be",
    "sweep.axes.steps = [1]\nsweep.skip = [{stepss = 1}]": "is no axis",
    'sweep.variants = "some"': "one of all, draw",
    'sweep.axes.scheduler = ["DDIM"]\nsweep.skip = [{scheduler = "DIDM"}]': "never is; did you mean 'DDIM'?",
    "sweep.axes.guidance_scale = {normal = [0, 1], min = 10, max = 11}": "next to nothing",
    "sweep.axes.width = {uniform = [66, 70]}": "no multiple of 8",
    f"sweep.axes.guidance_scale = {{uniform = [1, 1{'0' * 400}]}}": "too large",
    'sweep.axes.guidance_scale = "5 values from 0 to 1e400"': "too large",
    'sweep.axes.guidance_scale = "1..1e5000"': "more than 1,000,000 values",
    'sweep.axes.steps = [1]\nsweep.skip = [{steps = "< 1.2.3"}]': "is '< 1.2.3'; write a value",
    'sweep.axes.steps = [1]\nsweep.skip = [{steps = "== 1"}]': "is '== 1'; write a value",
}


@pytest.mark.parametrize(("toml", "said"), WRONG.items(), ids=range(len(WRONG)))
def test_a_wrong_sweep_says_what_is_wrong(toml: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        rows_of(toml)
    assert said in str(raised.value)


def test_a_number_is_unlike_another_however_it_is_written() -> None:
    """`!= 4.0` left out 4 as well: it was compared as text."""
    rows = rows_of('sweep.cells.prompt = "x"\nsweep.axes.steps = [1, 4]\nsweep.skip = [{steps = "!= 4.0"}]')
    assert [row["num_inference_steps"] for row in rows] == [4]


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InputError) as raised:
        rows_of('sweep.axes = {steps = [], guidance_scale = "9..1 step -1"}\nsweep.cells.promt = "x"')
    assert len(str(raised.value).splitlines()) == 3


# Files and the command line

SPEC = """
[sweep]
wildcards = "words"
[sweep.cells]
prompt = "a ${color} __shape__"
image = "start.png"
[sweep.axes]
color = {file = "colors.csv", column = "name"}
strength = [0.5, 1]
"""


def _spec(folder: Path) -> Path:
    from PIL import Image

    (folder / "words").mkdir()
    (folder / "words" / "shape.txt").write_text("cube\ncone\n")
    (folder / "colors.csv").write_text('name,rank\nred,1\n"{dark} blue",2\n')
    Image.new("RGB", (64, 64), "red").save(folder / "start.png")
    path = folder / "spec.toml"
    path.write_text(SPEC)
    return path


def _prints(source: Path) -> set[str]:
    folders = tuple(map(str, source.parents))  # what a sweep names lies beside it, not beside a manifest elsewhere
    with resolved_rows(replace(load_job(str(source)), inputs=Inputs(roots=folders[:2]))) as (index, _):
        return _fingerprints(index)


def _fingerprints(index: Index) -> set[str]:
    return {json.loads(text)["fingerprint"] for _, text, _ in index.encoded()}


def test_a_sweep_and_its_manifest_are_the_same_rows(tmp_path: Path, batchgen: RunCli) -> None:
    """Wherever the manifest lies: what the sweep names from its folder is found from there."""
    spec, manifest = _spec(tmp_path), tmp_path / "elsewhere" / "rows.parquet"
    result = batchgen("sweep", spec, "--output", manifest)
    assert result.returncode == 0, result.stderr
    assert "wrote 8 rows" in result.stderr
    table = pq.read_table(manifest)
    assert table["axis_strength"].to_pylist() == [0.5, 0.5, 1.0, 1.0] * 2
    assert {*table["prompt"].to_pylist()} == {f"a {c} {s}" for c in ("red", "{dark} blue") for s in ("cube", "cone")}
    assert _prints(spec) == _prints(manifest)
    spec.write_text(SPEC.replace("[0.5, 1]", "[0.5, 1, 0.75]"))
    assert _prints(manifest) < _prints(spec)
    assert batchgen("sweep", spec, "--output", manifest).returncode == 0, "its own manifest is replaced"
    assert pq.read_metadata(manifest).num_rows == 12


def test_what_a_sweep_reads_beside_its_file_is_known(tmp_path: Path) -> None:
    with resolved_rows(load_job(str(_spec(tmp_path)))) as (_, resolved):
        assert {Path(file).name for file in resolved.read} == {"shape.txt", "colors.csv", "start.png"}


def test_nothing_is_written_over_a_file_that_no_sweep_made(tmp_path: Path, batchgen: RunCli) -> None:
    mine = tmp_path / "mine.parquet"
    pq.write_table(pq.read_table("manifests/quickstart.parquet"), mine)
    before = mine.read_bytes()
    result = batchgen("sweep", _spec(tmp_path), "--output", mine)
    assert result.returncode == 2
    assert "was not written so" in result.stderr
    assert mine.read_bytes() == before


def test_problems_name_the_sweep_and_the_row(tmp_path: Path, batchgen: RunCli) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text('sweep.cells.prompt = "x"\nsweep.axes = {scheduler = ["DDIM", "Nosuch"], seed = "0..2"}\n')
    result = batchgen("sweep", spec, "--output", tmp_path / "m.parquet")
    assert result.returncode == 2
    assert "spec.toml, row 4, column 'scheduler'" in result.stdout + result.stderr
    assert not (tmp_path / "m.parquet").exists()


def test_a_job_has_a_manifest_or_a_sweep(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('manifest = "m.csv"\nsweep.axes.seed = [1]\n')
    with pytest.raises(InputError, match="a manifest and a \\[sweep\\]"):
        load_job(str(job))
