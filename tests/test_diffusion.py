"""The pipeline host on a tiny model: rows never depend on their mates, and images are those of plain diffusers."""

import gc
import inspect
import json
import shutil
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import build_sd1, build_single_file

from batchgen.diffusion.host import Images, PipelineHost
from batchgen.diffusion.loaded import LoadedModel
from batchgen.errors import InputError, ModelLoadError
from batchgen.generation.parameters import Parameters
from batchgen.generation.samplers import NAMES, OPTIONS
from batchgen.generation.tasks import TASKS
from batchgen.models.catalog import Family, Model, find_model
from batchgen.rows import MicroBatch, Row

pytestmark = pytest.mark.slow

PLAIN_TASKS = ("text-to-image", "image-to-image", "inpainting")  # what a model of Stable Diffusion 1.x does alone
SIDE = 64  # pixels
SIZE = 4  # rows of a micro-batch

DEFAULTS: Mapping[str, Any] = {
    "model": "tiny",
    "prompt": "a castle",
    "prompt_syntax": "plain",
    "negative_prompt": "",
    "seed": 0,
    "width": SIDE,
    "height": SIDE,
    "num_inference_steps": 4,
    "guidance_scale": 7.5,
    "eta": 0.0,
    "clip_skip": None,
    "scheduler": "DDIMScheduler",
    "scheduler_kwargs": {},
    "strength": 0.8,
}

MIXED: Sequence[Mapping[str, Any]] = (
    {"prompt": "a castle", "seed": 2**63 - 1, "guidance_scale": 7.3, "negative_prompt": "fog", "strength": 0.8},
    {"prompt": "the sea, 海", "seed": 1, "guidance_scale": 1.5, "clip_skip": 1, "strength": 0.9},
    {"prompt": "", "seed": 2, "guidance_scale": 30.0, "clip_skip": 2, "strength": 0.75},
)


def make_row(task: str = "text-to-image", **values: Any) -> Row:
    return Row(id="r", fingerprint="0" * 64, task=task, parameters=Parameters.from_cells({**DEFAULTS, **values}))


def make_inputs(task: str, number: int) -> dict[str, Image.Image]:
    noise = np.random.default_rng(number)
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, SIDE // 2, 8 * (number + 1)))
    images = {
        "image": Image.fromarray(noise.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)),
        "mask_image": mask,
    }
    return {name: images[name] for name in TASKS[task].needs}


def run(
    host: PipelineHost, model: Model, rows: Sequence[Row], *, size: int = SIZE, numbers: Sequence[int] | None = None
) -> Images:
    """Images of rows; row i gets the conditioning images of number i."""
    numbers = range(len(rows)) if numbers is None else numbers
    inputs = [make_inputs(row.task, number) for row, number in zip(rows, numbers, strict=True)]
    return host.generate(model, MicroBatch(rows=rows, size=size), inputs)


