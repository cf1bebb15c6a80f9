"""Tiny adapters with seeded random weights in the formats they are shared in, each made to fit a model folder.

Every one changes images visibly. A seed gives the same numbers in every format of a thing.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import original_unet_key, original_vae_state, seeded, tiny_vae, tiny_vision_config
from transformers import (
    CLIPVisionModelWithProjection,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

__all__ = [
    "build_classifier",
    "build_controlnet",
    "build_embedding",
    "build_hypernetwork",
    "build_ip_adapter",
    "build_lora",
    "build_person_detector",
    "build_pose_estimator",
    "build_vae",
    "build_vae_file",
]

LoraFormat = Literal["peft", "diffusers", "kohya"]
EmbeddingFormat = Literal["safetensors", "bin", "a1111-pt"]
Activation = Literal["linear", "relu"]

_UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
_TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def build_controlnet(folder: Path, model: Path, *, seed: int = 0) -> Path:
    """A ControlNet that starts from the model's own UNet, as all do, after some training: no convolution is zero."""
    unet = _unet(model)
    with seeded(seed):
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
        hint = net.controlnet_cond_embedding
        for layer in [hint.conv_in, *hint.blocks, hint.conv_out, net.controlnet_mid_block, *net.controlnet_down_blocks]:
            torch.nn.init.normal_(layer.weight, std=2 * layer.weight[0].numel() ** -0.5)
    net.save_pretrained(folder)
    return folder


def build_pose_estimator(folder: Path, *, seed: int = 0) -> Path:
    """ViTPose for crops of 32 by 24 pixels, so sure of itself that it sees points everywhere."""
    backbone = VitPoseBackboneConfig(
        image_size=[32, 24],
        patch_size=[8, 8],
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        out_indices=[1],
    )
    with seeded(seed):
        model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17))
        torch.nn.init.normal_(model.head.conv.weight, std=0.5)
    model.save_pretrained(folder)
    VitPoseImageProcessorPil(size={"height": 32, "width": 24}).save_pretrained(folder)
    return folder


def build_person_detector(folder: Path, *, seed: int = 0) -> Path:
    """A YOLOS of two boxes, which it takes for people."""
    config = YolosConfig(
        image_size=[32, 32],
        patch_size=16,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_detection_tokens=2,
        id2label={0: "lamp", 1: "person"},
        label2id={"lamp": 0, "person": 1},
    )
    with seeded(seed):
        model = YolosForObjectDetection(config)
    with torch.no_grad():
        model.class_labels_classifier.layers[-1].bias[1] = 20.0
    model.save_pretrained(folder)
    YolosImageProcessorPil(size={"height": 32, "width": 32}, format="coco_detection").save_pretrained(folder)
    return folder


