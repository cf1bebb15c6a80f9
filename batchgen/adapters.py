"""Adapters before they are loaded: where their files lie, what they are, whether they fit the model.

Adapters are LoRAs, textual-inversion embeddings, hypernetworks, autoencoders, ControlNets and IP-Adapters. What fits is
told from the headers of their files, which name the tensors and their shapes. Knows nothing of torch.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from batchgen import builtin
from batchgen.columns import CellError
from batchgen.models import Model, Source, hash_file, hash_folder, hash_text

__all__ = [
    "ADAPTERS",
    "CLASSIFIER_MULTIPLIERS",
    "CLASSIFIER_WEIGHTS",
    "ClassifierFacts",
    "Finder",
    "find_adapters",
    "image_encoder",
    "read_classifier",
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

_BUILTIN = re.compile(r"builtin-[a-z0-9-]+")
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth"})
_LORA_CROSS_ATTENTION = re.compile(r"attn2[._](processor[._])?to_k.*(lora_A|lora_?\.?down)\.(default\.)?weight$")
_LORA_LAYER = re.compile(  # tensors that a UNet's layer feeds, in the names of PEFT, diffusers and kohya
    r"(unet\.|lora_unet_)(?P<layer>.+?)(\.lora_A|\.lora\.down|_lora\.down|\.lora_down)\.(default\.)?weight$"
)
_IP_CROSS_ATTENTION = re.compile(r"to_k_ip\.weight$")
_CLASSES = "out.2.c_proj.weight"
_SINGLE_FILE_VAE = re.compile(r"(^|\.)decoder\.conv_in\.weight$")

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors in a file, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a column's adapters are.

    `names` are the keys a cell may have beside `path`, with their defaults; None is required. `weights` are the names,
    or patterns, of the weights in those that may be folders; `is_folder` says that the folder itself is what is loaded.
    """

    what: str
    names: Mapping[str, Any]
    check: Callable[[Shapes, Mapping[str, Any], Model], str | None]
    weights: tuple[str, ...] = ()
    is_folder: bool = False
    in_list: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Finder:
    """Where the adapters of one manifest's rows lie.

    `folder` is what relative paths start from, `lora_folder` where the LoRAs lie that prompts name.
    """

    folder: str
    lora_folder: str | None = None
    allow_pickle: bool = False

    def lora(self, name: str) -> str:
        """The path of a LoRA that a prompt names: a file's name without its suffix, or a built-in companion's."""
        if self.lora_folder is None or _BUILTIN.fullmatch(name):
            return name
        return str(Path(self.lora_folder).expanduser() / name)


def find_adapters(column: str, cell: Any, model: Model, finder: Finder) -> Any:
    """What a row's cell asks for, as it is applied and recorded.

    Returns:
        A dict with `path`, `sha256` and what else the cell says (`scale`, `token`), or a tuple of such.

    Raises:
        CellError: no such file, a pickle that is not allowed, not that kind of adapter, or made for another model.
    """
    kind = ADAPTERS[column]
    if not kind.in_list:
        if isinstance(cell, (list, tuple)):
            raise CellError(f"is a list; give one {kind.what}")
        return _find(kind, cell, model, finder)
    cells = list(cell) if isinstance(cell, (list, tuple)) else [cell]
    found = tuple(_find(kind, one, model, finder) for one in cells)
    keys = [(one["path"], one.get("token")) for one in found]
    if len(set(keys)) < len(keys) and column != "controlnet":
        raise CellError(f"names the same {kind.what} twice")
    return found


