"""Every way Stable Diffusion generates, from a manifest: a row gives the same image alone and among others."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_adapters as adapters
import tiny_models as models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from batchgen.diffusion.canary import Canary
from batchgen.diffusion.classifier import load_classifier
from batchgen.diffusion.host import Images, PipelineHost
from batchgen.diffusion.loading import Loading
from batchgen.driver import resolved_rows
from batchgen.errors import CanaryDied
from batchgen.images import fit
from batchgen.job import Job
from batchgen.manifest.columns import COLUMNS, image_column
from batchgen.rows import MicroBatch, Row

pytestmark = pytest.mark.slow

SIZE = 3  # rows of a micro-batch; the host pads what is short
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """A folder with tiny models, adapters and images, made when a test first asks for one."""

    root: Path

    def path(self, name: str) -> str:
        """The path of something below the root."""
        path = self.root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[name](self, path)
        return str(path)

    def rows(self, cells: Sequence[Mapping[str, Any]], **job: Any) -> list[Row]:
        """The rows of a manifest with those cells, in its order."""
        manifest = self.root / "manifest.jsonl"
        manifest.write_text("".join(json.dumps({"id": str(i)} | dict(c)) + "\n" for i, c in enumerate(cells)))
        with resolved_rows(Job(manifest=str(manifest), **job)) as (index, resolved):
            found = {row.id: row for _, row in index.pending(None)}
            self.models.clear()
            self.models.update(resolved.models)
        return [found[str(i)] for i in range(len(cells))]

    @property
    def models(self) -> dict[str, Any]:
        return _models()


@cache
def _models() -> dict[str, Any]:
    return {}


def _image(_shop: Workshop, path: Path) -> None:
    number = int(path.stem[-1])
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC).save(path)


def _mask(_shop: Workshop, path: Path) -> None:
    number = int(path.stem[-1])
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8 * number, 16, 40, 64))
    mask.save(path)


Maker = Callable[[Workshop, Path], object]
MAKERS: Mapping[str, Maker] = {
    **{f"image-{n}.png": _image for n in range(4)},
    **{f"mask-{n}.png": _mask for n in range(4)},
    "sd1": lambda _, path: models.build_sd1(path),
    "sd1-9": lambda _, path: models.build_sd1(path, in_channels=9),
    "sd2": lambda _, path: models.build_sd2(path),
    "sdxl": lambda _, path: models.build_sdxl(path),
    "refiner": lambda _, path: models.build_refiner(path),
    "depth": lambda _, path: models.build_depth(path),
    "pix2pix": lambda _, path: models.build_pix2pix(path),
    "upscaler": lambda _, path: models.build_upscaler(path),
    "latent-upscaler": lambda _, path: models.build_latent_upscaler(path),
    "unconditional": lambda _, path: models.build_unconditional(path),
    "classes": lambda _, path: models.build_class_conditional(path),
    "adm": lambda _, path: models.build_class_conditional(path, learned_variance=True),
    "vitpose": lambda _, path: adapters.build_pose_estimator(path),
    "detector": lambda _, path: adapters.build_person_detector(path),
    "classifier": lambda _, path: adapters.build_classifier(path),
    "lcm": lambda _, path: models.build_lcm(path),
    "control-1": lambda shop, path: adapters.build_controlnet(path, Path(shop.path("sd1")), seed=1),
    "control-2": lambda shop, path: adapters.build_controlnet(path, Path(shop.path("sd1")), seed=2),
    "control-xl-1": lambda shop, path: adapters.build_controlnet(path, Path(shop.path("sdxl")), seed=1),
    "control-xl-2": lambda shop, path: adapters.build_controlnet(path, Path(shop.path("sdxl")), seed=2),
    "peft.safetensors": lambda shop, path: adapters.build_lora(path, Path(shop.path("sd1")), format="peft"),
    "kohya.safetensors": lambda shop, path: adapters.build_lora(path, Path(shop.path("sd1")), format="kohya"),
    "diffusers.safetensors": lambda shop, path: adapters.build_lora(path, Path(shop.path("sd1")), format="diffusers"),
    "both.safetensors": lambda shop, path: adapters.build_lora(
        path, Path(shop.path("sd1")), format="peft", text_encoder=True, seed=5
    ),
    "embedding.safetensors": lambda shop, path: adapters.build_embedding(path, Path(shop.path("sd1")), vectors=3),
    "embedding.pt": lambda shop, path: adapters.build_embedding(path, Path(shop.path("sd1")), format="a1111-pt"),
    "xl-embedding.safetensors": lambda shop, path: adapters.build_embedding(path, Path(shop.path("sdxl")), vectors=2),
    "hyper.pt": lambda shop, path: adapters.build_hypernetwork(path, Path(shop.path("sd1"))),
    "hyper-deep.pt": lambda shop, path: adapters.build_hypernetwork(
        path, Path(shop.path("sd1")), layer_structure=(1, 2, 2, 1), activation="relu", layer_norm=True
    ),
    "vae": lambda _, path: adapters.build_vae(path, seed=9),
    "vae.safetensors": lambda _, path: adapters.build_vae_file(path, seed=9),
    "ip": lambda shop, path: adapters.build_ip_adapter(path, Path(shop.path("sd1"))),
    "ip-xl": lambda shop, path: adapters.build_ip_adapter(path, Path(shop.path("sdxl"))),
    "xl.safetensors": lambda shop, path: adapters.build_lora(path, Path(shop.path("sdxl")), format="peft", seed=6),
}


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(root=tmp_path_factory.mktemp("systems"))


@pytest.fixture(scope="session")
def host() -> PipelineHost:
    return PipelineHost(device="cpu", dtype="float32")


def load_inputs(row: Row) -> dict[str, Image.Image]:
    size = row.parameters.canvas.width, row.parameters.canvas.height
    modes = {name: COLUMNS[image_column(name)].mode for name in row.inputs}
    return {name: fit(Image.open(ref.uri), modes[name], *size) for name, ref in row.inputs.items()}


def generate(host: PipelineHost, shop: Workshop, rows: Sequence[Row]) -> npt.NDArray[np.uint8]:
    batch = MicroBatch(rows=rows, size=SIZE)
    refiner = rows[0].parameters.refining.refiner
    images = host.generate(
        shop.models[rows[0].parameters.model],
        batch,
        [load_inputs(row) for row in rows],
        refiner=None if refiner is None else shop.models[refiner],
    )
    assert all(images.finite)
    return images.pixels


class PerRow(tuple[Any, ...]):
    """A value of its own for each of the three rows."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One way to generate: what its rows share, and what makes its image another than without it."""

    model: str
    shared: Mapping[str, Any] = None  # type: ignore[assignment]
    images: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    guidance_scale: float | None = None
    pickles: bool = False
    prompted: bool = True


