"""Inpainting: a UNet that also takes the mask and the latents of what is left of the image (Rombach et al. 2022)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jobs.builtin.companions.encoded import Arrays, Progress, encode, keep_arrays, open_arrays
from jobs.builtin.companions.foundation import Examples, Foundation, widened
from jobs.builtin.companions.masks import draw_mask
from jobs.builtin.latents import digest
from jobs.builtin.renderer import IMAGE_SIZE
from jobs.builtin.renders import RenderSet, open_renders
from jobs.builtin.training import Draw
from jobs.builtin.unet import LATENT_SIZE, diffusion_loss

CHANNELS = 9  # four of latents, one of mask, four of the masked image's latents: the pipeline's order
MASKED = 8_192  # fixed pairs of scene and mask: encoding one takes as long as half a training step
# What is left of the image enters as if it were a little of the noised latents, which the UNet can read already:
# untrained, the loss outside the mask falls from 0.130 to 0.102; begun at zero it was 0.081 after 500 steps.
HINT = 0.15
CAPTION_DROPOUT = 0.3  # as for ControlNets: without words the rest of the image is all there is to go by
HIDDEN = 128  # uint8 of a masked pixel: 0 in [-1, 1], as StableDiffusionInpaintPipeline paints it over


def hide(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The image (h, w, 3) with what the mask (h, w) covers painted gray."""
    return np.where(mask[..., None], np.uint8(HIDDEN), image)


def shrink(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask at the latents' size, (16, 16), by the nearest pixel as torch's interpolate takes it."""
    cell = IMAGE_SIZE // LATENT_SIZE
    return mask[::cell, ::cell]


@dataclass(frozen=True, kw_only=True)
class InpaintingTask:
    """Fine-tunes the UNet on scenes with parts hidden; the text tower stays as it is."""

    foundation: Foundation
    masked: Path  # masks and latents of the masked images
    seed: int
    name: str = "inpainting"

    @property
    def inputs(self) -> str:
        return self.foundation.digest

    @property
    def count(self) -> int:
        return min(MASKED, self.foundation.scenes)

    @property
    def source(self) -> str:
        return f"{digest(self.foundation.autoencoder)} {self.seed} {self.count}"

    def _mask(self, renders: RenderSet, index: int) -> NDArray[np.bool_]:
        return draw_mask(np.random.default_rng((self.seed, index, CHANNELS)), renders.objects(index))

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Hide a part of each of the first scenes and keep what the autoencoder makes of the rest."""
        self.foundation.require()
        renders = open_renders(self.foundation.renders, scenes=self.foundation.scenes)

        def make() -> Arrays:
            masks: list[NDArray[np.bool_]] = []

            def images() -> Iterator[NDArray[np.uint8]]:
                for index in range(self.count):
                    mask = self._mask(renders, index)
                    masks.append(shrink(mask))
                    yield hide(renders.rgb(index), mask)

            autoencoder = self.foundation.open_autoencoder().to(device)
            latents = encode(images(), autoencoder, count=self.count, progress=progress)
            return {"latents": latents, "masks": np.stack(masks)}

        keep_arrays(self.masked, self.source, make)

    def build(self) -> nn.Module:
        model = widened(self.foundation.open_unet(), CHANNELS)
        with torch.no_grad():
            model.conv_in.weight[:, 5:] = HINT * model.conv_in.weight[:, :4]
        trained: nn.Module = model
        return trained

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        examples, arrays = Examples(self.foundation, device), open_arrays(self.masked, self.source)
        seen, masks = torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["masks"])

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            batch = examples.draw(draw, first=self.count, dropout=CAPTION_DROPOUT)
            chosen = torch.from_numpy(batch.indices)
            hidden, left = masks[chosen].float().to(device), seen[chosen].float().to(device)
            samples = torch.cat([batch.noised.samples, hidden[:, None], left], dim=1)
            predicted = model(samples, batch.noised.timesteps, batch.text).sample
            return diffusion_loss(predicted, batch.noised.target, hidden)

        return loss
