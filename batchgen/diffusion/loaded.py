"""A loaded model: its pipelines and adapters, and how the values of rows become a pipeline call."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL.Image import Image, fromarray

from batchgen.diffusion.adapters import Adapters
from batchgen.diffusion.control import ControlMaker
from batchgen.diffusion.embeddings import RowPrompts, prompting_of, sized
from batchgen.diffusion.loading import Components
from batchgen.diffusion.observation import NOBODY, Observer, observed
from batchgen.diffusion.pipelines import make_pipeline
from batchgen.diffusion.prompts import PromptEncoder, Token
from batchgen.diffusion.schedulers import make_scheduler, seed_scheduler
from batchgen.errors import InputError
from batchgen.generation.parameters import Adapter, Hires, Parameters, RowAdapters
from batchgen.generation.tasks import Task, batch_strength, find_task
from batchgen.models.catalog import Family, Model
from batchgen.models.configs import USUAL_FACTOR, latent_factor
from batchgen.rows import Row

__all__ = ["LoadedModel"]

_LARGEST_UNTILED = 1024  # pixels a side

_NO_TEXT = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
"""Pipelines are given embeddings, and would turn them into a text encoder's precision where they had one."""

Inputs = Sequence[Mapping[str, Image]]
"""The rows' conditioning images by name."""


