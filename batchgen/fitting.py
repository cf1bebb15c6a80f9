"""Whether an adapter fits a model, told from the headers and configs of its files. Knows nothing of torch.

The header of a .safetensors file names tensors and their shapes; the width of the text states that an adapter was made
for is among them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from batchgen.columns import CellError
from batchgen.models import Model, Source

__all__ = [
    "CLASSIFIER_MULTIPLIERS",
    "CLASSIFIER_WEIGHTS",
    "ClassifierFacts",
    "Shapes",
    "check_architecture",
    "check_classifier",
    "check_controlnet",
    "check_embedding",
    "check_hypernetwork",
    "check_ip_adapter",
    "check_lora",
    "check_vae",
    "read_classifier",
    "read_facts",
    "read_shapes",
]

CLASSIFIER_MULTIPLIERS: Mapping[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Widths of the levels of ADM's classifiers over that of the first one, by the size of their pictures."""

CLASSIFIER_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_LORA_CROSS_ATTENTION = re.compile(r"attn2[._](processor[._])?to_k.*(lora_A|lora_?\.?down)\.(default\.)?weight$")
_LORA_LAYER = re.compile(  # tensors that a UNet's layer feeds, in the names of PEFT, diffusers and kohya
    r"(unet\.|lora_unet_)(?P<layer>.+?)(\.lora_A|\.lora\.down|_lora\.down|\.lora_down)\.(default\.)?weight$"
)
_IP_CROSS_ATTENTION = re.compile(r"to_k_ip\.weight$")
_CLASSES = "out.2.c_proj.weight"
_SINGLE_FILE_VAE = re.compile(r"(^|\.)decoder\.conv_in\.weight$")

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors in a file, by name."""


@lru_cache(maxsize=1024)
def read_facts(path: Path, weights: tuple[str, ...]) -> tuple[Shapes, Mapping[str, Any]]:
    """Shapes of the tensors and the config beside them; both empty where the file does not tell."""
    config: Mapping[str, Any] = {}
    if path.is_dir():
        if (path / "config.json").is_file():
            try:
                config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            except ValueError as error:
                raise CellError(f"{path / 'config.json'} is not JSON: {error}") from None
        files = [file for name in weights for file in sorted(path.glob(name))]
        path = next((file for file in files if file.suffix == ".safetensors"), path)
    return (read_shapes(path) if path.suffix == ".safetensors" else {}), config


def read_shapes(file: Path) -> Shapes:
    """Shapes by tensor name from the header of a .safetensors file; its weights are not read.

    Raises:
        CellError: not such a file, or cut short.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(100 << 20, file.stat().st_size):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        end = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        if file.stat().st_size < end:
            raise ValueError(f"it is {file.stat().st_size} bytes long and should be {end}")
        return {name: tuple(value["shape"]) for name, value in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CellError(f"{file} is not a whole .safetensors file: {error}") from None


def _width_of(shapes: Shapes, pattern: re.Pattern[str]) -> int | None:
    return next((shape[1] for name, shape in shapes.items() if pattern.search(name) and len(shape) > 1), None)


def _other_model(width: int, model: Model) -> str:
    wanted = f"{model.name!r} has {model.text_width}"
    return f"it is made for text states of width {width}, and {wanted}; use one trained for it"


def check_lora(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
    if not any("lora" in name or "hada" in name or "lokr" in name for name in shapes) and shapes:
        return "no tensor in it is a LoRA's"
    width = _width_of(shapes, _LORA_CROSS_ATTENTION)
    if width is not None and width != model.text_width:
        return _other_model(width, model)
    layers = _unet_inputs(model)
    for name, shape in shapes.items():
        match = _LORA_LAYER.match(name)
        inputs = layers.get(_flat(match["layer"])) if match else None
        if match and inputs is not None and inputs != shape[1]:
            layer = f"{match['layer']} takes {shape[1]} numbers"
            return f"its layer {layer} and that of {model.name!r} {inputs}; use one trained for it"
    return None


def _flat(layer: str) -> str:
    """A layer's name as kohya's trainer writes it; processors of old files are no layers of their own."""
    return layer.replace(".processor", "").replace(".", "_")


@lru_cache(maxsize=16)
def _unet_inputs(model: Model) -> Mapping[str, int]:
    """How many numbers each layer of the model's UNet takes; nothing where its weights are not at hand."""
    folder = Path(model.location) / "unet"
    files = sorted(folder.glob("*.safetensors")) if model.source is Source.FOLDER else []
    shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
    return {
        _flat(name.removesuffix(".weight")): shape[1]
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) > 1
    }


def check_embedding(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
    if not shapes:
        return None
    widths = {shape[-1] for shape in shapes.values()}
    if any(len(shape) not in (1, 2) for shape in shapes.values()) or len(shapes) > 2:
        return "it is not an embedding: expected one or two tensors of token vectors"
    if widths != set(model.token_widths) or len(shapes) != len(model.token_widths):
        made, has = (" and ".join(map(str, sorted(found))) for found in (widths, set(model.token_widths)))
        return f"it is made for text states of width {made}, and {model.name!r} has {has}; use one trained for it"
    return None


def check_hypernetwork(_shapes: Shapes, _config: Mapping[str, Any], _model: Model) -> str | None:
    """None: A1111 saves them pickled, so that their widths are known when they are loaded."""
    return None


def check_vae(shapes: Shapes, config: Mapping[str, Any], _model: Model) -> str | None:
    if config and config.get("_class_name") != "AutoencoderKL":
        return f"it is a {config.get('_class_name')}, not an AutoencoderKL"
    if config.get("latent_channels", 4) != 4:
        return f"its latents have {config['latent_channels']} channels, not 4"
    if not config and shapes and not any(_SINGLE_FILE_VAE.search(name) for name in shapes):
        return "no tensor in it is an autoencoder's"
    return None


def check_controlnet(_shapes: Shapes, config: Mapping[str, Any], model: Model) -> str | None:
    if config.get("_class_name") != "ControlNetModel":
        return f"it is {config.get('_class_name') or 'no model'}, not a ControlNetModel"
    if config.get("cross_attention_dim") != model.text_width:
        return _other_model(int(config.get("cross_attention_dim") or 0), model)
    if tuple(config.get("block_out_channels", ())) != model.unet_widths:
        return (
            f"its levels are {tuple(config.get('block_out_channels', ()))} wide and those of {model.name!r} "
            f"{model.unet_widths}; use one trained for it"
        )
    layers = config.get("layers_per_block", 2)
    if (tuple(layers) if isinstance(layers, list) else (layers,) * len(model.unet_widths)) != model.unet_layers:
        return f"it has {layers} blocks a level and {model.name!r} {model.unet_layers}; use one trained for it"
    return None


def check_architecture(config: Mapping[str, Any], wanted: str) -> str | None:
    """Whether a folder of transformers holds a model of a class whose name ends so."""
    names = config.get("architectures") or ["no model"]
    return None if names[0].endswith(wanted) else f"it is {names[0]}, not a {wanted}"


def check_ip_adapter(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
    if not any(_IP_CROSS_ATTENTION.search(name) for name in shapes):
        return "no tensor in it is an IP-Adapter's"
    width = _width_of(shapes, _IP_CROSS_ATTENTION)
    return _other_model(width, model) if width is not None and width != model.text_width else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierFacts:
    """What a classifier's files say: the side of its pictures in pixels, and how many classes it tells apart."""

    image_size: int
    classes: int


def read_classifier(path: str) -> ClassifierFacts:
    """The facts of a classifier that `find_adapters` found."""
    shapes, config = read_facts(Path(path), CLASSIFIER_WEIGHTS)
    return ClassifierFacts(image_size=int(config["image_size"]), classes=shapes[_CLASSES][0])


def check_classifier(shapes: Shapes, config: Mapping[str, Any], _model: Model) -> str | None:
    """Whether it is ADM's, with a config that says how it is built; None, or why not."""
    if _CLASSES not in shapes:
        return f"it has no tensor {_CLASSES}: expected weights of ADM's classifier with attention pooling"
    size = config.get("image_size")
    if not isinstance(size, int) or (size not in CLASSIFIER_MULTIPLIERS and "channel_mult" not in config):
        return f"its config.json says image_size {size!r} and no channel_mult; see the README on classifiers"
    return None
