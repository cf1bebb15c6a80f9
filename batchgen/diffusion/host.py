"""Turn micro-batches into pictures with one model on one device. Knows nothing of Ray, files or outputs.

What a row's picture depends on: the row, the model, the micro-batch's size, device, precision and number of threads;
never the other rows. For that every call runs with exactly `MicroBatch.size` rows (a short one repeats its last row:
convolutions and linear layers give other last bits at other batch sizes), prompts are encoded and pictures decoded one
at a time, and every row draws its noise from a CPU generator of its own, made afresh for the call.
"""

import gc
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image

from batchgen.diffusion.loading import Components, load_components
from batchgen.diffusion.pipelines import make_pipeline
from batchgen.diffusion.prompts import PromptEncoder
from batchgen.diffusion.schedulers import make_scheduler, seed_scheduler
from batchgen.errors import InputError
from batchgen.models import Model
from batchgen.rows import MicroBatch, Row
from batchgen.tasks import Task, denoised_steps, find_task

__all__ = ["Environment", "Pictures", "PipelineHost"]

_DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
_OWN_CHANNELS = 4  # latents of SD 1.x; a UNet with 9 takes a mask and a masked picture besides
_INPAINTING = "StableDiffusionInpaintPipeline"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """What became of a micro-batch's rows, in their order, without padding."""

    pixels: npt.NDArray[np.uint8]  # (B, H, W, 3)
    finite: tuple[bool, ...]  # False where latents or decoded picture held NaN or infinity
    prompt_tokens: tuple[int, ...]  # of the whole prompt, start and end markers not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What computes: recorded with every picture, since other hardware or versions may give other last bits."""

    device: str  # "cpu" or the GPU's name
    dtype: str
    torch_version: str
    diffusers_version: str


class PipelineHost:
    """Holds one loaded model at a time on one device; another model frees it first. For one thread at a time."""

    def __init__(
        self,
        *,
        device: Literal["cpu", "cuda"],
        dtype: Literal["float16", "bfloat16", "float32"],
        threads: int = 1,
    ) -> None:
        """Fix the process's numerics.

        Args:
            threads: CPU threads of one operation. Another number gives other last bits, so it must not follow the
                number of workers or cores; one thread a worker and one worker a core is as fast in total.
        """
        _fix_numerics(device, threads)
        self._device = torch.device(device)
        self._dtype = _DTYPES[dtype]
        self._model: Model | None = None
        self._loaded: _LoadedModel | None = None
        self.environment = Environment(
            device="cpu" if device == "cpu" else torch.cuda.get_device_name(),
            dtype=dtype,
            torch_version=torch.__version__,
            diffusers_version=diffusers.__version__,
        )

    @torch.inference_mode()
    def generate(self, model: Model, batch: MicroBatch, inputs: Sequence[Mapping[str, Image]]) -> Pictures:
        """Make the pictures of a micro-batch.

        Image-to-image and inpainting whose strength leaves no step to denoise return the init image as the
        autoencoder renders it, everywhere, masked or not: it is what their first step would have started from.

        Args:
            batch: rows of one batch key, in any order.
            inputs: the rows' conditioning images by column, in the task's modes and the rows' size.

        Raises:
            ModelLoadError: the model cannot be loaded.
            InputError: the model or the scheduler cannot do what the rows ask.
        """
        assert 0 < len(batch.rows) <= batch.size
        assert len(inputs) == len(batch.rows)
        loaded = self._load(model)
        padding = batch.size - len(batch.rows)
        rows = [*batch.rows, *[batch.rows[-1]] * padding]
        latents = loaded.denoise(rows, [*inputs, *[inputs[-1]] * padding])
        pixels, finite = loaded.decode(latents[: len(batch.rows)])
        tokens = tuple(loaded.prompts.count_tokens(row.values["prompt"]) for row in batch.rows)
        return Pictures(pixels=pixels, finite=finite, prompt_tokens=tokens)

    def _load(self, model: Model) -> "_LoadedModel":
        if self._loaded is None or self._model != model:
            self._loaded = self._model = None  # before the next one is read: the two may not fit side by side
            gc.collect()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._loaded = _LoadedModel(model, load_components(model, device=self._device, dtype=self._dtype))
            self._model = model
        return self._loaded


