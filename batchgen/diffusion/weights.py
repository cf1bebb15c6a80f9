"""Read tensors of an adapter's file, safetensors or a pickle that may hold nothing but tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from batchgen.diffusion.loading import one_line
from batchgen.errors import InputError
from batchgen.models.lora import BUNDLED

__all__ = ["read_bundled", "read_weights"]


def read_weights(path: Path) -> Mapping[Any, Any]:
    """What the file holds, on the CPU; of a pickle, what torch's weights-only loader lets through.

    Raises:
        InputError: damaged, or a pickle with more in it than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Mapping[Any, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile, safetensors and torch raise kinds of their own
        raise InputError(f"{path} could not be loaded: {one_line(error)}") from error
    return content


def read_bundled(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The embeddings in a LoRA's file, by their words, as the files of embeddings hold them; pickles have none.

    Raises:
        InputError: damaged.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    if path.suffix != ".safetensors":
        return found
    try:
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                if key.startswith(BUNDLED):
                    word, _, name = key.removeprefix(BUNDLED).partition(".")
                    found.setdefault(word, {})[name] = opened.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} could not be loaded: {one_line(error)}") from error
    return found