def levels_apart(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sd1(tmp_path_factory.mktemp("models") / "sd1")


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return find_model(str(folder))


@pytest.fixture(scope="session")
def host() -> PipelineHost:
    return PipelineHost(device="cpu", dtype="float32")


@pytest.mark.parametrize("task", PLAIN_TASKS)
def test_row_does_not_depend_on_its_mates(host: PipelineHost, model: Model, task: str) -> None:
    rows = [make_row(task, **values) for values in MIXED]
    together = run(host, model, rows).pixels
    backward = run(host, model, rows[::-1], numbers=[2, 1, 0]).pixels[::-1]
    assert together.shape == (3, SIDE, SIDE, 3)
    assert together.dtype == np.uint8
    assert np.array_equal(together, backward)
    for number, row in enumerate(rows):
        assert np.array_equal(run(host, model, [row], numbers=[number]).pixels[0], together[number])
    assert levels_apart(together[0], together[1]) > 5


def test_inpainting_unet_keeps_rows_apart(host: PipelineHost, tmp_path: Path) -> None:
    model = find_model(str(build_sd1(tmp_path / "nine", in_channels=9)))
    rows = [make_row("inpainting", **values) for values in MIXED]
    together = run(host, model, rows).pixels
    assert np.array_equal(run(host, model, rows[1:2], numbers=[1]).pixels[0], together[1])
    with pytest.raises(InputError, match="cannot do text-to-image"):
        run(host, model, [make_row()])


@pytest.mark.parametrize("task", PLAIN_TASKS)
def test_equals_plain_diffusers(host: PipelineHost, model: Model, folder: Path, task: str) -> None:
    row = make_row(task, prompt="a castle", negative_prompt="fog", seed=7, scheduler="EulerAncestralDiscreteScheduler")
    stock = getattr(diffusers, TASKS[task].pipelines[Family.SD]).from_pretrained(folder, safety_checker=None)
    stock.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    conditioning = make_inputs(task, 0)
    arguments = {"strength": 0.8} if conditioning else {"width": SIDE, "height": SIDE}
    plain = stock(
        "a castle",
        negative_prompt="fog",
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=4,
        guidance_scale=7.5,
        **conditioning,
        **arguments,
    ).images[0]
    assert levels_apart(run(host, model, [row], size=1).pixels[0], np.asarray(plain)) <= 1


def test_prompt_seed_guidance_and_clip_skip_matter(host: PipelineHost, model: Model) -> None:
    base = run(host, model, [make_row()]).pixels
    changes: list[dict[str, Any]] = [{"prompt": "rain"}, {"seed": 1}, {"guidance_scale": 20.0}, {"clip_skip": 1}]
    for change in changes:
        assert not np.array_equal(run(host, model, [make_row(**change)]).pixels, base), change


DISTINCT = {(sampler.class_name, json.dumps(sampler.kwargs)): name for name, sampler in NAMES.items()}
"""One name for each sampler that differs; tests/test_structure.py holds that every name is found."""


@pytest.mark.parametrize("name", DISTINCT.values())
def test_sampler_runs_repeats_and_keeps_rows_apart(host: PipelineHost, model: Model, name: str) -> None:
    sampler = NAMES[name]
    chosen: dict[str, Any] = {
        "scheduler": sampler.class_name,
        "scheduler_kwargs": dict(sampler.kwargs),
        "num_inference_steps": 5,
    }
    rows = [make_row(seed=5, **chosen), make_row(seed=6, **chosen)]
    images = run(host, model, rows, size=2)
    assert images.finite == (True, True)
    assert np.array_equal(run(host, model, rows, size=2).pixels, images.pixels)
    assert np.array_equal(run(host, model, rows[1:], size=2).pixels[0], images.pixels[1])


@pytest.mark.parametrize("name", OPTIONS)
def test_scheduler_runs_for_image_to_image(host: PipelineHost, model: Model, name: str) -> None:
    rows = [make_row("image-to-image", seed=seed, scheduler=name) for seed in (5, 6)]
    images = run(host, model, rows, size=2)
    assert images.finite == (True, True)
    assert np.array_equal(run(host, model, rows[1:], size=2, numbers=[1]).pixels[0], images.pixels[1])


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_the_installed_scheduler(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    taken = {key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    assert taken - {"self"} == OPTIONS[name]


def test_refused_scheduler_options_are_the_users_error(host: PipelineHost, model: Model) -> None:
    both = {"use_karras_sigmas": True, "use_exponential_sigmas": True}
    with pytest.raises(InputError, match="EulerDiscreteScheduler does not take") as caught:
        run(host, model, [make_row(scheduler="EulerDiscreteScheduler", scheduler_kwargs=both)])
    assert "\n" not in str(caught.value)


def test_tasks_share_one_copy_of_the_modules(host: PipelineHost, model: Model) -> None:
    for task in PLAIN_TASKS:
        run(host, model, [make_row(task)])
    assert isinstance(host._loaded, LoadedModel)
    pipelines = list(host._loaded._pipelines.values())
    assert {type(p).__name__ for p in pipelines} >= {TASKS[task].pipelines[Family.SD] for task in PLAIN_TASKS}
    assert len({id(p.unet) for p in pipelines}) == len({id(p.vae) for p in pipelines}) == 1
    assert len({id(p.scheduler) for p in pipelines}) == len(pipelines)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(model: Model, host: PipelineHost, dtype: Any) -> None:
    half = PipelineHost(device="cpu", dtype=dtype)
    rows = [make_row(**values) for values in MIXED]
    images = run(half, model, rows)
    assert half.environment.dtype == dtype
    assert images.finite == (True, True, True)
    assert np.array_equal(run(half, model, rows[1:2]).pixels[0], images.pixels[1])
    wide = run(host, model, rows).pixels
    assert np.abs(images.pixels.astype(int) - wide).mean() < 4


def test_single_file_equals_folder(host: PipelineHost, model: Model, folder: Path, tmp_path: Path) -> None:
    file = find_model(str(build_single_file(tmp_path / "sd1.safetensors")), config=str(folder))
    rows = [make_row(**values) for values in MIXED]
    assert levels_apart(run(host, file, rows).pixels, run(host, model, rows).pixels) <= 1


def test_folder_of_half_precision_files(host: PipelineHost, model: Model, tmp_path: Path) -> None:
    half = find_model(str(build_sd1(tmp_path / "half", variant="fp16")))
    assert np.abs(run(host, half, [make_row()]).pixels.astype(int) - run(host, model, [make_row()]).pixels).mean() < 4


def test_nan_is_told_of_its_row_only(host: PipelineHost, folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "nan"))
    weights = load_file(broken / "text_encoder" / "model.safetensors")
    (name,) = [key for key in weights if key.endswith("token_embedding.weight")]
    weights[name][ord("z") - 33 + 256] = float("nan")  # "z" at the end of a word
    save_file(weights, broken / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    rows = [make_row(prompt="a castle"), make_row(prompt="a z"), make_row(prompt="rain")]
    assert run(host, find_model(str(broken)), rows).finite == (True, False, True)


@pytest.mark.parametrize("task", ["image-to-image", "inpainting"])
def test_no_step_to_denoise_gives_the_autoencoders_image(
    host: PipelineHost, model: Model, folder: Path, task: str
) -> None:
    rows = [make_row(task, seed=3, strength=0.0), make_row(task, seed=4, strength=0.2)]
    images = run(host, model, rows).pixels
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    pixels = torch.from_numpy(np.array(make_inputs(task, 0)["image"])).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(3))
        expected = ((vae.decode(latents).sample * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert levels_apart(images[0], expected[0].permute(1, 2, 0).numpy()) <= 1
    assert np.array_equal(run(host, model, rows[1:], numbers=[1]).pixels[0], images[1])


@pytest.mark.parametrize(("scale", "rows_a_step"), [(7.5, 2 * SIZE), (1.0, SIZE), (0.0, SIZE)])
def test_unconditional_pass_runs_only_with_guidance(
    host: PipelineHost, model: Model, scale: float, rows_a_step: int
) -> None:
    run(host, model, [make_row()])
    assert isinstance(host._loaded, LoadedModel)
    seen: list[int] = []
    unet = host._loaded._parts["unet"]
    hook = unet.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    try:
        run(host, model, [make_row(guidance_scale=scale)])
    finally:
        hook.remove()
    assert seen == [rows_a_step] * 4


def test_another_model_frees_the_former(model: Model, tmp_path: Path) -> None:
    host = PipelineHost(device="cpu", dtype="float32")
    first = run(host, model, [make_row()]).pixels
    assert isinstance(host._loaded, LoadedModel)
    former = weakref.ref(host._loaded._parts["unet"])
    second = run(host, find_model(str(build_sd1(tmp_path / "other", seed=1))), [make_row()]).pixels
    gc.collect()
    assert former() is None
    assert not np.array_equal(first, second)


def test_long_prompt_is_read_to_its_end_and_counted(host: PipelineHost, model: Model) -> None:
    long = "a " * 100
    rows = [make_row(prompt=long), make_row(prompt=long + "zebra"), make_row(prompt="a " * 5)]
    images = run(host, model, rows)
    assert images.prompt_tokens == (100, 105, 5)
    assert not np.array_equal(images.pixels[0], images.pixels[1])
    for number, row in enumerate(rows):  # also where its mates need other numbers of chunks
        assert np.array_equal(run(host, model, [row]).pixels[0], images.pixels[number])


def test_another_thread_gives_the_same_bits(host: PipelineHost, model: Model) -> None:
    here = run(host, model, [make_row()]).pixels
    there: list[npt.NDArray[np.uint8]] = []
    thread = threading.Thread(target=lambda: there.append(run(host, model, [make_row()]).pixels))
    thread.start()
    thread.join()
    assert np.array_equal(here, there[0])


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickled", "other kind"])
def test_broken_folder_is_one_line(host: PipelineHost, folder: Path, tmp_path: Path, damage: str) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    model = find_model(str(broken))
    match damage:
        case "missing":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "pickled":
            weights.rename(weights.with_suffix(".bin"))
        case _:
            index = broken / "model_index.json"
            index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    with pytest.raises(ModelLoadError) as caught:
        run(host, model, [make_row()])
    assert "\n" not in str(caught.value)
    assert repr(str(broken)) in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("task", PLAIN_TASKS)
def test_row_does_not_depend_on_its_mates_on_cuda(model: Model, task: str, dtype: Any) -> None:
    cuda = PipelineHost(device="cuda", dtype=dtype)
    rows = [make_row(task, **values) for values in MIXED]
    together = run(cuda, model, rows).pixels
    for number, row in enumerate(rows):
        assert np.array_equal(run(cuda, model, [row], numbers=[number]).pixels[0], together[number])
