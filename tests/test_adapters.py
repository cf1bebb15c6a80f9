"""Wrong combinations are refused before a model is loaded, with the row, the column and what to try."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_adapters as adapters
import tiny_models as models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from batchgen.driver import resolved_rows
from batchgen.errors import ManifestProblems
from batchgen.job import Job


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models of two families and adapters of both."""
    root = tmp_path_factory.mktemp("adapters")
    models.build_sd1(root / "sd1")
    models.build_sd1(root / "wide", width=24)
    models.build_sd1(root / "nine", in_channels=9)
    models.build_sdxl(root / "sdxl")
    models.build_refiner(root / "refiner")
    models.build_depth(root / "depth")
    models.build_latent_upscaler(root / "latent-upscaler")
    models.build_upscaler(root / "upscaler")
    models.build_unconditional(root / "pixels")
    models.build_class_conditional(root / "classes")
    models.build_unconditional(root / "deep-pixels")
    config = json.loads((root / "deep-pixels" / "unet" / "config.json").read_text())
    (root / "deep-pixels" / "unet" / "config.json").write_text(json.dumps(config | {"block_out_channels": [8] * 5}))
    adapters.build_classifier(root / "classifier", classes=5)
    for name, change in (("deep", {"classifier_depth": 3}), ("typo", {"classifier_dept": 2})):
        told = json.loads((adapters.build_classifier(root / f"classifier-{name}") / "config.json").read_text())
        (root / f"classifier-{name}" / "config.json").write_text(json.dumps(told | change))
    for name in ("hollow", "listed"):
        (root / name).mkdir()
    (root / "hollow" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    (root / "listed" / "config.json").write_text("[]")
    (root / "listed" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (root / "listed.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    adapters.build_controlnet(root / "control", root / "sd1")
    adapters.build_controlnet(root / "control-xl", root / "sdxl")
    for name, model, kind in (
        ("lora", "sd1", "peft"),
        ("lora-xl", "sdxl", "kohya"),
        ("lora-wide", "wide", "diffusers"),
    ):
        adapters.build_lora(root / f"{name}.safetensors", root / model, format=kind)  # type: ignore[arg-type]
    adapters.build_embedding(root / "embedding.safetensors", root / "sd1")
    adapters.build_embedding(root / "embedding-xl.safetensors", root / "sdxl")
    adapters.build_embedding(root / "embedding.pt", root / "sd1", format="a1111-pt")
    adapters.build_hypernetwork(root / "hyper.pt", root / "sd1")
    adapters.build_ip_adapter(root / "ip", root / "sd1")
    adapters.build_vae(root / "vae")
    weights = load_file(root / "lora.safetensors")
    (first,) = [name for name in weights if "mid_block" in name and "proj_in.lora_A" in name][:1]
    save_file(weights | {first: torch.zeros(4, 999)}, root / "lora-other.safetensors")
    save_file({"weight": torch.zeros(3)}, root / "nothing.safetensors")
    (root / "cut.safetensors").write_bytes((root / "lora.safetensors").read_bytes()[:-100])
    (root / "words.safetensors").write_text("no tensors here")
    Image.new("RGB", (64, 64)).save(root / "image.png")
    Image.new("L", (32, 64)).save(root / "narrow.png")
    return root


def complaints(root: Path, cells: Mapping[str, Any], **job: Any) -> list[str]:
    """What `validate` says of a manifest with one good row and this one."""
    rows = [{"prompt": "fine"}, {"prompt": "a", **cells}]
    (root / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with (
        pytest.raises(ManifestProblems) as caught,
        resolved_rows(Job(manifest=str(root / "m.jsonl"), model=str(root / "sd1"), **job)),
    ):
        pass
    return str(caught.value).splitlines()


WRONG: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "ControlNet of another family": (
        {"controlnet": "control-xl", "control_image": "image.png"},
        "controlnet",
        "made for text states of width",
    ),
    "ControlNet of another width": (
        {"controlnet": "control", "control_image": "image.png", "model": "{root}/wide"},
        "controlnet",
        "made for text states of width 32",
    ),
    "ControlNet without image": ({"controlnet": "control"}, "control_image", "holds no images"),
    "image without ControlNet": ({"control_image": "image.png"}, "control_image", "without a controlnet"),
    "poses without estimator": (
        {"controlnet": "control", "control_image": "image.png", "control_preprocess": "pose"},
        "pose_estimator",
        "name a folder of ViTPose",
    ),
    "pose estimator that is none": (
        {
            "controlnet": "control",
            "control_image": "image.png",
            "control_preprocess": "pose",
            "pose_estimator": "ip/models/image_encoder",
        },
        "pose_estimator",
        "it is CLIPVisionModelWithProjection, not a VitPoseForPoseEstimation",
    ),
    "two ControlNets, one image": (
        {"controlnet": ["control", "control"], "control_image": "image.png"},
        "control_image",
        "holds 1 images; give 2",
    ),
    "three scales for one": (
        {"controlnet": "control", "control_image": "image.png", "controlnet_conditioning_scale": [1, 1, 1]},
        "controlnet_conditioning_scale",
        "holds 3 values for 1",
    ),
    "start after end": (
        {
            "controlnet": "control",
            "control_image": "image.png",
            "control_guidance_start": 0.9,
            "control_guidance_end": 0.2,
        },
        "control_guidance_start",
        "not before control_guidance_end",
    ),
    "ControlNet that is a LoRA": (
        {"controlnet": "lora.safetensors", "control_image": "image.png"},
        "controlnet",
        "give the folder of a ControlNet",
    ),
    "LoRA of another family": ({"loras": "lora-xl.safetensors"}, "loras", "made for text states of width"),
    "LoRA of another model": ({"loras": ["lora-wide.safetensors"]}, "loras", "made for text states of width 48"),
    "LoRA of other levels": ({"loras": "lora-other.safetensors"}, "loras", "takes"),
    "LoRA that is none": (
        {"loras": "nothing.safetensors"},
        "loras",
        "its tensor 'weight' is none of a LoRA, LoHa or LoKr",
    ),
    "LoRA cut short": ({"loras": "cut.safetensors"}, "loras", "not a whole .safetensors file"),
    "LoRA of words": ({"loras": "words.safetensors"}, "loras", "not a whole .safetensors file"),
    "LoRA that is missing": ({"loras": "gone.safetensors"}, "loras", "gone.safetensors does not exist"),
    "LoRA twice": ({"loras": ["lora.safetensors", "lora.safetensors"]}, "loras", "twice"),
    "scale of words": ({"loras": {"path": "lora.safetensors", "scale": "much"}}, "loras", "scale 'much', not a number"),
    "unknown key": ({"loras": {"path": "lora.safetensors", "weight": 1}}, "loras", "unknown key 'weight'"),
    "LoRA of a prompt that is missing": (
        {"prompt": "a <lora:gone:1>", "prompt_syntax": "a1111"},
        "loras",
        "gone does not exist",
    ),
    "hypernetwork of a prompt, a pickle": (
        {"prompt": "a <hypernet:hyper:1>", "prompt_syntax": "a1111"},
        "hypernetwork",
        "hyper.pt is a pickle",
    ),
    "hypernetwork of a prompt beside another": (
        {"prompt": "a <hypernet:hyper:1>", "hypernetwork": "lora.safetensors", "prompt_syntax": "a1111"},
        "prompt",
        "names the hypernetwork 'hyper' beside another",
    ),
    "prompt that alternates": (
        {"prompt": "a [red|blue] ball", "prompt_syntax": "a1111"},
        "prompt",
        "alternates in '[red|blue]', which is not supported",
    ),
    "negative prompt that changes": (
        {"negative_prompt": "[red:blue:0.5]", "prompt_syntax": "a1111"},
        "negative_prompt",
        "changes at a step in '[red:blue:0.5]'",
    ),
    "second prompt of two": (
        {"model": "{root}/sdxl", "prompt_2": "a AND b", "prompt_syntax": "a1111"},
        "prompt_2",
        "composes prompts by AND",
    ),
    "LoRA tag that is malformed": ({"prompt": "a <lora:x:much>", "prompt_syntax": "a1111"}, "prompt", "much"),
    "embedding of another family": (
        {"embeddings": {"path": "embedding-xl.safetensors", "token": "x"}},
        "embeddings",
        "made for text states of width",
    ),
    "embedding without token": ({"embeddings": "embedding.safetensors"}, "embeddings", "no 'token'"),
    "pickle": ({"embeddings": {"path": "embedding.pt", "token": "x"}}, "embeddings", "is a pickle"),
    "IP-Adapter without image": ({"ip_adapter": "ip/models"}, "ip_adapter_image", "the ip_adapter needs it"),
    "IP-Adapter of another family": (
        {"ip_adapter": "ip/models", "ip_adapter_image": "image.png", "model": "{root}/sdxl"},
        "ip_adapter",
        "made for text states of width",
    ),
    "autoencoder that is a LoRA": ({"vae": "lora.safetensors"}, "vae", "no tensor in it is an autoencoder's"),
    "autoencoder that is a ControlNet": ({"vae": "control"}, "vae", "not an AutoencoderKL"),
    "autoencoder of another factor": (
        {"vae": "vae", "model": "{root}/upscaler", "image": "image.png"},
        "vae",
        "latents are 8 pixels wide and those of",
    ),
    "second prompt for one text encoder": ({"prompt_2": "b"}, "prompt_2", "means nothing to"),
    "refiner that is none": ({"model": "{root}/sdxl", "refiner": "{root}/sd1"}, "refiner", "name a refiner"),
    "text-to-image with a refiner": ({"model": "{root}/refiner"}, "task", "cannot do text-to-image"),
    "text-to-image with a depth model": (
        {"model": "{root}/depth", "task": "text-to-image"},
        "task",
        "made for depth-to-image",
    ),
    "depth-to-image without a depth model": (
        {"image": "image.png", "task": "depth-to-image"},
        "task",
        "cannot do depth-to-image",
    ),
    "mask of another size": ({"image": "image.png", "mask_image": "narrow.png"}, "mask_image", "is 32x64"),
    "prompt without text encoder": ({"model": "{root}/pixels"}, "prompt", "means nothing to unconditional"),
    "class of a model without": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 1},
        "class_label",
        "name a classifier, or leave it null",
    ),
    "no class": ({"model": "{root}/classes", "prompt": None}, "class_label", "wants one from 0 to 9"),
    "class that is unknown": (
        {"model": "{root}/classes", "prompt": None, "class_label": 10},
        "class_label",
        "is 10; '{root}/classes' knows 0 to 9",
    ),
    "class that the classifier does not know": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 7, "classifier": "classifier"},
        "class_label",
        "is 7; the classifier knows 0 to 4",
    ),
    "classifier of another size": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 1, "classifier": "classifier", "width": 64},
        "classifier",
        "reads images of 32 pixels a side, and the row's is 64x32",
    ),
    "classifier that is a ControlNet": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 1, "classifier": "control"},
        "classifier",
        "expected weights of ADM's classifier",
    ),
    "classifier that is missing": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 1, "classifier": {"path": "nope"}},
        "classifier",
        "nope does not exist",
    ),
    "classifier without path": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 1, "classifier": {"scale": 2}},
        "classifier",
        "wants a classifier",
    ),
    "classifier of another depth": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 1, "classifier": "classifier-deep"},
        "classifier",
        "it has 6 blocks, and by its config.json's classifier_depth 8",
    ),
    "classifier with a misspelt flag": (
        {"model": "{root}/pixels", "prompt": None, "class_label": 1, "classifier": "classifier-typo"},
        "classifier",
        "did you mean 'classifier_depth'?",
    ),
    "scale without classifier": (
        {"model": "{root}/pixels", "prompt": None, "classifier_scale": 2},
        "classifier_scale",
        "means nothing without a classifier",
    ),
    "odd size of pixels": (
        {"model": "{root}/deep-pixels", "prompt": None, "width": 40},
        "width",
        "takes multiples of 16",
    ),
    "scales without ControlNet": (
        {"controlnet_conditioning_scale": 0.5},
        "controlnet_conditioning_scale",
        "means nothing without a controlnet",
    ),
    "estimator without poses": (
        {"controlnet": "control", "control_image": "image.png", "pose_estimator": "/nope"},
        "pose_estimator",
        "means nothing without control_preprocess pose",
    ),
    "rescale with a ControlNet": (
        {"controlnet": "control", "control_image": "image.png", "guidance_rescale": 0.5},
        "guidance_rescale",
        "cannot be used for text-to-image with a ControlNet",
    ),
    "ControlNet by its file": (
        {"controlnet": "control/diffusion_pytorch_model.safetensors", "control_image": "image.png"},
        "controlnet",
        "give the folder of a ControlNet",
    ),
    "ControlNet without weights": (
        {"controlnet": "hollow", "control_image": "image.png"},
        "controlnet",
        "holds no diffusion_pytorch_model.safetensors",
    ),
    "config that is a list": ({"vae": "listed"}, "vae", "holds no JSON object"),
    "header that is a list": ({"loras": "listed.safetensors"}, "loras", "is not a whole .safetensors file"),
    "handoff of another family": (
        {"image": "image.png", "denoising_start": 0.5},
        "denoising_start",
        "means nothing to",
    ),
    "handoff backwards": (
        {"model": "{root}/sdxl", "image": "image.png", "denoising_start": 0.9, "denoising_end": 0.5},
        "denoising_start",
        "not before denoising_end",
    ),
    "hires fix with a refiner": (
        {"model": "{root}/sdxl", "refiner": "{root}/refiner", "hires_scale": 2},
        "hires_scale",
        "cannot be used together with a refiner",
    ),
    "hires fix without end": ({"hires_scale": 4, "width": 8192}, "hires_scale", "which makes the width 32768 pixels"),
    "strength without hires fix": ({"hires_strength": 0.5}, "hires_strength", "means nothing without a hires_scale"),
    "watermark in too small an image": ({"watermark": "x", "width": 32, "height": 32}, "watermark", "has no room"),
    "watermark too long": ({"watermark": "too long"}, "watermark", "takes 8 bytes; an image of 64x64 carries 1 to 1"),
    "option of a wrong value": (
        {"scheduler": "Euler", "scheduler_kwargs": {"timestep_spacing": "foo"}},
        "scheduler_kwargs",
        "one of leading, linspace, trailing",
    ),
    "options that exclude each other": (
        {"scheduler": "DPM++ 2M Karras", "scheduler_kwargs": {"use_beta_sigmas": True}},
        "scheduler_kwargs",
        "choose one",
    ),
    "LoRA in a prompt of a latent upscaler": (
        {
            "model": "{root}/latent-upscaler",
            "image": "image.png",
            "prompt": "x <lora:foo:1>",
            "prompt_syntax": "a1111",
        },
        "prompt",
        "names the LoRA 'foo'",
    ),
    "class of an image from words": ({"class_label": 1}, "class_label", "means nothing to text-to-image"),
    "sampler of a latent upscaler": (
        {"model": "{root}/latent-upscaler", "image": "image.png", "scheduler": "DDIM"},
        "scheduler",
        "takes EulerDiscreteScheduler only",
    ),
    "size of a latent upscaler": (
        {"model": "{root}/latent-upscaler", "image": "image.png", "width": 40},
        "width",
        "takes multiples of 16",
    ),
    "LoRA on a latent upscaler": (
        {"model": "{root}/latent-upscaler", "image": "image.png", "loras": "lora.safetensors"},
        "loras",
        "means nothing to",
    ),
    "strength above 1": ({"image": "image.png", "strength": 1.2}, "strength", "between 0 and 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_combination_is_refused(root: Path, name: str) -> None:
    cells, column, reason = WRONG[name]
    filled = {key: value.format(root=root) if isinstance(value, str) else value for key, value in cells.items()}
    lines = complaints(root, filled)
    assert any(f"m.jsonl, row 2, column '{column}'" in line and reason.format(root=root) in line for line in lines), (
        lines
    )
    assert not any("row 1" in line for line in lines)


_TO_K = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
_KOHYA = {f"lora_unet_{_TO_K}.lora_down.weight": (4, 32), f"lora_unet_{_TO_K}.lora_up.weight": (16, 4)}
_QUERY = "text_model_encoder_layers_0_self_attn_q_proj"
_TEXT = f"lora_te_{_QUERY}"
FOREIGN: Mapping[str, tuple[Mapping[str, tuple[int, ...]], str]] = {
    "GLoRA": ({f"lora_unet_{_TO_K}.a1.weight": (4, 32)}, "none of a LoRA"),
    "IA3": ({f"lora_unet_{_TO_K}.weight": (8,), f"lora_unet_{_TO_K}.on_input": ()}, "none of a LoRA"),
    "a norm's": ({**_KOHYA, "lora_unet_conv_norm_out.w_norm": (8,)}, "conv_norm_out.w_norm"),
    "a bias": ({**_KOHYA, f"lora_unet_{_TO_K}.diff_b": (8,)}, "diff_b"),
    "half a pair": ({f"lora_unet_{_TO_K}.lora_down.weight": (4, 32)}, "none of a LoRA"),
    "half a LoHa": ({f"lora_unet_{_TO_K}.hada_w1_a": (8, 4)}, "none of a LoRA"),
    "Flux": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 32),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (8, 4),
        },
        "does not have",
    ),
    "Flux, of diffusers": (
        {
            "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (4, 32),
            "transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight": (8, 4),
        },
        "none of a LoRA",
    ),
    "SDXL's blocks": (
        {
            "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": (4, 32),
            "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": (8, 4),
        },
        "does not have",
    ),
    "text part of another width": (
        {**_KOHYA, f"{_TEXT}.lora_down.weight": (4, 768), f"{_TEXT}.lora_up.weight": (768, 4)},
        "takes 768 numbers",
    ),
    "text part of another depth": (
        {
            **_KOHYA,
            f"{_TEXT.replace('_0_', '_23_')}.lora_down.weight": (4, 32),
            f"{_TEXT.replace('_0_', '_23_')}.lora_up.weight": (32, 4),
        },
        "does not have",
    ),
    "second text encoder": (
        {f"lora_te2_{_QUERY}.lora_down.weight": (4, 32), f"lora_te2_{_QUERY}.lora_up.weight": (32, 4)},
        "does not have",
    ),
    "other output": (
        {f"lora_unet_{_TO_K}.lora_down.weight": (4, 32), f"lora_unet_{_TO_K}.lora_up.weight": (80, 4)},
        "gives 80",
    ),
    "two ranks": (
        {f"lora_unet_{_TO_K}.lora_down.weight": (4, 32), f"lora_unet_{_TO_K}.lora_up.weight": (64, 8)},
        "is of rank 8",
    ),
    "two ranks of a LoHa": (
        {
            f"lora_unet_{_TO_K}.{name}": shape
            for name, shape in zip(
                ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), ((64, 4), (4, 32), (64, 4), (5, 32)), strict=True
            )
        },
        "hada_w2_a' is of rank 4",
    ),
    "vectors": (
        {f"lora_unet_{_TO_K}.lora_down.weight": (4,), f"lora_unet_{_TO_K}.lora_up.weight": (64,)},
        "is no matrix",
    ),
    "alpha of four": (
        {
            f"lora_unet_{_TO_K}.lora_down.weight": (4, 32),
            f"lora_unet_{_TO_K}.lora_up.weight": (64, 4),
            f"lora_unet_{_TO_K}.alpha": (4,),
        },
        "holds 4 numbers where one is to be",
    ),
    "no tensor": ({}, "holds no tensor"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_lora_that_does_not_fit_is_refused_by_its_key(name: str, root: Path) -> None:
    """Incident: files that diffusers refuses, or reads in part, passed the check, and each row was tried twice."""
    shapes, said = FOREIGN[name]
    file = root / f"foreign {name}.safetensors"  # what is known of a file is remembered by its name
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, file)
    (line,) = complaints(root, {"loras": file.name})
    assert said in line
    assert "row 2, column 'loras'" in line