def _cells(shop: Workshop, system: System, number: int) -> dict[str, Any]:
    cells: dict[str, Any] = {"seed": (2**63 - 1, 1, 2)[number], "num_inference_steps": STEPS}
    cells["model"] = shop.path(system.model)
    prompted = {
        "prompt": ("a castle", "the sea, 海 with ships", "")[number],
        "negative_prompt": ("fog", "", None)[number],
        "guidance_scale": (7.3, 1.5, 30.0)[number] if system.guidance_scale is None else system.guidance_scale,
    }
    cells |= prompted if system.prompted else {}
    for column in system.images:
        kind = "mask" if column == "mask_image" else "image"
        count = 2 if column == "control_images" else 1
        paths = [shop.path(f"{kind}-{(number + place) % 4}.png") for place in range(count)]
        cells["control_image" if count == 2 else column] = paths if count == 2 else paths[0]
    for name, value in (system.shared or {}).items():
        chosen = value[number] if isinstance(value, PerRow) else value
        cells[name] = chosen(shop) if callable(chosen) else chosen
    return cells


def control(*names: str) -> Callable[[Workshop], list[str]]:
    return lambda shop: [shop.path(name) for name in names]


def loras(**scales: float) -> Callable[[Workshop], list[dict[str, Any]]]:
    return lambda shop: [{"path": shop.path(f"{name}.safetensors"), "scale": scale} for name, scale in scales.items()]


def embedding(name: str) -> Callable[[Workshop], dict[str, Any]]:
    return lambda shop: {"path": shop.path(name), "token": "castle"}


def path_and_scale(name: str, scale: float) -> Callable[[Workshop], dict[str, Any]]:
    return lambda shop: {"path": shop.path(name), "scale": scale}


