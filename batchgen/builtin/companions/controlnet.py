"""ControlNets (Zhang et al. 2023): a copy of the UNet's encoder that steers the frozen UNet by a picture."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import ControlNetModel
from numpy.typing import NDArray
from torch import Tensor, nn

from batchgen.builtin.companions.conditions import CONDITIONS
from batchgen.builtin.companions.foundation import Examples, Foundation
from batchgen.builtin.training import Draw
from batchgen.builtin.unet import diffusion_loss

EMBEDDING_CHANNELS = (16, 32, 64, 96)  # of the conditioning picture's own small encoder, 128 to 16 pixels
CAPTION_DROPOUT = 0.3  # a picture without words must be guessed from its condition (half of them in the paper)


def to_condition(pictures: NDArray[np.uint8]) -> Tensor:
    """Conditioning pictures uint8 (n, h, w, 3) as float32 (n, 3, h, w) in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)


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
        model: ControlNetModel = ControlNetModel.from_unet(
            self.foundation.open_unet(), conditioning_embedding_out_channels=EMBEDDING_CHANNELS
        )
        # The connections to the UNet begin at zero already; a zero here as well would only hold the first steps up.
        nn.init.kaiming_normal_(model.controlnet_cond_embedding.conv_out.weight)
        trained: nn.Module = model
        return trained

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        unet = self.foundation.open_unet().requires_grad_(False).eval().to(device)
        examples, condition = Examples(self.foundation, device), CONDITIONS[self.condition]

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
