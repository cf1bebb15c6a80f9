"""Every sampler, in diffusers' own pipeline, with a model that knows its data: late starts and histories are right."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from batchgen.diffusion.pipelines import make_pipeline
from batchgen.diffusion.schedulers import make_scheduler, seed_scheduler
from batchgen.generation.samplers import NAMES
from batchgen.generation.tasks import batch_strength
from batchgen.identity import canonical

SPREAD = 0.5  # standard deviation of the latents that the model learnt, around those of the init image
CONFIG = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}
NOTHING = dict.fromkeys(("feature_extractor", "image_encoder", "text_encoder", "tokenizer", "vae"))
SAMPLERS = {canonical([one.class_name, dict(one.kwargs)]): name for name, one in NAMES.items()}


class Ideal:
    """A UNet that learnt normally distributed latents to the end: the v that it predicts is exact."""

    dtype = torch.float32
    config = SimpleNamespace(in_channels=4, sample_size=4, time_cond_proj_dim=None)

    def __init__(self, mean: torch.Tensor, scheduler: Any) -> None:
        self.mean = mean
        self.log_sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log()

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        place = float(timestep)
        below, above = self.log_sigmas[int(place)], self.log_sigmas[min(int(place) + 1, len(self.log_sigmas) - 1)]
        sigma = torch.lerp(below, above, place % 1).exp()
        a, s = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
        clean = self.mean + SPREAD**2 * a / (SPREAD**2 * a**2 + s**2) * (sample - a * self.mean)
        return (a * (sample - a * clean) / s - s * clean,)


class Sampler:
    """One sampler, and how far its images lie from their init image."""

    def __init__(self, name: str) -> None:
        self.mean = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        self.scheduler = make_scheduler(NAMES[name].class_name, NAMES[name].kwargs, CONFIG)
        parts = {**NOTHING, "scheduler": self.scheduler, "unet": Ideal(self.mean, self.scheduler)}
        self.pipeline = make_pipeline("StableDiffusionImg2ImgPipeline", parts, {})

    def distance(self, steps: int, strength: float) -> float:
        """Mean distance in latents."""
        seed_scheduler(self.scheduler, [1])
        made = self.pipeline(
            image=self.mean,
            strength=batch_strength(steps, strength),
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=[torch.Generator().manual_seed(1)],
            prompt_embeds=torch.zeros(1, 1, 4),
            output_type="latent",
        ).images
        return float((made - self.mean).abs().mean())


@pytest.mark.slow
def test_every_sampler_starts_within_a_schedule_as_ddim_does() -> None:
    """No further from the init image than DDIM gets, or the sampler itself from noise; nor nearer at its noise levels.

    Incident: at strength 0.1 LMS left 20 and PNDM 33 levels of mottle on the init image, where DDIM leaves 2.
    """
    places = [(5, 0.2), (5, 0.4), (5, 0.8), (25, 0.1), (25, 0.4)]
    ddim = {place: Sampler("DDIM").distance(*place) for place in places}
    unlike = []
    for name in SAMPLERS.values():
        sampler, spaced = Sampler(name), any("sigmas" in option for option in NAMES[name].kwargs)
        for place in places:
            found, least = sampler.distance(*place), 0 if spaced else 0.6 * ddim[place]
            near = found < 1.25 * ddim[place] or found < 1.25 * sampler.distance(place[0], 1.0)
            if not (least < found and near):
                unlike.append((name, place, found, ddim[place]))
    assert unlike == []
