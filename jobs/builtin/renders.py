"""The rendered scenes on disk: the stage that writes them and the set that training reads; knows nothing of torch.

A chunk is a folder of 256 scenes that appears whole or not at all; a killed stage loses its unfinished chunks only.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jobs.builtin.recipe import RecipeError
from jobs.builtin.renderer import IMAGE_SIZE, Render, render
from jobs.builtin.scenes import Scene, draw_scene

CHUNK_SCENES = 256


def _centers(images: list[Render]) -> NDArray[np.float32]:
    """Row and column of every object's middle, shape (n, 2 objects, 2); a missing second object repeats the first."""
    result = np.full((len(images), 2, 2), len(images[0].rgb) / 2, dtype=np.float32)
    for number, image in enumerate(images):
        for thing in (1, 2):
            rows, columns = np.nonzero(image.objects == thing)
            if rows.size:
                result[number, thing - 1 :] = ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2)
    return result


def write_chunk(final: Path, seed: int, scenes: range, size: int) -> None:
    """Render the scenes of one chunk, `size` pixels a side, and move them into place as the folder `final`."""
    if final.exists():
        return
    images = [render(draw_scene(seed, index), size=size) for index in scenes]
    partial = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    np.save(partial / "rgb.npy", np.stack([image.rgb for image in images]))
    np.save(partial / "objects.npy", np.stack([image.objects for image in images]))
    np.save(partial / "depth.npy", np.stack([image.depth for image in images]).astype(np.float16))
    np.save(partial / "edges.npy", np.packbits(np.stack([image.edges for image in images]), axis=-1))
    np.save(partial / "centers.npy", _centers(images))
    partial.rename(final)


