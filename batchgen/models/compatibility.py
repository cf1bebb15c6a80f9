"""Compatibility of adapters with a model, by the headers and configs of their files. Knows nothing of torch.

The header of a .safetensors file names tensors and their shapes; the width of the text states that an adapter was made
for is among them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from batchgen.errors import CellError, InputError
from batchgen.manifest.names import near_or_known
from batchgen.models.catalog import Model
from batchgen.models.configs import MOST_CHANNELS, MOST_LAYERS, Config, latent_factor, read_config
from batchgen.models.headers import Shapes, read_shapes

__all__ = [
    "CLASSIFIER_MULTIPLIERS",
    "CLASSIFIER_WEIGHTS",
    "ClassifierConfig",
    "ClassifierFacts",
    "check_architecture",
    "check_classifier",
    "check_controlnet",
    "check_detector",
    "check_embedding",
    "check_ip_adapter",
    "check_vae",
    "other_width",
    "parse_classifier",
    "read_classifier",
    "read_facts",
]

CLASSIFIER_MULTIPLIERS: Mapping[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Widths of the levels of ADM's classifiers over that of the first one, by the size of their images."""

CLASSIFIER_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_IP_CROSS_ATTENTION = re.compile(r"to_k_ip\.weight$")
_EXAMPLES: Mapping[Any, str] = {int: "a whole number", bool: "true or false"}
_CLASSES = "out.2.c_proj.weight"
_MOST = 1 << 14  # of any number of a classifier's config
_SINGLE_FILE_VAE = re.compile(r"(^|\.)decoder\.conv_in\.weight$")


@lru_cache(maxsize=1024)
def read_facts(path: Path, weights: tuple[str, ...]) -> tuple[Shapes, Mapping[str, Any]]:
    """Shapes of the tensors and the config beside them; both empty where the file does not tell."""
    config: Mapping[str, Any] = {}
    if path.is_dir():
        if (path / "config.json").is_file():
            try:
                config = read_config(path / "config.json").content
            except InputError as error:
                raise CellError(str(error)) from None
        files = [file for name in weights for file in sorted(path.glob(name))]
        path = next((file for file in files if file.suffix == ".safetensors"), path)
    if path.suffix != ".safetensors":
        return {}, config
    if not (shapes := read_shapes(path)):
        raise CellError(f"{path} holds no tensor; is the file complete?")
    return shapes, config


def _width_of(shapes: Shapes, pattern: re.Pattern[str]) -> int | None:
    return next((shape[1] for name, shape in shapes.items() if pattern.search(name) and len(shape) > 1), None)


def other_width(width: int, model: Model) -> str:
    """What to say of an adapter that is made for text states of another width."""
    wanted = f"{model.name!r} has {model.text_width}"
    return f"it is made for text states of width {width}, and {wanted}; use one trained for it"