def _find(kind: Kind, cell: Any, model: Model, finder: Finder) -> dict[str, Any]:
    if isinstance(cell, str):
        cell = {"path": cell}
    if not isinstance(cell, Mapping) or not isinstance(cell.get("path"), str) or not cell["path"].strip():
        raise CellError(f"wants a {kind.what}: a path, or an object with 'path' and {_listed(kind)}")
    given = {name: value for name, value in cell.items() if value is not None}
    if unknown := given.keys() - kind.names.keys() - {"path"}:
        raise CellError(f"has an unknown key {min(unknown)!r}; a {kind.what} takes 'path' and {_listed(kind)}")
    path = _locate(given["path"], kind, finder)
    if kind is ADAPTERS["ip_adapter"] and image_encoder(path) is None:
        raise CellError(f"{path} has no image_encoder/ beside it; keep the folders as they were published")
    shapes, config = _facts(path, kind.weights)
    if reason := kind.check(shapes, config, model):
        raise CellError(f"{given['path']}: {reason}")
    result: dict[str, Any] = {"path": str(path), "sha256": _fingerprint(path)}
    for name, default in kind.names.items():
        value = given.get(name, default)
        if name == "scale" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise CellError(f"has scale {value!r}, not a number")
        if name == "scale" and not -10 <= value <= 10:
            raise CellError(f"has scale {value}; between -10 and 10")
        if name == "token" and (not isinstance(value, str) or not value.strip()):
            raise CellError("has no 'token'; name the word of the prompt that stands for it")
        result[name] = float(value) if name == "scale" else value
    return result


def _listed(kind: Kind) -> str:
    return ", ".join(repr(name) for name in kind.names) or "nothing else"


def _locate(name: str, kind: Kind, finder: Finder) -> Path:
    path = Path(name).expanduser()
    if _BUILTIN.fullmatch(name):
        try:
            path = builtin.companion_path(name)
        except LookupError as error:
            raise CellError(str(error.args[0])) from None
    elif not path.is_absolute():
        path = Path(finder.folder) / path
    if not path.exists() and path.with_name(f"{path.name}.safetensors").exists():
        path = path.with_name(f"{path.name}.safetensors")
    if not path.exists():
        raise CellError(f"{path} does not exist; paths start from {finder.folder}")
    if path.is_dir() and not kind.weights:
        raise CellError(f"{path} is a folder; a {kind.what} is a file")
    if path.is_dir():
        path = _weights_in(path, kind)
    if path.suffix in _PICKLES and not finder.allow_pickle:
        raise CellError(
            f"{path} is a pickle, which can run code when it is loaded; convert a file you trust to .safetensors, or "
            "set allow_pickle = true in the job to have it read with torch's weights-only loader"
        )
    if path.suffix not in _PICKLES | {".safetensors"} and path.is_file():
        raise CellError(f"{path} is neither .safetensors nor a file that torch saved")
    return path.resolve()


def _weights_in(folder: Path, kind: Kind) -> Path:
    """The folder itself where it holds a model of its own, else the one file of weights in it."""
    if kind.is_folder and (folder / "config.json").is_file():
        return folder
    files = [file for pattern in kind.weights for file in sorted(folder.glob(pattern))]
    if not files:
        raise CellError(f"{folder} holds no {' or '.join(kind.weights)}; give the file or folder of a {kind.what}")
    if len(files) > 1 and not kind.is_folder and files[0].stem != files[1].stem:
        raise CellError(f"{folder} holds {files[0].name} and {files[1].name}; name one of them")
    return files[0]


def image_encoder(weights: Path) -> Path | None:
    """The folder of the image encoder that goes with an IP-Adapter's weights, as its authors lay them out."""
    places = (weights.parent / "image_encoder", weights.parent.parent / "models" / "image_encoder")
    return next((place for place in places if (place / "config.json").is_file()), None)


@lru_cache(maxsize=1024)
def _fingerprint(path: Path) -> str:
    if path.is_dir():
        return hash_folder(path)
    encoder = image_encoder(path)
    return hash_file(path) if encoder is None else hash_text(hash_file(path) + hash_folder(encoder))


@lru_cache(maxsize=1024)
def _facts(path: Path, weights: tuple[str, ...]) -> tuple[Shapes, Mapping[str, Any]]:
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