SYSTEMS: Mapping[str, System] = {
    "sd1 text-to-image": System(model="sd1"),
    "sd1 image-to-image": System(model="sd1", images=("image",)),
    "sd1 inpainting": System(model="sd1", images=("image", "mask_image")),
    "sd1 inpainting, 9 channels": System(model="sd1-9", images=("image", "mask_image")),
    "sd2 text-to-image": System(model="sd2"),
    "sd2 image-to-image": System(model="sd2", images=("image",)),
    "sd2 inpainting": System(model="sd2", images=("image", "mask_image")),
    "sdxl text-to-image": System(model="sdxl"),
    "sdxl image-to-image": System(model="sdxl", images=("image",)),
    "sdxl inpainting": System(model="sdxl", images=("image", "mask_image")),
    "sdxl with refiner": System(
        model="sdxl",
        shared={"refiner": lambda shop: shop.path("refiner"), "denoising_end": 0.6, "num_inference_steps": 5},
        without=("refiner", "denoising_end"),
    ),
    "refiner alone": System(model="refiner", images=("image",)),
    "depth estimated": System(model="depth", images=("image",)),
    "depth given": System(model="depth", images=("image", "depth_map"), without=("depth_map",)),
    "edit": System(model="pix2pix", images=("image",), shared={"image_guidance_scale": 1.7}),
    "upscaling": System(model="upscaler", images=("image",), shared={"width": 16, "height": 16}),
    "latent upscaling": System(model="latent-upscaler", images=("image",)),
    "unconditional": System(model="unconditional", prompted=False),
    "unconditional, DDIM": System(
        model="unconditional", prompted=False, shared={"scheduler": "DDIM", "eta": 0.5}, without=("eta",)
    ),
    "unconditional, DPM++ SDE": System(model="unconditional", prompted=False, shared={"scheduler": "DPM++ SDE Karras"}),
    "class-conditional": System(model="classes", prompted=False, shared={"class_label": PerRow((3, 0, 9))}),
    **{
        f"learned variance, {sampler}": System(
            model="adm", prompted=False, shared={"scheduler": sampler, "class_label": PerRow((3, 0, 9))}
        )
        for sampler in ("DDPM", "DDIM", "Euler a", "DPM++ 2M Karras", "UniPC", "Heun")
    },
    "classifier guidance": System(
        model="unconditional",
        prompted=False,
        shared={
            "class_label": PerRow((3, 0, 9)),
            "classifier": lambda shop: shop.path("classifier"),
            "classifier_scale": PerRow((20.0, 0.0, 5.0)),
        },
        without=("class_label", "classifier", "classifier_scale"),
    ),
    "lcm": System(model="lcm", shared={"scheduler": "LCM"}),
    "turbo": System(
        model="sd1",
        shared={"scheduler": "Euler a SGM Uniform", "num_inference_steps": 1},
        guidance_scale=0.0,
    ),
    "controlnet": System(
        model="sd1",
        images=("control_image",),
        shared={"controlnet": control("control-1"), "controlnet_conditioning_scale": 0.7},
        without=("control_image", "controlnet", "controlnet_conditioning_scale"),
    ),
    "two controlnets": System(
        model="sd1",
        images=("control_images",),
        shared={"controlnet": control("control-1", "control-2"), "controlnet_conditioning_scale": [0.7, 0.4]},
        without=("control_image", "controlnet", "controlnet_conditioning_scale"),
    ),
    "controlnet of edges": System(
        model="sd1",
        images=("control_image",),
        shared={"controlnet": control("control-1"), "control_preprocess": "canny", "control_guidance_end": 0.8},
        without=("control_preprocess",),
    ),
    "controlnet of poses": System(
        model="sd1",
        images=("control_image",),
        shared={
            "controlnet": control("control-1"),
            "control_preprocess": "pose",
            "pose_estimator": lambda shop: shop.path("vitpose"),
            "person_detector": lambda shop: shop.path("detector"),
        },
        without=("control_preprocess", "pose_estimator", "person_detector"),
    ),
    "controlnet, image-to-image": System(
        model="sd1", images=("image", "control_image"), shared={"controlnet": control("control-1")}
    ),
    "two controlnets, inpainting": System(
        model="sd1",
        images=("image", "mask_image", "control_images"),
        shared={"controlnet": control("control-1", "control-2")},
    ),
    "controlnet, inpainting, 9 channels": System(
        model="sd1-9", images=("image", "mask_image", "control_image"), shared={"controlnet": control("control-1")}
    ),
    "sdxl controlnet": System(model="sdxl", images=("control_image",), shared={"controlnet": control("control-xl-1")}),
    "sdxl two controlnets": System(
        model="sdxl", images=("control_images",), shared={"controlnet": control("control-xl-1", "control-xl-2")}
    ),
    "sdxl controlnet, image-to-image": System(
        model="sdxl", images=("image", "control_image"), shared={"controlnet": control("control-xl-1")}
    ),
    "sdxl controlnet, inpainting": System(
        model="sdxl", images=("image", "mask_image", "control_image"), shared={"controlnet": control("control-xl-1")}
    ),
    "lora": System(model="sd1", shared={"loras": loras(peft=0.8)}, without=("loras",)),
    "two loras": System(model="sd1", shared={"loras": loras(kohya=0.8, both=-0.5)}, without=("loras",)),
    "sdxl lora": System(model="sdxl", shared={"loras": loras(xl=1.0)}, without=("loras",)),
    "hires fix": System(
        model="sd1", shared={"hires_scale": 2.0, "hires_strength": 0.7}, without=("hires_scale", "hires_strength")
    ),
    "hires fix, controlnet": System(
        model="sd1",
        images=("control_image",),
        shared={"hires_scale": 2.0, "hires_strength": 0.7, "controlnet": control("control-1")},
        without=("controlnet", "control_image"),
    ),
    "embedding": System(
        model="sd1", shared={"embeddings": embedding("embedding.safetensors")}, without=("embeddings",)
    ),
    "embedding of A1111": System(
        model="sd1", shared={"embeddings": embedding("embedding.pt")}, without=("embeddings",), pickles=True
    ),
    "sdxl embedding": System(
        model="sdxl", shared={"embeddings": embedding("xl-embedding.safetensors")}, without=("embeddings",)
    ),
    "hypernetwork": System(
        model="sd1", shared={"hypernetwork": path_and_scale("hyper.pt", 0.8)}, without=("hypernetwork",), pickles=True
    ),
    "deep hypernetwork": System(
        model="sd1",
        shared={"hypernetwork": path_and_scale("hyper-deep.pt", 0.5)},
        without=("hypernetwork",),
        pickles=True,
    ),
    "vae": System(model="sd1", shared={"vae": lambda shop: shop.path("vae")}, without=("vae",)),
    "vae of a single file": System(
        model="sd1", shared={"vae": lambda shop: shop.path("vae.safetensors")}, without=("vae",)
    ),
    "ip-adapter": System(
        model="sd1",
        images=("ip_adapter_image",),
        shared={"ip_adapter": lambda shop: shop.path("ip") + "/models", "ip_adapter_scale": 0.6},
        without=("ip_adapter", "ip_adapter_image", "ip_adapter_scale"),
    ),
    "ip-adapter, inpainting": System(
        model="sd1",
        images=("image", "mask_image", "ip_adapter_image"),
        shared={"ip_adapter": lambda shop: shop.path("ip") + "/models/ip-adapter_sd15.safetensors"},
        without=("ip_adapter", "ip_adapter_image"),
    ),
    "sdxl ip-adapter": System(
        model="sdxl",
        images=("ip_adapter_image",),
        shared={"ip_adapter": lambda shop: shop.path("ip-xl") + "/sdxl_models"},
        without=("ip_adapter", "ip_adapter_image"),
    ),
}