def render_stage(
    folder: Path,
    *,
    seed: int,
    scenes: int,
    workers: int,
    progress: Callable[[int, int], None],
    size: int = IMAGE_SIZE,
) -> None:
    """Render `scenes` scenes (rounded up to whole chunks) of `size` pixels a side under `folder`; chunks that exist are
    kept.

    Raises RecipeError when the folder holds renders of another seed or size, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "seed.json"
        if not note.exists():
            note.write_text(json.dumps({"seed": seed, "size": size}))
    except OSError as error:
        raise RecipeError(f"cannot write renders to {folder}: {error}") from error
    if _read_note(note) != (seed, size):
        raise RecipeError(f"{folder} holds renders of another seed or size; choose another folder or remove it")
    chunks = {folder / f"{chunk:05d}": range(chunk * CHUNK_SCENES, (chunk + 1) * CHUNK_SCENES)
              for chunk in range(-(-scenes // CHUNK_SCENES))}  # fmt: skip
    missing = {final: indices for final, indices in chunks.items() if not final.exists()}
    progress(len(chunks) - len(missing), len(chunks))
    if workers == 1:
        for done, (final, indices) in enumerate(missing.items(), len(chunks) - len(missing) + 1):
            write_chunk(final, seed, indices, size)
            progress(done, len(chunks))
        return
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_chunk, final, seed, indices, size) for final, indices in missing.items()]
        for done, job in enumerate(as_completed(jobs), len(chunks) - len(missing) + 1):
            job.result()
            progress(done, len(chunks))


def _read_note(note: Path) -> tuple[int, int]:
    values = json.loads(note.read_text())
    return int(values["seed"]), int(values.get("size", IMAGE_SIZE))


@dataclass(frozen=True, kw_only=True)
class RenderSet:
    """The first `count` scenes under a folder, memory-mapped; scenes are drawn again from the seed, not stored.

    Images are `size` pixels a side, 128 but for the upscaler.
    """

    folder: Path
    seed: int
    count: int
    size: int = IMAGE_SIZE

    @cached_property
    def _rgb(self) -> list[NDArray[np.uint8]]:
        return [np.load(self._chunk(chunk) / "rgb.npy", mmap_mode="r") for chunk in self._chunks]

    @cached_property
    def _objects(self) -> list[NDArray[np.uint8]]:
        return [np.load(self._chunk(chunk) / "objects.npy", mmap_mode="r") for chunk in self._chunks]

    @cached_property
    def _depth(self) -> list[NDArray[np.float16]]:
        return [np.load(self._chunk(chunk) / "depth.npy", mmap_mode="r") for chunk in self._chunks]

    @cached_property
    def _edges(self) -> list[NDArray[np.uint8]]:
        return [np.load(self._chunk(chunk) / "edges.npy", mmap_mode="r") for chunk in self._chunks]

    @cached_property
    def centers(self) -> NDArray[np.float32]:
        """Row and column of the objects' middles, shape (count, 2, 2)."""
        return np.concatenate([np.load(self._chunk(chunk) / "centers.npy") for chunk in self._chunks])[: self.count]

    def coverage(self, cells: int) -> NDArray[np.uint8]:
        """How much of each cell of a `cells` x `cells` grid shows objects, 0 to 255, shape (count, cells, cells)."""
        side = self.size // cells
        shares = [
            (np.asarray(chunk) > 0).reshape(-1, cells, side, cells, side).mean(axis=(2, 4), dtype=np.float32)
            for chunk in self._objects
        ]
        return (np.concatenate(shares)[: self.count] * 255).round().astype(np.uint8)

    @property
    def _chunks(self) -> range:
        return range(-(-self.count // CHUNK_SCENES))

    def _chunk(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05d}"

    def rgb(self, index: int) -> NDArray[np.uint8]:
        """The image of one scene, uint8 (size, size, 3)."""
        image: NDArray[np.uint8] = self._rgb[index // CHUNK_SCENES][index % CHUNK_SCENES]
        return image

    def objects(self, index: int) -> NDArray[np.uint8]:
        """The object at every pixel of one scene, uint8 (size, size); 0 is none."""
        objects: NDArray[np.uint8] = self._objects[index // CHUNK_SCENES][index % CHUNK_SCENES]
        return objects

    def depth(self, index: int) -> NDArray[np.float32]:
        """The distance along the optical axis of one scene's pixels, float32 (size, size), infinite in the sky."""
        stored: NDArray[np.float16] = self._depth[index // CHUNK_SCENES][index % CHUNK_SCENES]
        return stored.astype(np.float32)

    def edges(self, index: int) -> NDArray[np.bool_]:
        """The outlines, creases and horizon of one scene, bool (size, size)."""
        packed: NDArray[np.uint8] = self._edges[index // CHUNK_SCENES][index % CHUNK_SCENES]
        return np.unpackbits(packed, axis=-1).astype(np.bool_)

    def batch(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images of several scenes, uint8 (n, size, size, 3)."""
        return np.stack([self.rgb(int(index)) for index in indices])

    def scene(self, index: int) -> Scene:
        return draw_scene(self.seed, index)


def open_renders(folder: Path, *, scenes: int) -> RenderSet:
    """The render set under `folder`.

    Raises RecipeError when the render stage has not finished `scenes` scenes there, or when the renderer has changed
    since (one scene is rendered again and compared).
    """
    note = folder / "seed.json"
    if not note.exists():
        raise RecipeError(f"no renders in {folder}: run the render stage first")
    missing = [chunk for chunk in range(-(-scenes // CHUNK_SCENES)) if not (folder / f"{chunk:05d}").exists()]
    if missing:
        raise RecipeError(f"{len(missing)} chunks of renders are missing in {folder}: run the render stage again")
    seed, size = _read_note(note)
    renders = RenderSet(folder=folder, seed=seed, count=scenes, size=size)
    again = render(renders.scene(scenes - 1), size=size).rgb.astype(np.int16)
    if np.abs(again - renders.rgb(scenes - 1)).max() > 2:  # rounding may differ between processors
        raise RecipeError(f"the renderer has changed since {folder} was written: remove it and render again")
    return renders
