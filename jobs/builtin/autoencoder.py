"""The autoencoder stage: images to latents of 4 channels, the base's at an eighth of the size, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.builtin.renderer import IMAGE_SIZE
from jobs.builtin.renders import RenderSet, open_renders
from jobs.builtin.training import Draw

SCALING_FACTOR = 0.18215  # Stable Diffusion's; pipelines fall back on it, so ours stays the same
CROP = 64
# Deviation of the crops' middles around objects, in pixels for a crop as wide as the image; it grows with how many
# crops fit beside each other. Of crops of 64 pixels in renders of 512 (40 pixels) 58 % show an outline, at 160 27 %.
CROP_SPREAD = 5
CROP_SHARE = 0.7  # of the steps; whole images or larger crops after, for GroupNorm's statistics are the whole's
KL_WEIGHT = 2e-4
GRADIENT_WEIGHT = 0.5
OBJECT_WEIGHT = 5.0  # of a pixel of an object against one of the surroundings, or small objects lose their colours
LATENT_NOISE = 0.3  # at most, in deviations of the latents: what the noise predictor gets wrong by is about half of it
RECOLORED_SHARE = 0.3  # of the crops, or only the renders' few colours could be restored
CHANNELS = (16, 32, 96, 128)
NORM_GROUPS = 8


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Images uint8 (n, h, w, 3) as float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_images(values: Tensor) -> NDArray[np.uint8]:
    """The inverse of `to_tensor`, with values outside [-1, 1] cut off."""
    coded = (values.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return coded.permute(0, 2, 3, 1).cpu().numpy()


def build_autoencoder(
    channels: tuple[int, ...] = CHANNELS, scaling_factor: float = SCALING_FACTOR, norm_groups: int = NORM_GROUPS
) -> AutoencoderKL:
    """A small AutoencoderKL without attention, of factor 8 with four levels of channels and 4 with three."""
    levels = len(channels)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=norm_groups,
        sample_size=IMAGE_SIZE,
        scaling_factor=scaling_factor,
        mid_block_add_attention=False,
    )


def draw_crop(renders: RenderSet, draw: Draw, *, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A crop of `side` pixels, or a whole image, and the objects at its pixels; half are mirrored.

    Three of four crops lie near an object, the rest anywhere.
    """
    index, room = int(draw.rng.integers(renders.count)), renders.size - side
    corner = draw.rng.uniform(0, room, 2)
    if room and draw.rng.random() < 0.75:
        center = renders.centers[index, int(draw.rng.integers(2))]
        corner = np.clip(center - side / 2 + draw.rng.normal(0, CROP_SPREAD * renders.size / side, 2), 0, room)
    row, column = corner.astype(int)
    place = (slice(row, row + side), slice(column, column + side))
    rgb, objects = renders.rgb(index)[place], renders.objects(index)[place]
    return (rgb[:, ::-1], objects[:, ::-1]) if draw.rng.random() < 0.5 else (rgb, objects)


