"""Read tensors of an adapter's file, safetensors or a pickle that may hold nothing but tensors and plain values."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.serialization import safe_globals

from batchgen.errors import InputError, one_line
from batchgen.models.lora import BUNDLED

__all__ = ["read_bundled", "read_weights", "token_vectors"]


class _Parameters(dict[str, torch.Tensor]):
    """What stands for a pickled ParameterDict, as the first trainer of embeddings saves one: a dict that runs no code.

    torch's own class is a module, whose state may bring hooks.
    """

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update({name: tensor.detach() for name, tensor in state["_parameters"].items()})


def read_weights(path: Path) -> Mapping[Any, Any]:
    """What the file holds, on the CPU; of a pickle, what torch's weights-only loader lets through.

    Raises:
        InputError: damaged, or a pickle with more in it than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with safe_globals([(_Parameters, "torch.nn.modules.container.ParameterDict")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's text advises to load it without the guard
        raise InputError(
            f"{path} is damaged, or holds more than tensors and plain values; convert a file you trust to .safetensors"
        ) from error
    except Exception as error:  # zipfile, safetensors and torch raise kinds of their own
        raise InputError(f"{path} could not be loaded: {one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds no tensors by name")
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


def token_vectors(content: Mapping[Any, Any], word: str) -> list[torch.Tensor]:
    """The vectors of an embedding's file, (n, width) a tower: CompVis', diffusers', A1111's, or SDXL's with two towers.

    Args:
        content: what the file holds.
        word: of the prompt; of a file with several words it chooses the one that is called so.

    Raises:
        InputError: it is no embedding's.
    """
    if "clip_l" in content and "clip_g" in content:
        return [content["clip_l"], content["clip_g"]]
    if isinstance(content.get("string_to_param"), Mapping):
        content = content["string_to_param"]
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if len(tensors) == 1 or word in tensors:
        return [tensors[word] if word in tensors else next(iter(tensors.values()))]
    names = f": {', '.join(map(repr, tensors))}; give one of them as its token" if tensors else ""
    raise InputError(f"an embedding's file holds one tensor of token vectors; this one holds {len(tensors)}{names}")