def test_a_vae_without_a_tensor_is_refused(root: Path) -> None:
    save_file({}, root / "empty.safetensors")
    (line,) = complaints(root, {"vae": "empty.safetensors"})
    assert "holds no tensor" in line


def test_depth_model_without_estimator_needs_a_map(root: Path, tmp_path: Path) -> None:
    """A depth UNet whose folder holds no estimator."""
    folder = models.build_depth(tmp_path / "blind")
    index = json.loads((folder / "model_index.json").read_text())
    del index["depth_estimator"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (line,) = complaints(root, {"image": "image.png", "model": str(folder)})
    assert "column 'depth_map'" in line
    assert "has no depth estimator" in line


def test_scales_and_paths_decide_what_is_done(root: Path) -> None:
    """The bytes of an adapter and its scale are part of the fingerprint, its place is not."""
    (root / "copy").mkdir(exist_ok=True)
    (root / "copy" / "other.safetensors").write_bytes((root / "lora.safetensors").read_bytes())
    cells: list[dict[str, Any]] = [
        {"loras": "lora.safetensors"},
        {"loras": [{"path": "copy/other.safetensors", "scale": 1.0}]},
        {"loras": [{"path": "lora.safetensors", "scale": 0.5}]},
        {},
    ]
    (root / "n.jsonl").write_text(
        "\n".join(json.dumps({"id": str(i), "prompt": "a", "seed": 1} | c) for i, c in enumerate(cells))
    )
    with resolved_rows(Job(manifest=str(root / "n.jsonl"), model=str(root / "sd1"))) as (index, _):
        prints = {row.id: row.fingerprint for _, row in index.pending(None)}
    assert prints["0"] == prints["1"]
    assert len(set(prints.values())) == 3


def test_tags_of_a_prompt_are_its_columns(root: Path) -> None:
    """A LyCORIS file is a LoRA; names go without suffix. Scales and bytes are as if the columns had said so."""
    cells: list[dict[str, Any]] = [
        {"prompt": "a <lyco:lora:0.7> cat<hypernet:hyper:0.5>"},
        {
            "prompt": "a cat",
            "loras": {"path": "lora.safetensors", "scale": 0.7},
            "hypernetwork": {"path": "hyper.pt", "scale": 0.5},
        },
    ]
    (root / "t.jsonl").write_text("\n".join(json.dumps({"seed": 1, "prompt_syntax": "a1111"} | one) for one in cells))
    job = Job(manifest=str(root / "t.jsonl"), model=str(root / "sd1"), allow_pickle=True)
    with resolved_rows(job) as (index, resolved):
        rows = [row for _, row in index.pending(None)]
    assert rows[0].parameters == rows[1].parameters
    assert rows[0].fingerprint == rows[1].fingerprint
    assert resolved.notices == []
