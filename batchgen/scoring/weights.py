"""Files of weights beside what transformers reads."""

from pathlib import Path

import torch
from safetensors.torch import load_file

__all__ = ["load_weights"]


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name, or of a pickle, which torch's weights-only loader reads."""
    if path.suffix == ".safetensors":
        return load_file(path)
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return weights
