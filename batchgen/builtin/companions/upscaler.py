"""The x4 upscaler: a picture of a quarter of the size, as three channels beside the latents, to the whole picture.

As Stable Diffusion's (StableDiffusionUpscalePipeline): latents are as large as the small picture, so it has an
autoencoder of factor 4 of its own; the small picture is noised, and the UNet is told how much (noise conditioning
augmentation, Ho et al. 2021, "Cascaded diffusion models").
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from batchgen.builtin.autoencoder import CROP_SHARE, AutoencoderTask, count_samples, normalise, to_tensor
from batchgen.builtin.companions.encoded import Arrays, Progress, encode, keep_arrays, open_arrays
from batchgen.builtin.companions.foundation import Foundation, Reader, require_finished, write_captions
from batchgen.builtin.latents import digest
from batchgen.builtin.renderer import PICTURE_SIZE, render
from batchgen.builtin.renders import open_renders
from batchgen.builtin.scenes import draw_scene
from batchgen.builtin.text import WIDTH
from batchgen.builtin.training import Draw
from batchgen.builtin.unet import HEADS, Noiser, diffusion_loss

FACTOR = 4
LATENT_SIZE = PICTURE_SIZE // FACTOR
AUTOENCODER_CHANNELS = (16, 32, 64)
AUTOENCODER_SCALING = 0.08333  # what StableDiffusionUpscalePipeline insists on
NORMALISED = 256  # renders over which the autoencoder's latents are normalised; any of the same world will do
ENCODED = 8_192  # scenes whose latents are kept
CHANNELS = (48, 64, 96)
CROP = 16  # latents a side
NOISE_LEVELS = 351  # of the small picture: 0 to 350, the pipeline's `max_noise_level`
CAPTION_DROPOUT = 0.3  # a crop seldom shows what the caption says


def build_upscaler() -> UNet2DConditionModel:
    """A small UNet of seven channels, four of noised latents and three of the small picture."""
    model: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=7,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=16,
        num_class_embeds=NOISE_LEVELS,
    )
    levels = model.class_embedding.weight  # begun at random, each of the 351 would have to be learnt on its own
    with torch.no_grad():
        levels.copy_(get_timestep_embedding(torch.arange(NOISE_LEVELS), levels.shape[1]))
    return model


def build_low_res_scheduler() -> DDPMScheduler:
    """The schedule by which the small picture is noised; that of Stable Diffusion's x4 upscaler."""
    return DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")


def shrink_picture(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture (128, 128, 3) at a quarter of the size, (32, 32, 3)."""
    return np.asarray(Image.fromarray(picture).reduce(FACTOR))


def autoencoder_task(renders: Path, scenes: int) -> AutoencoderTask:
    """Trains the upscaler's autoencoder from noise, as the base's was."""
    return AutoencoderTask(
        renders=renders,
        scenes=scenes,
        channels=AUTOENCODER_CHANNELS,
        scaling_factor=AUTOENCODER_SCALING,
        name="upscaler-autoencoder",
    )


def save_autoencoder(model: AutoencoderKL, folder: Path) -> None:
    """Write the autoencoder with its latents normalised over renders."""
    normalise(model, np.stack([render(draw_scene(0, index)).rgb for index in range(NORMALISED)]))
    model.save_pretrained(folder)


@dataclass(frozen=True, kw_only=True)
class UpscalerTask:
    """Trains the upscaler from noise, on crops and then on whole pictures; the text tower stays as it is."""

    foundation: Foundation
    autoencoder: Path
    encoded: Path  # what the autoencoder makes of the first scenes
    name: str = "upscaler"

    @property
    def inputs(self) -> str:
        return self.foundation.digest + digest(self.autoencoder)[:16]

    @property
    def count(self) -> int:
        return min(ENCODED, self.foundation.scenes)

    @property
    def source(self) -> str:
        return f"{digest(self.autoencoder)} {self.count}"

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Keep what the autoencoder makes of the first scenes."""
        self.foundation.require()
        require_finished(self.autoencoder)
        renders = open_renders(self.foundation.renders, scenes=self.foundation.scenes)

        def pictures() -> Iterator[NDArray[np.uint8]]:
            for index in range(self.count):
                yield renders.rgb(index)

        def make() -> Arrays:
            autoencoder = AutoencoderKL.from_pretrained(self.autoencoder, dtype=torch.float32).to(device)
            return {"latents": encode(pictures(), autoencoder, count=self.count, progress=progress)}

        keep_arrays(self.encoded, self.source, make)

    def build(self) -> nn.Module:
        model: nn.Module = build_upscaler()
        return model

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        renders = open_renders(self.foundation.renders, scenes=self.foundation.scenes)
        latents = torch.from_numpy(open_arrays(self.encoded, self.source)["latents"])
        read, noise, low_res = Reader(self.foundation, device), Noiser(device), build_low_res_scheduler()

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            whole = draw.progress >= CROP_SHARE
            count = count_samples(draw.batch, whole=whole)
            size = LATENT_SIZE if whole else CROP
            chosen = draw.rng.integers(self.count, size=count)
            wanted, seen = [], []
            for index in chosen:
                row, column = draw.rng.integers(LATENT_SIZE - size + 1, size=2)
                place = (slice(row, row + size), slice(column, column + size))
                wanted.append(latents[index][(slice(None), *place)])
                seen.append(shrink_picture(renders.rgb(int(index)))[place])
            noised = noise(torch.stack(wanted).float().to(device), draw)
            small = to_tensor(np.stack(seen)).to(device)
            levels = torch.from_numpy(draw.rng.integers(NOISE_LEVELS, size=count)).to(device)
            small = low_res.add_noise(small, draw.normal(*small.shape), levels)
            text = read(write_captions(draw, [renders.scene(int(index)) for index in chosen], dropout=CAPTION_DROPOUT))
            samples = torch.cat([noised.samples, small], dim=1)
            predicted = model(samples, noised.timesteps, text, class_labels=levels).sample
            return diffusion_loss(predicted, noised.target)

        return loss
