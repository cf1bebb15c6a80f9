"""Makes plain LoRAs of what diffusers does not read: LoHa, LoKr, CP decompositions, DoRA, full differences.

Every change of a weight is a product of two matrices, if need be of its own and the identity, so that all go the one
way that diffusers and PEFT have for low-rank pairs, and can be mixed. The formulas are LyCORIS's
(https://github.com/KohakuBlueleaf/LyCORIS, docs/Algo-Details.md); DoRA's are those of its paper (arXiv 2402.09353),
with the strength over the whole change, as in ComfyUI.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from batchgen.errors import InputError
from batchgen.models.lora import flat_names, is_plain, layers_of

__all__ = ["plain_lora"]

_Pair = tuple[torch.Tensor, torch.Tensor]
"""down (r, in, ...) and up (out, r, ...), whose product is the change of a weight (out, in, ...)."""


def plain_lora(
    tensors: Mapping[str, torch.Tensor], parts: Mapping[str, Any], *, xl: bool, scale: float, path: Path
) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA's file as diffusers reads them; those that it reads itself are left as they are.

    Args:
        tensors: what the file holds.
        parts: the model's UNet and text encoders.
        xl: the model is SDXL's.
        scale: of the pairs, by what stands beside the file.
        path: for what is said.

    Raises:
        InputError: a tensor that is no LoRA's, or is for a layer that the model does not have.
    """
    layers, wrong = layers_of(tensors, xl=xl)
    if wrong is not None or not layers:
        raise InputError(f"LoRA {path} holds {wrong!r}, which is none of a LoRA, LoHa or LoKr for Stable Diffusion")
    own = {key: tensors[key] for layer in layers for key in layer.keys.values()}
    if is_plain(layers, own) and scale == 1.0:
        return own
    modules = {part: dict(module.named_modules()) for part, module in parts.items() if module is not None}
    names = {part: flat_names(found) for part, found in modules.items()}
    made: dict[str, torch.Tensor] = {}
    for layer in layers:
        name = names.get(layer.part, {}).get(layer.name)
        if name is None:
            raise InputError(f"LoRA {path} holds {min(layer.keys.values())!r}, for a layer that the model has not")
        weight = _base(modules[layer.part][name]).weight
        down, up = _pair({role: tensors[key].float() for role, key in layer.keys.items()}, weight, scale)
        made[f"{layer.part}.{name}.lora_A.weight"] = down
        made[f"{layer.part}.{name}.lora_B.weight"] = up
    return made


def _base(module: Any) -> Any:
    """The module itself, where another LoRA wraps it."""
    return getattr(module, "base_layer", module)


def _pair(of: Mapping[str, torch.Tensor], weight: torch.Tensor, scale: float) -> _Pair:
    """A layer's change as a low-rank pair, with all its scales in it."""
    down, up = _plain_pair(of, weight)
    pair = down, up * scale
    if "magnitude" in of:
        return _whole(_decomposed(pair, of["magnitude"], weight.float().cpu(), by_output=True))
    if "dora_scale" in of:
        by_output = of["dora_scale"].shape[0] == weight.shape[0]
        return _whole(_decomposed(pair, of["dora_scale"], weight.float().cpu(), by_output=by_output))
    return pair


def _plain_pair(of: Mapping[str, torch.Tensor], weight: torch.Tensor) -> _Pair:
    if "diff" in of:
        return _whole(of["diff"].reshape(weight.shape))
    if "down" in of:
        down, up = of["down"], of["up"]
        rank = down.shape[0]
        if "mid" in of:  # (r, r, kh, kw) between two kernels of one pixel
            down = torch.einsum("rskl,si->rikl", of["mid"], down.flatten(1))
        up = up.reshape(*up.shape[:2], *([1] * (weight.dim() - 2)))
        return down.reshape(down.shape[0], *weight.shape[1:]), up * (_alpha(of, rank) / rank)
    if "hada_w1_a" in of:
        rank = of["hada_w1_b"].shape[0]
        first, second = (_factor(of, f"hada_w{number}", f"hada_t{number}") for number in (1, 2))
        return _whole((first * second).reshape(weight.shape) * (_alpha(of, rank) / rank))
    ranks = [of[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in of]
    left = of["lokr_w1"] if "lokr_w1" in of else of["lokr_w1_a"] @ of["lokr_w1_b"]
    right = of["lokr_w2"] if "lokr_w2" in of else _factor(of, "lokr_w2", "lokr_t2")
    right = right.reshape(right.shape[0], weight.shape[1] // left.shape[1], *weight.shape[2:])
    left = left.reshape(*left.shape, *([1] * (weight.dim() - 2)))
    strength = _alpha(of, ranks[-1]) / ranks[-1] if ranks else 1.0  # two whole factors have no rank to scale by
    return _whole(torch.kron(left, right.contiguous()).reshape(weight.shape) * strength)


def _factor(of: Mapping[str, torch.Tensor], name: str, core: str) -> torch.Tensor:
    """The product of a factor's halves, with the core of a Tucker decomposition (r, r, kh, kw) where there is one."""
    first, second = of[f"{name}_a"], of[f"{name}_b"]
    if core not in of:
        return first @ second.flatten(1)
    return torch.einsum("ijkl,jr,ip->prkl", of[core], second, first)


def _alpha(of: Mapping[str, torch.Tensor], rank: int) -> float:
    return float(of["alpha"]) if "alpha" in of else float(rank)


def _decomposed(pair: _Pair, magnitude: torch.Tensor, weight: torch.Tensor, *, by_output: bool) -> torch.Tensor:
    """DoRA: the changed weight with the norms that were learnt, one an output or (kohya's older files) one an input."""
    down, up = pair
    changed = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    kept = 0 if by_output else 1
    norms = changed.transpose(0, kept).flatten(1).norm(dim=1)
    shape = [-1 if dimension == kept else 1 for dimension in range(weight.dim())]
    difference: torch.Tensor = changed * (magnitude.flatten() / norms).reshape(shape) - weight
    return difference


def _whole(change: torch.Tensor) -> _Pair:
    """A change as the product of itself and the identity, on the side that is smaller."""
    out, into = change.shape[0], change[0].numel()
    if change.dim() == 2 and into <= out:
        return torch.eye(into), change
    return change, torch.eye(out).reshape(out, out, *([1] * (change.dim() - 2)))
