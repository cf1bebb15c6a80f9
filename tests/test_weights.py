"""Pickled weights as trainers leave them, and those that hold more."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from batchgen.diffusion.weights import read_weights, token_vectors
from batchgen.errors import InputError


def of_the_first_trainer(**words: torch.Tensor) -> dict[str, Any]:
    """What rinongal's and CompVis' textual inversion saves as `embeddings.pt`."""
    parameters = nn.ParameterDict({word: nn.Parameter(vectors) for word, vectors in words.items()})
    return {"string_to_token": {word: torch.tensor(265) for word in words}, "string_to_param": parameters}


def test_embeddings_of_the_first_trainer(tmp_path: Path) -> None:
    """Its ParameterDict is read, also as torch 1.11 wrote it; of a file with several words the row's is taken."""
    star, at = torch.randn(2, 8), torch.randn(1, 8)
    torch.save(of_the_first_trainer(**{"*": star}), tmp_path / "one.pt")
    old = of_the_first_trainer(**{"*": star, "@": at})
    del old["string_to_param"].__dict__["_keys"]
    torch.save(old, tmp_path / "two.pt")
    (found,) = token_vectors(read_weights(tmp_path / "one.pt"), "any")
    assert found.equal(star)
    assert not found.requires_grad
    assert token_vectors(read_weights(tmp_path / "two.pt"), "@")[0].equal(at)
    with pytest.raises(InputError, match=r"'\*', '@'; give one"):
        token_vectors(read_weights(tmp_path / "two.pt"), "any")


class Runs:
    """What a pickle can do when it is read without a guard."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def hooked() -> dict[str, Any]:
    content = of_the_first_trainer(x=torch.zeros(1, 8))
    content["string_to_param"].__dict__["_forward_hooks"] = {0: Runs()}
    return content


@pytest.mark.parametrize("content", [Runs(), {"string_to_param": Runs()}, {"x": nn.Linear(1, 1)}, hooked()])
def test_a_pickle_with_more_in_it_runs_nothing(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules and functions are refused, and nothing of them runs."""
    monkeypatch.chdir(tmp_path)
    torch.save(content, "x.pt")
    with pytest.raises(InputError, match="more than tensors"):
        read_weights(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()