class _LoadedModel:
    """A model's components and what is made from them and goes with them: pipelines and text embeddings."""

    def __init__(self, model: Model, components: Components) -> None:
        self._name = model.name
        self._components = components
        self._vae = components["vae"]
        self._pipelines: dict[tuple[str, str, str], Any] = {}  # a scheduler each, some 100 kB: never dropped
        self.prompts = PromptEncoder(components["tokenizer"], components["text_encoder"])

    def denoise(self, rows: Sequence[Row], inputs: Sequence[Mapping[str, Image]]) -> torch.Tensor:
        """Latents of the rows: (B, 4, H/8, W/8)."""
        shared = rows[0].values
        task = find_task(rows[0].task)
        pipeline = self._pipeline(task, shared["scheduler"], shared.get("scheduler_kwargs") or {})
        arguments = task.arguments(shared, inputs)
        generators = [torch.Generator("cpu").manual_seed(row.values["seed"]) for row in rows]
        if "strength" in arguments and denoised_steps(shared) == 0:
            return self._encode(pipeline, arguments["image"], generators)
        seed_scheduler(pipeline.scheduler, [row.values["seed"] for row in rows])
        pipeline.guided = shared["guidance_scale"] > 1
        latents: torch.Tensor = pipeline(
            **self._conditioning(rows, guided=pipeline.guided),
            num_inference_steps=shared["num_inference_steps"],
            eta=shared.get("eta") or 0.0,
            generator=generators,
            output_type="latent",
            **arguments,
        ).images
        return latents

    def decode(self, latents: torch.Tensor) -> tuple[npt.NDArray[np.uint8], tuple[bool, ...]]:
        """Pictures (B, H, W, 3) and which of them are finite.

        One at a time: the autoencoder's bits depend on the batch size, and its memory (0.4 GiB an image of 512 pixels
        in float16) grows with it. The rounding is exactly that of diffusers' PIL output.
        """
        finite, pictures = [], []
        for latent in latents[:, None]:  # each (1, 4, H/8, W/8)
            decoded = self._vae.decode(latent / self._vae.config.scaling_factor, return_dict=False)[0]
            finite.append(latent.isfinite().all() & decoded.isfinite().all())
            levels = ((decoded.float().nan_to_num() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            pictures.append(levels.permute(0, 2, 3, 1))
        return torch.cat(pictures).cpu().numpy(), tuple(torch.stack(finite).tolist())

    def _conditioning(self, rows: Sequence[Row], *, guided: bool) -> dict[str, Any]:
        """The arguments that carry prompts and guidance; without guidance there is no negative prompt."""
        prompts = [self.prompts.encode(row.values["prompt"], row.values.get("clip_skip")) for row in rows]
        embeddings = torch.cat(prompts)
        if not guided:
            return {"prompt_embeds": embeddings, "guidance_scale": 1.0}
        # As in diffusers, clip_skip is for the prompt only.
        negatives = [self.prompts.encode(row.values.get("negative_prompt") or "", None) for row in rows]
        # Of the latents' type: a wider one would widen the latents themselves.
        scales = torch.tensor([row.values["guidance_scale"] for row in rows], dtype=embeddings.dtype)
        return {
            "prompt_embeds": embeddings,
            "negative_prompt_embeds": torch.cat(negatives),
            "guidance_scale": scales.view(-1, 1, 1, 1).to(embeddings.device),
        }

    def _encode(self, pipeline: Any, images: Sequence[Image], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Latents of pictures, sampled by the rows' generators as the pipelines do."""
        pixels = pipeline.image_processor.preprocess(list(images)).to(self._vae.device, self._vae.dtype)
        latents = [
            self._vae.encode(picture).latent_dist.sample(generator)
            for picture, generator in zip(pixels.split(1), generators, strict=True)
        ]
        scaled: torch.Tensor = torch.cat(latents) * self._vae.config.scaling_factor
        return scaled

    def _pipeline(self, task: Task, scheduler: str, kwargs: Mapping[str, Any]) -> Any:
        """The task's pipeline with that scheduler; kept, since some schedulers take 0.5 s to build."""
        key = (task.pipeline, scheduler, json.dumps(kwargs, sort_keys=True))
        if key not in self._pipelines:
            channels = self._components["unet"].config.in_channels
            if channels != _OWN_CHANNELS and task.pipeline != _INPAINTING:
                raise InputError(f"model {self._name!r} is made for inpainting ({channels} channels), not {task.name}")
            base_config = self._components["scheduler"].config
            made = make_scheduler(scheduler, kwargs, base_config)
            self._pipelines[key] = make_pipeline(task.pipeline, self._components, made)
        return self._pipelines[key]


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