def _check_lora(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
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


def _check_embedding(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
    if not shapes:
        return None
    widths = {shape[-1] for shape in shapes.values()}
    if any(len(shape) not in (1, 2) for shape in shapes.values()) or len(shapes) > 2:
        return "it is not an embedding: expected one or two tensors of token vectors"
    if widths != set(model.token_widths) or len(shapes) != len(model.token_widths):
        made, has = (" and ".join(map(str, sorted(found))) for found in (widths, set(model.token_widths)))
        return f"it is made for text states of width {made}, and {model.name!r} has {has}; use one trained for it"
    return None


def _check_hypernetwork(_shapes: Shapes, _config: Mapping[str, Any], _model: Model) -> str | None:
    return None  # A1111 saves them pickled: their widths are known when they are loaded


def _check_vae(shapes: Shapes, config: Mapping[str, Any], _model: Model) -> str | None:
    if config and config.get("_class_name") != "AutoencoderKL":
        return f"it is a {config.get('_class_name')}, not an AutoencoderKL"
    if config.get("latent_channels", 4) != 4:
        return f"its latents have {config['latent_channels']} channels, not 4"
    if not config and shapes and not any(_SINGLE_FILE_VAE.search(name) for name in shapes):
        return "no tensor in it is an autoencoder's"
    return None


def _check_controlnet(_shapes: Shapes, config: Mapping[str, Any], model: Model) -> str | None:
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


def _check_architecture(config: Mapping[str, Any], wanted: str) -> str | None:
    """Whether a folder of transformers holds a model of a class whose name ends so."""
    names = config.get("architectures") or ["no model"]
    return None if names[0].endswith(wanted) else f"it is {names[0]}, not a {wanted}"


def _check_ip_adapter(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
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
    shapes, config = _facts(Path(path), CLASSIFIER_WEIGHTS)
    return ClassifierFacts(image_size=int(config["image_size"]), classes=shapes[_CLASSES][0])


def _check_classifier(shapes: Shapes, config: Mapping[str, Any], _model: Model) -> str | None:
    if _CLASSES not in shapes:
        return f"it has no tensor {_CLASSES}: expected weights of ADM's classifier with attention pooling"
    size = config.get("image_size")
    if not isinstance(size, int) or (size not in CLASSIFIER_MULTIPLIERS and "channel_mult" not in config):
        return f"its config.json says image_size {size!r} and no channel_mult; see the README on classifiers"
    return None


ADAPTERS: Mapping[str, Kind] = {
    "loras": Kind(
        what="LoRA",
        names={"scale": 1.0},
        check=_check_lora,
        weights=("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
        in_list=True,
    ),
    "embeddings": Kind(
        what="textual-inversion embedding",
        names={"token": None},
        check=_check_embedding,
        weights=("learned_embeds.safetensors", "learned_embeds.bin"),
        in_list=True,
    ),
    "hypernetwork": Kind(what="hypernetwork", names={"scale": 1.0}, check=_check_hypernetwork),
    "vae": Kind(
        what="autoencoder",
        names={},
        check=_check_vae,
        is_folder=True,
        weights=("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    ),
    "controlnet": Kind(
        what="ControlNet",
        names={},
        check=_check_controlnet,
        is_folder=True,
        weights=("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
        in_list=True,
    ),
    "classifier": Kind(
        what="classifier", names={}, check=_check_classifier, is_folder=True, weights=CLASSIFIER_WEIGHTS
    ),
    "pose_estimator": Kind(
        what="pose estimator",
        names={},
        check=lambda _shapes, config, _model: _check_architecture(config, "VitPoseForPoseEstimation"),
        is_folder=True,
        weights=("model.safetensors",),
    ),
    "person_detector": Kind(
        what="person detector",
        names={},
        check=lambda _shapes, config, _model: _check_architecture(config, "ForObjectDetection"),
        is_folder=True,
        weights=("model.safetensors",),
    ),
    "ip_adapter": Kind(
        what="IP-Adapter", names={}, check=_check_ip_adapter, weights=("*ip*adapter*.safetensors", "*ip*adapter*.bin")
    ),
}
