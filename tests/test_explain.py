"""`batchgen explain`: tokens, noise levels and step images are those of the tokenizer, the scheduler and a run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from conftest import RunCli, WriteManifest
from PIL import Image
from transformers import CLIPTokenizer

from batchgen.diffusion.inspection import noise_levels
from batchgen.report.sheets import draw_log_chart, draw_sheet

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
    done = batchgen("explain", LONG, "--model", tiny_model, "--steps", STEPS)
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


@pytest.mark.parametrize(
    ("name", "class_name", "options"),
    [
        ("DDIM", "DDIMScheduler", {}),
        ("Euler Karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M", "DPMSolverMultistepScheduler", {}),
    ],
)
def test_schedule_is_the_schedulers(
    batchgen: RunCli, tiny_model: Path, name: str, class_name: str, options: Mapping[str, Any]
) -> None:
    """Timesteps and sigmas are those that diffusers' scheduler has after set_timesteps."""
    done = batchgen("explain", "a", "--model", tiny_model, "--scheduler", name, "--steps", 7, "--json")
    assert done.returncode == 0, done.stderr
    levels = parsed(done.stdout)["schedule"]
    scheduler = scheduler_of(tiny_model, class_name, **options)
    scheduler.set_timesteps(7)
    assert [level["step"] for level in levels] == [1, 2, 3, 4, 5, 6, 7]
    assert [level["timestep"] for level in levels] == scheduler.timesteps.tolist()
    if name == "DDIM":
        signal = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        assert [level["sigma"] for level in levels] == pytest.approx((((1 - signal) / signal) ** 0.5).tolist())
    else:
        assert [level["sigma"] for level in levels] == scheduler.sigmas[:-1].tolist()
    assert [level["log_snr"] for level in levels] == pytest.approx([-2 * math.log(level["sigma"]) for level in levels])


def test_levels_between_two_sigmas(tiny_model: Path) -> None:
    """DPM2 calls the model between the sigmas it lists; what it scales that call's latents by is what is shown."""
    scheduler = scheduler_of(tiny_model, "KDPM2DiscreteScheduler")
    levels = noise_levels(scheduler, 5)
    assert len(levels) == len(scheduler.timesteps) == 9
    assert [level.sigma for level in levels[::2]] == scheduler.sigmas[:9:2].tolist()
    assert [level.sigma for level in levels[1::2]] == pytest.approx(scheduler.sigmas_interpol[1:9:2].tolist(), rel=0.01)
    ratios = [level.log_snr for level in levels if level.log_snr is not None]
    assert len(ratios) == 9
    assert ratios == sorted(ratios)


def test_pure_noise_is_no_number(tiny_model: Path) -> None:
    """A schedule that starts without any signal has no sigma there: null in JSON, a gap in the chart."""
    scheduler = scheduler_of(
        tiny_model, "DDIMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    first, second, *_ = noise_levels(scheduler, 5)
    assert (first.timestep, first.sigma, first.log_snr) == (999, None, None)
    assert second.sigma is not None and second.sigma > 1
    draw_log_chart("t", "s", [first.sigma, second.sigma], x="step", y="sigma")


def test_images_end_with_that_of_a_run(
    batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path, ray_address: str, tmp_path: Path
) -> None:
    """One image a step; the last is, bit for bit, what a run makes of the same row alone."""
    cells = {"prompt": "a castle", "seed": 3, "guidance_scale": 4.0, "num_inference_steps": STEPS, "clip_skip": 1}
    flags = ["--seed", 3, "--guidance-scale", 4, "--steps", STEPS, "--clip-skip", 1]
    made = tmp_path / "explained"
    done = batchgen("explain", "a castle", "--model", tiny_model, *flags, "--output", made, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"wrote {made}/{name}" for name in ("explain.json", "schedule.png", "steps.png")
    ]
    found = parsed(done.stdout)
    assert parsed((made / "explain.json").read_text()) == found
    assert found["applied"].items() >= cells.items()

    sheet = np.asarray(Image.open(made / "steps.png"))
    images = images_on(sheet, STEPS)
    assert len({image.tobytes() for image in images}) == STEPS
    chart = np.asarray(Image.open(made / "schedule.png"))
    assert len(np.unique(chart.reshape(-1, 3), axis=0)) > 10

    manifest = write_manifest("one.jsonl", [cells])
    output = tmp_path / "out"
    run = batchgen(
        "run", manifest, "--model", tiny_model, "--output", output, "--batch-size", 1, "--address", ray_address
    )
    assert run.returncode == 0, run.stderr
    [file] = output.glob("data/*/*/*.png")
    assert np.array_equal(images[-1], np.asarray(Image.open(file)))


def images_on(sheet: Any, count: int) -> list[Any]:
    """The images of a sheet of one row: equal cells from the left, each with its image in its upper left corner."""
    gap = 8
    cell = (sheet.shape[1] - gap) // count
    return [sheet[gap : gap + SIDE, gap + place * cell :][:, :SIDE] for place in range(count)]


def test_errors_are_those_of_a_manifest(batchgen: RunCli, write_manifest: WriteManifest, tiny_model: Path) -> None:
    """What a row would be refused for, in the same words, a line each, before the model is loaded."""
    cells = {"prompt": "a", "scheduler": "Eulr", "num_inference_steps": 0, "clip_skip": 9, "guidance_scale": 1000.0}
    checked = batchgen("validate", write_manifest("bad.jsonl", [cells]), "--model", tiny_model, "--json")
    wanted = {problem["column"]: problem["message"] for problem in parsed(checked.stdout)["problems"]}
    assert wanted.keys() == cells.keys() - {"prompt"}
    wanted["steps"] = wanted.pop("num_inference_steps")
    flags = ["--scheduler", "Eulr", "--steps", 0, "--clip-skip", 9, "--guidance-scale", 1000]
    done = batchgen("explain", "a", "--model", tiny_model, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    lines = {f"error: --{name.replace('_', '-')}: {message}" for name, message in wanted.items()}
    assert set(done.stderr.splitlines()) == lines
    for arguments in (["a", "--model", "no such model"], ["a", "--output", ""]):
        done = batchgen("explain", *arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_sheets_wrap_and_keep_pixels() -> None:
    """Many or wide images go into rows of equal length, few stay in one; labels wider than an image fit."""
    images = [np.full((SIDE, SIDE, 3), number, dtype=np.uint8) for number in range(25)]
    labels = [f"step {number}\nfrom sigma 0.0123" for number in range(25)]
    wide = draw_sheet(images, labels)
    assert wide.shape[1] <= 1600
    assert set(range(25)) <= set(np.unique(wide.reshape(-1, 3)[:, 0]).tolist())
    few = images_on(draw_sheet(images[:3], labels[:3]), 3)
    assert all(np.array_equal(one, other) for one, other in zip(few, images, strict=False))
    huge = draw_sheet([np.zeros((8, 2048, 3), dtype=np.uint8)] * 2, ["a", "b"])
    assert huge.shape[1] < 2 * 2048


@pytest.mark.parametrize("values", [[1.0], [None, None], [0.5, 0.5], [1e-4, 1e4], [14.6 / n for n in range(1, 1001)]])
def test_charts_of_any_length(values: list[float | None]) -> None:
    """One value, none at all, equal ones, eight decades, a thousand steps."""
    chart = draw_log_chart("title", "subtitle", values, x="step", y="sigma")
    assert chart.shape == (600, 960, 3)
    assert chart.min() < 64 and chart.max() == 255
