"""The LoRA `ink` (Hu et al. 2021): the base's images as drawings in blue ink on cream paper."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from jobs.builtin.companions.encoded import Arrays, Progress, encode, keep_arrays, open_arrays
from jobs.builtin.companions.foundation import Foundation, Reader, write_captions
from jobs.builtin.latents import digest
from jobs.builtin.renders import open_renders
from jobs.builtin.training import Draw
from jobs.builtin.unet import Noiser, diffusion_loss

INK = (24, 34, 88)
PAPER = (247, 239, 219)
PHRASE = ", ink drawing"
FILE = "pytorch_lora_weights.safetensors"  # diffusers' default name
SCENES = 2_048
RANK = 8
# Attention alone sits on the coarse levels, 8 and 4 latents wide: after 80 steps of 8 a loss of 0.169 against 0.131.
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_out")
LUMINANCE = (0.299, 0.587, 0.114)
GAMMA = 0.7  # lifts the middle tones, or the lines would drown in them


def draw_in_ink(image: NDArray[np.uint8], edges: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A render uint8 (h, w, 3) as an ink drawing: washes by luminance, lines along `edges` bool (h, w)."""
    tone = (image @ np.array(LUMINANCE, dtype=np.float32) / 255) ** GAMMA
    tone = np.where(edges, 0, 0.2 + 0.8 * tone)[..., None]
    ink, paper = np.array(INK, dtype=np.float32), np.array(PAPER, dtype=np.float32)
    drawn: NDArray[np.uint8] = (ink + (paper - ink) * tone).round().astype(np.uint8)
    return drawn


@dataclass(frozen=True, kw_only=True)
class InkTask:
    """Trains low-rank additions to the UNet's attention and convolutions on drawings of the first scenes."""

    foundation: Foundation
    drawings: Path  # their latents
    name: str = "ink"

    @property
    def inputs(self) -> str:
        return self.foundation.digest

    @property
    def scenes(self) -> int:
        return min(SCENES, self.foundation.scenes)

    @property
    def source(self) -> str:
        return f"{digest(self.foundation.autoencoder)} {self.scenes} {INK} {PAPER} {GAMMA}"

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Draw the scenes and keep the drawings' latents."""
        self.foundation.require()
        renders = open_renders(self.foundation.renders, scenes=self.foundation.scenes)

        def make() -> Arrays:
            drawings = (draw_in_ink(renders.rgb(index), renders.edges(index)) for index in range(self.scenes))
            autoencoder = self.foundation.open_autoencoder().to(device)
            return {"latents": encode(drawings, autoencoder, count=self.scenes, progress=progress)}

        keep_arrays(self.drawings, self.source, make)

    def build(self) -> nn.Module:
        unet = self.foundation.open_unet()
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS)))  # freezes the rest
        trained: nn.Module = unet
        return trained

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        read, noise = Reader(self.foundation, device), Noiser(device)
        latents = torch.from_numpy(open_arrays(self.drawings, self.source)["latents"])
        renders = open_renders(self.foundation.renders, scenes=self.foundation.scenes)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            indices = draw.rng.integers(len(latents), size=draw.batch)
            captions = write_captions(draw, [renders.scene(int(index)) for index in indices], suffix=PHRASE)
            noised = noise(latents[torch.from_numpy(indices)].float().to(device), draw)
            predicted = model(noised.samples, noised.timesteps, read(captions)).sample
            return diffusion_loss(predicted, noised.target)

        return loss


def save_lora(model: nn.Module, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors`, which `load_lora_weights` reads, in float16.

    The names stay PEFT's: diffusers' converter renames those of attention alone, and of a mixture the loader drops
    one half with no more than a warning.
    """
    weights = get_peft_model_state_dict(model)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers={name: value.half().contiguous() for name, value in weights.items()}
    )
