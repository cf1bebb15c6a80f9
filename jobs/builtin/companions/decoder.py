"""The autoencoder `vae-sharp`: the base's, its decoder trained on for crisper outlines; its latents are the same."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from jobs.builtin.autoencoder import draw_targets, reconstruction_loss
from jobs.builtin.companions.foundation import Foundation
from jobs.builtin.renderer import IMAGE_SIZE
from jobs.builtin.renders import open_renders
from jobs.builtin.training import Draw

GRADIENT_WEIGHT = 3.0  # six times the base's


@dataclass(frozen=True, kw_only=True)
class DecoderTask:
    """Trains the decoder on whole images; the encoder stays as it is."""

    foundation: Foundation
    name: str = "vae-sharp"

    @property
    def inputs(self) -> str:
        return self.foundation.digest[16:]  # of the autoencoder alone

    def build(self) -> nn.Module:
        model = self.foundation.open_autoencoder()
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
        trained: nn.Module = model
        return trained

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        self.foundation.require()
        renders = open_renders(self.foundation.renders, scenes=self.foundation.scenes)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            assert isinstance(model, AutoencoderKL)
            target, weight = draw_targets(renders, draw, side=IMAGE_SIZE, device=device)
            with torch.no_grad():
                posterior = model.encode(target).latent_dist
                mean, spread = posterior.mean.float(), posterior.std.float()
            output = model.decode(mean + spread * draw.normal(*mean.shape)).sample
            return reconstruction_loss(output, target, weight, gradient_weight=GRADIENT_WEIGHT)

        return loss
