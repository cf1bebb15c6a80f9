"""The latents stage: every render through the finished autoencoder once, so that the UNet never waits for images."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from jobs.builtin.autoencoder import SCALING_FACTOR, to_tensor
from jobs.builtin.recipe import RecipeError
from jobs.builtin.renders import CHUNK_SCENES, open_renders

SOURCE = "autoencoder.sha256"


def digest(folder: Path) -> str:
    """sha256 over the weights files under a folder, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(path.read_bytes())
    return total.hexdigest()


def _open_autoencoder(folder: Path, device: torch.device) -> AutoencoderKL:
    if not (folder / "config.json").exists():
        raise RecipeError(f"no finished autoencoder in {folder}: run the autoencoder stage first")
    model: AutoencoderKL = AutoencoderKL.from_pretrained(folder, dtype=torch.float32)
    return model.to(device).eval()


@torch.no_grad()
def latents_stage(
    folder: Path, *, renders: Path, scenes: int, autoencoder: Path, device: str, progress: Callable[[int, int], None]
) -> None:
    """Write `folder/<chunk>.npy`, float16 (256, 4, 16, 16): posterior means times the scaling factor.

    Chunks that exist are kept if they come from the same autoencoder, else all are made again. Raises RecipeError when
    renders or autoencoder are missing.
    """
    model = _open_autoencoder(autoencoder, torch.device(device))
    source = digest(autoencoder)
    images = open_renders(renders, scenes=scenes)
    note = folder / SOURCE
    if folder.exists() and (not note.exists() or note.read_text() != source):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(source)
    chunks = -(-scenes // CHUNK_SCENES)
    for chunk in range(chunks):
        final = folder / f"{chunk:05d}.npy"
        if not final.exists():
            first = chunk * CHUNK_SCENES
            parts = [
                model.encode(to_tensor(images.batch(np.arange(start, start + 16))).to(device)).latent_dist.mean
                for start in range(first, first + CHUNK_SCENES, 16)
            ]
            values = (torch.cat(parts) * SCALING_FACTOR).cpu().numpy().astype(np.float16)
            partial = folder / f".{chunk:05d}.{os.getpid()}.npy"
            np.save(partial, values)
            partial.replace(final)
        progress(chunk + 1, chunks)


def open_latents(folder: Path, *, scenes: int, autoencoder: Path) -> NDArray[np.float16]:
    """All latents, float16 (scenes, 4, 16, 16).

    Raises RecipeError when some are missing or come from another autoencoder than the one in `autoencoder`.
    """
    note = folder / SOURCE
    paths = [folder / f"{chunk:05d}.npy" for chunk in range(-(-scenes // CHUNK_SCENES))]
    if not note.exists() or not all(path.exists() for path in paths):
        raise RecipeError(f"latents are missing in {folder}: run the latents stage first")
    if note.read_text() != digest(autoencoder):
        raise RecipeError(f"the latents in {folder} come from another autoencoder: run the latents stage again")
    return np.concatenate([np.load(path) for path in paths])[:scenes]
