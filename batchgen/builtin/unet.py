"""The UNet stage: the noise predictor that is conditioned on the text tower (latent diffusion, Rombach et al. 2022)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel

from batchgen.builtin.captions import draw_caption
from batchgen.builtin.latents import digest, open_latents
from batchgen.builtin.recipe import RecipeError
from batchgen.builtin.scenes import draw_scene
from batchgen.builtin.text import WIDTH, open_tokenizer, tokenize
from batchgen.builtin.training import Draw

CAPTION_DROPOUT = 0.12  # what classifier-free guidance learns the unconditional prediction from (Ho & Salimans 2022)
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
    """A small UNet2DConditionModel of three levels, cross-attention in the lower two."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=HEADS,  # diffusers' name for the number of heads
        norm_num_groups=16,
    )


def draw_timesteps(draw: Draw, count: int, steps: int) -> Tensor:
    """Int64 timesteps (count,), one from each of `count` equal parts of the schedule: less noise in the loss."""
    places = (torch.arange(count) + torch.rand(count, generator=draw.noise)) / count
    return (places * steps).long().clamp(max=steps - 1)


@dataclass(frozen=True, kw_only=True)
class UNetTask:
    """Trains the UNet on stored latents and freshly drawn captions; the text tower is frozen."""

    latents: Path
    autoencoder: Path
    text_encoder: Path
    tokenizer: Path
    render_seed: int
    scenes: int
    name: str = "unet"

    @property
    def inputs(self) -> str:
        return digest(self.text_encoder)[:16] + digest(self.autoencoder)[:16]

    def build(self) -> nn.Module:
        model: nn.Module = build_unet()
        return model

    def open(self, device: torch.device) -> Callable[[nn.Module, Draw], Tensor]:
        stored = torch.from_numpy(open_latents(self.latents, scenes=self.scenes, autoencoder=self.autoencoder))
        if not (self.text_encoder / "config.json").exists():
            raise RecipeError(f"no finished text tower in {self.text_encoder}: run the text stage first")
        tokenizer = open_tokenizer(self.tokenizer)
        reader = CLIPTextModel.from_pretrained(self.text_encoder, dtype=torch.float32).to(device).eval()
        alphas = build_scheduler().alphas_cumprod.to(device)

        def loss(model: nn.Module, draw: Draw) -> Tensor:
            indices = draw.rng.integers(self.scenes, size=draw.batch)
            texts = [
                ""
                if draw.rng.random() < CAPTION_DROPOUT
                else draw_caption(draw.rng, draw_scene(self.render_seed, int(index))).text
                for index in indices
            ]
            with torch.no_grad():
                states = reader(tokenize(tokenizer, texts, full=True).to(device)).last_hidden_state
            latents = stored[torch.from_numpy(indices)].float().to(device)
            noise = draw.normal(*latents.shape)
            timesteps = draw_timesteps(draw, draw.batch, len(alphas)).to(device)
            signal = alphas[timesteps].sqrt()[:, None, None, None]
            noisiness = (1 - alphas[timesteps]).sqrt()[:, None, None, None]
            predicted = model(signal * latents + noisiness * noise, timesteps, encoder_hidden_states=states).sample
            return functional.mse_loss(predicted.float(), signal * noise - noisiness * latents)

        return loss