def check_embedding(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
    """Whether it holds a tensor of token vectors for each text encoder; None, or why not."""
    if not shapes:
        return None
    if any(len(shape) not in (1, 2) for shape in shapes.values()) or len(shapes) > 2:
        return "it is not an embedding: expected one or two tensors of token vectors"
    widths = {shape[-1] for shape in shapes.values()}
    if widths != set(model.token_widths) or len(shapes) != len(model.token_widths):
        made, has = (" and ".join(map(str, sorted(found))) for found in (widths, set(model.token_widths)))
        return f"it is made for text states of width {made}, and {model.name!r} has {has}; use one trained for it"
    return None


def check_vae(shapes: Shapes, config: Mapping[str, Any], model: Model) -> str | None:
    """Whether it is an autoencoder with latents of four channels, as large as the model's; None, or why not."""
    if config and config.get("_class_name") != "AutoencoderKL":
        return f"it is a {config.get('_class_name')}, not an AutoencoderKL"
    known = Config("its config.json", config)
    if (channels := known.number("latent_channels", most=MOST_CHANNELS) or 4) != 4:
        return f"its latents have {channels} channels, not 4"
    factor = latent_factor(known.numbers("block_out_channels", most=MOST_CHANNELS))
    if factor and model.latent_factor and factor != model.latent_factor:
        wanted = f"those of {model.name!r} {model.latent_factor}"
        return f"its latents are {factor} pixels wide and {wanted}; use one made for it"
    if not config and shapes and not any(_SINGLE_FILE_VAE.search(name) for name in shapes):
        return "no tensor in it is an autoencoder's"
    return None


def check_controlnet(_shapes: Shapes, config: Mapping[str, Any], model: Model) -> str | None:
    """Whether its levels are the UNet's; None, or why not."""
    if not config:
        return "there is no config.json with it; give the folder of a ControlNet"
    if config.get("_class_name") != "ControlNetModel":
        return f"it is {config.get('_class_name') or 'no model'}, not a ControlNetModel"
    known = Config("its config.json", config)
    width = next(iter(known.numbers("cross_attention_dim", most=MOST_CHANNELS)), 0)
    if width != model.text_width:
        return other_width(width, model)
    if (widths := known.numbers("block_out_channels", most=MOST_CHANNELS)) != model.unet_widths:
        return f"its levels are {widths} wide and those of {model.name!r} {model.unet_widths}; use one trained for it"
    layers = known.numbers("layers_per_block", most=MOST_LAYERS, count=len(widths)) or (2,) * len(widths)
    if layers != model.unet_layers:
        return f"it has {layers} blocks a level and {model.name!r} {model.unet_layers}; use one trained for it"
    return None


def check_architecture(config: Mapping[str, Any], wanted: str) -> str | None:
    """Whether a folder of transformers holds a model of a class whose name ends so."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "no model"
    return None if name.endswith(wanted) else f"it is {name}, not a {wanted}"


def check_detector(config: Mapping[str, Any]) -> str | None:
    """Whether a folder of transformers holds an object detector that knows people; None, or why not."""
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and "person" not in labels.values():
        return "it knows no 'person'"
    return check_architecture(config, "ForObjectDetection")


def check_ip_adapter(shapes: Shapes, _config: Mapping[str, Any], model: Model) -> str | None:
    """Whether its keys and values go with the UNet's text states; None, or why not."""
    if not any(_IP_CROSS_ATTENTION.search(name) for name in shapes):
        return "no tensor in it is an IP-Adapter's"
    width = _width_of(shapes, _IP_CROSS_ATTENTION)
    return other_width(width, model) if width is not None and width != model.text_width else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """What a classifier's config.json says: the flags of guided-diffusion's training script, with its defaults.

    `classifier_attention_resolutions` are sides of feature maps in pixels; `channel_mult` follows from `image_size`
    where it is one of the published ones.
    """

    image_size: int
    classifier_width: int = 128
    classifier_depth: int = 2
    classifier_attention_resolutions: tuple[int, ...] = (32, 16, 8)
    classifier_use_scale_shift_norm: bool = True
    classifier_resblock_updown: bool = True
    num_head_channels: int = 64
    channel_mult: tuple[float, ...] = ()

    @property
    def widths(self) -> list[int]:
        """Channels of every level."""
        multipliers = self.channel_mult or CLASSIFIER_MULTIPLIERS[self.image_size]
        return [int(multiplier * self.classifier_width) for multiplier in multipliers]

    @property
    def last_side(self) -> int:
        """Pixels a side of the last level's feature maps."""
        side: int = self.image_size // 2 ** (len(self.widths) - 1)
        return side


def parse_classifier(config: Mapping[str, Any]) -> ClassifierConfig:
    """The config of a classifier.

    Raises:
        CellError: a flag that is unknown, missing or of the wrong type.
    """
    kinds = get_type_hints(ClassifierConfig)
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name not in kinds:
            raise CellError(f"its config.json has an unknown key {name!r}; {near_or_known(name, kinds)}")
        if get_origin(kinds[name]) is tuple:
            listed = value.split(",") if isinstance(value, str) else value  # guided-diffusion's flags are such texts
            try:
                values[name] = tuple(get_args(kinds[name])[0](one) for one in listed)
            except (TypeError, ValueError, OverflowError):
                raise CellError(f"its config.json says {name} {value!r}; write a list of numbers") from None
        elif type(value) is not kinds[name]:
            raise CellError(f"its config.json says {name} {value!r}; write {_EXAMPLES[kinds[name]]}")
        else:
            values[name] = value
        numbers = values[name] if isinstance(values[name], tuple) else (values[name],)
        if not all(0 <= number <= _MOST for number in numbers):
            raise CellError(f"its config.json says {name} {value!r}; numbers are between 0 and {_MOST}")
    size = values.get("image_size")
    if size is None or (size not in CLASSIFIER_MULTIPLIERS and not values.get("channel_mult")):
        sizes = ", ".join(map(str, CLASSIFIER_MULTIPLIERS))
        raise CellError(f"its config.json says image_size {size}; one of {sizes}, or another with a channel_mult")
    return ClassifierConfig(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierFacts:
    """What a classifier's files say: the side of its images in pixels, and how many classes it tells apart."""

    image_size: int
    classes: int


def read_classifier(path: str) -> ClassifierFacts:
    """The facts of a classifier that `find_adapters` found."""
    shapes, config = read_facts(Path(path), CLASSIFIER_WEIGHTS)
    return ClassifierFacts(image_size=parse_classifier(config).image_size, classes=shapes[_CLASSES][0])


def check_classifier(shapes: Shapes, config: Mapping[str, Any], model: Model) -> str | None:
    """Whether it is ADM's, built as its config says, for images of as many channels; None, or why not."""
    if len(shapes.get(_CLASSES, ())) == 0:
        return f"it has no tensor {_CLASSES}: expected weights of ADM's classifier with attention pooling"
    if not config:
        return "there is no config.json with it; write one, as manifests/README.md says of classifiers"
    known = parse_classifier(config)
    blocks = len(known.widths) * (known.classifier_depth + 1)  # the first, residuals, and what halves between levels
    wanted = {
        "input_blocks.0.0.weight": (known.widths[0], model.unet_channels, 3, 3),
        "out.2.positional_embedding": (known.widths[-1], known.last_side**2 + 1),
    }
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            return f"its {name} has the shape {shapes.get(name)}; its config.json and the model ask for {shape}"
    found = len({name.split(".")[1] for name in shapes if name.startswith("input_blocks.")})
    if found != blocks:
        return f"it has {found} blocks, and by its config.json's classifier_depth {blocks}"
    return None
