"""ControlNets (Zhang et al. 2023): a copy of the UNet's encoder that steers the frozen UNet by an image.

The copy is without the UNet's attention: what to paint stays the matter of the UNet, which reads the words; and it is
half as large.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ControlNetModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from jobs.builtin.companions.conditions import CONDITIONS
from jobs.builtin.companions.foundation import Examples, Foundation
from jobs.builtin.renderer import render
from jobs.builtin.scenes import draw_scene
from jobs.builtin.training import Draw
from jobs.builtin.unet import CHANNELS, diffusion_loss

EMBEDDING_CHANNELS = (16, 32, 64, 96)  # of the conditioning image's own small encoder, 128 to 16 pixels
EMBEDDING_SPREAD = 0.5  # of the encoder's answer; the latents it is added to deviate by 0.7
WAKING_SCENES = 8
CAPTION_DROPOUT = 0.3  # an image without words must be guessed from its condition (half of them in the paper)


def to_condition(images: NDArray[np.uint8]) -> Tensor:
    """Conditioning images uint8 (n, h, w, 3) as float32 (n, 3, h, w) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)


@torch.no_grad()
def wake(embedding: nn.Module, images: Tensor) -> None:
    """Initialise the condition's encoder so that every layer answers `images` with a deviation of 1 (LSUV, 2016).

    As torch initialises its layers, what is left of the image is 0.004 beside latents of 0.7, and after 600 steps of
    32 nothing of it had reached the UNet (loss without captions 0.183, the base's 0.184); woken, 60 steps of 8 were
    enough for 0.165 against 0.176. The connections to the UNet begin at zero, so the first prediction is the base's.
    """
    values = images
    for layer in (embedding.conv_in, *embedding.blocks, embedding.conv_out):  # type: ignore[misc]
        assert isinstance(layer, nn.Conv2d) and layer.bias is not None
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        layer.weight /= layer(values).std()
        values = functional.silu(layer(values))
    embedding.conv_out.weight *= EMBEDDING_SPREAD  # type: ignore[union-attr, operator]


def without_attention(whole: ControlNetModel) -> ControlNetModel:
    """The same ControlNet without attention; of the middle's two residual blocks diffusers then has a place for one."""
    plain = {"down_block_types": ("DownBlock2D",) * len(CHANNELS), "mid_block_type": "UNetMidBlock2D"}
    model: ControlNetModel = ControlNetModel.from_config({**whole.config, **plain})
    weights = whole.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


@dataclass(frozen=True, kw_only=True)
class ControlNetTask:
    """Trains a ControlNet; UNet and text tower stay as they are."""

    foundation: Foundation
    condition: str  # of CONDITIONS

    @property
    def name(self) -> str:
        return f"controlnet-{self.condition}"

    @property
    def inputs(self) -> str:
        return self.foundation.digest

    def build(self) -> nn.Module:
        model = without_attention(
            ControlNetModel.from_unet(
                self.foundation.open_unet(), conditioning_embedding_out_channels=EMBEDDING_CHANNELS
            )
        )
        exact = CONDITIONS[self.condition].exact
        images = np.stack([exact(render(draw_scene(0, index))) for index in range(WAKING_SCENES)])
        wake(model.controlnet_cond_embedding, to_condition(images))
        trained: nn.Module = model
        return trained

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        unet = self.foundation.open_unet().requires_grad_(False).eval().to(device)
        examples, condition = Examples(self.foundation, device), CONDITIONS[self.condition].draw

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            batch = examples.draw(draw, dropout=CAPTION_DROPOUT)
            shown = np.stack([condition(draw.rng, examples.renders, int(index)) for index in batch.indices])
            samples, timesteps = batch.noised.samples, batch.noised.timesteps
            down, middle = model(
                samples, timesteps, batch.text, controlnet_cond=to_condition(shown).to(device), return_dict=False
            )
            predicted = unet(
                samples,
                timesteps,
                batch.text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
            return diffusion_loss(predicted, batch.noised.target)

        return loss
