"""The UNet stage: the noise predictor and, with it, the text tower that conditions it.

The two are trained together, as latent diffusion's first text-to-image model was (Rombach et al. 2022, section 4.3.1):
a tower that only ever matched whole images does not say which colour belongs to which of two objects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from jobs.builtin.captions import draw_caption
from jobs.builtin.latents import digest, open_latents
from jobs.builtin.naming import CLASSES, caption_labels, naming_loss
from jobs.builtin.recipe import RecipeError
from jobs.builtin.renders import open_renders
from jobs.builtin.text import WIDTH, open_tokenizer, tokenize
from jobs.builtin.training import Draw

CAPTION_DROPOUT = 0.2  # what classifier-free guidance learns the unconditional prediction from (Ho & Salimans 2022)
# From this share of the steps on, predictions without a caption learn from those with it, not from the noise: both have
# the same mean, but so they come to share the net's errors, which guidance would enlarge with all that they differ in.
TAUGHT_FROM = 0.25
NAMING_WEIGHT = 0.02  # of the tower's own task, naming what a caption says, beside the noise prediction
OBJECT_WEIGHT = 3.0  # of a latent on an object against one of the surroundings, or colours are learnt last ...
OBJECT_SHARE = 0.75  # ... for this share of the steps; then only ...
OBJECT_TIMESTEP = 600  # ... below this one, where the noised latents themselves say where objects are: no bias there
LATENT_SIZE = 16
CHANNELS = (64, 128, 160)
HEADS = 4


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule with v-prediction (Salimans & Ho 2022) and trailing timesteps."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_unet() -> UNet2DConditionModel:
    """A small UNet2DConditionModel of three levels, cross-attention in all of them."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * len(CHANNELS),
        up_block_types=("CrossAttnUpBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def go_on_from(folder: Path) -> UNet2DConditionModel:
    """The UNet with the weights in `folder`; what attention the stored one lacks begins without effect.

    Raises RecipeError when the weights belong to a UNet of another kind.
    """
    unet, stored = build_unet(), load_file(folder / "diffusion_pytorch_model.safetensors")
    added = {name: value for name, value in unet.state_dict().items() if name not in stored}
    for name, value in added.items():
        if ".attentions." not in name:
            raise RecipeError(f"the UNet in {folder} is of another kind: it has no {name}")
        stored[name] = torch.zeros_like(value) if ".proj_out." in name else value
    try:
        unet.load_state_dict({name: value.float() for name, value in stored.items()})
    except RuntimeError as error:
        raise RecipeError(f"the UNet in {folder} is of another kind: {error}") from error
    return unet


def draw_timesteps(draw: Draw, count: int, steps: int) -> Tensor:
    """Int64 timesteps (count,), one from each of `count` equal parts of the schedule: less noise in the loss."""
    places = (torch.arange(count) + torch.rand(count, generator=draw.noise)) / count
    return (places * steps).long().clamp(max=steps - 1)


class Denoiser(nn.Module):
    """The UNet, its text tower, and the head by which the tower names what a caption says."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet
        self.names = nn.Linear(WIDTH, CLASSES)


def diffusion_loss(predicted: Tensor, target: Tensor, objects: Tensor | None = None) -> Tensor:
    """Mean squared error; `objects` (n, h, w), 0 to 1, says how much of each latent shows an object, to weigh it."""
    error = (predicted.float() - target).square()
    if objects is None:
        return error.mean()
    weight = 1 + (OBJECT_WEIGHT - 1) * objects[:, None]
    return (error * weight).sum() / (weight.sum() * error.shape[1])


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Latents at random places of the noise schedule and what a v-predicting net should say of them."""

    samples: Tensor  # (n, 4, h, w)
    timesteps: Tensor  # int64 (n,)
    target: Tensor  # (n, 4, h, w)


class Noiser:
    """Adds noise by the schedule (forward diffusion, Ho et al. 2020)."""

    def __init__(self, device: torch.device) -> None:
        self._alphas = build_scheduler().alphas_cumprod.to(device)

    def __call__(self, latents: Tensor, draw: Draw, noise: Tensor | None = None) -> Noised:
        """Latents (n, 4, h, w) with `noise`, (n, 4, h, w), or else white noise."""
        noise = draw.normal(*latents.shape) if noise is None else noise
        timesteps = draw_timesteps(draw, len(latents), len(self._alphas)).to(latents.device)
        signal = self._alphas[timesteps].sqrt()[:, None, None, None]
        noisiness = (1 - self._alphas[timesteps]).sqrt()[:, None, None, None]
        return Noised(
            samples=signal * latents + noisiness * noise,
            timesteps=timesteps,
            target=signal * noise - noisiness * latents,
        )


@dataclass(frozen=True, kw_only=True)
class UNetTask:
    """Trains UNet and text tower on stored latents and freshly drawn captions.

    The tower begins as the text stage left it, the UNet from noise or, where `start` is given, as in that folder. With
    `keep_tower` the tower stays as it is, and what else was trained to read it stays valid.
    """

    renders: Path
    latents: Path
    autoencoder: Path
    text_encoder: Path
    tokenizer: Path
    scenes: int
    start: Path | None = None
    keep_tower: bool = False
    name: str = "unet"

    @property
    def inputs(self) -> str:
        return digest(self.text_encoder)[:16] + digest(self.autoencoder)[:16] + ("kept" if self.keep_tower else "")

    def build(self) -> nn.Module:
        reader = CLIPTextModel.from_pretrained(self.text_encoder, dtype=torch.float32)
        unet = build_unet() if self.start is None else go_on_from(self.start)
        if not torch.cuda.is_available():
            unet.set_attn_processor(AttnProcessor())  # torch's fused attention takes a third longer a step on CPUs
        model = Denoiser(reader, unet)
        if self.keep_tower:
            model.text_encoder.requires_grad_(False)
            model.names.requires_grad_(False)
        return model

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        if not (self.text_encoder / "config.json").exists():
            raise RecipeError(f"no finished text tower in {self.text_encoder}: run the text stage first")
        stored = torch.from_numpy(open_latents(self.latents, scenes=self.scenes, autoencoder=self.autoencoder))
        renders = open_renders(self.renders, scenes=self.scenes)
        coverage = torch.from_numpy(renders.coverage(LATENT_SIZE))
        tokenizer, noise = open_tokenizer(self.tokenizer), Noiser(device)

        def loss_of(model: nn.Module, draw: Draw) -> Tensor:
            assert isinstance(model, Denoiser)
            indices = draw.rng.integers(self.scenes, size=draw.batch)
            captions = [draw_caption(draw.rng, renders.scene(int(index))) for index in indices]
            dropped = torch.from_numpy(draw.rng.random(draw.batch) < CAPTION_DROPOUT).to(device)
            tokens = tokenize(tokenizer, [*(caption.text for caption in captions), ""], full=True)
            read = model.text_encoder(tokens.to(device))
            *_, unsaid = read.last_hidden_state
            chosen = torch.from_numpy(indices)
            noised = noise(stored[chosen].float().to(device), draw)
            text = read.last_hidden_state[:-1]
            target = noised.target
            if draw.progress >= TAUGHT_FROM and bool(dropped.any()):
                with torch.no_grad():
                    told = model.unet(noised.samples[dropped], noised.timesteps[dropped], text[dropped]).sample
                target = target.index_put((dropped,), told.float())
            seen = torch.where(dropped[:, None, None], unsaid, text)
            predicted = model.unet(noised.samples, noised.timesteps, seen).sample
            objects = coverage[chosen].float().div(255).to(device)
            if draw.progress >= OBJECT_SHARE:
                objects = objects * (noised.timesteps < OBJECT_TIMESTEP)[:, None, None]
            loss = diffusion_loss(predicted, target, objects)
            if self.keep_tower:
                return loss
            said = torch.tensor([caption_labels(caption) for caption in captions], device=device)
            return loss + NAMING_WEIGHT * naming_loss(model.names(read.pooler_output[:-1]), said)

        return loss_of
