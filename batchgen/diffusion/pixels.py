"""Diffusion models of pixels: no text, no autoencoder; a class by label, or by a classifier's gradient."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image

from batchgen.diffusion.adapters import as_checked
from batchgen.diffusion.classifier import Classifier, load_classifier
from batchgen.diffusion.loading import Components
from batchgen.diffusion.noise import randn_tensor
from batchgen.diffusion.observation import NOBODY, Observer
from batchgen.diffusion.schedulers import make_scheduler, seed_scheduler, takes_variance
from batchgen.generation.parameters import ClassGuidance
from batchgen.models.catalog import Model
from batchgen.rows import Row

__all__ = ["PixelModel"]


class PixelModel:
    """An unconditional or class-conditional UNet2DModel with the loop of DDPMPipeline; has LoadedModel's methods."""

    def __init__(self, model: Model, components: Components, dtype: torch.dtype) -> None:
        self.model = model
        self._unet, self._scheduler = components.parts["unet"], components.parts["scheduler"]
        self._dtype = dtype
        self._schedulers: dict[tuple[str, str], Any] = {}  # as in LoadedModel: some take 0.5 s to build
        self._classifiers: dict[str, Classifier] = {}  # by sha256; a published one takes 0.2 GB

    def chunks(self, _row: Row) -> int:
        """All rows go in one call: there are no prompts."""
        return 1

    def count_tokens(self, _row: Row) -> int:
        """No prompt, no tokens."""
        return 0

    def is_flagged(self, _image: npt.NDArray[np.uint8]) -> bool | None:
        """None: these models have no safety checker."""
        return None

    def denoise(
        self,
        rows: Sequence[Row],
        _inputs: Sequence[Mapping[str, Image]],
        generators: list[torch.Generator],
        observer: Observer = NOBODY,
    ) -> torch.Tensor:
        """Images (B, C, H, W), in [-1, 1] where the model keeps to it, by the scheduler's own numbers."""
        shared = rows[0].parameters
        sampling, canvas = shared.sampling, shared.canvas
        scheduler = self._make_scheduler(sampling.scheduler, sampling.scheduler_kwargs)
        seed_scheduler(scheduler, [row.parameters.sampling.seed for row in rows])
        device = self._unet.device
        scheduler.set_timesteps(sampling.num_inference_steps, device=device)
        channels = self._unet.config.in_channels
        shape = (len(rows), channels, canvas.height, canvas.width)
        noise = randn_tensor(shape, generator=generators, device=device, dtype=self._dtype)
        samples: torch.Tensor = noise * scheduler.init_noise_sigma
        guide = self._guide(rows, scheduler)
        labels = _labels(rows, device) if self.model.classes else None
        extra = _step_arguments(scheduler, sampling.eta, generators)
        for number, timestep in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(samples, timestep)
            predicted = self._unet(seen, timestep, class_labels=labels).sample
            if guide is not None:
                predicted = torch.cat([guide(predicted[:, :channels], seen, timestep), predicted[:, channels:]], dim=1)
            if not takes_variance(scheduler):
                predicted = predicted[:, :channels]
            samples = scheduler.step(predicted, timestep, samples, **extra).prev_sample
            if observer.after_step is not None:
                observer.after_step(number + 1, samples.clone())
        return samples

    def refine(self, latents: torch.Tensor, _rows: Sequence[Row], _generators: list[torch.Generator]) -> torch.Tensor:
        """Refiners belong to Stable Diffusion XL: the images as they are."""
        return latents

    def decode(self, latents: torch.Tensor, _vae: Any) -> tuple[Any, tuple[bool, ...]]:
        """Images, uint8 (B, H, W, 3), and which of them are finite; gray ones get three equal channels."""
        finite = tuple(latents.isfinite().flatten(1).all(dim=1).tolist())
        levels = ((latents.float().nan_to_num() * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = levels.permute(0, 2, 3, 1).cpu().numpy()
        return (np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels), finite

    def _make_scheduler(self, class_name: str, kwargs: Mapping[str, Any]) -> Any:
        key = (class_name, json.dumps(kwargs, sort_keys=True))
        if key not in self._schedulers:
            self._schedulers[key] = make_scheduler(class_name, kwargs, self._scheduler.config)
        return self._schedulers[key]

    def _guide(self, rows: Sequence[Row], scheduler: Any) -> Callable[..., torch.Tensor] | None:
        """A function that bends a prediction towards the rows' classes (algorithm 2 of Dhariwal & Nichol 2021)."""
        shared = rows[0].parameters.classes
        found = None if shared is None else shared.classifier
        if found is None:
            return None
        if found["sha256"] not in self._classifiers:
            self._classifiers[found["sha256"]] = load_classifier(as_checked(found), self._unet.device)
        classifier = self._classifiers[found["sha256"]]
        labels = _labels(rows, self._unet.device)
        scales = torch.tensor([one.classifier_scale for one in _classes(rows)], device=labels.device).view(-1, 1, 1, 1)
        alphas = scheduler.alphas_cumprod.to(labels.device)
        kind = scheduler.config.prediction_type

        def guide(predicted: torch.Tensor, seen: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            alpha = alphas[timestep.long()]
            gradient = scales * classifier.gradient(seen, timestep.expand(len(seen)), labels)
            # the score of p(x) p(y|x)^scale, written as a change of what the model predicts
            factor = {
                "epsilon": -((1 - alpha) ** 0.5),
                "v_prediction": -((1 - alpha) ** 0.5) / alpha**0.5,
                "sample": (1 - alpha) / alpha**0.5,
            }[kind]
            bent: torch.Tensor = predicted + (factor * gradient).to(predicted.dtype)
            return bent

        return guide


def _labels(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    return torch.tensor([one.class_label for one in _classes(rows)], device=device)


def _classes(rows: Sequence[Row]) -> Iterator[ClassGuidance]:
    for row in rows:
        assert row.parameters.classes is not None, "the manifest's check asks for a label"
        yield row.parameters.classes


def _step_arguments(scheduler: Any, eta: float | None, generators: list[torch.Generator]) -> dict[str, Any]:
    taken = inspect.signature(scheduler.step).parameters.keys()
    given = {"eta": eta or 0.0, "generator": generators}
    return {name: value for name, value in given.items() if name in taken}