def build_classifier(folder: Path, *, seed: int = 0, image_size: int = 32, classes: int = 10) -> Path:
    """ADM's classifier of noisy images under the tensor names of the published ones, two levels of 32 channels."""
    width, depth, levels = 32, 2, 2
    with seeded(seed):
        state = {name: torch.randn(shape) * 0.5 / shape[-1] ** 0.5 for name, shape in _classifier_shapes(
            width, depth, levels, image_size // 2 ** (levels - 1), classes
        )}  # fmt: skip
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    config = {
        "image_size": image_size,
        "classifier_width": width,
        "classifier_depth": depth,
        "classifier_attention_resolutions": [image_size // 2],
        "num_head_channels": 16,
        "channel_mult": [1] * levels,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _classifier_shapes(
    width: int, depth: int, levels: int, side: int, classes: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    def layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    def residual(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from layer(f"{name}.in_layers.0", width)
        yield from layer(f"{name}.in_layers.2", width, width, 3, 3)
        yield from layer(f"{name}.emb_layers.1", 2 * width, 4 * width)
        yield from layer(f"{name}.out_layers.0", width)
        yield from layer(f"{name}.out_layers.3", width, width, 3, 3)

    def attention(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from layer(f"{name}.norm", width)
        yield from layer(f"{name}.qkv", 3 * width, width, 1)
        yield from layer(f"{name}.proj_out", width, width, 1)

    yield from layer("time_embed.0", 4 * width, width)
    yield from layer("time_embed.2", 4 * width, 4 * width)
    yield from layer("input_blocks.0.0", width, 3, 3, 3)
    for level in range(levels):
        for block in range(depth):
            number = 1 + level * (depth + 1) + block
            yield from residual(f"input_blocks.{number}.0")
            if level == levels - 1:
                yield from attention(f"input_blocks.{number}.1")
        if level < levels - 1:
            yield from residual(f"input_blocks.{1 + level * (depth + 1) + depth}.0")
    yield from residual("middle_block.0")
    yield from attention("middle_block.1")
    yield from residual("middle_block.2")
    yield from layer("out.0", width)
    yield "out.2.positional_embedding", (width, side * side + 1)
    yield from layer("out.2.qkv_proj", 3 * width, width, 1)
    yield from layer("out.2.c_proj", classes, width, 1)


def build_lora(
    file: Path, model: Path, *, format: LoraFormat = "peft", text_encoder: bool = False, rank: int = 4, seed: int = 0
) -> Path:
    """Low-rank changes of the attention and feed-forward layers of the UNet and, if asked for, of all text towers.

    `kohya` files halve alpha and double the weights, which comes to the same; for Stable Diffusion XL they name UNet
    layers as the original implementation does, for the others as diffusers does, all as that trainer.
    """
    generator = torch.Generator().manual_seed(seed)
    xl = _is_xl(model)
    state: dict[str, torch.Tensor] = {}
    for part in ["unet", *(["text_encoder", "text_encoder_2"] if text_encoder else [])]:
        for layer, shape in _layers(model / part):
            down = torch.randn(rank, *shape[1:], generator=generator) * shape[1] ** -0.5
            up = torch.randn(shape[0], rank, *shape[2:], generator=generator) * (0.5 * rank**-0.5)
            if format == "kohya":
                name = _kohya_name(part, layer, xl)
                state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": 2 * up}
                state[f"{name}.alpha"] = torch.tensor(rank / 2)
            else:
                a, b = _lora_keys(part, format)
                state |= {f"{part}.{layer}.{a}.weight": down, f"{part}.{layer}.{b}.weight": up}
    save_file(state, file, metadata=_kohya_metadata(rank, model) if format == "kohya" else {"format": "pt"})
    return file


def build_embedding(
    file: Path,
    model: Path,
    *,
    token: str = "<tiny>",
    vectors: int = 1,
    format: EmbeddingFormat = "safetensors",
    seed: int = 0,
) -> Path:
    """A textual inversion of so many vectors, for every text tower of the model.

    For Stable Diffusion XL the file holds `clip_l` and `clip_g`, and in no format the token; `format` then only says
    how the file is written. A refiner, which has no first tower, has no `clip_l`.
    """
    generator = torch.Generator().manual_seed(seed)
    towers = {"clip_l": model / "text_encoder", "clip_g": model / "text_encoder_2"}
    learned = {
        name: 0.1 * torch.randn(vectors, _config(tower)["hidden_size"], generator=generator)
        for name, tower in towers.items()
        if tower.exists()
    }
    content: dict[str, Any] = learned
    if "clip_g" not in learned:
        content = {token: learned["clip_l"]}
        if format == "a1111-pt":
            content = {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": learned["clip_l"]},
                "name": token,
                "step": 100,
                "sd_checkpoint": None,
                "sd_checkpoint_name": None,
            }
    if format == "safetensors":
        save_file(content, file, metadata={"format": "pt"})
    else:
        torch.save(content, file)
    return file


def build_hypernetwork(
    file: Path,
    model: Path,
    *,
    seed: int = 0,
    layer_structure: Sequence[float] = (1, 2, 1),
    activation: Activation = "linear",
    layer_norm: bool = False,
    activate_output: bool = False,
) -> Path:
    """A hypernetwork as the AUTOMATIC1111 web UI saves it: by the width of the context, a network for keys and one for
    values, each applied as x + strength * network(x). The widths are those of all attentions, of both kinds.

    Source of the format: `modules/hypernetworks/hypernetwork.py` of that project. Layers are numbered in a
    `Sequential` that counts activations and norms too; a norm follows the last layer as well.
    """
    with seeded(seed):
        content: dict[Any, Any] = {
            width: tuple(
                _hypernetwork(width, layer_structure, activation, layer_norm, activate_output).state_dict(
                    prefix="linear."
                )
                for _ in ("keys", "values")
            )
            for width in sorted(_context_widths(model))
        }
    content |= {
        "step": 100,
        "name": file.stem,
        "layer_structure": list(layer_structure),
        "activation_func": activation,
        "is_layer_norm": layer_norm,
        "weight_initialization": "Normal",
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "activate_output": activate_output,
        "use_dropout": False,
        "dropout_structure": [0] * len(layer_structure),
        "last_layer_dropout": False,
        "optional_info": None,
    }
    torch.save(content, file)
    return file


def build_vae(folder: Path, *, seed: int = 0, scaling_factor: float = 0.18215) -> Path:
    """Another autoencoder, of the kind and size that all models here have but the x4 upscaler."""
    with seeded(seed):
        tiny_vae(scaling_factor=scaling_factor).save_pretrained(folder)
    return folder


def build_vae_file(file: Path, *, seed: int = 0) -> Path:
    """The autoencoder of `build_vae(seed=seed)` with the key names of the original implementation.

    Its config is the folder that `build_vae` writes.
    """
    with seeded(seed):
        state = original_vae_state(tiny_vae())
    save_file({key: value.contiguous() for key, value in state.items()}, file, metadata={"format": "pt"})
    return file


def build_ip_adapter(folder: Path, model: Path, *, seed: int = 0) -> Path:
    """An IP-Adapter of four image tokens, with its image encoder.

    Arguments of `load_ip_adapter`: the folder, `subfolder="models"`, `weight_name="ip-adapter_sd15.safetensors"`; for
    Stable Diffusion XL `sdxl_models` and `ip-adapter_sdxl.safetensors`.
    """
    subfolder, name = ("models", "ip-adapter_sd15") if not _is_xl(model) else ("sdxl_models", "ip-adapter_sdxl")
    unet = _unet(model)
    width = unet.config.cross_attention_dim
    with seeded(seed):
        encoder = CLIPVisionModelWithProjection(tiny_vision_config())
        state = {
            "image_proj.proj.weight": torch.randn(4 * width, encoder.config.projection_dim),
            "image_proj.proj.bias": torch.zeros(4 * width),
            "image_proj.norm.weight": torch.ones(width),
            "image_proj.norm.bias": torch.zeros(width),
        }
        # Self-attentions, which have even numbers, are left as they are.
        for number, processor in enumerate(unet.attn_processors):
            if number % 2:
                keys = unet.get_submodule(processor.removesuffix(".processor")).to_k
                for layer in ("to_k_ip", "to_v_ip"):
                    state[f"ip_adapter.{number}.{layer}.weight"] = torch.randn(keys.weight.shape) * width**-0.5
    encoder.save_pretrained(folder / subfolder / "image_encoder")
    save_file(state, folder / subfolder / f"{name}.safetensors", metadata={"format": "pt"})
    return folder


def _layers(part: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and weight shapes of the layers that a LoRA changes, in the order of the weight file."""
    if not part.exists():
        return
    with safe_open(_weights(part), framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118
            layer = key.removesuffix(".weight")
            if part.name != "unet":
                layer = f"text_model.{layer.removeprefix('text_model.')}"
            endings = _UNET_LAYERS if part.name == "unet" else _TEXT_LAYERS
            if key.endswith(".weight") and layer.endswith(tuple(f".{ending}" for ending in endings)):
                yield layer, tuple(weights.get_slice(key).get_shape())


def _lora_keys(part: str, format: LoraFormat) -> tuple[str, str]:
    if format == "peft":
        return "lora_A", "lora_B"
    return ("lora.down", "lora.up") if part == "unet" else ("lora_linear_layer.down", "lora_linear_layer.up")


def _kohya_name(part: str, layer: str, xl: bool) -> str:
    if part == "unet":
        trained = original_unet_key(f"{layer}.weight").removesuffix(".weight") if xl else layer
        return f"lora_unet_{trained.replace('.', '_')}"
    tower = "lora_te2" if part == "text_encoder_2" else "lora_te1" if xl else "lora_te"
    return f"{tower}_{layer.replace('.', '_')}"


def _kohya_metadata(rank: int, model: Path) -> dict[str, str]:
    by_level = isinstance(_config(model / "unet")["attention_head_dim"], list)
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank / 2),
        "ss_base_model_version": "sdxl_base_v1-0" if _is_xl(model) else "sd_v2" if by_level else "sd_v1",
    }


def _hypernetwork(
    width: int, structure: Sequence[float], activation: Activation, layer_norm: bool, activate_output: bool
) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for number, (taken, given) in enumerate(pairwise(structure)):
        linear = torch.nn.Linear(int(width * taken), int(width * given))
        torch.nn.init.normal_(linear.weight, std=0.7 * linear.in_features**-0.5)
        layers.append(linear)
        is_last = number == len(structure) - 2
        if activation == "relu" and (activate_output or not is_last):
            layers.append(torch.nn.ReLU())
        if layer_norm:
            layers.append(torch.nn.LayerNorm(linear.out_features))
    return torch.nn.Sequential(*layers)


def _context_widths(model: Path) -> set[int]:
    return {shape[1] for layer, shape in _layers(model / "unet") if layer.endswith(".to_k")}


def _is_xl(model: Path) -> bool:
    return (model / "text_encoder_2").exists()


def _unet(model: Path) -> Any:
    variant = "fp16" if ".fp16." in _weights(model / "unet").name else None
    return UNet2DConditionModel.from_pretrained(model / "unet", variant=variant)


def _weights(part: Path) -> Path:
    (file,) = part.glob("*.safetensors")
    return file


def _config(part: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((part / "config.json").read_text())
    return config
