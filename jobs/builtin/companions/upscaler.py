"""The x4 upscaler: an image of 128 x 128, as three channels beside the latents, to one of 512 x 512.

As Stable Diffusion's (StableDiffusionUpscalePipeline): latents are as large as the small image, so it has an
autoencoder of factor 4 of its own; the small image is noised, and the UNet is told how much (noise conditioning
augmentation, Ho et al. 2021, "Cascaded diffusion models"). It learns on crops of renders of 512 x 512.

Colors are to be taken from the small image, not from noised latents, where what was once painted wrong would stay.
So what is added to latents in training is noise of several sizes (Whitaker 2023, "Multi-resolution noise for diffusion
model training").
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from jobs.builtin.autoencoder import (
    CROP_SHARE,
    AutoencoderTask,
    count_crops,
    normalise,
    to_tensor,
)
from jobs.builtin.companions.anchors import anchor, let_colors_pass
from jobs.builtin.companions.encoded import Arrays, Progress, encode, keep_arrays, open_arrays
from jobs.builtin.companions.foundation import Foundation, Reader, require_finished, write_captions
from jobs.builtin.latents import digest
from jobs.builtin.renderer import IMAGE_SIZE, render
from jobs.builtin.renders import open_renders, render_stage
from jobs.builtin.scenes import Scene, draw_scene
from jobs.builtin.text import WIDTH
from jobs.builtin.training import Draw
from jobs.builtin.unet import HEADS, Noiser, diffusion_loss

FACTOR = 4
LARGE_SIZE = IMAGE_SIZE * FACTOR
LARGE_SCENES = 1_024  # crops of one image differ more than enough
AUTOENCODER_CHANNELS = (16, 32, 96)
AUTOENCODER_SCALING = 0.08333  # what StableDiffusionUpscalePipeline insists on
LAST_SIDE = 256  # pixels, of the autoencoder's last crops: fewer of their pixels are next to a border
LATENT_NOISE = 0.1  # the UNet is told nearly all by the small image and errs less than the base's
NORMALISED = 32  # renders over which the autoencoder's latents are normalised; any of the same world will do
CHANNELS = (48, 64, 80)
CROPS = (16, 64)  # latents a side, of the first CROP_SHARE of the steps and of the rest
NOISE_LEVELS = 351  # of the small image: 0 to 350, the pipeline's `max_noise_level`
CLEAN = 0  # the noise level to say of a small image that is as clean as a render
PATCHES = (4, 16)  # latents a side, of the coarser noise
PATCH_NOISE = 0.5  # at most, of the deviation of the white noise, before it is interpolated
CAPTION_DROPOUT = 0.3  # a crop seldom shows what the caption says


def build_upscaler() -> UNet2DConditionModel:
    """A small UNet of seven channels, four of noised latents and three of the small image."""
    model: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=IMAGE_SIZE,
        in_channels=7,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=1,
        resnet_time_scale_shift="scale_shift",  # how much of the small image to take depends on the noise
        num_class_embeds=NOISE_LEVELS,
    )
    levels = model.class_embedding.weight  # begun at random, each of the 351 would have to be learnt on its own
    with torch.no_grad():
        levels.copy_(get_timestep_embedding(torch.arange(NOISE_LEVELS), levels.shape[1]))
    anchor(model)
    return model


def build_low_res_scheduler() -> DDPMScheduler:
    """The schedule by which the small image is noised; that of Stable Diffusion's x4 upscaler."""
    return DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")


