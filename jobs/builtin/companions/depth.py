"""Depth: an estimator (DPT, Ranftl et al. 2021) and a UNet that takes its map as a fifth channel (as SD 2 Depth)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

from jobs.builtin.autoencoder import to_tensor
from jobs.builtin.companions.conditions import inverse_depth
from jobs.builtin.companions.foundation import Examples, Foundation, widened
from jobs.builtin.renderer import IMAGE_SIZE
from jobs.builtin.renders import RenderSet, open_renders
from jobs.builtin.training import Draw
from jobs.builtin.unet import LATENT_SIZE, diffusion_loss

# The depth of an object stands out of the floor's by a tenth of the channel: filters that see outlines only, strong
# enough to be heard beside the noise. Begun at zero depth had no effect after 500 steps of 32; so, 120 steps of 16 took
# the loss of the noisier two fifths without captions from 0.310 to 0.284 (from plain filters of 0.05: to 0.313).
OUTLINE_SPREAD = 0.5
CAPTION_DROPOUT = 0.3  # as for ControlNets: without words depth is all there is to go by
CHANNELS = 5  # four of latents, one of depth
GRADIENT_WEIGHT = 2.0  # of the differences between neighbouring pixels: outlines count


def build_estimator() -> DPTForDepthEstimation:
    """A small DPT: images (n, 3, 128, 128) in [-1, 1] to inverse depth (n, 128, 128) from 0 (far) to 1 (near)."""
    model: DPTForDepthEstimation = DPTForDepthEstimation(
        DPTConfig(
            hidden_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=384,
            image_size=IMAGE_SIZE,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[24, 32, 48, 64],
            fusion_hidden_size=32,
            initializer_range=0.06,  # 0.02 is meant for 768 channels
            use_auxiliary_head=False,
        )
    )
    for part in (model.neck, model.head):
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")  # more would grow along the residuals
    last = model.head.head[-2]
    nn.init.constant_(last.bias, 0.3)  # a ReLU follows: below zero everywhere it would never learn
    nn.init.normal_(last.weight, std=0.01)
    return model


def build_feature_extractor() -> DPTImageProcessorPil:
    """Images of any size to the estimator's input; works with Pillow alone, without torchvision."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return DPTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, ensure_multiple_of=1)


def read_inverse_depth(renders: RenderSet, indices: NDArray[np.int64]) -> Tensor:
    """True inverse depth of several scenes, float32 (n, 128, 128) in [0, 1]."""
    return torch.from_numpy(np.stack([inverse_depth(renders.depth(int(index))) for index in indices]))


def depth_channel(inverse: Tensor) -> Tensor:
    """The fifth channel (n, 1, 16, 16) in [-1, 1], from inverse depth (n, 128, 128).

    Resized and stretched as StableDiffusionDepth2ImgPipeline.prepare_depth_map does.
    """
    size = (LATENT_SIZE, LATENT_SIZE)
    small = functional.interpolate(inverse[:, None], size=size, mode="bicubic", align_corners=False)
    low, high = small.amin(dim=(1, 2, 3), keepdim=True), small.amax(dim=(1, 2, 3), keepdim=True)
    return 2 * (small - low) / (high - low) - 1


@dataclass(frozen=True, kw_only=True)
class EstimatorTask:
    """Trains the estimator on renders, half of them mirrored, with slight noise and gain."""

    renders: Path
    scenes: int
    name: str = "depth-estimator"
    inputs: str = "renders"

    def build(self) -> nn.Module:
        model: nn.Module = build_estimator()
        return model

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        renders = open_renders(self.renders, scenes=self.scenes)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            indices = draw.rng.integers(renders.count, size=draw.batch)
            images, target = to_tensor(renders.batch(indices)), read_inverse_depth(renders, indices).to(device)
            images = images.to(device) * float(draw.rng.uniform(0.94, 1.06))
            images = images + float(draw.rng.uniform(0, 0.05)) * draw.normal(*images.shape)
            if draw.rng.random() < 0.5:
                images, target = images.flip(-1), target.flip(-1)
            error = model(images).predicted_depth.float() - target
            steps = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
            total: Tensor = error.abs().mean() + GRADIENT_WEIGHT * steps
            return total

        return loss


@dataclass(frozen=True, kw_only=True)
class DepthTask:
    """Fine-tunes the UNet with the true depth of every scene as a fifth channel; the text tower stays as it is."""

    foundation: Foundation
    name: str = "depth"

    @property
    def inputs(self) -> str:
        return self.foundation.digest

    def build(self) -> nn.Module:
        model = widened(self.foundation.open_unet(), CHANNELS)
        filters = torch.randn(len(model.conv_in.weight), 3, 3) * OUTLINE_SPREAD
        with torch.no_grad():
            model.conv_in.weight[:, 4] = filters - filters.mean(dim=(1, 2), keepdim=True)
        trained: nn.Module = model
        return trained

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        examples = Examples(self.foundation, device)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            batch = examples.draw(draw, dropout=CAPTION_DROPOUT)
            channel = depth_channel(read_inverse_depth(examples.renders, batch.indices)).to(device)
            samples = torch.cat([batch.noised.samples, channel], dim=1)
            predicted = model(samples, batch.noised.timesteps, batch.text).sample
            return diffusion_loss(predicted, batch.noised.target)

        return loss
