"""Noise is drawn in float32 whatever the precision of the weights.

torch draws half-precision numbers in another way than float32 ones: up to torch 2.12 every tensor of 16 numbers or more
holds others from the same seed, later ones still do where the number is no multiple of 16. A row would then be another
image in float16 than in float32, and not only differ in last bits. So whatever diffusers draws (initial latents, the
noise on an init image, a sample of the autoencoder, an ancestral sampler's steps) is drawn in float32 and rounded.
torchsde's noise, which DPM++ SDE takes, follows the precision and the device of the latents in the same way.
"""

import sys
from typing import Any

import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler as _DrawnByTorchsde
from diffusers.utils.torch_utils import randn_tensor as _drawn_by_diffusers

__all__ = ["BrownianTreeNoiseSampler", "draw_in_float32", "randn_tensor"]

_NARROW = (torch.float16, torch.bfloat16)


def randn_tensor(
    shape: Any, generator: Any = None, device: Any = None, dtype: torch.dtype | None = None, layout: Any = None
) -> torch.Tensor:
    """diffusers' function of that name and arguments, with the same numbers in every precision up to rounding."""
    wide = torch.float32 if dtype in _NARROW else dtype
    drawn: torch.Tensor = _drawn_by_diffusers(shape, generator=generator, device=device, dtype=wide, layout=layout)
    return drawn if dtype is None else drawn.to(dtype)


class BrownianTreeNoiseSampler:
    """diffusers' class of that name and arguments: torchsde's noise, drawn in float32 on the CPU for any latents."""

    def __init__(self, x: torch.Tensor, sigma_min: Any, sigma_max: Any, *args: Any, **kwargs: Any) -> None:
        self._like = x
        self._sampler = _DrawnByTorchsde(x.float().cpu(), _on_cpu(sigma_min), _on_cpu(sigma_max), *args, **kwargs)

    def __call__(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        drawn: torch.Tensor = self._sampler(_on_cpu(sigma), _on_cpu(sigma_next))
        return drawn.to(self._like)


def _on_cpu(sigma: Any) -> torch.Tensor:
    return torch.as_tensor(sigma).cpu()


_OURS = {"randn_tensor": randn_tensor, "BrownianTreeNoiseSampler": BrownianTreeNoiseSampler}


def draw_in_float32(kind: type) -> None:
    """Have a class of diffusers, and those that it is made from, draw their noise by what stands above.

    Its modules hold diffusers' function and class under these names, and the classes take no others.
    """
    for one in kind.__mro__:
        module = sys.modules[one.__module__]
        if one.__module__.startswith("diffusers."):
            vars(module).update({name: ours for name, ours in _OURS.items() if hasattr(module, name)})