def count_crops(batch: int, *, first: int, side: int) -> int:
    """How many crops of `side` a step takes where it took `batch` of side `first`: as many pixels either way."""
    return max(1, batch * first**2 // side**2)


def draw_targets(renders: RenderSet, draw: Draw, *, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a decoder should give, (n, 3, h, w), some of it recolored, and the weight of its pixels, (n, 1, h, w).

    A batch is one of crops of 64 pixels; larger sides get fewer crops, so that a step sees as many pixels.
    """
    count = count_crops(draw.batch, first=CROP, side=side)
    crops = [draw_crop(renders, draw, side=side) for _ in range(count)]
    images = [recolor(rgb, draw.rng) if draw.rng.random() < RECOLORED_SHARE else rgb for rgb, _ in crops]
    objects = torch.from_numpy(np.stack([objects for _, objects in crops]))[:, None].to(device)
    return to_tensor(np.stack(images)).to(device), 1 + (OBJECT_WEIGHT - 1) * (objects > 0).float()


def recolor(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """An image (h, w, 3) in other colours: each channel a mixture of the old ones between two ends of its own."""
    mixed = (image / np.float32(255)) @ rng.dirichlet((0.5, 0.5, 0.5), 3).astype(np.float32).T
    low, high = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    recolored: NDArray[np.uint8] = (low + (high - low) * mixed).round().astype(np.uint8)
    return recolored


def reconstruction_loss(
    output: Tensor, target: Tensor, weight: Tensor, *, gradient_weight: float = GRADIENT_WEIGHT
) -> Tensor:
    """Absolute and squared error and the absolute error of the differences between neighbouring pixels.

    `output` and `target` are (n, 3, h, w), `weight` (n, 1, h, w).
    """
    error = output.float() - target
    gradients = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
    gradients = gradients + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    return ((error.abs() + error.square()) * weight).mean() + gradient_weight * gradients


def disturb(latents: Tensor, draw: Draw, *, most: float = LATENT_NOISE) -> Tensor:
    """Latents (n, c, h, w) with noise of up to `most` of their own deviation, another share for each of the n.

    The encoder learns to say what matters louder than the errors that a noise predictor makes, the decoder to forgive
    them (as the decoders of Zheng et al. 2025, "Diffusion transformers with representation autoencoders", do).
    """
    spread = latents.std(dim=(0, 2, 3), keepdim=True)  # not detached, or larger latents would pay
    share = most * torch.rand(len(latents), 1, 1, 1, generator=draw.noise).to(latents.device)
    return latents + share * spread * draw.normal(*latents.shape)


@dataclass(frozen=True, kw_only=True)
class AutoencoderTask:
    """Trains the autoencoder on crops, then on whole images or larger crops, some of them recolored.

    It begins from noise or, where `start` is given, from there; `channels`, `scaling_factor` and `norm_groups` are for
    noise.
    """

    renders: Path
    scenes: int
    start: Path | None = None
    channels: tuple[int, ...] = CHANNELS
    scaling_factor: float = SCALING_FACTOR
    norm_groups: int = NORM_GROUPS
    last_side: int = IMAGE_SIZE  # pixels, of the crops after CROP_SHARE of the steps
    latent_noise: float = LATENT_NOISE
    name: str = "autoencoder"
    inputs: str = "renders"

    def build(self) -> nn.Module:
        model: nn.Module = (
            build_autoencoder(self.channels, self.scaling_factor, self.norm_groups)
            if self.start is None
            else AutoencoderKL.from_pretrained(self.start, dtype=torch.float32)
        )
        return model

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        renders = open_renders(self.renders, scenes=self.scenes)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            side = CROP if draw.progress < CROP_SHARE else self.last_side
            target, weight = draw_targets(renders, draw, side=side, device=device)
            assert isinstance(model, AutoencoderKL)
            posterior = model.encode(target).latent_dist
            mean, log_variance = posterior.mean.float(), posterior.logvar.float()
            latents = mean + torch.exp(0.5 * log_variance) * draw.normal(*mean.shape)
            output = model.decode(disturb(latents, draw, most=self.latent_noise)).sample
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
            total: Tensor = reconstruction_loss(output, target, weight) + KL_WEIGHT * kl
            return total

        return loss


@torch.no_grad()
def normalise(model: AutoencoderKL, images: NDArray[np.uint8]) -> None:
    """Fold a per-channel normalisation into `quant_conv` and `post_quant_conv`, in place.

    Afterwards latents times the scaling factor have mean 0 and deviation 1 in every channel over `images`, as the
    noise schedule assumes.
    """
    means = torch.cat([model.encode(to_tensor(part)).latent_dist.mean for part in np.array_split(images, 16)])
    shift, spread = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3)) * model.config.scaling_factor
    quant, post = model.quant_conv, model.post_quant_conv
    channels = len(shift)
    post.bias += (post.weight[:, :, 0, 0] * shift).sum(1)
    post.weight *= spread[None, :, None, None]
    quant.weight[:channels] /= spread[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - shift) / spread
    quant.bias[channels:] -= 2 * torch.log(spread)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images through the autoencoder, uint8 (n, h, w, 3)."""
    parts = [to_images(model.decode(model.encode(to_tensor(part).to(model.device)).latent_dist.mode()).sample)
             for part in np.array_split(images, max(1, len(images) // 16))]  # fmt: skip
    return np.concatenate(parts)


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB, the mean over images."""
    error = (first.astype(np.float32) - second.astype(np.float32)) ** 2
    return float((10 * np.log10(255**2 / np.maximum(error.mean(axis=(1, 2, 3)), 1e-3))).mean())