class LoadedModel:
    """A model's components and what is made from them and goes with them. For one thread at a time."""

    def __init__(self, model: Model, components: Components, dtype: torch.dtype, *, tiled: bool = False) -> None:
        """Take the model apart; `tiled` decodes images of more than 1024 pixels a side in tiles."""
        self.model = model
        self._tiled = tiled
        levels = components.parts["vae"].config.get("block_out_channels")
        self._factor = latent_factor(levels) or USUAL_FACTOR
        self._parts, self._options = components.parts, components.options
        self._pipelines: dict[tuple[str, ...], Any] = {}  # a scheduler each, some 100 kB: never dropped
        encoder = PromptEncoder(components.parts, pools=model.family is Family.LATENT_UPSCALER)
        self._adapters = Adapters(model, components, encoder, dtype)
        zeros = bool(self._options.get("force_zeros_for_empty_prompt"))
        self._prompts = RowPrompts(encoder, self._adapters, zeros_for_missing=zeros)
        estimator = self._parts.get("depth_estimator")
        self._controls = ControlMaker(None if estimator is None else (estimator, self._parts["feature_extractor"]))

    def chunks(self, row: Row) -> int:
        """How many chunks of 75 tokens the row's prompts need: what else must agree in one call."""
        return self._prompts.chunks(row)

    def count_tokens(self, row: Row) -> int:
        """Tokens of the row's whole prompt, start and end markers not counted."""
        return self._prompts.count_tokens(row)

    def tokens(self, row: Row) -> list[Token]:
        """The tokens of the row's prompt, its embeddings' among them."""
        return self._prompts.tokens(row)

    def prepared(self, row: Row) -> Any:
        """The row's pipeline, its scheduler after `set_timesteps`.

        Raises:
            InputError: the model or the scheduler's class cannot do what the row asks.
        """
        pipeline = self._pipeline(find_task(row.task), row.parameters)
        pipeline.scheduler.set_timesteps(row.parameters.sampling.num_inference_steps)
        return pipeline

    def denoise(
        self,
        rows: Sequence[Row],
        inputs: Inputs,
        generators: list[torch.Generator],
        observer: Observer = NOBODY,
    ) -> torch.Tensor:
        """Latents of rows that share everything a call has one value for: (B, 4, H/8, W/8).

        The observer is told of the first pass of a hires fix, not of the second.
        """
        shared = rows[0].parameters
        task, refining = find_task(rows[0].task), shared.refining
        arguments = self._tensors(task.arguments(shared, inputs))
        pipeline = self._pipeline(task, shared)
        if arguments.get("strength") == 0 and refining.denoising_start is None:  # no step is left to run
            return self._encode(pipeline, arguments["image"], generators)
        arguments |= self._control_arguments(task.name, rows, inputs, observer)
        part = {"denoising_start": refining.denoising_start, "denoising_end": refining.denoising_end}
        arguments |= {name: place for name, place in part.items() if place is not None}
        after_step = observer.after_step
        if after_step is not None and task.name == "upscaling":  # its pipelines know the older way only
            arguments["callback"] = lambda step, _timestep, latents: after_step(step + 1, latents.clone())
        elif after_step is not None:
            arguments["callback_on_step_end"] = _as_callback(after_step)
        with observed(pipeline.scheduler, observer.at_call):
            latents = self._call(pipeline, rows, inputs, generators, arguments, observer)
        if shared.hires is not None:
            latents = self._enlarge(latents, rows, inputs, generators, shared.hires)
        return latents

    def refine(self, latents: torch.Tensor, rows: Sequence[Row], generators: list[torch.Generator]) -> torch.Tensor:
        """Latents that a base model left at `denoising_end`, denoised to the end by this refiner."""
        own = [_without_adapters(row) for row in rows]
        pipeline = self._pipeline(find_task("image-to-image"), own[0].parameters)
        arguments = {"image": latents, "denoising_start": rows[0].parameters.refining.denoising_end}
        return self._call(pipeline, own, [{} for _ in own], generators, arguments)

    def decode(self, latents: torch.Tensor, vae: Adapter | None) -> tuple[Any, tuple[bool, ...]]:
        """Images, uint8 (B, H, W, 3), and which of them are finite.

        Images are decoded one at a time: with more, their bits would depend on how many there are.
        """
        decoder = self._adapters.vae(vae)
        in_tiles = self._tiled and max(latents.shape[-2:]) * self._factor > _LARGEST_UNTILED
        images, finite = [], []
        for latent in torch.split(latents, 1):
            with _wide_enough(decoder), _tiles(decoder) if in_tiles else nullcontext():
                scaled = _unscaled(latent, decoder)
                decoded = decoder.decode(scaled.to(decoder.dtype), return_dict=False)[0]
            finite.append(latent.isfinite().all() & decoded.isfinite().all())
            levels = ((decoded.float().nan_to_num() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            images.append(levels.permute(0, 2, 3, 1))
        return torch.cat(images).cpu().numpy(), tuple(torch.stack(finite).tolist())

    def is_flagged(self, image: npt.NDArray[np.uint8]) -> bool | None:
        """Whether the safety checker objects to an image (H, W, 3); None without one. It sees one at a time."""
        checker = self._parts.get("safety_checker")
        if checker is None:
            return None
        seen = self._parts["feature_extractor"](fromarray(image), return_tensors="pt").pixel_values
        _, flags = checker(images=image[None] / 255.0, clip_input=seen.to(checker.device, checker.dtype))
        return bool(flags[0])

    def _call(
        self,
        pipeline: Any,
        rows: Sequence[Row],
        inputs: Inputs,
        generators: list[torch.Generator],
        arguments: Mapping[str, Any],
        observer: Observer = NOBODY,
    ) -> torch.Tensor:
        shared = rows[0].parameters
        guided = prompting_of(rows[0]).is_guided
        seed_scheduler(pipeline.scheduler, [row.parameters.sampling.seed for row in rows])
        is_xl = self.model.family in (Family.SDXL, Family.REFINER)
        sizes = sized(pipeline, rows, self._options, guided=guided) if is_xl else nullcontext()
        attention = nullcontext() if observer.attention is None else observer.attention.on(self._parts["unet"])
        with self._adapters.on(shared), sizes, attention:
            own = self._prompts.arguments(rows, guided=guided, dtype=self._parts["unet"].dtype)
            arguments = {**arguments, **own}
            if shared.image_prompt is not None:
                images = [one["ip_adapter_image"] for one in inputs]
                arguments["ip_adapter_image_embeds"] = self._adapters.embed_images(images, guided=guided)
            if shared.sampling.eta is not None:
                arguments["eta"] = shared.sampling.eta
            latents: torch.Tensor = pipeline(
                **arguments,
                num_inference_steps=shared.sampling.num_inference_steps,
                generator=generators,
                output_type="latent",
            ).images
        return latents

    def _enlarge(
        self,
        latents: torch.Tensor,
        rows: Sequence[Row],
        inputs: Inputs,
        generators: list[torch.Generator],
        hires: Hires,
    ) -> torch.Tensor:
        """The hires fix of A1111's web UI: enlarge the latents, then image-to-image at the larger size."""
        shared = rows[0].parameters
        size = [round(side * hires.hires_scale) for side in latents.shape[-2:]]
        larger = torch.nn.functional.interpolate(latents.float(), size=size, mode="bilinear", antialias=False)
        task = find_task("image-to-image")
        strength = batch_strength(shared.sampling.num_inference_steps, hires.hires_strength)
        if strength == 0:
            return larger.to(latents.dtype)
        pipeline = self._pipeline(task, shared)
        arguments = {"image": larger.to(latents.dtype), "strength": strength}
        width, height = size[1] * self._factor, size[0] * self._factor
        enlarged = [{name: image.resize((width, height)) for name, image in one.items()} for one in inputs]
        arguments |= self._control_arguments(task.name, rows, enlarged)
        return self._call(pipeline, rows, inputs, generators, arguments)

    def _tensors(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The task's arguments with those as tensors that pipelines take no images for."""
        made = dict(arguments)
        if "depth_map" in made:
            maps = [np.asarray(image, dtype=np.float32) / 255 for image in made["depth_map"]]
            made["depth_map"] = torch.from_numpy(np.stack(maps))
        return made

    def _control_arguments(
        self, task: str, rows: Sequence[Row], inputs: Inputs, observer: Observer = NOBODY
    ) -> dict[str, Any]:
        controls = [row.parameters.control for row in rows if row.parameters.control is not None]
        if not controls:
            return {}
        control = controls[0]
        name = "image" if task == "text-to-image" else "control_image"
        how = [one.control_preprocess for one in controls]  # the rows' own: it is in no batch key
        maps = self._controls.maps(inputs, how, lambda: self._adapters.pose_reader(control))
        if observer.control_maps is not None:
            observer.control_maps(maps)
        images = [torch.from_numpy(one).permute(0, 3, 1, 2).float() / 255 for one in maps]
        values: dict[str, Any] = {
            name: images,
            "controlnet_conditioning_scale": list(control.controlnet_conditioning_scale),
            "control_guidance_start": list(control.control_guidance_start),
            "control_guidance_end": list(control.control_guidance_end),
        }
        return values if len(images) > 1 else {key: listed[0] for key, listed in values.items()}

    def _encode(self, pipeline: Any, images: Sequence[Image], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Latents of images, sampled by the rows' generators as the pipelines do."""
        vae = pipeline.vae
        pixels = pipeline.image_processor.preprocess(list(images)).to(vae.device, vae.dtype)
        with _wide_enough(vae):
            latents = [
                vae.encode(image.to(vae.dtype)).latent_dist.sample(generator)
                for image, generator in zip(pixels.split(1), generators, strict=True)
            ]
        scaled: torch.Tensor = torch.cat(latents) * vae.config.scaling_factor
        return scaled

    def _pipeline(self, task: Task, shared: Parameters) -> Any:
        """The task's pipeline with the rows' scheduler and modules; kept, since some schedulers take 0.5 s to build."""
        sampling, vae = shared.sampling, shared.adapters.vae
        nets = () if shared.control is None else shared.control.controlnet
        class_name = task.pipeline(self.model.family, controlled=bool(nets))
        if class_name is None or self._parts["unet"].config.in_channels not in task.unet_channels:
            raise InputError(f"model {self.model.name!r} cannot do {task.name}")
        key = (
            class_name,
            sampling.scheduler,
            json.dumps(sampling.scheduler_kwargs, sort_keys=True),
            vae["sha256"] if vae else "",
            *(net["sha256"] for net in nets),
        )
        modules = {"vae": self._adapters.vae(vae)}
        if nets:
            loaded = self._adapters.controlnets(nets)
            modules["controlnet"] = loaded[0] if len(loaded) == 1 else MultiControlNetModel(loaded)
        if key not in self._pipelines:
            config = self._parts["scheduler"].config
            modules["scheduler"] = make_scheduler(sampling.scheduler, sampling.scheduler_kwargs, config)
            parts = {**self._parts, **modules, **_NO_TEXT}
            self._pipelines[key] = make_pipeline(class_name, parts, self._options)
        pipeline = self._pipelines[key]
        pipeline.register_modules(**modules)
        return pipeline


def _as_callback(after_step: Callable[[int, torch.Tensor], None]) -> Callable[..., dict[str, Any]]:
    """A diffusers callback that passes latents on and changes nothing."""

    def tell(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        after_step(step + 1, tensors["latents"].clone())
        return {}

    return tell


def _without_adapters(row: Row) -> Row:
    """The row as a refiner reads it: the base's adapters are none of its own."""
    return replace(row, parameters=replace(row.parameters, adapters=RowAdapters(), control=None, image_prompt=None))


def _unscaled(latent: torch.Tensor, vae: Any) -> torch.Tensor:
    """Latents as the autoencoder knows them: SDXL's later autoencoders have a mean and a deviation a channel."""
    means, deviations = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if means is None or deviations is None:
        plain: torch.Tensor = latent / vae.config.scaling_factor
        return plain
    shape = (1, -1, 1, 1)
    mean = torch.tensor(means, device=latent.device, dtype=latent.dtype).view(shape)
    deviation = torch.tensor(deviations, device=latent.device, dtype=latent.dtype).view(shape)
    unscaled: torch.Tensor = latent * deviation / vae.config.scaling_factor + mean
    return unscaled


@contextmanager
def _tiles(vae: Any) -> Iterator[None]:
    """While it lasts, an autoencoder decodes in tiles; rows of other sizes go through it whole, as they would alone."""
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()


@contextmanager
def _wide_enough(vae: Any) -> Iterator[None]:
    """While it lasts, an autoencoder that overflows in half precision (SDXL's: `force_upcast`) is in float32."""
    narrow = vae.dtype
    upcast = narrow == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(narrow)