@pytest.fixture(scope="session")
def untouched(shop: Workshop) -> Callable[[list[Row]], npt.NDArray[np.uint8]]:
    """Images of rows by a host that never made others; many systems are the same without their adapters."""
    made: dict[tuple[str, ...], npt.NDArray[np.uint8]] = {}

    def of(rows: list[Row]) -> npt.NDArray[np.uint8]:
        known = tuple(row.fingerprint for row in rows)
        if known not in made:
            made[known] = generate(PipelineHost(device="cpu", dtype="float32"), shop, rows)
        return made[known]

    return of


BY_MODEL = sorted(SYSTEMS.items(), key=lambda named: named[1].model)  # a model is read once


@pytest.mark.parametrize("name", [name for name, _ in BY_MODEL])
def test_row_does_not_depend_on_its_mates(
    name: str, host: PipelineHost, shop: Workshop, untouched: Callable[[list[Row]], npt.NDArray[np.uint8]]
) -> None:
    system = SYSTEMS[name]
    cells = [_cells(shop, system, number) for number in range(3)]
    rows = shop.rows(cells, allow_pickle=system.pickles)
    together = generate(host, shop, rows)
    assert together.shape[0] == 3
    for number, row in enumerate(rows):
        assert np.array_equal(generate(host, shop, [row])[0], together[number]), number
    assert np.array_equal(generate(host, shop, rows[::-1])[::-1], together)
    if system.without:
        plain = shop.rows([{k: v for k, v in c.items() if k not in system.without} for c in cells])
        without = generate(host, shop, plain)
        assert not np.array_equal(without, together)
        assert np.array_equal(untouched(plain), without), "nothing of the adapters stays behind"


class Injected(Exception):
    """An error at a chosen place."""


ATTACHING = ("batchgen/diffusion/", "/diffusers/loaders/", "/diffusers/schedulers/", "/peft/")


@cache
def _attaches(file: str) -> bool:
    """Whether calls in it are of those that attach something to a model: ours, diffusers' loaders', peft's."""
    return any(part in file for part in ATTACHING)