def shrink_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image (4 h, 4 w, 3) at a quarter of the size, (h, w, 3)."""
    return np.asarray(Image.fromarray(image).reduce(FACTOR))


def draw_large(scene: Scene) -> NDArray[np.uint8]:
    """The scene as the upscaler should make it, uint8 (512, 512, 3)."""
    return render(scene, size=LARGE_SIZE).rgb


def render_large(folder: Path, seed: int, scenes: int, progress: Progress) -> None:
    """Have `folder` hold the large renders, about 1.6 MB each."""
    workers = os.cpu_count() or 1
    render_stage(folder, seed=seed, scenes=scenes, workers=workers, progress=progress, size=LARGE_SIZE)


@dataclass(frozen=True, kw_only=True)
class UpscalerAutoencoderTask(AutoencoderTask):
    """Trains the upscaler's autoencoder on crops of large renders, from one that shrinks and enlarges."""

    seed: int
    channels: tuple[int, ...] = AUTOENCODER_CHANNELS
    scaling_factor: float = AUTOENCODER_SCALING
    norm_groups: int = 1
    last_side: int = LAST_SIDE
    latent_noise: float = LATENT_NOISE
    name: str = "upscaler-autoencoder"
    inputs: str = "large renders"

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Render the large images."""
        render_large(self.renders, self.seed, self.scenes, progress)

    def build(self) -> nn.Module:
        model = super().build()
        assert isinstance(model, AutoencoderKL)
        let_colors_pass(model)
        trained: nn.Module = model
        return trained


def save_autoencoder(model: AutoencoderKL, folder: Path) -> None:
    """Write the autoencoder with its latents normalised over renders."""
    normalise(model, np.stack([draw_large(draw_scene(0, index)) for index in range(NORMALISED)]))
    model.save_pretrained(folder)


def draw_noise(draw: Draw, count: int, side: int) -> Tensor:
    """White noise (count, 4, side, side) and noise of PATCHES of up to PATCH_NOISE, another share for each.

    The sum is not brought back to deviation 1: samplers start from white noise, and of its finest part the net should
    see as much as then.
    """
    noise = draw.normal(count, 4, side, side)
    for patch in PATCHES:
        share = PATCH_NOISE * torch.rand(count, 1, 1, 1, generator=draw.noise).to(noise.device)
        coarse = draw.normal(count, 4, side // patch, side // patch)
        noise = noise + share * nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return noise


@dataclass(frozen=True, kw_only=True)
class UpscalerTask:
    """Trains the upscaler from noise on crops, small ones first; the text tower stays as it is."""

    foundation: Foundation
    renders: Path  # large ones
    scenes: int
    seed: int
    autoencoder: Path
    encoded: Path  # what the autoencoder makes of the scenes
    name: str = "upscaler"

    @property
    def inputs(self) -> str:
        return self.foundation.digest + digest(self.autoencoder)[:16]

    @property
    def source(self) -> str:
        return f"{digest(self.autoencoder)} {self.scenes}"

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Keep the large images' latents and the small images."""
        self.foundation.require()
        require_finished(self.autoencoder)
        render_large(self.renders, self.seed, self.scenes, progress)
        renders = open_renders(self.renders, scenes=self.scenes)

        def make() -> Arrays:
            autoencoder = AutoencoderKL.from_pretrained(self.autoencoder, dtype=torch.float32).to(device)
            large = (renders.rgb(index) for index in range(self.scenes))
            return {
                "latents": encode(large, autoencoder, count=self.scenes, progress=progress),
                "small": np.stack([shrink_image(renders.rgb(index)) for index in range(self.scenes)]),
            }

        keep_arrays(self.encoded, self.source, make)

    def build(self) -> nn.Module:
        model: nn.Module = build_upscaler()
        return model

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        renders = open_renders(self.renders, scenes=self.scenes)
        arrays = open_arrays(self.encoded, self.source)
        latents, small = torch.from_numpy(arrays["latents"]), arrays["small"]
        read, noise, low_res = Reader(self.foundation, device), Noiser(device), build_low_res_scheduler()

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            side = CROPS[0] if draw.progress < CROP_SHARE else CROPS[1]
            chosen = draw.rng.integers(self.scenes, size=count_crops(draw.batch, first=CROPS[0], side=side))
            wanted, seen = [], []
            for index in chosen:
                row, column = draw.rng.integers(IMAGE_SIZE - side + 1, size=2)
                place = (slice(row, row + side), slice(column, column + side))
                wanted.append(latents[index][(slice(None), *place)].float())  # autocast stacks no float16
                seen.append(small[index][place])
            noised = noise(torch.stack(wanted).to(device), draw, draw_noise(draw, len(wanted), side))
            images = to_tensor(np.stack(seen)).to(device)
            levels = (torch.from_numpy(draw.rng.random(len(chosen)) ** 2) * NOISE_LEVELS).long().to(device)
            images = low_res.add_noise(images, draw.normal(*images.shape), levels)
            text = read(write_captions(draw, [renders.scene(int(index)) for index in chosen], dropout=CAPTION_DROPOUT))
            samples = torch.cat([noised.samples, images], dim=1)
            predicted = model(samples, noised.timesteps, text, class_labels=levels).sample
            return diffusion_loss(predicted, noised.target)

        return loss
