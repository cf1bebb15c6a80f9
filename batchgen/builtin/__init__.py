"""The built-in models: small diffusion models of our own, their weights and the recipe that made them.

This module finds the weights and imports nothing; `python -m jobs.builtin` is the recipe.
"""

from pathlib import Path

__all__ = ["companion_path", "model_names", "model_path"]

_WEIGHTS = Path(__file__).parent / "weights"


def model_names() -> list[str]:
    """The names of the models that ship with the package, sorted."""
    return sorted(path.parent.name for path in _WEIGHTS.glob("*/model_index.json"))


def model_path(name: str) -> Path:
    """The diffusers folder of a built-in model.

    Raises LookupError, with the known names, when no model of that name ships with the package.
    """
    if name not in model_names():
        raise LookupError(f"no built-in model {name!r}; there are: {', '.join(model_names()) or 'none'}")
    return _WEIGHTS / name


def companion_path(name: str) -> Path:
    """The folder of a companion of the built-in model: a ControlNet, a LoRA, an embedding, an autoencoder, a
    depth estimator, a pair of CLIP towers.

    Raises LookupError, with the known names, when nothing of that name ships with the package.
    """
    names = sorted(path.name for path in _WEIGHTS.glob("builtin-*"))
    if name not in names:
        raise LookupError(f"nothing named {name!r} ships with the package; there are: {', '.join(names) or 'none'}")
    return _WEIGHTS / name
