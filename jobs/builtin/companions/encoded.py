"""Images of a companion's own through the autoencoder, once: one file beside the checkpoint, whole or absent."""

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from jobs.builtin.autoencoder import to_tensor
from jobs.builtin.recipe import RecipeError

Arrays = dict[str, NDArray[np.generic]]
Progress = Callable[[int, int], None]
BATCH = 16
SOURCE = "source"


@torch.no_grad()
def encode(
    images: Iterable[NDArray[np.uint8]], autoencoder: AutoencoderKL, *, count: int, progress: Progress
) -> NDArray[np.float16]:
    """Posterior means times the scaling factor, float16 (n, 4, h, w), of `count` images uint8 (height, width, 3)."""
    batches = -(-count // BATCH)

    def parts() -> Iterator[NDArray[np.float16]]:
        source = iter(images)
        for done in range(batches):
            part = list(islice(source, BATCH))
            values = to_tensor(np.stack(part)).to(autoencoder.device)
            mean = autoencoder.encode(values).latent_dist.mean * autoencoder.config.scaling_factor
            yield mean.cpu().numpy().astype(np.float16)
            progress(done + 1, batches)

    return np.concatenate(list(parts()))


def keep_arrays(path: Path, source: str, make: Callable[[], Arrays]) -> None:
    """Have `path` hold what `make` gives, unless it does from the same source already.

    Raises RecipeError when the folder cannot be written.
    """
    if _source(path) == source:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot write to {path.parent}: {error}") from error
    arrays = make()
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(partial, **{SOURCE: np.array(source)}, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError as error:
        raise RecipeError(f"cannot write to {path.parent}: {error}") from error


def open_arrays(path: Path, source: str) -> Arrays:
    """What `keep_arrays` wrote; raises RecipeError when it is missing or comes from another source."""
    if _source(path) != source:
        raise RecipeError(f"{path} is missing or comes from another base: run the {path.parent.name} stage first")
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files if name != SOURCE}


def _source(path: Path) -> str | None:
    try:
        with np.load(path) as stored:
            return str(stored[SOURCE])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):  # absent, or no file of ours
        return None
