"""What the tensors of a LoRA's file are, by names and shapes, and whether they fit a model. Knows nothing of torch.

Names are those of PEFT, of diffusers (old and new), of kohya's trainer (SDXL's layers in the original implementation's
names) and of LyCORIS, whose LoHa, LoKr, CP decompositions and full differences are read too.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from batchgen.errors import CellError, InputError
from batchgen.models.catalog import Family, Model, Source
from batchgen.models.compatibility import other_width
from batchgen.models.configs import MOST_CHANNELS, read_config
from batchgen.models.headers import Shapes, read_shapes

__all__ = ["BUNDLED", "Layer", "check_lora", "flat_names", "is_plain", "layers_of", "peft_config", "peft_scale"]

BUNDLED = "bundle_emb."
"""What the names of embeddings begin with that lie in a LoRA's file: `bundle_emb.WORD.string_to_param.*`."""

_PARTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
_PEFT = "base_model.model."
_BARE = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\.")
_ROLES = {
    "down": r"(\.lora_A(\.default)?|[._]lora\.down|\.lora_linear_layer\.down|\.lora_down)\.weight",
    "up": r"(\.lora_B(\.default)?|[._]lora\.up|\.lora_linear_layer\.up|\.lora_up)\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector((\.default)?\.weight)?",
    **{name: rf"\.{name}" for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{
        name: rf"\.{name}"
        for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    },
    "diff": r"\.diff",
}
_KEY = re.compile(rf"(?P<layer>.+?)({'|'.join(f'(?P<{role}>{ending})' for role, ending in _ROLES.items())})$")
_FAMILIES: Sequence[tuple[frozenset[str], frozenset[str]]] = tuple(
    (frozenset(needed.split()), frozenset(needed.split()) | frozenset(more.split()))
    for needed, more in (
        ("down up", "mid alpha dora_scale"),
        ("down up magnitude", ""),
        ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "hada_t1 hada_t2 alpha dora_scale"),
        ("lokr_w1 lokr_w2", "alpha dora_scale"),
        ("lokr_w1_a lokr_w1_b lokr_w2", "alpha dora_scale"),
        ("lokr_w1 lokr_w2_a lokr_w2_b", "lokr_t2 alpha dora_scale"),
        ("lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b", "lokr_t2 alpha dora_scale"),
        ("diff", ""),
    )
)
_PRODUCTS = (  # what is multiplied, and what stands between the two in some files
    ("up", "down", "mid"),
    ("hada_w1_a", "hada_w1_b", "hada_t1"),
    ("hada_w2_a", "hada_w2_b", "hada_t2"),
    ("lokr_w1_a", "lokr_w1_b", ""),
    ("lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
_SGM = re.compile(r"(input_blocks|middle_block|output_blocks)_(\d+)(?:_(\d+))?_(.+)")
_SGM_RESNETS = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SGM_ENDS = {
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer that a file changes: the part of the pipeline it is in, its flat name, its tensors' names by role."""

    part: str
    name: str
    keys: Mapping[str, str]


def layers_of(names: Iterable[str], *, xl: bool) -> tuple[list[Layer], str | None]:
    """The layers that a file changes, and the first of its names, by the alphabet, that is none of what is read.

    Args:
        names: of the file's tensors.
        xl: the model is SDXL's, whose layers kohya's trainer names as the original implementation does.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for key in sorted(names):
        if key.startswith(BUNDLED):
            continue
        place = _place(key)
        match = None if place is None else _KEY.match(place[1])
        if place is None or match is None:
            return [], key
        role = next(name for name in _ROLES if match[name] is not None)
        flat = _flat(match["layer"])
        found.setdefault((place[0], _diffusers_name(flat) if xl and place[0] == "unet" else flat), {})[role] = key
    for roles in found.values():
        if not any(needed <= roles.keys() <= allowed for needed, allowed in _FAMILIES):
            return [], min(roles.values())
    return [Layer(part=part, name=name, keys=keys) for (part, name), keys in found.items()], None


def is_plain(layers: Iterable[Layer], names: Iterable[str]) -> bool:
    """Whether diffusers itself reads a file: low-rank pairs, under names that say what they are parts of."""
    named = all(key.startswith(tuple(_PARTS)) for key in names)
    return named and all(layer.keys.keys() <= {"down", "up", "alpha"} for layer in layers)


def check_lora(shapes: Shapes, _config: Mapping[str, object], model: Model) -> str | None:
    """Whether every layer of it is one of the model's, with its shape; None, or why not."""
    if not shapes:
        return None  # a pickle, which is read where it is loaded
    layers, wrong = layers_of(shapes, xl=model.family in (Family.SDXL, Family.REFINER))
    if wrong is not None:
        return f"its tensor {wrong!r} is none of a LoRA, LoHa or LoKr for Stable Diffusion; use one of these"
    if not layers:
        return "no tensor in it is a LoRA's"
    for layer in layers:
        if (unfit := _unfit(layer, shapes)) is not None:
            return unfit
    for layer in layers:  # first what says most: another family of models
        down = layer.keys.get("down")
        if re.search(r"attn2_to_k$", layer.name) and down and shapes[down][1] != model.text_width:
            return other_width(shapes[down][1], model)
    for key, vectors in shapes.items():
        if key.startswith(BUNDLED) and not vectors:
            return f"its embedding {key!r} is a number; is the file damaged?"
        if key.startswith(BUNDLED) and vectors[-1] not in model.token_widths:
            return f"its embedding {key!r} is {vectors[-1]} wide, and those of {model.name!r} are {model.token_widths}"
    known = _model_layers(model)
    for layer in layers:
        if layer.part not in known:
            continue  # its weights are not at hand
        shape = known[layer.part].get(layer.name)
        key = min(layer.keys.values())
        if shape is None:
            return f"its tensor {key!r} is for a layer that {model.name!r} does not have; use one trained for it"
        if (made := _shape(layer, shapes)) is not None and not _is_for(made, shape):
            return (
                f"its tensor {key!r} is for a layer that takes {made[1]} numbers and gives {made[0]}, and that of "
                f"{model.name!r} takes {math.prod(shape[1:])} and gives {shape[0]}; use one trained for it"
            )
    return None


def peft_scale(path: Path) -> float:
    """How much of a change counts, by the config that PEFT writes beside its weights; 1 of any other file.

    Raises:
        CellError: a config that is none, or whose layers have ranks of their own.
    """
    if (config := peft_config(path)) is None:
        return 1.0
    try:
        known = read_config(config)
        rank, alpha = known.number("r", most=MOST_CHANNELS), known.real("lora_alpha")
    except InputError as error:
        raise CellError(str(error)) from None
    if rank is None or alpha is None:
        raise CellError(f"{config} is no config of PEFT's: it says no r or no lora_alpha")
    if known.content.get("rank_pattern") or known.content.get("alpha_pattern"):
        raise CellError(f"{config} gives layers ranks of their own; save the LoRA with diffusers' save_lora_weights")
    return alpha / (math.sqrt(rank) if known.content.get("use_rslora") else rank)


def peft_config(path: Path) -> Path | None:
    """The config that goes with weights which PEFT wrote: `adapter_model.safetensors`."""
    config = path.with_name("adapter_config.json")
    return config if path.stem == "adapter_model" and config.is_file() else None


def flat_names(names: Iterable[str]) -> dict[str, str]:
    """Names of modules by how kohya's trainer writes them; a text encoder's with and without its outer name."""
    found = {_flat(name): name for name in names}
    return found | {f"text_model_{flat}": name for flat, name in found.items() if not flat.startswith("text_model_")}


def _place(key: str) -> tuple[str, str] | None:
    """The part of a pipeline that a tensor belongs to, and its name in there; None where that is not known."""
    for prefix, part in _PARTS.items():
        if key.startswith(prefix):
            return part, key[len(prefix) :]
    inner = key.removeprefix(_PEFT)
    if _BARE.match(inner):
        return "unet", inner
    if inner.startswith("text_model."):
        return "text_encoder", inner
    return _place(inner) if inner != key else None


def _flat(layer: str) -> str:
    """A layer's name as kohya's trainer writes it; processors of old files are no layers of their own."""
    flat = layer.replace(".processor", "").replace(".", "_")
    return re.sub(r"_to_out$", "_to_out_0", flat)


def _diffusers_name(flat: str) -> str:
    """A layer of the original implementation of SDXL's UNet as diffusers names it."""
    match = _SGM.fullmatch(flat)
    if flat in _SGM_ENDS or match is None:
        return _SGM_ENDS.get(flat, flat)
    kind, number, inner, rest = match[1], int(match[2]), match[3], match[4]
    if kind == "middle_block":
        return f"mid_block_{('resnets_0', 'attentions_0', 'resnets_1')[number]}_{_SGM_RESNETS.get(rest, rest)}"
    block, layer = divmod(number - 1, 3) if kind == "input_blocks" else divmod(number, 3)
    side = "down" if kind == "input_blocks" else "up"
    if rest == "op":
        return f"down_blocks_{block}_downsamplers_0_conv"
    if rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    sort = "attentions" if inner == "1" else "resnets"
    return f"{side}_blocks_{block}_{sort}_{layer}_{_SGM_RESNETS.get(rest, rest)}"


@lru_cache(maxsize=16)
def _model_layers(model: Model) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    """Shapes of the weights of a model's parts by flat name; of those whose weights are at hand."""
    if model.source is not Source.FOLDER:
        return {}
    found: dict[str, Mapping[str, tuple[int, ...]]] = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        files = sorted((model.folder / part).glob("*.safetensors"))
        shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
        weights = {
            name.removesuffix(".weight"): shape
            for name, shape in shapes.items()
            if name.endswith(".weight") and len(shape) > 1
        }
        if weights:
            found[part] = {flat: weights[name] for flat, name in flat_names(weights).items()}
        elif not (model.folder / part).is_dir():
            found[part] = {}
    return found


def _unfit(layer: Layer, shapes: Shapes) -> str | None:
    """What of a layer's tensors does not go together, whatever the model; None where nothing is seen."""
    for role, key in layer.keys.items():
        shape = shapes[key]
        if role == "alpha" and math.prod(shape) != 1:
            return f"its tensor {key!r} holds {math.prod(shape)} numbers where one is to be; is the file damaged?"
        if role not in ("alpha", "dora_scale", "magnitude") and len(shape) < (1 if role == "diff" else 2):
            return f"its tensor {key!r} is no matrix; is the file damaged?"
    for left, right, core in _PRODUCTS:
        up, down = layer.keys.get(left), layer.keys.get(right)
        if up and down and core not in layer.keys and shapes[up][1] != shapes[down][0]:
            ranks = f"{shapes[up][1]}, and {down!r} of {shapes[down][0]}"
            return f"its tensor {up!r} is of rank {ranks}; is the file damaged?"
    return None


def _shape(layer: Layer, shapes: Shapes) -> tuple[int, ...] | None:
    """(out, in) of the layer that a change is for, kernels counted to what comes in; None where it does not tell."""
    of = {role: shapes[key] for role, key in layer.keys.items()}
    if "down" in of:
        return of["up"][0], math.prod(of["down"][1:]) * (math.prod(of["mid"][2:]) if "mid" in of else 1)
    if "diff" in of:
        return of["diff"][0], math.prod(of["diff"][1:])
    if "hada_w1_a" in of and "hada_t1" not in of:
        return of["hada_w1_a"][0], of["hada_w1_b"][1]
    return None


def _is_for(made: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a change of (out, in) goes with a weight, whose kernel it may count to the width."""
    return made[0] == shape[0] and made[1] in (shape[1], math.prod(shape[1:]))