@contextmanager
def failing_at(number: int | None) -> Iterator[list[int]]:
    """Raise in the call of that number, of all that attach something; gives how many there were."""
    count = [0]

    def watch(frame: FrameType, _event: str, _argument: Any) -> None:  # of calls alone: it asks for no lines
        code = frame.f_code
        if code.co_name == "<genexpr>":  # one that `any` left early is closed at some time, and nobody hears its error
            return
        if _attaches(code.co_filename):
            count[0] += 1
            if count[0] == number:
                raise Injected(f"{code.co_filename}:{code.co_name}")

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield count
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(
    "name",
    ["sdxl with refiner", "controlnet", "two loras", "embedding", "hypernetwork", "vae", "ip-adapter"],
)
def test_a_failure_leaves_nothing_behind(name: str, shop: Workshop) -> None:
    """Incident: a LoRA whose text part did not fit left its UNet part on, and 12 plain rows came out wrong."""
    system = SYSTEMS[name]
    cells = _cells(shop, system, 0)
    cells["num_inference_steps"] -= 1
    without = {name: cell for name, cell in cells.items() if name not in system.without}
    rows = shop.rows([cells, without], allow_pickle=system.pickles)
    attached, plain = rows[:1], rows[1:]
    host = PipelineHost(device="cpu", dtype="float32")
    with_it = generate(host, shop, attached)  # what is imported, and cached in the process, is so from here on
    host.forget()
    expected = generate(host, shop, plain)
    with failing_at(None) as calls:
        assert np.array_equal(generate(host, shop, attached), with_it)
    host.forget()
    generate(host, shop, plain)  # so that the model is loaded, and the failure comes while it is changed
    for number in {round(1 + place * (calls[0] - 1) / 4) for place in range(5)}:
        with failing_at(number), pytest.raises(Exception, match=r"\.py:"):
            generate(host, shop, attached)
        assert np.array_equal(generate(host, shop, plain), expected), number
    assert np.array_equal(generate(host, shop, attached), with_it)


