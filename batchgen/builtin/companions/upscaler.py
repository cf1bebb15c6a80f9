"""The x2 latent upscaler: from a picture of half the size to latents of the whole, as Stable Diffusion's upscaler.

A net of its own in k-diffusion's manner (Karras et al. 2022, preconditioned), of the kind and with the conventions that
StableDiffusionLatentUpscalePipeline expects.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from batchgen.builtin.companions.encoded import Arrays, Progress, encode, keep_arrays, open_arrays
from batchgen.builtin.companions.foundation import Examples, Foundation, write_captions
from batchgen.builtin.latents import digest
from batchgen.builtin.renders import open_renders
from batchgen.builtin.text import WIDTH
from batchgen.builtin.training import Draw
from batchgen.builtin.unet import LATENT_SIZE

FACTOR = 2
SMALL = 8_192  # scenes whose small pictures are encoded
CAPTION_DROPOUT = 0.3
CHANNELS = (64, 128, 128)
LEVEL_NUMBERS = 128  # that say the noise level of the small picture, always none: half ones, half zeros
SPREAD, CENTRE = 1.2, -0.4  # of the logarithm of sigma: as in Karras et al., for latents that deviate by 1 and not 0.5
LEAST_SIGMA, MOST_SIGMA = 0.03, 14.6  # those of Stable Diffusion's noise schedule


def build_upscaler() -> UNet2DConditionModel:
    """A small UNet of k-diffusion's blocks: noised latents and enlarged ones to latents and an unused channel."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=8,
        out_channels=5,
        layers_per_block=2,
        block_out_channels=CHANNELS,
        down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
        act_fn="gelu",
        attention_head_dim=32,
        cross_attention_dim=WIDTH,
        cross_attention_norm="layer_norm",
        conv_in_kernel=1,
        conv_out_kernel=1,
        norm_num_groups=None,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        time_cond_proj_dim=LEVEL_NUMBERS + WIDTH,
        timestep_post_act="gelu",
    )


def build_upscaler_scheduler() -> EulerDiscreteScheduler:
    """The base's noise schedule in sigmas; the pipeline turns what the net says into the picture itself."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="sample"
    )


def shrink_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture (128, 128, 3) at half the size, (64, 64, 3)."""
    return np.asarray(Image.fromarray(picture).reduce(FACTOR))


@dataclass(frozen=True, kw_only=True)
class UpscalerTask:
    """Trains the upscaler from noise; autoencoder and text tower stay as they are."""

    foundation: Foundation
    small: Path  # latents of the small pictures
    name: str = "upscaler"

    @property
    def inputs(self) -> str:
        return self.foundation.digest

    @property
    def count(self) -> int:
        return min(SMALL, self.foundation.scenes)

    @property
    def source(self) -> str:
        return f"{digest(self.foundation.autoencoder)} {self.count}"

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Keep what the autoencoder makes of the first scenes at half the size."""
        self.foundation.require()
        renders = open_renders(self.foundation.renders, scenes=self.foundation.scenes)

        def pictures() -> Iterator[NDArray[np.uint8]]:
            for index in range(self.count):
                yield shrink_picture(renders.rgb(index))

        def make() -> Arrays:
            autoencoder = self.foundation.open_autoencoder().to(device)
            return {"latents": encode(pictures(), autoencoder, count=self.count, progress=progress)}

        keep_arrays(self.small, self.source, make)

    def build(self) -> nn.Module:
        model: nn.Module = build_upscaler()
        return model

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        examples = Examples(self.foundation, device)
        small = torch.from_numpy(open_arrays(self.small, self.source)["latents"])

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            chosen = torch.from_numpy(draw.rng.integers(self.count, size=draw.batch))
            wanted = examples.latents[chosen].float().to(device)
            seen = functional.interpolate(small[chosen].float().to(device), scale_factor=FACTOR, mode="nearest")
            scenes = [examples.renders.scene(int(index)) for index in chosen]
            states, pooled = examples.read.pooled(write_captions(draw, scenes, dropout=CAPTION_DROPOUT))
            sigma = (draw.normal(draw.batch) * SPREAD + CENTRE).exp().clamp(LEAST_SIGMA, MOST_SIGMA)
            wide = sigma[:, None, None, None]
            noised = wanted + wide * draw.normal(*wanted.shape)
            total = wide.square() + 1
            told = torch.cat([pooled.new_ones(draw.batch, LEVEL_NUMBERS // 2),
                              pooled.new_zeros(draw.batch, LEVEL_NUMBERS // 2), pooled], dim=1)  # fmt: skip
            samples = torch.cat([noised / total.sqrt(), seen], dim=1)
            predicted = model(samples, sigma.log() / 4, encoder_hidden_states=states, timestep_cond=told).sample[:, :-1]
            target = (wanted - noised / total) * total.sqrt() / wide
            error: Tensor = (predicted.float() - target).square().mean()
            return error

        return loss
