"""The tiny models and adapters load with stock diffusers, do what their kind does, and depend on their seed only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import tiny_adapters
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import BUILDERS

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float32]
SIDE = 64


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()


def make_images(side: int = SIDE, *, seed: int = 0) -> list[Image.Image]:
    """Two images of large random patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(image).resize((side, side)) for image in patches]


def make_masks() -> list[Image.Image]:
    half = Image.new("L", (SIDE, SIDE))
    half.paste(255, (0, 0, SIDE // 2, SIDE))
    return [half, half.rotate(90)]


def load(folder: Path, pipeline: str | None = None, **arguments: Any) -> Any:
    """A pipeline of stock diffusers, of the class that the folder names if no other is given."""
    name = pipeline or json.loads((folder / "model_index.json").read_text())["_class_name"]
    loaded = getattr(diffusers, name).from_pretrained(folder, **arguments)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def generate(pipeline: Any, **arguments: Any) -> Floats:
    """Two images of different prompts and seeds, of levels from 0 to 255."""
    given = {"prompt": ["a castle", "rain"], "num_inference_steps": 2, **arguments}
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images: Floats = pipeline(generator=generators, output_type="np", **given).images
    assert len(images) == 2
    assert np.isfinite(images).all()
    return images * 255


def apart(one: Floats, other: Floats) -> float:
    """Mean difference in levels."""
    return float(np.abs(one - other).mean())


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# Models

INPAINTING: dict[str, Any] = {"image": make_images(), "mask_image": make_masks(), "width": SIDE, "height": SIDE}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "sd1-inpainting": INPAINTING,
    "sdxl-inpainting": INPAINTING,
    "sdxl-refiner": {"image": make_images(), "strength": 1.0},
    "depth": {"image": make_images(), "strength": 1.0},
    "pix2pix": {"image": make_images()},
    "upscaler": {"image": make_images(SIDE // 4)},
    "latent-upscaler": {"image": make_images(SIDE // 2)},
}
LOADING: dict[str, dict[str, Any]] = {
    "sd1-fp16": {"variant": "fp16", "dtype": torch.float16},
    "sd1-inpainting": {"pipeline": "StableDiffusionInpaintPipeline"},
}
WITH_PROMPT = [name for name in BUILDERS if "conditional" not in name]


@pytest.mark.parametrize("name", WITH_PROMPT)
def test_model_loads_and_generates(tmp_path: Path, name: str) -> None:
    folder = BUILDERS[name](tmp_path / name)
    assert "Pil" not in (folder / "model_index.json").read_text()
    assert 0.3e6 < sum(len(content) for content in files(folder).values()) < 3e6
    pipeline = load(folder, **LOADING.get(name, {}))
    arguments = ARGUMENTS.get(name, {})
    images = generate(pipeline, **arguments)
    assert images.shape == (2, SIDE, SIDE, 3)
    assert apart(images[0], images[1]) > 5
    assert apart(images, generate(pipeline, prompt=["a dog", "snow"], **arguments)) > 0.5
    if "image" in arguments:
        others = {**arguments, "image": make_images(arguments["image"][0].width, seed=1)}
        assert apart(images, generate(pipeline, **others)) > 0.5


BY_WIDTH: dict[str, Callable[..., Path]] = {
    "sd1": tiny_models.build_sd1,
    "sd2": tiny_models.build_sd2,
    "sdxl": tiny_models.build_sdxl,
    "sdxl-refiner": tiny_models.build_refiner,
    "depth": tiny_models.build_depth,
    "pix2pix": tiny_models.build_pix2pix,
    "upscaler": tiny_models.build_upscaler,
    "latent-upscaler": tiny_models.build_latent_upscaler,
    "lcm": tiny_models.build_lcm,
}


@pytest.mark.parametrize("name", BY_WIDTH)
def test_model_of_another_width(tmp_path: Path, name: str) -> None:
    pipeline = load(BY_WIDTH[name](tmp_path / name, width=24))
    generate(pipeline, **ARGUMENTS.get(name, {}))
    tower = pipeline.text_encoder or pipeline.text_encoder_2
    assert tower.config.hidden_size == (96 if name == "sdxl-refiner" else 48)


@pytest.mark.parametrize("build", [*BY_WIDTH.values(), tiny_models.build_unconditional])
def test_seed_decides_the_bytes(tmp_path: Path, build: Callable[..., Path]) -> None:
    once, again, other = (files(build(tmp_path / name, seed=seed)) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert once == again
    weights = {name for name in once if name.endswith("safetensors")}
    assert weights and all(once[name] != other[name] for name in weights)


def test_safety_checker_flags_some_images(tmp_path: Path) -> None:
    pipeline = load(tiny_models.build_sd1(tmp_path / "sd1", with_safety_checker=True))
    generators = [torch.Generator().manual_seed(seed) for seed in range(16)]
    made = pipeline([""] * 16, generator=generators, num_inference_steps=4, output_type="np")
    assert 4 <= sum(made.nsfw_content_detected) <= 12
    assert [not image.any() for image in made.images] == made.nsfw_content_detected


def test_unconditional_model(tmp_path: Path) -> None:
    pipeline = load(tiny_models.build_unconditional(tmp_path / "ddpm"))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = pipeline(batch_size=2, generator=generators, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert np.isfinite(images).all() and apart(images[0], images[1]) > 0.01


def test_class_conditional_model_depends_on_the_class(tmp_path: Path) -> None:
    unet = load(tiny_models.build_class_conditional(tmp_path / "ddpm", classes=5)).unet
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    with torch.no_grad():
        one, other = unet(noise, 500, class_labels=torch.tensor([0, 4])).sample
    assert (one - other).abs().mean() > 0.01


# Adapters


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def plain(model: Path) -> Floats:
    return generate(load(model))


@pytest.mark.parametrize("model", ["sd1", "sd2", "sdxl"], indirect=True)
@pytest.mark.parametrize("text_encoder", [False, True])
def test_lora_is_the_same_in_every_format(model: Path, plain: Floats, tmp_path: Path, text_encoder: bool) -> None:
    pipeline = load(model)
    made = {}
    for format in ("peft", "diffusers", "kohya"):
        file = tiny_adapters.build_lora(
            tmp_path / f"{format}.safetensors", model, format=format, text_encoder=text_encoder
        )
        pipeline.load_lora_weights(file)
        made[format] = generate(pipeline)
        pipeline.unload_lora_weights()
    assert apart(made["peft"], plain) > 5
    assert np.array_equal(made["diffusers"], made["peft"])
    assert np.array_equal(made["kohya"], made["peft"])
    assert np.array_equal(generate(pipeline), plain)
    trained_names = any("_input_blocks_" in key for key in load_file(tmp_path / "kohya.safetensors"))
    assert trained_names == ("sdxl" in model.name)


def test_lora_of_text_towers_and_seed_matter(model: Path, tmp_path: Path) -> None:
    pipeline = load(model)
    made = []
    changes: list[dict[str, Any]] = [{}, {"text_encoder": True}, {"seed": 1}, {"rank": 2}]
    for number, values in enumerate(changes):
        pipeline.load_lora_weights(tiny_adapters.build_lora(tmp_path / f"{number}.safetensors", model, **values))
        made.append(generate(pipeline))
        pipeline.unload_lora_weights()
    assert all(apart(made[0], other) > 2 for other in made[1:])


def test_controlnet(model: Path, plain: Floats, tmp_path: Path) -> None:
    def follow(seed: int, images: list[Image.Image]) -> Floats:
        folder = tiny_adapters.build_controlnet(tmp_path / str(seed), model, seed=seed)
        net = diffusers.ControlNetModel.from_pretrained(folder)
        kind = "StableDiffusionXLControlNetPipeline" if "sdxl" in model.name else "StableDiffusionControlNetPipeline"
        return generate(load(model, kind, controlnet=net), image=images)

    one = follow(0, make_images())
    assert apart(one, plain) > 5
    assert apart(one, follow(0, make_images(seed=1))) > 2
    assert apart(one, follow(1, make_images())) > 5


@pytest.mark.parametrize(("format", "vectors"), [("safetensors", 1), ("bin", 2), ("a1111-pt", 3)])
def test_embedding(model: Path, tmp_path: Path, format: Any, vectors: int) -> None:
    name = "learned.safetensors" if format == "safetensors" else "learned.pt"
    file = tiny_adapters.build_embedding(tmp_path / name, model, token="<x>", vectors=vectors, format=format)
    pipeline = load(model)
    unlearned = generate(pipeline, prompt=["<x>", "<x>"])  # the tokens as text, cut into letters
    if "sdxl" in model.name:
        learned = load_file(file) if format == "safetensors" else torch.load(file, weights_only=True)
        assert set(learned) == {"clip_l", "clip_g"}
        for key, number in (("clip_l", ""), ("clip_g", "_2")):
            tower = {part: getattr(pipeline, part + number) for part in ("tokenizer", "text_encoder")}
            pipeline.load_textual_inversion(learned[key], token="<x>", **tower)
    else:
        pipeline.load_textual_inversion(file.parent, weight_name=file.name)
    known = [token for token in pipeline.tokenizer.get_vocab() if token.startswith("<x>")]
    assert sorted(known) == ["<x>", "<x>_1", "<x>_2"][:vectors]
    assert apart(generate(pipeline, prompt=["<x>", "<x>"]), unlearned) > 1


def run_hypernetwork(weights: dict[str, torch.Tensor], x: torch.Tensor, activation: str) -> torch.Tensor:
    numbers = sorted({int(key.split(".")[1]) for key in weights})
    linears = [number for number in numbers if weights[f"linear.{number}.weight"].ndim == 2]
    for number in numbers:
        weight, bias = (weights[f"linear.{number}.{name}"] for name in ("weight", "bias"))
        if number in linears:
            x = torch.nn.functional.linear(x, weight, bias)
            if activation == "relu" and number != linears[-1]:
                x = x.relu()
        else:
            x = torch.nn.functional.layer_norm(x, weight.shape, weight, bias)
    return x


@pytest.mark.parametrize(
    ("activation", "layer_norm", "numbers"),
    [("linear", False, [0, 1]), ("relu", False, [0, 2]), ("linear", True, [0, 1, 2, 3]), ("relu", True, [0, 2, 3, 4])],
)
def test_hypernetwork(
    model: Path, plain: Floats, tmp_path: Path, activation: Any, layer_norm: bool, numbers: list[int]
) -> None:
    file = tiny_adapters.build_hypernetwork(tmp_path / "h.pt", model, activation=activation, layer_norm=layer_norm)
    content = torch.load(file, weights_only=True)
    pipeline = load(model)
    for name, module in pipeline.unet.named_modules():
        if name.endswith((".to_k", ".to_v")):
            weights = content[module.in_features][name.endswith(".to_v")]
            assert set(weights) == {f"linear.{number}.{part}" for number in numbers for part in ("weight", "bias")}

            def change(_: Any, args: Any, weights: dict[str, torch.Tensor] = weights) -> torch.Tensor:
                context: torch.Tensor = args[0]
                return context + run_hypernetwork(weights, context, activation)

            module.register_forward_pre_hook(change)
    assert apart(generate(pipeline), plain) > 2


def test_vae_folder_and_file(tmp_path: Path) -> None:
    model = tiny_models.build_sd1(tmp_path / "sd1")
    folder = tiny_adapters.build_vae(tmp_path / "vae", seed=5)
    file = tiny_adapters.build_vae_file(tmp_path / "vae.safetensors", seed=5)
    from_folder = diffusers.AutoencoderKL.from_pretrained(folder)
    from_file = diffusers.AutoencoderKL.from_single_file(str(file), config=str(folder), local_files_only=True)
    swapped = generate(load(model, vae=from_folder))
    assert apart(swapped, generate(load(model))) > 5
    assert np.abs(swapped - generate(load(model, vae=from_file))).max() < 1e-2


def test_ip_adapter(model: Path, plain: Floats, tmp_path: Path) -> None:
    if "sdxl" in model.name:
        subfolder, weight_name = "sdxl_models", "ip-adapter_sdxl.safetensors"
    else:
        subfolder, weight_name = "models", "ip-adapter_sd15.safetensors"

    def follow(seed: int, image: Image.Image) -> Floats:
        folder = tiny_adapters.build_ip_adapter(tmp_path / str(seed), model, seed=seed)
        pipeline = load(model)
        pipeline.load_ip_adapter(folder, subfolder=subfolder, weight_name=weight_name)
        pipeline.set_ip_adapter_scale(1.0)
        return generate(pipeline, ip_adapter_image=image)

    one, other = make_images()
    followed = follow(0, one)
    assert apart(followed, plain) > 2
    assert apart(followed, follow(0, other)) > 1
    assert apart(followed, follow(1, one)) > 2
