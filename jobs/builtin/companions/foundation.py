"""The finished base that companions are trained on top of: where it lies, its digest, its frozen parts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel

from jobs.builtin.captions import draw_caption
from jobs.builtin.latents import digest, open_latents
from jobs.builtin.recipe import RecipeError
from jobs.builtin.renders import RenderSet, open_renders
from jobs.builtin.scenes import Scene
from jobs.builtin.text import open_tokenizer, tokenize
from jobs.builtin.training import Draw
from jobs.builtin.unet import CAPTION_DROPOUT, Noised, Noiser


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """Folders of what the base's stages finished, and how many scenes they used."""

    renders: Path
    latents: Path
    autoencoder: Path
    unet: Path  # holds `unet` and `text_encoder`, which were trained together
    tokenizer: Path
    scenes: int

    @property
    def digest(self) -> str:
        """Names the base by the weights of UNet, text tower and autoencoder."""
        return digest(self.unet)[:16] + digest(self.autoencoder)[:16]

    def require(self) -> None:
        """Raise RecipeError when the base has not been finished."""
        for folder in (self.autoencoder, self.unet):
            require_finished(folder)

    def open_unet(self) -> UNet2DConditionModel:
        """The base's UNet, float32 on the CPU; raises RecipeError when it has not been finished."""
        self.require()
        unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(self.unet / "unet", dtype=torch.float32)
        return unet

    def open_text_encoder(self) -> CLIPTextModel:
        """The base's text tower, float32 on the CPU; raises RecipeError when it has not been finished."""
        self.require()
        return CLIPTextModel.from_pretrained(self.unet / "text_encoder", dtype=torch.float32)

    def open_autoencoder(self) -> AutoencoderKL:
        """The base's autoencoder, float32 on the CPU; raises RecipeError when it has not been finished."""
        self.require()
        model: AutoencoderKL = AutoencoderKL.from_pretrained(self.autoencoder, dtype=torch.float32)
        return model


def require_finished(folder: Path) -> None:
    """Raise RecipeError when the stage that leaves its model in `<work>/<stage>/model` has not finished."""
    if not folder.exists():
        stage = folder.parent.name
        raise RecipeError(f"no finished model of the {stage} stage in {folder}: run the {stage} stage first")


class Reader:
    """The frozen text tower: sentences to what the UNet attends to."""

    def __init__(self, foundation: Foundation, device: torch.device) -> None:
        self._tokenizer = open_tokenizer(foundation.tokenizer)
        self._tower = foundation.open_text_encoder().requires_grad_(False).eval().to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Hidden states (n, 77, WIDTH)."""
        tokens = tokenize(self._tokenizer, texts, full=True).to(self._device)
        states: Tensor = self._tower(tokens).last_hidden_state
        return states


@dataclass(frozen=True, kw_only=True)
class Example:
    """A batch: which scenes, their noised latents and the text tower's hidden states (n, 77, WIDTH)."""

    indices: NDArray[np.int64]
    noised: Noised
    text: Tensor


class Examples:
    """Random batches of stored latents with fresh captions, for companions that see the UNet's own data."""

    def __init__(self, foundation: Foundation, device: torch.device) -> None:
        foundation.require()
        stored = open_latents(foundation.latents, scenes=foundation.scenes, autoencoder=foundation.autoencoder)
        self.latents = torch.from_numpy(stored)
        self.renders: RenderSet = open_renders(foundation.renders, scenes=foundation.scenes)
        self.read, self.noise, self._device = Reader(foundation, device), Noiser(device), device

    def draw(
        self, draw: Draw, *, first: int | None = None, dropout: float = CAPTION_DROPOUT, suffix: str = ""
    ) -> Example:
        """A batch of any scenes, or of the first few; `suffix` ends every caption that is not dropped."""
        indices = draw.rng.integers(len(self.latents) if first is None else first, size=draw.batch)
        latents = self.latents[torch.from_numpy(indices)]
        scenes = [self.renders.scene(int(index)) for index in indices]
        return Example(
            indices=indices,
            noised=self.noise(latents.float().to(self._device), draw),
            text=self.read(write_captions(draw, scenes, dropout=dropout, suffix=suffix)),
        )


def write_captions(draw: Draw, scenes: list[Scene], *, dropout: float = CAPTION_DROPOUT, suffix: str = "") -> list[str]:
    """Fresh captions that end in `suffix`, empty where they are dropped."""
    return ["" if draw.rng.random() < dropout else draw_caption(draw.rng, scene).text + suffix for scene in scenes]


def widened(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """A copy of `unet` that takes `channels` input channels.

    The new ones' weights begin at zero, so that it predicts as before, as Stable Diffusion's depth and inpainting
    models were begun (Rombach et al. 2022; model cards of SD 2).
    """
    wide: UNet2DConditionModel = UNet2DConditionModel.from_config({**unet.config, "in_channels": channels})
    weights = unet.state_dict()
    narrow = weights["conv_in.weight"]  # (features, 4, 3, 3)
    new = narrow.new_zeros(len(narrow), channels - 4, 3, 3)
    weights["conv_in.weight"] = torch.cat([narrow, new], dim=1)
    wide.load_state_dict(weights)
    return wide