@pytest.mark.parametrize("repeats", [True, False])
def test_a_canary_tells_when_something_stayed_in_a_model(
    repeats: bool, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device(PipelineHost):
        """One that gives the same bits for the same call, or one that does not."""

        def generate(self, *args: Any, **kwargs: Any) -> Images:
            made = super().generate(*args, **kwargs)
            return (
                made if repeats else replace(made, pixels=made.pixels ^ np.uint8(np.random.default_rng().integers(99)))
            )

    host = Device(device="cpu", dtype="float32")
    canary = Canary(host)
    rows = shop.rows([_cells(shop, SYSTEMS["sd1 text-to-image"], number) for number in range(2)])

    def make(row: Row) -> npt.NDArray[np.uint8]:
        batch = MicroBatch(rows=[row], size=SIZE)
        images = canary.generate(shop.models[row.parameters.model], batch, [{}], refiner=None, save_steps=())
        return images.pixels

    right = make(rows[1])
    monkeypatch.setattr("batchgen.diffusion.canary.EVERY", 1)
    if repeats:
        canary.check("first")
    monkeypatch.setattr("batchgen.diffusion.canary.EVERY", 3)
    make(rows[0])
    canary.check("second")  # too early to look
    assert host._loaded is not None
    with torch.inference_mode():
        host._loaded._parts["unet"].conv_out.weight.mul_(1.01)  # type: ignore[union-attr]
    wrong = make(rows[1])
    make(rows[0])
    if repeats:
        assert not np.array_equal(wrong, right)
        with pytest.raises(CanaryDied, match="shards second, which are committed"):
            canary.check("third")
        assert np.array_equal(make(rows[1]), right)
    canary.check("third")


def _factors(seed: int, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


Change = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]


def _dora(change: Change, key: str, dimension: int) -> Change:
    def decomposed(of: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
        changed = weight + change(of, weight)
        others = tuple(one for one in range(weight.dim()) if one != dimension)
        shape = [-1 if one == dimension else 1 for one in range(weight.dim())]
        normed = changed / changed.norm(dim=others, keepdim=True)
        difference: torch.Tensor = normed * of[key].flatten().reshape(shape) - weight
        return difference

    return decomposed


def _low_rank(of: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return torch.einsum("or,ri->oi", of["lora_up.weight"], of["lora_down.weight"])


_LINEAR, _CONV = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.resnets.0.conv1",
)  # 16x32, 32x32x3x3
_PAIR: Mapping[str, tuple[int, ...]] = {"lora_down.weight": (4, 32), "lora_up.weight": (16, 4)}
ALGORITHMS: Mapping[str, tuple[str, Mapping[str, tuple[int, ...]], float | None, Change]] = {
    "LoHa": (
        _LINEAR,
        {"hada_w1_a": (16, 4), "hada_w1_b": (4, 32), "hada_w2_a": (16, 4), "hada_w2_b": (4, 32)},
        2.0,
        lambda of, _: 0.5 * (of["hada_w1_a"] @ of["hada_w1_b"]) * (of["hada_w2_a"] @ of["hada_w2_b"]),
    ),
    "LoHa of a convolution, Tucker": (
        _CONV,
        {
            "hada_w1_a": (4, 32), "hada_w1_b": (4, 32), "hada_t1": (4, 4, 3, 3),
            "hada_w2_a": (4, 32), "hada_w2_b": (4, 32), "hada_t2": (4, 4, 3, 3),
        },
        None,
        lambda of, _: (
            torch.einsum("abkl,ao,bi->oikl", of["hada_t1"], of["hada_w1_a"], of["hada_w1_b"])
            * torch.einsum("abkl,ao,bi->oikl", of["hada_t2"], of["hada_w2_a"], of["hada_w2_b"])
        ),
    ),
    "LoKr": (
        _LINEAR,
        {"lokr_w1": (4, 4), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 8)},
        1.0,
        lambda of, _: 0.5 * torch.kron(of["lokr_w1"], of["lokr_w2_a"] @ of["lokr_w2_b"]),
    ),
    "LoKr of whole factors": (
        _LINEAR,
        {"lokr_w1": (2, 4), "lokr_w2": (8, 8)},
        1e9,  # says nothing without a rank, as LyCORIS has it
        lambda of, _: torch.kron(of["lokr_w1"], of["lokr_w2"]),
    ),
    "LoKr of a convolution": (
        _CONV,
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 72)},
        2.0,
        lambda of, _: torch.einsum(
            "ab,cdkl->acbdkl",
            of["lokr_w1_a"] @ of["lokr_w1_b"],
            (of["lokr_w2_a"] @ of["lokr_w2_b"]).reshape(8, 8, 3, 3),
        ).reshape(32, 32, 3, 3),
    ),
    "CP": (
        _CONV,
        {"lora_down.weight": (4, 32, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (32, 4, 1, 1)},
        2.0,
        lambda of, _: (
            0.5
            * torch.einsum(
                "or,rskl,si->oikl",
                of["lora_up.weight"][..., 0, 0],
                of["lora_mid.weight"],
                of["lora_down.weight"][..., 0, 0],
            )
        ),
    ),
    "difference": (_LINEAR, {"diff": (16, 32)}, None, lambda of, _: of["diff"]),
    "difference of a convolution": (_CONV, {"diff": (32, 32, 3, 3)}, None, lambda of, _: of["diff"]),
    "DoRA by input": (_LINEAR, {**_PAIR, "dora_scale": (1, 32)}, None, _dora(_low_rank, "dora_scale", 1)),
    "DoRA by output": (_LINEAR, {**_PAIR, "dora_scale": (16, 1)}, None, _dora(_low_rank, "dora_scale", 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_trainers_make_is_what_it_does_to_the_weights(
    name: str, host: PipelineHost, shop: Workshop, tmp_path: Path
) -> None:
    """The oracle is a model with the changed weight itself."""
    layer, shapes, alpha, change = ALGORITHMS[name]
    tensors = _factors(3, **{key.replace(".", "+"): shape for key, shape in shapes.items()})
    tensors = {key.replace("+", "."): value for key, value in tensors.items()}
    if alpha is not None:
        tensors["alpha"] = torch.tensor(alpha)
    flat = f"lora_unet_{layer.replace('.', '_')}"
    save_file({f"{flat}.{key}": value for key, value in tensors.items()}, tmp_path / "made.safetensors")

    _assert_does(shop, host, tmp_path, "made.safetensors", layer, lambda weight: change(tensors, weight))


@pytest.mark.parametrize("style", ["PEFT", "PEFT, DoRA", "bare", "bare, old"])
def test_names_without_a_prefix(style: str, host: PipelineHost, shop: Workshop, tmp_path: Path) -> None:
    """What PEFT itself and `unet.save_lora_adapter` write; PEFT's scale stands in a file beside."""
    pair = _factors(4, down=(4, 32), up=(16, 4), magnitude=(16,))
    down, up = (
        (".lora.down.weight", ".lora.up.weight") if style == "bare, old" else (".lora_A.weight", ".lora_B.weight")
    )
    prefix = "base_model.model." if "PEFT" in style else ""
    tensors = {f"{prefix}{_LINEAR}{down}": pair["down"], f"{prefix}{_LINEAR}{up}": pair["up"]}
    if "DoRA" in style:
        tensors[f"{prefix}{_LINEAR}.lora_magnitude_vector"] = pair["magnitude"]
    (tmp_path / "saved").mkdir()
    file = "adapter_model.safetensors" if "PEFT" in style else "pytorch_lora_weights.safetensors"
    save_file(tensors, tmp_path / "saved" / file)
    scale = 0.5 if "PEFT" in style else 1.0
    (tmp_path / "saved" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 2}')
    change: Change = lambda of, _: scale * of["up"] @ of["down"]  # noqa: E731
    whole = _dora(change, "magnitude", 0) if "DoRA" in style else change
    _assert_does(shop, host, tmp_path, "saved", _LINEAR, lambda weight: whole(pair, weight))


def test_embeddings_in_a_loras_file_are_known_to_its_prompts(
    host: PipelineHost, shop: Workshop, tmp_path: Path
) -> None:
    lora, ring = load_file(shop.path("peft.safetensors")), load_file(shop.path("embedding.safetensors"))
    (vectors,) = ring.values()
    save_file(lora | {"bundle_emb.castle.string_to_param.*": vectors}, tmp_path / "both.safetensors")
    cells = _cells(shop, SYSTEMS["sd1 text-to-image"], 0)
    apart = {"loras": shop.path("peft.safetensors")}
    word = {"embeddings": [{"path": shop.path("embedding.safetensors"), "token": "castle"}]}
    bundled, expected, without = (
        generate(host, shop, shop.rows([cells | more]))
        for more in ({"loras": str(tmp_path / "both.safetensors")}, apart | word, apart)
    )
    assert np.array_equal(bundled, expected)
    assert not np.array_equal(bundled, without)


def _assert_does(
    shop: Workshop,
    host: PipelineHost,
    folder: Path,
    lora: str,
    layer: str,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """A row with the LoRA is the image of a model whose weight was changed so, and another than without."""
    changed = folder / "changed"
    shutil.copytree(shop.path("sd1"), changed)
    (weights,) = (changed / "unet").glob("*.safetensors")
    state = load_file(weights)
    state[f"{layer}.weight"] += change(state[f"{layer}.weight"])
    save_file(state, weights)
    cells = _cells(shop, SYSTEMS["sd1 text-to-image"], 0)
    with_lora = generate(host, shop, shop.rows([cells | {"loras": str(folder / lora)}]))
    plain = generate(host, shop, shop.rows([cells]))
    other_host = PipelineHost(device="cpu", dtype="float32")  # so that the other one need not read its model again
    expected = generate(other_host, shop, shop.rows([cells | {"model": str(changed)}]))
    error, effect = (np.abs(with_lora.astype(int) - other).mean() for other in (expected, plain))
    assert effect > 0.1
    assert error < effect / 50


def test_saved_steps_are_the_rows_own(host: PipelineHost, shop: Workshop) -> None:
    """The image after the last step is the row's own, those before are not, and none depends on mates."""
    rows = shop.rows([_cells(shop, SYSTEMS["sd1 text-to-image"], number) for number in range(3)])
    model, inputs = shop.models[rows[0].parameters.model], [load_inputs(row) for row in rows]
    images = host.generate(model, MicroBatch(rows=rows, size=SIZE), inputs, save_steps=(1, STEPS, 99))
    assert images.steps.keys() == {1, STEPS}
    assert np.array_equal(images.steps[STEPS], images.pixels)
    assert not np.array_equal(images.steps[1], images.pixels)
    alone = host.generate(model, MicroBatch(rows=rows[1:2], size=SIZE), inputs[1:2], save_steps=(1,))
    assert np.array_equal(alone.steps[1][0], images.steps[1][1])


def test_size_conditioning_is_the_rows_own(host: PipelineHost, shop: Workshop) -> None:
    """SDXL's sizes differ from row to row in one call; a row with other sizes is another image."""
    plain = [_cells(shop, SYSTEMS["sdxl text-to-image"], number) for number in range(3)]
    sized = [plain[0], plain[1] | {"original_size": [512, 256], "crops_coords_top_left": [8, 0]}, plain[2]]
    before, after = (generate(host, shop, shop.rows(cells)) for cells in (plain, sized))
    assert np.array_equal(before[[0, 2]], after[[0, 2]])
    assert not np.array_equal(before[1], after[1])


def test_unmasked_pixels_are_kept_on_request(host: PipelineHost, shop: Workshop) -> None:
    """Where the mask is dark the init image's own pixels are left, where it is light the image is the same."""
    cells = [_cells(shop, SYSTEMS["sd1 inpainting"], number) for number in range(3)]
    plain = generate(host, shop, shop.rows(cells))
    rows = shop.rows([cell | {"keep_unmasked": True} for cell in cells])
    kept = generate(host, shop, rows)
    for image, before, row in zip(kept, plain, rows, strict=True):
        inputs = load_inputs(row)
        light = np.asarray(inputs["mask_image"]) >= 128
        assert np.array_equal(image[~light], np.asarray(inputs["image"])[~light])
        assert np.array_equal(image[light], before[light])


def test_missing_and_empty_negative_prompts_differ_for_two_towers(host: PipelineHost, shop: Workshop) -> None:
    """SDXL takes zeros for a missing negative prompt; for one tower the two are the same row."""
    for model, same in (("sdxl", False), ("sd1", True)):
        base = _cells(shop, SYSTEMS[f"{model} text-to-image"], 0)
        rows = shop.rows([base | {"negative_prompt": text} for text in (None, "")])
        assert (rows[0].fingerprint == rows[1].fingerprint) is same
        images = generate(host, shop, rows)
        assert np.array_equal(images[0], images[1]) is same


def test_lora_formats_agree(host: PipelineHost, shop: Workshop) -> None:
    """The same weights in the key names of PEFT, diffusers and kohya make the same image."""
    images = [
        generate(host, shop, shop.rows([_cells(shop, System(model="sd1", shared={"loras": loras(**{name: 0.8})}), 0)]))
        for name in ("peft", "diffusers", "kohya")
    ]
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])


def test_classifier_leads_to_its_class(host: PipelineHost, shop: Workshop) -> None:
    """Guided images are likelier of their class in the classifier's own eyes; a scale of 0 changes nothing."""
    base = _cells(shop, SYSTEMS["classifier guidance"], 0) | {"num_inference_steps": 7}
    folder = Path(base["classifier"])
    classifier = load_classifier(folder, torch.device("cpu"))
    chances = []
    for scale in (0.0, 3.0, 30.0):
        rows = shop.rows([base | {"classifier_scale": scale, "seed": seed} for seed in range(3)])
        pixels = torch.from_numpy(generate(host, shop, rows)).permute(0, 3, 1, 2) / 127.5 - 1
        logits = classifier(pixels, torch.zeros(3))
        chances.append(logits.log_softmax(-1)[:, base["class_label"]].mean().item())
    assert chances[0] < chances[1] < chances[2]
    plain = shop.rows([{k: v for k, v in base.items() if k not in SYSTEMS["classifier guidance"].without}])
    unguided = shop.rows([base | {"classifier_scale": 0.0}])
    assert np.array_equal(generate(host, shop, plain), generate(host, shop, unguided))


def test_classifier_gradient_is_that_of_its_logits(shop: Workshop) -> None:
    """Against a difference quotient along the gradient itself."""
    classifier = load_classifier(Path(shop.path("classifier")), torch.device("cpu"))
    images, times = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 500.0])
    labels = torch.tensor([1, 7])
    gradient = classifier.gradient(images, times, labels)

    def log_chance(seen: torch.Tensor) -> torch.Tensor:
        chances: torch.Tensor = classifier(seen, times).double().log_softmax(-1).gather(1, labels[:, None])[:, 0]
        return chances

    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    step = 1e-2
    slope = (log_chance(images + step * direction) - log_chance(images - step * direction)) / (2 * step)
    assert torch.allclose(slope, gradient.flatten(1).norm(dim=1).double(), rtol=0.02)


