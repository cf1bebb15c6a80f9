"""The autoencoder `vae-sharp`: the base's, its decoder trained on for crisper outlines; its latents are the same."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from batchgen.builtin.autoencoder import OBJECT_WEIGHT, draw_crop, reconstruction_loss, to_tensor
from batchgen.builtin.companions.foundation import Foundation
from batchgen.builtin.renders import open_renders
from batchgen.builtin.training import Draw

GRADIENT_WEIGHT = 3.0  # six times the base's


@dataclass(frozen=True, kw_only=True)
class DecoderTask:
    """Trains the decoder on whole pictures; the encoder stays as it is."""

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
            count = max(1, draw.batch // 4)  # as many pixels as a batch of the autoencoder's crops
            crops = [draw_crop(renders, draw, whole=True) for _ in range(count)]
            target = to_tensor(np.stack([rgb for rgb, _ in crops])).to(device)
            objects = torch.from_numpy(np.stack([objects for _, objects in crops]))[:, None].to(device)
            with torch.no_grad():
                posterior = model.encode(target).latent_dist
                mean, spread = posterior.mean.float(), posterior.std.float()
            output = model.decode(mean + spread * draw.normal(*mean.shape)).sample
            weight = 1 + (OBJECT_WEIGHT - 1) * (objects > 0).float()
            return reconstruction_loss(output, target, weight, gradient_weight=GRADIENT_WEIGHT)

        return loss
