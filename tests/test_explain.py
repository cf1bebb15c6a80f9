"""`batchgen explain`: tokens, noise levels and images are those of the tokenizer, the scheduler and a run."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_adapters
from conftest import HERE, RunCli, WriteManifest
from PIL import Image
from rich.console import Console
from transformers import CLIPTokenizer

from batchgen.diffusion.levels import noise_levels
from batchgen.errors import InputError
from batchgen.report.curves import Panel, draw_panels
from batchgen.report.explain import explain, explanation_tables, read_settings
from batchgen.report.figures import Choice, write_figures
from batchgen.report.grid import Grid, Tile, columns_on_screen, draw_grids, in_lines

pytestmark = pytest.mark.slow

SIDE = 64  # pixels of the tiny model's images
STEPS = 4
LONG = "an old (castle:1.3) by the sea, " * 4  # brackets are text in plain syntax


def parsed(text: str) -> Any:
    """JSON as other programs read it: without NaN and Infinity."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def ids_of(model: Path, text: str) -> list[int]:
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def scheduler_of(model: Path, class_name: str, **options: Any) -> Any:
    """The model's own scheduler config under another class, set up by diffusers alone."""
    config = diffusers.DDIMScheduler.from_pretrained(model, subfolder="scheduler").config
    return getattr(diffusers, class_name).from_config(config, **options)


def test_a_long_prompt_is_shown_with_its_cut(batchgen: RunCli, tiny_model: Path) -> None:
    """Issue: a prompt over 75 tokens shows where it is cut, and that nothing of it is lost."""
    ids = ids_of(tiny_model, LONG)
    assert 75 < len(ids) <= 150
    done = batchgen("explain", LONG, "--model", tiny_model, "--steps", STEPS, here=False)  # what libraries say is seen
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    end = next(number for number, line in enumerate(lines) if " tokens in " in line)
    assert lines[end].startswith(f"{len(ids)} tokens in 2 chunks (75 + {len(ids) - 75})")
    rows = [line.split() for line in lines[3 : end - 1]]
    assert [int(row[1]) for row in rows if len(row) == 5] == ids
    cut = next(number for number, row in enumerate(rows) if len(row) != 5)
    assert set("".join(rows[cut])) == {"─"}
    assert (rows[cut - 1][0], rows[cut - 1][3]) == ("74", "0")
    assert (rows[cut + 1][0], rows[cut + 1][3]) == ("75", "1")


