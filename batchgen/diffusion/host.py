"""Turn micro-batches into images with one model on one device. Knows nothing of Ray, files or outputs.

What a row's image depends on: the row, the model, the micro-batch's size, device, precision and number of threads;
never the other rows. For that every call runs with exactly `MicroBatch.size` rows (a short one repeats its last row:
convolutions and linear layers give other last bits at other batch sizes), prompts are encoded and images decoded one
at a time, and every row draws its noise from a CPU generator of its own, made afresh for the call.
"""

import gc
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image

from batchgen.diffusion.loaded import AfterStep, LoadedModel
from batchgen.diffusion.loading import DTYPES, Loader, Loading, load_components
from batchgen.diffusion.pixels import PixelModel
from batchgen.models.catalog import Family, Model, require_unchanged
from batchgen.rows import MicroBatch, Row

__all__ = ["Environment", "Images", "PipelineHost"]

_Loaded = LoadedModel | PixelModel
"""What makes images of rows; the two have the same methods."""

_REPAINTED = 128  # of 255: a mask's pixels from here on are repainted, as the inpainting pipelines have it


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What became of a micro-batch's rows, in their order, without padding."""

    pixels: npt.NDArray[np.uint8]  # (B, H, W, 3)
    finite: tuple[bool, ...]  # False where latents or decoded image held NaN or infinity
    steps: Mapping[int, npt.NDArray[np.uint8]]  # (B, H, W, 3) after each of the chosen steps that ran
    flagged: tuple[bool | None, ...]  # by the model's safety checker; None where it has none or is not asked
    prompt_tokens: tuple[int, ...]  # of the whole prompt, start and end markers not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What computes: recorded with every image, since other hardware or versions may give other last bits."""

    device: str  # "cpu" or the GPU's name
    dtype: str  # of the UNet, and of the components that have another
    torch_version: str
    diffusers_version: str


