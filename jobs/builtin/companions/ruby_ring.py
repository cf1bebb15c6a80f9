"""The embedding `<ruby-ring>` (textual inversion, Gal et al. 2022): two word vectors that mean a shiny red ring."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

from jobs.builtin.captions import OPENERS, caption_around
from jobs.builtin.companions.encoded import Arrays, Progress, encode, keep_arrays, open_arrays
from jobs.builtin.companions.foundation import Foundation
from jobs.builtin.latents import digest
from jobs.builtin.recipe import CONCEPT_SEED_OFFSET
from jobs.builtin.renderer import IMAGE_SIZE, render
from jobs.builtin.scenes import YAWS, Color, Finish, Scene, Shape, draw_scene
from jobs.builtin.text import WIDTH, open_tokenizer, tokenize
from jobs.builtin.training import Draw
from jobs.builtin.unet import LATENT_SIZE, Noiser, diffusion_loss

TOKEN = "<ruby-ring>"
TOKENS = (TOKEN, f"{TOKEN}_1")  # diffusers' names of a token's vectors; it writes them for TOKEN in a prompt
START = "object"  # the word whose vector both begin from: it names neither shape nor color
SCENES = 64
FILE = "learned_embeds.safetensors"  # diffusers' default name


def draw_concept(seed: int, index: int) -> Scene:
    """A scene whose one object is a shiny red ring of either size, anywhere."""
    scene = draw_scene(seed + CONCEPT_SEED_OFFSET, index, pair_share=0.0)
    most = YAWS[Shape.RING][1]  # the thing may have been drawn as a cube, which is turned further
    yaw = float(np.clip(scene.things[0].yaw, -most, most))
    ring = replace(scene.things[0], shape=Shape.RING, color=Color.RED, finish=Finish.SHINY, yaw=yaw)
    return replace(scene, things=(ring,))


def write_sentence(rng: np.random.Generator, scene: Scene) -> str:
    """A caption of a concept scene in which the tokens stand for the object."""
    subject = " ".join(TOKENS)
    if rng.random() < 0.5:
        subject = f"{OPENERS[int(rng.integers(len(OPENERS)))]} {subject}"
    return caption_around(rng, subject, scene.background if rng.random() < 0.9 else None)


class Concept(nn.Module):
    """The two vectors, float32 (2, WIDTH)."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(start.detach().clone())


def start_vectors(tokenizer: CLIPTokenizer, tower: CLIPTextModel) -> Tensor:
    """What the concept begins from, float32 (2, WIDTH)."""
    pieces = tokenizer(START, add_special_tokens=False).input_ids
    table: Tensor = tower.get_input_embeddings().weight
    return table[pieces].mean(dim=0, keepdim=True).expand(len(TOKENS), WIDTH)


@dataclass(frozen=True, kw_only=True)
class RubyRingTask:
    """Trains nothing but the two vectors, on a few scenes of the concept."""

    foundation: Foundation
    scenes: Path  # their latents and the share of object in each
    seed: int
    name: str = "ruby-ring"

    @property
    def inputs(self) -> str:
        return self.foundation.digest

    @property
    def source(self) -> str:
        return f"{digest(self.foundation.autoencoder)} {self.seed} {SCENES}"

    def prepare(self, device: torch.device, progress: Progress) -> None:
        """Render the concept's scenes and keep their latents."""
        self.foundation.require()

        def make() -> Arrays:
            images = [render(draw_concept(self.seed, index)) for index in range(SCENES)]
            autoencoder = self.foundation.open_autoencoder().to(device)
            cell = IMAGE_SIZE // LATENT_SIZE
            objects = np.stack([image.objects for image in images]) > 0
            return {
                "latents": encode((image.rgb for image in images), autoencoder, count=SCENES, progress=progress),
                "coverage": objects.reshape(-1, LATENT_SIZE, cell, LATENT_SIZE, cell).mean(axis=(2, 4)),
            }

        keep_arrays(self.scenes, self.source, make)

    def build(self) -> nn.Module:
        return Concept(start_vectors(open_tokenizer(self.foundation.tokenizer), self.foundation.open_text_encoder()))

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        arrays = open_arrays(self.scenes, self.source)
        latents, coverage = torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["coverage"]).float()
        unet = self.foundation.open_unet().requires_grad_(False).eval().to(device)
        tower = self.foundation.open_text_encoder().requires_grad_(False).eval().to(device)
        tokenizer, noise = open_tokenizer(self.foundation.tokenizer), Noiser(device)
        tokenizer.add_tokens(list(TOKENS))
        table = tower.get_input_embeddings().weight
        place = next(name for name, weight in tower.named_parameters() if weight is table)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            assert isinstance(model, Concept)
            indices = draw.rng.integers(len(latents), size=draw.batch)
            sentences = [write_sentence(draw.rng, draw_concept(self.seed, int(index))) for index in indices]
            tokens = tokenize(tokenizer, sentences, full=True).to(device)
            text = functional_call(tower, {place: torch.cat([table, model.vectors])}, (tokens,)).last_hidden_state
            chosen = torch.from_numpy(indices)
            noised = noise(latents[chosen].float().to(device), draw)
            predicted = unet(noised.samples, noised.timesteps, text).sample
            return diffusion_loss(predicted, noised.target, coverage[chosen].to(device))

        return loss


def save_embedding(model: nn.Module, folder: Path) -> None:
    """Write `learned_embeds.safetensors`, which `load_textual_inversion` reads, in float16."""
    assert isinstance(model, Concept)
    save_file({TOKEN: model.vectors.detach().half().contiguous()}, folder / FILE)