def test_tiles_of_a_large_row_end_with_it(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Incident: after a row that was decoded in tiles, smaller ones were too, and came out as others than before."""
    monkeypatch.setattr("batchgen.diffusion.loaded._LARGEST_UNTILED", 96)
    low = PipelineHost(device="cpu", dtype="float32", loading=Loading(low_memory=True))
    cells = _cells(shop, SYSTEMS["sd1 text-to-image"], 0) | {"vae": shop.path("vae")}
    small, large = ([row] for row in shop.rows([cells | {"width": side, "height": side} for side in (96, 128)]))
    before = generate(low, shop, small)
    whole = generate(PipelineHost(device="cpu", dtype="float32"), shop, large)
    assert not np.array_equal(generate(low, shop, large), whole), "in tiles"
    assert np.array_equal(generate(low, shop, small), before)


def test_ip_adapter_where_memory_is_low(shop: Workshop) -> None:
    """Attention in slices makes room for the adapter's own processors, and comes back after it."""
    low = PipelineHost(device="cpu", dtype="float32", loading=Loading(low_memory=True))
    system = SYSTEMS["ip-adapter"]
    cells = [_cells(shop, system, number) for number in range(2)]
    plain = shop.rows([{k: v for k, v in cell.items() if k not in system.without} for cell in cells])
    before = generate(low, shop, plain)
    assert not np.array_equal(generate(low, shop, shop.rows(cells)), before)
    assert np.array_equal(generate(low, shop, plain), before)


@pytest.mark.parametrize(
    "name",
    [
        "sd1 inpainting, 9 channels",
        "sdxl image-to-image",
        "sdxl inpainting",
        "depth estimated",
        "edit",
        "upscaling",
        "latent upscaling",
        "vae of a single file",
    ],
)
def test_components_have_precisions_of_their_own(name: str, host: PipelineHost, shop: Workshop) -> None:
    """Autoencoder and text encoders in float32 beside a UNet in bfloat16, call after call."""
    mixed = PipelineHost(
        device="cpu",
        dtype="bfloat16",
        loading=Loading(dtypes={"vae": "float32", "text_encoder": "float32", "text_encoder_2": "float32"}),
    )
    rows = shop.rows([_cells(shop, SYSTEMS[name], number) for number in range(3)])
    together = generate(mixed, shop, rows)
    assert np.array_equal(generate(mixed, shop, rows[1:2])[0], together[1])
    narrow = generate(PipelineHost(device="cpu", dtype="bfloat16"), shop, rows)
    wide = generate(host, shop, rows)
    assert mixed.environment.dtype == "bfloat16, text_encoder float32, text_encoder_2 float32, vae float32"
    distance = {key: np.abs(other.astype(int) - wide).mean() for key, other in (("mixed", together), ("all", narrow))}
    assert 0 < distance["mixed"] < 1.2 * distance["all"] < 4, "the same image but for rounding"
    assert not np.array_equal(together, narrow)
