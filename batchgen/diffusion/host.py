"""Turn micro-batches into images with one model on one device. Knows nothing of Ray, files or outputs.

What a row's image depends on: the row, the model, the micro-batch's size, device, precision and number of threads;
never the other rows. For that every call runs with exactly `MicroBatch.size` rows (a short one repeats its last row:
convolutions and linear layers give other last bits at other batch sizes), prompts are encoded and images decoded one
at a time, and every row draws its noise from a CPU generator of its own, made afresh for the call.
"""

import gc
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image

from batchgen.diffusion.attention import AttentionMaps
from batchgen.diffusion.loaded import LoadedModel
from batchgen.diffusion.loading import DTYPES, Loader, Loading, load_components
from batchgen.diffusion.observation import Call, Observer
from batchgen.diffusion.pixels import PixelModel
from batchgen.models.catalog import Family, Model, require_unchanged
from batchgen.rows import MicroBatch, Row

__all__ = ["Environment", "Images", "PipelineHost", "Watched"]

_Loaded = LoadedModel | PixelModel
"""What makes images of rows; the two have the same methods."""

_REPAINTED = 128  # of 255: a mask's pixels from here on are repainted, as the inpainting pipelines have it


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """What became of a micro-batch's rows, in their order, without padding."""

    pixels: npt.NDArray[np.uint8]  # (B, H, W, 3)
    finite: tuple[bool, ...]  # False where latents or decoded image held NaN or infinity
    steps: Mapping[int, npt.NDArray[np.uint8]]  # (B, H, W, 3) after each of the chosen steps that ran
    controls: Sequence[npt.NDArray[np.uint8]]  # (B, H, W, 3) that each ControlNet was given, where they are asked for
    flagged: tuple[bool | None, ...]  # by the model's safety checker; None where it has none or is not asked
    prompt_tokens: tuple[int, ...]  # of the whole prompt, start and end markers not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """An image, uint8 (H, W, 3), and what was seen while it was made, by the number of the model's call, from 1.

    `noised` is what the model was given, on its own scale, `estimates` what it took the image for; both are decoded.
    `attention`, (tokens, h, w) on the grid of the latents, is how much of its cross-attention went to each token of
    the prompt, as a share of what went to all states of the text.
    """

    image: npt.NDArray[np.uint8]
    noised: Mapping[int, npt.NDArray[np.uint8]]
    estimates: Mapping[int, npt.NDArray[np.uint8]]
    attention: npt.NDArray[np.float32] | None


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
        save_controls: bool = False,
    ) -> Images:
        """Make the images of a micro-batch; after an error the model is read anew by the next call.

        Whatever a half-loaded adapter (a LoRA whose second part does not fit, hooks, a scheduler's state) may have
        left in the model is gone with it, so that rows after a failure are the same as without it.

        Rows whose prompts need other numbers of chunks go through the pipeline in calls of their own, each of the full
        size. Image-to-image and inpainting whose strength leaves no step to denoise return the init image as the
        autoencoder renders it, everywhere, masked or not: it is what their first step would have started from.

        Args:
            batch: rows of one batch key, in any order.
            inputs: the rows' conditioning images by name, in their columns' modes and the rows' size.
            refiner: the model that the rows name as theirs.
            save_steps: sampling steps, from 1, after which the latents are decoded too, with the noise still in them.
            save_controls: keep what ControlNets are given, too; of the hires fix what its first pass is given.

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
            controls: dict[int, dict[int, npt.NDArray[np.uint8]]] = {}
            for places in _alike([loaded.chunks(row) for row in batch.rows]):
                rows, images = [batch.rows[i] for i in places], [inputs[i] for i in places]
                seen: dict[int, torch.Tensor] = {}
                maps: list[npt.NDArray[np.uint8]] = []
                observer = Observer(
                    after_step=_keeper(seen, save_steps), control_maps=maps.extend if save_controls else None
                )
                made, sound = self._make(loaded, rows, images, batch.size, observer)
                for step, latents in seen.items():
                    after, _ = loaded.decode(latents[: len(rows)], rows[0].parameters.adapters.vae)
                    steps.setdefault(step, {}).update(zip(places, after, strict=True))
                for net, given in enumerate(maps):
                    controls.setdefault(net, {}).update(zip(places, given[: len(rows)], strict=True))
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
                controls=[np.stack([given[i] for i in range(len(ordered))]) for given in controls.values()],
                flagged=tuple(loaded.is_flagged(image) for image in ordered),
                finite=tuple(finite[i] for i in range(len(ordered))),
                prompt_tokens=tuple(loaded.count_tokens(row) for row in batch.rows),
            )

    def forget(self) -> None:
        """Drop what is loaded, with all that was attached to it; the next call reads it again."""
        self._loaded = self._refiner = None

    @torch.inference_mode()
    def watch(
        self,
        model: Model,
        row: Row,
        inputs: Mapping[str, Image],
        *,
        refiner: Model | None = None,
        calls: Collection[int] = (),
        attention: bool = False,
    ) -> Watched:
        """Make a row's image alone, as a micro-batch of one, and tell what was seen meanwhile.

        Args:
            inputs: as of `generate`, for this row.
            refiner: as of `generate`.
            calls: of the model, from 1, that are told of; those of a refiner and of a second pass are not.
            attention: take up where the model looks.

        Raises:
            ModelLoadError: the model cannot be loaded.
            InputError: the model, an adapter or the scheduler cannot do what the row asks.
        """
        seen: list[Call] = []
        maps = AttentionMaps() if attention else None

        def look(call: Call) -> None:
            if call.level.step in calls:
                seen.append(call)

        with self._using(model, refiner) as loaded:
            assert isinstance(loaded, LoadedModel), "rows with a prompt have a model that reads one"
            made, _ = self._make(loaded, [row], [inputs], 1, Observer(at_call=look, attention=maps))
            vae = row.parameters.adapters.vae
            estimates = {call.level.step: call.estimate for call in seen if call.estimate is not None}
            return Watched(
                image=_unmasked_kept(made[0], row, inputs),
                noised={call.level.step: loaded.decode(call.noised, vae)[0][0] for call in seen},
                estimates={step: loaded.decode(estimate, vae)[0][0] for step, estimate in estimates.items()},
                attention=None if maps is None or maps.sums is None else _of_tokens(maps.sums, loaded, row),
            )

    def _make(
        self,
        loaded: _Loaded,
        rows: Sequence[Row],
        inputs: Sequence[Mapping[str, Image]],
        size: int,
        observer: Observer,
    ) -> tuple[npt.NDArray[np.uint8], tuple[bool, ...]]:
        """Images (n, H, W, 3) of at most `size` rows, and which of them are finite."""
        padding = size - len(rows)
        padded = [*rows, *[rows[-1]] * padding]
        generators = [torch.Generator("cpu").manual_seed(row.parameters.sampling.seed) for row in padded]
        latents = loaded.denoise(padded, [*inputs, *[inputs[-1]] * padding], generators, observer)
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


def _keeper(seen: dict[int, torch.Tensor], wanted: Collection[int]) -> Callable[[int, torch.Tensor], None] | None:
    """Keeps the latents after the wanted steps; nothing to call where none are."""

    def keep(step: int, latents: torch.Tensor) -> None:
        if step in wanted:
            seen[step] = latents

    return keep if wanted else None


def _of_tokens(sums: torch.Tensor, loaded: LoadedModel, row: Row) -> npt.NDArray[np.float32]:
    """The maps (T, h, w) of those states of the text that are the prompt's tokens, as shares of all."""
    length = len(sums) // loaded.chunks(row)  # states of a chunk, with its markers and padding
    tokens = loaded.tokens(row)
    firsts = {chunk: next(one.position for one in tokens if one.chunk == chunk) for chunk in {t.chunk for t in tokens}}
    places = [one.chunk * length + 1 + one.position - firsts[one.chunk] for one in tokens]
    shares = sums / sums.sum(dim=0, keepdim=True)
    found: npt.NDArray[np.float32] = shares[places].cpu().numpy()
    return found


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
