"""Hypernetworks in the file format of AUTOMATIC1111's stable-diffusion-webui (its `hypernetwork` module).

A hypernetwork holds, for each width of attended states, two small nets: one changes what keys are made from, the other
what values are made from. diffusers has none; here they are put in front of the projections of every attention layer.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from batchgen.errors import InputError, one_line

__all__ = ["Hypernetwork"]

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "silu": nn.SiLU,
}
_OLD_NAMES = {"linear1.": "linear.0.", "linear2.": "linear.1."}
_DROPOUT = 0.3  # of the web UI, between the layers; its place counts here, its value does not


class Hypernetwork:
    """The nets of one file, on one device and in one precision."""

    def __init__(self, content: Mapping[Any, Any], device: torch.device, dtype: torch.dtype) -> None:
        """Build the nets from what the file holds.

        Raises:
            InputError: not a hypernetwork, or of a kind that is not known.
        """
        self._nets = {
            width: tuple(_build(width, state, content).to(device, dtype) for state in states)
            for width, states in content.items()
            if isinstance(width, int)
        }
        if not self._nets:
            raise InputError("the hypernetwork's file holds no nets; is it one of AUTOMATIC1111's web UI?")

    @contextmanager
    def on(self, unet: nn.Module, scale: float) -> Iterator[None]:
        """While it lasts, states become `states + scale * net(states)` before they are made keys and values of."""
        handles = []
        for name, module in unet.named_modules():
            place = ("to_k", "to_v").index(name.rsplit(".", 1)[-1]) if name.endswith((".to_k", ".to_v")) else None
            if place is not None:
                handles.append(module.register_forward_pre_hook(self._hook(place, scale)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, place: int, scale: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def change(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            states, *rest = arguments
            nets = self._nets.get(states.shape[-1])
            return arguments if nets is None else (states + scale * nets[place](states), *rest)

        return change


def _build(width: int, state: Mapping[str, torch.Tensor], content: Mapping[Any, Any]) -> nn.Module:
    """One net: linear layers as wide as `layer_structure` says, in multiples of `width`."""
    structure = content.get("layer_structure") or [1, 2, 1]
    activation = content.get("activation_func") or "linear"
    if activation != "linear" and activation not in _ACTIVATIONS:
        raise InputError(f"the hypernetwork's activation {activation!r} is not known")
    dropouts = content.get("dropout_structure") or _dropouts(structure, content)
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(structure)):
        layers.append(nn.Linear(int(width * before), int(width * after)))
        is_last = number == len(structure) - 2
        if activation != "linear" and not (is_last and not content.get("activate_output", True)):
            layers.append(_ACTIVATIONS[activation]())
        if content.get("is_layer_norm", False):
            layers.append(nn.LayerNorm(int(width * after)))
        if dropouts[number + 1] > 0:
            layers.append(nn.Dropout(dropouts[number + 1]))
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    renamed = {_modern(name).removeprefix("linear."): tensor for name, tensor in state.items()}
    try:
        net.load_state_dict(renamed)
    except RuntimeError as error:
        raise InputError(f"the hypernetwork's weights do not fit the layers it names: {one_line(error)}") from error
    return net


def _dropouts(structure: list[float], content: Mapping[Any, Any]) -> list[float]:
    if not content.get("use_dropout", False):
        return [0.0] * len(structure)
    last = _DROPOUT if content.get("last_layer_dropout", False) else 0.0
    return [0.0, *[_DROPOUT] * (len(structure) - 3), *([last] if len(structure) > 2 else []), 0.0]


def _modern(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