class PipelineHost:
    """Holds one loaded model, and its refiner if rows ask for one, on one device; another model frees them first.

    For one thread at a time.
    """

    def __init__(
        self,
        *,
        device: Literal["cpu", "cuda"],
        dtype: Literal["float16", "bfloat16", "float32"],
        threads: int = 1,
        loading: Loading | None = None,
        load: Loader = load_components,
    ) -> None:
        """Fix the process's numerics.

        Args:
            device: where to compute.
            dtype: precision of the weights.
            threads: CPU threads of one operation. Another number gives other last bits, so it must not follow the
                number of workers or cores; one thread a worker and one worker a core is as fast in total.
            loading: how models are loaded.
            load: reads a model; the benchmarks on GPUs make one of random weights instead, on the device.
        """
        _fix_numerics(device, threads)
        self._device = torch.device(device)
        self._dtype = DTYPES[dtype]
        self._loading = loading or Loading()
        self._load_components = load
        self._loaded: _Loaded | None = None
        self._refiner: _Loaded | None = None
        self.loading_seconds = 0.0  # spent on reading models so far
        self.environment = Environment(
            device="cpu" if device == "cpu" else torch.cuda.get_device_name(),
            dtype=", ".join([dtype, *(f"{name} {own}" for name, own in sorted(self._loading.dtypes.items()))]),
            torch_version=torch.__version__,
            diffusers_version=diffusers.__version__,
        )

    @torch.inference_mode()
    def generate(
        self,
        model: Model,
        batch: MicroBatch,
        inputs: Sequence[Mapping[str, Image]],
        *,
        refiner: Model | None = None,
        save_steps: Collection[int] = (),
    ) -> Images:
        """Make the images of a micro-batch; after an error the model is read anew by the next call.

        Whatever a half-done attachment (a LoRA whose second part does not fit, hooks, a scheduler's state) may have
        left in the model is gone with it, so that rows after a failure are the same as without it.

        Rows whose prompts need other numbers of chunks go through the pipeline in calls of their own, each of the full
        size. Image-to-image and inpainting whose strength leaves no step to denoise return the init image as the
        autoencoder renders it, everywhere, masked or not: it is what their first step would have started from.

        Args:
            batch: rows of one batch key, in any order.
            inputs: the rows' conditioning images by name, in the task's modes and the rows' size.
            refiner: the model that the rows name as theirs.
            save_steps: sampling steps, from 1, after which the latents are decoded too, with the noise still in them.

        Raises:
            ModelLoadError: the model cannot be loaded, or changed since it was checked.
            InputError: the model, an adapter or the scheduler cannot do what the rows ask.
        """
        assert 0 < len(batch.rows) <= batch.size
        assert len(inputs) == len(batch.rows)
        with self._using(model, refiner) as loaded:
            pixels: dict[int, npt.NDArray[np.uint8]] = {}
            finite: dict[int, bool] = {}
            steps: dict[int, dict[int, npt.NDArray[np.uint8]]] = {}
            for places in _alike([loaded.chunks(row) for row in batch.rows]):
                rows, images = [batch.rows[i] for i in places], [inputs[i] for i in places]
                seen: dict[int, torch.Tensor] = {}
                made, sound = self._make(loaded, rows, images, batch.size, _keeper(seen, save_steps))
                for step, latents in seen.items():
                    after, _ = loaded.decode(latents[: len(rows)], rows[0].parameters.adapters.vae)
                    steps.setdefault(step, {}).update(zip(places, after, strict=True))
                pixels.update(zip(places, made, strict=True))
                finite.update(zip(places, sound, strict=True))
            ordered = [_unmasked_kept(pixels[i], row, inputs[i]) for i, row in enumerate(batch.rows)]
            return Images(
                pixels=np.stack(ordered),
                steps={
                    step: np.stack([after[i] for i in range(len(ordered))])
                    for step, after in steps.items()
                    if len(after) == len(ordered)
                },
                flagged=tuple(loaded.is_flagged(image) for image in ordered),
                finite=tuple(finite[i] for i in range(len(ordered))),
                prompt_tokens=tuple(loaded.count_tokens(row) for row in batch.rows),
            )

    def forget(self) -> None:
        """Drop what is loaded, with all that was attached to it; the next call reads it again."""
        self._loaded = self._refiner = None

    @torch.inference_mode()
    def watch(self, model: Model, row: Row, inputs: Mapping[str, Image]) -> list[npt.NDArray[np.uint8]]:
        """The images, (H, W, 3), of what a row's latents are after every sampling step: noise first, the row's last.

        Raises:
            ModelLoadError: the model cannot be loaded.
            InputError: the model, an adapter or the scheduler cannot do what the row asks.
        """
        seen: list[torch.Tensor] = []
        generators = [torch.Generator("cpu").manual_seed(row.parameters.sampling.seed)]
        with self._using(model, None) as loaded:
            loaded.denoise([row], [inputs], generators, after_step=lambda _step, latents: seen.append(latents))
            return [loaded.decode(latents, row.parameters.adapters.vae)[0][0] for latents in seen]

    def _make(
        self,
        loaded: _Loaded,
        rows: Sequence[Row],
        inputs: Sequence[Mapping[str, Image]],
        size: int,
        after_step: AfterStep | None,
    ) -> tuple[npt.NDArray[np.uint8], tuple[bool, ...]]:
        """Images (n, H, W, 3) of at most `size` rows, and which of them are finite."""
        padding = size - len(rows)
        padded = [*rows, *[rows[-1]] * padding]
        generators = [torch.Generator("cpu").manual_seed(row.parameters.sampling.seed) for row in padded]
        latents = loaded.denoise(padded, [*inputs, *[inputs[-1]] * padding], generators, after_step)
        last = loaded
        if self._refiner is not None:
            latents, last = self._refiner.refine(latents, padded, generators), self._refiner
        vae = None if self._refiner is not None else rows[0].parameters.adapters.vae
        return last.decode(latents[: len(rows)], vae)

    @contextmanager
    def _using(self, model: Model, refiner: Model | None) -> Iterator[_Loaded]:
        """The loaded model, which is dropped where an error ends its use."""
        try:
            yield self._load(model, refiner)
        except BaseException:
            self.forget()
            raise

    def _load(self, model: Model, refiner: Model | None) -> _Loaded:
        if self._loaded is None or self._loaded.model != model:
            self._loaded = self._refiner = None  # before the next one is read: the two may not fit side by side
            self._loaded = self._read(model)
        if refiner is None:
            self._refiner = None
        elif self._refiner is None or self._refiner.model != refiner:
            self._refiner = None
            self._refiner = self._read(refiner)
        return self._loaded

    def _read(self, model: Model) -> _Loaded:
        started = time.perf_counter()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        require_unchanged(model)
        components = self._load_components(model, device=self._device, dtype=self._dtype, how=self._loading)
        loaded: _Loaded
        if model.family is Family.PIXELS:
            loaded = PixelModel(model, components, self._dtype)
        else:
            loaded = LoadedModel(model, components, self._dtype, tiled=self._loading.low_memory)
        self.loading_seconds += time.perf_counter() - started
        return loaded


def _keeper(seen: dict[int, torch.Tensor], wanted: Collection[int]) -> AfterStep | None:
    """Keeps the latents after the wanted steps; nothing to call where none are."""

    def keep(step: int, latents: torch.Tensor) -> None:
        if step in wanted:
            seen[step] = latents

    return keep if wanted else None


def _alike(numbers: Sequence[int]) -> Iterator[list[int]]:
    """The places of equal numbers."""
    for number in sorted(set(numbers)):
        yield [place for place, other in enumerate(numbers) if other == number]


def _unmasked_kept(image: npt.NDArray[np.uint8], row: Row, inputs: Mapping[str, Image]) -> npt.NDArray[np.uint8]:
    """The image with the init image's own pixels where the mask repaints nothing, if the row asks for that."""
    if not row.parameters.init.keep_unmasked:
        return image
    repainted = np.asarray(inputs["mask_image"])[..., None] >= _REPAINTED
    return np.where(repainted, image, np.asarray(inputs["image"]))


def _fix_numerics(device: str, threads: int) -> None:
    """Choose, of the ways to compute the same thing, always the same one."""
    torch.set_num_threads(threads)
    with suppress(RuntimeError):  # can be set only before the first parallel work of the process
        torch.set_num_interop_threads(1)
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # A debugging aid that costs a write per tensor; torch makes the attribute at run time, unseen by mypy.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
