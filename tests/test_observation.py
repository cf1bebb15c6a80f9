"""What is told of a model's calls: noise levels, noised latents and estimates, by every sampler; attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from batchgen.diffusion.attention import AttentionMaps
from batchgen.diffusion.levels import noise_levels
from batchgen.diffusion.observation import Call, observed
from batchgen.diffusion.schedulers import PNDMScheduler, make_scheduler
from batchgen.generation.samplers import OPTIONS, find_sampler

pytestmark = pytest.mark.slow

CONFIG = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False,
    "steps_offset": 1, "clip_sample": False, "skip_prk_steps": True,
}  # fmt: skip
STEPS = 6
SHAPE = (1, 4, 64, 64)


def looked_at(
    name: str, guess: Any, *, start: int = 0, **options: Any
) -> tuple[Any, list[Call], list[Any], torch.Tensor]:
    """A sampler's run over a model: the scheduler, what was told, what its steps gave, and the end.

    `guess` gives the model's output for what it is given and the signal and noise in that; `start` is the step that it
    begins with, as image-to-image does.
    """
    sampler = find_sampler(name)
    scheduler = make_scheduler(sampler.class_name, {**sampler.kwargs, **options}, CONFIG)
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    grows = scheduler.init_noise_sigma > 2  # the sampler's images grow with the noise in them
    if isinstance(scheduler, PNDMScheduler):
        first, timesteps = 0, scheduler.start_at(scheduler.steps[start:])
    else:
        first = start * scheduler.order
        timesteps = scheduler.timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    levels = noise_levels(scheduler, first)
    noise = levels[0].sigma or 0.0
    sample = torch.randn(SHAPE, generator=generator) * (noise if grows else noise / (1 + noise**2) ** 0.5)
    calls: list[Call] = []
    steps: list[Any] = []
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = [0]
    with observed(scheduler, calls.append):
        for number, timestep in enumerate(timesteps):
            given = scheduler.scale_model_input(sample, timestep)
            sigma = levels[number].sigma or 0.0
            whole = (1 + sigma**2) ** 0.5
            more = {"generator": generator} if takes_generator else {}
            steps.append(scheduler.step(guess(given, 1 / whole, sigma / whole), timestep, sample, **more))
            sample = steps[-1].prev_sample
    assert "step" not in vars(scheduler) and "scale_model_input" not in vars(scheduler)
    assert [call.level for call in calls] == list(levels[:-1])
    return scheduler, calls, steps, sample


@pytest.mark.filterwarnings("ignore:Should have ta>=t0")  # torchsde, of the last bit of a sigma
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_sampler_is_told_of_and_ends_where_it_is_said(name: str, start: int) -> None:
    """A model that takes every image for zeros: estimates are zeros, the noise given has one scale, and what is left at
    the end is the last level's."""
    scheduler, calls, _, end = looked_at(name, lambda given, _signal, noise: given / noise, start=start)
    assert all(call.estimate is not None and call.estimate.abs().max() < 1e-3 for call in calls)
    sigma = calls[0].level.sigma
    assert sigma is not None
    assert float(calls[0].noised.std()) == pytest.approx(sigma / (1 + sigma**2) ** 0.5, abs=0.02)
    last = noise_levels(scheduler)[-1]
    assert last.sigma is not None
    assert float(end.std()) == pytest.approx(last.sigma, abs=0.01)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["Euler", "Euler a", "Heun", "DDIM", "DPM++ 2M Karras"])
def test_estimates_are_diffusers_own(name: str, prediction: str) -> None:
    """What diffusers' schedulers compute of a model's output, where they say it."""
    generator = torch.Generator().manual_seed(1)
    scheduler, calls, steps, _ = looked_at(
        name, lambda given, *_: 0.5 * given + torch.randn(SHAPE, generator=generator), prediction_type=prediction
    )
    if name.startswith("DPM++"):
        own = [*scheduler.model_outputs]  # the last two
        calls = calls[-len(own) :]
    else:
        own = [step.pred_original_sample for step in steps]
    for call, wanted in zip(calls, own, strict=True):
        assert call.estimate is not None
        assert torch.allclose(call.estimate, wanted, rtol=1e-3, atol=1e-3)


def test_attention_is_that_of_the_layers(tiny_model: Path) -> None:
    """Against a processor that computes the layers' attention by hand; the UNet's output is bit for bit the same."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_model, subfolder="unet").eval()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn((2, 4, 12, 8), generator=generator)  # two passes: without the prompt, then with it
    states = torch.randn((2, 77, unet.config.cross_attention_dim), generator=generator)
    maps = AttentionMaps()
    with torch.inference_mode():
        plain = unet(sample, 500, encoder_hidden_states=states).sample
        with maps.on(unet):
            seen = unet(sample, 500, encoder_hidden_states=states).sample
        assert torch.equal(plain, seen)
        with by_hand(unet, (12, 8)) as sums:
            unet(sample, 500, encoder_hidden_states=states)
    assert maps.sums is not None and maps.sums.shape == (77, 12, 8)
    assert torch.allclose(maps.sums, torch.stack(sums).sum(dim=0), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in unet.modules())


@contextmanager
def by_hand(unet: Any, grid: tuple[int, int]) -> Iterator[list[torch.Tensor]]:
    """While it lasts, the second row's weights of each layer and head are gathered, enlarged to the grid."""
    found: list[torch.Tensor] = []

    class Gathering(diffusers.models.attention_processor.AttnProcessor):  # type: ignore[misc]
        def __call__(self, attn: Any, hidden: Any, states: Any = None, *args: Any, **kwargs: Any) -> Any:
            states = kwargs.pop("encoder_hidden_states", states)
            if states is not None:
                query, key = attn.to_q(hidden[1]), attn.to_k(states[1])
                width = query.shape[-1] // attn.heads
                factor = next(n for n in (1, 2, 4, 8) if -(-grid[0] // n) * -(-grid[1] // n) == len(query))
                shape = (1, 77, -(-grid[0] // factor), -(-grid[1] // factor))
                for head in range(attn.heads):
                    part = slice(head * width, (head + 1) * width)
                    weights = torch.softmax(query[:, part] @ key[:, part].T / width**0.5, dim=-1)
                    larger = torch.nn.functional.interpolate(weights.T.reshape(shape), size=grid, mode="bicubic")
                    found.append(larger[0])
            return super().__call__(attn, hidden, states, *args, **kwargs)

    before = unet.attn_processors
    unet.set_attn_processor(Gathering())
    try:
        yield found
    finally:
        unet.set_attn_processor(before)