def test_tokens_are_the_tokenizers(batchgen: RunCli, tiny_model: Path) -> None:
    """Ids in order, with the weights and chunks of A1111's syntax where it is asked for."""
    done = batchgen(
        "explain", "a (castle:1.3) BREAK 海 [x]", "--prompt-syntax", "a1111", "--model", tiny_model, "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = parsed(done.stdout)
    parts = [("a ", 0, 1.0), ("castle", 0, 1.3), ("海 ", 1, 1.0), ("x", 1, 1 / 1.1)]
    wanted = [(id_, chunk, weight) for text, chunk, weight in parts for id_ in ids_of(tiny_model, text)]
    assert [(token["id"], token["chunk"]) for token in found["tokens"]] == [(id_, chunk) for id_, chunk, _ in wanted]
    assert [token["weight"] for token in found["tokens"]] == pytest.approx([weight for _, _, weight in wanted])
    assert [token["position"] for token in found["tokens"]] == list(range(len(wanted)))
    assert found["chunks"] == [sum(chunk == number for _, chunk, _ in wanted) for number in (0, 1)]
    assert found["applied"]["prompt_syntax"] == "a1111"
    assert found["applied"]["num_inference_steps"] == 25


def test_tokens_of_an_embedding_have_its_word(tiny_model: Path, tmp_path: Path) -> None:
    """In the table, in their chunk, as many as it has vectors."""
    file = tiny_adapters.build_embedding(tmp_path / "ring.safetensors", tiny_model, vectors=2)
    settings = {"embeddings": json.dumps({"path": str(file), "token": "<ring>"})}
    tokens = explain({"prompt": "a <ring> b"}, settings=settings, model=str(tiny_model)).tokens
    assert [token.text for token in tokens][1:3] == ["<ring>", "<ring>_1"]
    assert [token.id for token in tokens][::3] == [*ids_of(tiny_model, "a"), *ids_of(tiny_model, "b")]


@pytest.mark.parametrize(
    ("name", "class_name", "options"),
    [
        ("DDIM", "DDIMScheduler", {}),
        ("Euler Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M", "DPMSolverMultistepScheduler", {}),
    ],
)
def test_schedule_is_the_schedulers(tiny_model: Path, name: str, class_name: str, options: Mapping[str, Any]) -> None:
    """Timesteps and sigmas are those that diffusers' scheduler has after set_timesteps, to the end point."""
    cells = {"prompt": "a", "num_inference_steps": 7}
    said = explain(cells, samplers=[name], model=str(tiny_model)).record()
    levels = said["schedule"]
    scheduler = scheduler_of(tiny_model, class_name, **options)
    scheduler.set_timesteps(7)
    assert said["sampler"] == name
    assert [level["step"] for level in levels] == [1, 2, 3, 4, 5, 6, 7]
    assert [level["timestep"] for level in levels] == scheduler.timesteps.tolist()
    if name == "DDIM":
        signal = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        assert [level["sigma"] for level in levels] == pytest.approx((((1 - signal) / signal) ** 0.5).tolist())
    else:
        assert [level["sigma"] for level in levels] == scheduler.sigmas[:-1].tolist()
        assert said["end"] == {"step": 8, "timestep": 0.0, "sigma": 0.0, "log_snr": None}
    assert [level["log_snr"] for level in levels] == pytest.approx([-2 * math.log(level["sigma"]) for level in levels])


def test_levels_between_two_sigmas(tiny_model: Path) -> None:
    """DPM2 calls the model between the sigmas it lists; what it scales that call's latents by is what is shown."""
    scheduler = scheduler_of(tiny_model, "KDPM2DiscreteScheduler")
    scheduler.set_timesteps(5)
    *levels, _ = noise_levels(scheduler)
    assert len(levels) == len(scheduler.timesteps) == 9
    assert [level.sigma for level in levels[::2]] == scheduler.sigmas[:9:2].tolist()
    assert [level.sigma for level in levels[1::2]] == pytest.approx(scheduler.sigmas_interpol[1:9:2].tolist(), rel=0.01)
    ratios = [level.log_snr for level in levels if level.log_snr is not None]
    assert len(ratios) == 9
    assert ratios == sorted(ratios)


def test_pure_noise_is_no_number(tiny_model: Path) -> None:
    """A schedule that starts without any signal has no sigma there: null in JSON, a ring on the chart."""
    scheduler = scheduler_of(
        tiny_model, "DDIMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(5)
    first, second, *_ = noise_levels(scheduler)
    assert (first.timestep, first.sigma, first.log_snr) == (999, None, None)
    assert second.sigma is not None and second.sigma > 1


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with an init image, a LoRA and a ControlNet."""
    folder = tmp_path_factory.mktemp("beside")
    pixels = np.linspace(0, 255, SIDE * SIDE * 3).reshape(SIDE, SIDE, 3).astype(np.uint8)
    pixels[20:40, 20:40] = 255
    Image.fromarray(pixels).save(folder / "init.png")
    tiny_adapters.build_lora(folder / "ink.safetensors", tiny_model, format="peft")
    tiny_adapters.build_controlnet(folder / "control", tiny_model)
    return folder


def test_images_end_with_that_of_a_run(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, beside: Path, tmp_path: Path
) -> None:
    """Whatever a row says, and whatever is looked at meanwhile: bit for bit what a run makes of it alone."""
    rows: dict[str, dict[str, Any]] = {
        "text": {"guidance_scale": 4.0, "clip_skip": 1},
        "image": {"image": f"{beside}/init.png", "strength": 0.6, "negative_prompt": "rain", "eta": 0.5},
        "control": {"loras": f"{beside}/ink.safetensors", "scheduler": "DPM++ 2M Karras"}
        | {"controlnet": f"{beside}/control", "control_image": f"{beside}/init.png", "control_preprocess": "canny"},
        "hires": {"hires_scale": 1.5, "scheduler": "Euler a", "guidance_scale": 1.0, "watermark": "we"},
    }
    shared = {"prompt": "a castle", "seed": 3, "num_inference_steps": STEPS}
    manifest = write_manifest("four.jsonl", [{"id": id_, **shared, **cells} for id_, cells in rows.items()])
    output = tmp_path / "out"
    flags = ["--output", output, "--batch-size", 1, *HERE]
    job = tmp_path / "four.toml"
    job.write_text(f'manifest = "{manifest.name}"\n[inputs]\nroots = ["{beside}"]\n')
    run = batchgen("run", job, "--model", tiny_model, *flags)
    assert run.returncode == 0, run.stderr
    for id_, cells in rows.items():
        settings = read_settings([f"{name}={cell}" for name, cell in cells.items()], {})
        explained = explain(shared, settings=settings, model=str(tiny_model))
        folder = tmp_path / id_
        written = list(write_figures(explained, str(folder), Choice(attention=id_ != "hires")))
        assert {Path(place).name for place in written} >= {"schedule.png", "steps.png", "image.png"}
        [file] = output.glob(f"data/*/*/{id_}.png")
        assert np.array_equal(pixels_of(folder / "image.png"), pixels_of(file)), id_
        if id_ == "hires":
            continue
        calls = explained.versions[0].calls
        assert calls == (2 if id_ == "image" else STEPS)
        strip = strip_of(pixels_of(folder / "steps.png"), calls + 1)
        assert np.array_equal(strip[-1], pixels_of(file)), "the last tile is the image, pixel for pixel"
        assert len({tile.tobytes() for tile in strip}) == calls + 1
        assert (folder / "attention.png").stat().st_size > 1000


def test_what_is_written_and_said(batchgen: RunCli, tiny_model: Path, beside: Path, tmp_path: Path) -> None:
    """On the command line: JSON as in the file, samplers compared, a tag's LoRA named, its effect seen."""
    made = tmp_path / "explained"
    prompt = f"a (castle:1.2) <lora:{beside}/ink:0.5>"
    flags = ["--scheduler", "Heun", "--scheduler", "LCM", "--steps", 3, "--prompt-syntax", "a1111", "--every", 2]
    done = batchgen("explain", prompt, "--model", tiny_model, *flags, "--output", made, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"wrote {made}/{name}" for name in ("explain.json", "schedule.png", "image.png", "steps.png")
    ]
    found = parsed(done.stdout)
    assert parsed((made / "explain.json").read_text()) == found
    assert (found["sampler"], [other["sampler"] for other in found["compared"]]) == ("Heun", ["LCM"])
    assert (len(found["schedule"]), len(found["compared"][0]["schedule"])) == (5, 3)
    assert found["applied"]["scheduler"] == "HeunDiscreteScheduler"
    assert re.match(r"The prompt's tag put on the LoRA ink at scale 0.5: it changes \d+ layers", found["adapters"][0])
    assert not any("lora" in token["text"] for token in found["tokens"])
    sheet = pixels_of(made / "steps.png")
    assert sheet.shape[0] > 3 * 2 * SIDE, "Heun's strip, LCM's, and Heun's without the LoRA"


def test_tables_for_people(tiny_model: Path) -> None:
    console = Console(width=100)
    with console.capture() as capture:
        for part in explanation_tables(explain({"prompt": "a"}, samplers=["DPM++ 2M Karras"], model=str(tiny_model))):
            console.print(part)
    text = capture.get()
    assert "DPM++ 2M Karras: 25 steps, use_karras_sigmas=true" in text
    assert re.search(r"end +0 +0\.0000 +inf", text)


def pixels_of(file: Path) -> Any:
    return np.asarray(Image.open(file).convert("RGB"))


def strip_of(sheet: Any, count: int) -> list[Any]:
    """The upper row of tiles of a sheet of one strip: what the model was given, and the image.

    Tiles are found as they lie: after the labels, in columns of 96 pixels with 8 between them.
    """
    lefts = [168 + 8 + place * (96 + 8) for place in range(count)]
    inked = (sheet[:, lefts[0] : lefts[0] + SIDE] != 255).any(axis=2).mean(axis=1) > 0.5
    top = next(row for row in range(len(inked) - SIDE) if inked[row : row + SIDE].all())
    return [sheet[top : top + SIDE, left : left + SIDE] for left in lefts]


def test_errors_are_those_of_a_manifest(batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path) -> None:
    """What a row would be refused for, in the same words, a line each, before the model is loaded."""
    cells = {"prompt": "a", "scheduler": "Eulr", "num_inference_steps": 0, "clip_skip": 9, "guidance_scale": 1000.0}
    cells |= {"eta": 3.0, "image": "nowhere.png", "strength": 0.5}
    checked = batchgen("validate", write_manifest("bad.jsonl", [cells]), "--model", tiny_model, "--json")
    wanted = {problem["column"]: problem["message"] for problem in parsed(checked.stdout)["problems"]}
    assert wanted.keys() == cells.keys() - {"prompt", "strength"}
    wanted["steps"] = wanted.pop("num_inference_steps")
    set_ = {f"set {name}": wanted.pop(name) for name in ("eta", "image")}
    flags = ["--scheduler", "Eulr", "--steps", 0, "--clip-skip", 9, "--guidance-scale", 1000]
    flags += ["--set", "eta=3", "--set", "image=nowhere.png", "--set", "strength=0.5"]
    done = batchgen("explain", "a", "--model", tiny_model, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    lines = {f"error: --{name.replace('_', '-')}: {message}" for name, message in (wanted | set_).items()}
    folder = str(Path.cwd())
    assert {line.replace(f"{folder}/", "") for line in done.stderr.splitlines()} == {
        re.sub(r"\S*nowhere\.png", "nowhere.png", line) for line in lines
    }
    for arguments in (["a", "--model", "no such model"], ["a", "--output", ""], ["a", "--every", "2"]):
        done = batchgen("explain", *arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["strength"], "has no ="),
        (["strenght=1"], "did you mean 'strength'"),
        (["cfg=3", "guidance_scale=4"], "another --set says it, too"),
        (["steps=3"], "--steps says it, too"),
        (["model=x"], "give --model"),
        (["id=x"], "one image is explained"),
    ],
)
def test_settings_that_are_none(settings: Sequence[str], words: str) -> None:
    with pytest.raises(InputError, match="--set") as error:
        read_settings(settings, {"num_inference_steps": 5})
    assert words in str(error.value)


# Drawings


def test_grids_keep_pixels_and_places() -> None:
    """Images stand pixel for pixel in columns of one width; labels never widen them, and are all there."""
    images = [Image.new("RGB", (SIDE, SIDE), (number, 0, 0)) for number in range(25)]
    tiles = [
        Tile(images=[image], label=f"a label that is longer than its image {number}")
        for number, image in enumerate(images)
    ]
    lines = in_lines(tiles)
    assert [len(line) for line in lines] == [13, 12], "shared evenly"
    sheet = np.asarray(draw_grids([Grid(rows=lines)]))
    assert sheet.shape[1] <= 1600
    assert set(range(25)) <= set(np.unique(sheet.reshape(-1, 3)[:, 0]).tolist())
    assert np.array_equal(sheet[8 : 8 + SIDE, 8 : 8 + SIDE], np.asarray(images[0]))
    assert np.array_equal(sheet[8 : 8 + SIDE, 8 + 104 : 8 + 104 + SIDE], np.asarray(images[1]))
    pairs = [Tile(images=images[:2]), Tile(images=images[2:5]), Tile(images=images[5:6])]
    assert [len(line) for line in in_lines(pairs, 4)] == [1, 2], "a tile is never broken"
    empty = draw_grids([Grid(rows=[[None, tiles[0]]], title="title", across=["a", "b"], down=["row"])])
    assert empty.getpixel((168 + 8 + 104 + 5, empty.height - 8 - 8 - 60 - 20)) is not None
    assert columns_on_screen(2048) == 1


@pytest.mark.parametrize(
    "values", [[1.0], [math.inf, math.inf], [0.5, 0.5], [1e-4, 1e4, 0.0], [14.6 / n for n in range(1, 1001)]]
)
def test_charts_of_any_length(values: list[float]) -> None:
    """One value, none that an axis holds, equal ones, eight decades and zero, a thousand calls."""
    panels = [Panel(title="t", curves=[values, values[:1]], is_log=is_log) for is_log in (True, False)]
    chart = np.asarray(draw_panels(panels, title="title\nmore", names=["a", "b"], x="call"))
    assert chart.shape[1] == 960
    assert chart.min() < 64 and chart.max() == 255
    assert len(np.unique(chart.reshape(-1, 3), axis=0)) > 10
