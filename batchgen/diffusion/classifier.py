"""The classifier of noisy images whose gradient guides a diffusion model (Dhariwal & Nichol 2021, ADM).

Architecture and tensor names are those of the published weights (guided-diffusion's `EncoderUNetModel` with attention
pooling): the lower half of a UNet, read out by one attention query.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from batchgen.errors import InputError, one_line
from batchgen.models.compatibility import CLASSIFIER_WEIGHTS, ClassifierConfig, parse_classifier

__all__ = ["Classifier", "load_classifier"]

_GROUPS = 32
_LONGEST_PERIOD = 10_000  # timesteps, of the slowest sinusoid that stands for a timestep


class Classifier(nn.Module):
    """Noisy images (B, C, size, size) around [-1, 1] and their timesteps (B,) to logits (B, classes)."""

    def __init__(self, config: ClassifierConfig, *, channels: int, classes: int) -> None:
        super().__init__()
        self.config = config
        width, widths = config.classifier_width, config.widths
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        blocks: list[list[nn.Module]] = [[nn.Conv2d(channels, widths[0], 3, padding=1)]]
        channels, side = widths[0], config.image_size
        for level, wide in enumerate(widths):
            for _ in range(config.classifier_depth):
                blocks.append([_Residual(config, channels, wide)])
                channels = wide
                if side in config.classifier_attention_resolutions:
                    blocks[-1].append(_Attention(channels, config.num_head_channels))
            if level < len(widths) - 1:
                shrinks = config.classifier_resblock_updown
                blocks.append([_Residual(config, channels, channels, down=True) if shrinks else _Shrink(channels)])
                side //= 2
        self.input_blocks = nn.ModuleList(nn.ModuleList(block) for block in blocks)
        self.middle_block = nn.ModuleList(
            [
                _Residual(config, channels, channels),
                _Attention(channels, config.num_head_channels),
                _Residual(config, channels, channels),
            ]
        )
        pool = _AttentionPool(side, channels, config.num_head_channels, classes)
        self.out = nn.Sequential(_norm(channels), nn.SiLU(), pool)

    def forward(self, images: Tensor, timesteps: Tensor) -> Tensor:
        embedded = self.time_embed(_sinusoids(timesteps, self.config.classifier_width))
        features = images
        for block in (*self.input_blocks, self.middle_block):
            features = _run(block, features, embedded)
        logits: Tensor = self.out(features)
        return logits

    def gradient(self, images: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """Gradient of the log probability of each image's label with respect to the image, of its shape."""
        with torch.inference_mode(False), torch.enable_grad():
            seen = images.detach().float().clone().requires_grad_(True)
            chances = functional.log_softmax(self(seen, timesteps.clone()), dim=-1)
            chosen = chances.gather(1, labels.clone()[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, seen)
        return gradient


def load_classifier(folder: Path, device: torch.device) -> Classifier:
    """A classifier from its folder, in float32, to be differentiated through.

    Raises:
        InputError: the weights are not those of the classifier that its config describes.
    """
    config = parse_classifier(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    weights = next(file for name in CLASSIFIER_WEIGHTS for file in folder.glob(name))
    with torch.inference_mode(False):  # what inference mode makes cannot be differentiated through
        state = {name: tensor.float() for name, tensor in load_file(weights).items()}
        channels, classes = state["input_blocks.0.0.weight"].shape[1], state["out.2.c_proj.weight"].shape[0]
        model = Classifier(config, channels=channels, classes=classes)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"classifier {folder}: {one_line(error)}") from error
        return model.eval().requires_grad_(False).to(device)


def _run(block: Iterable[nn.Module], features: Tensor, embedded: Tensor) -> Tensor:
    for layer in block:
        features = layer(features, embedded) if isinstance(layer, _Residual) else layer(features)
    return features


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels)


def _sinusoids(timesteps: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of a timestep at `width` / 2 frequencies each: (B, width)."""
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(_LONGEST_PERIOD) * places)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _Residual(nn.Module):
    """A residual block conditioned on the timestep; `down` halves the image by averaging."""

    def __init__(self, config: ClassifierConfig, channels: int, wide: int, *, down: bool = False) -> None:
        super().__init__()
        self._down, self._scales = down, config.classifier_use_scale_shift_norm
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, wide, 3, padding=1))
        timestep = nn.Linear(4 * config.classifier_width, wide * (2 if self._scales else 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), timestep)
        last = nn.Conv2d(wide, wide, 3, padding=1)
        self.out_layers = nn.Sequential(_norm(wide), nn.SiLU(), nn.Identity(), last)  # the third was a dropout
        self.skip_connection = nn.Identity() if wide == channels else nn.Conv2d(channels, wide, 1)

    def forward(self, features: Tensor, embedded: Tensor) -> Tensor:
        inner = self.in_layers[:2](features)
        if self._down:
            inner, features = functional.avg_pool2d(inner, 2), functional.avg_pool2d(features, 2)
        inner = self.in_layers[2](inner)
        timestep = self.emb_layers(embedded)[:, :, None, None]
        if self._scales:
            scale, shift = timestep.chunk(2, dim=1)
            inner = self.out_layers[1:](self.out_layers[0](inner) * (1 + scale) + shift)
        else:
            inner = self.out_layers(inner + timestep)
        combined: Tensor = self.skip_connection(features) + inner
        return combined


class _Shrink(nn.Module):
    """Halves the image by a convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        smaller: Tensor = self.op(features)
        return smaller


class _Attention(nn.Module):
    """Self-attention between places; queries, keys and values of one head lie side by side."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self._heads = channels // head_channels
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        flat = features.flatten(2)
        mixed = self.qkv(self.norm(flat)).unflatten(1, (self._heads, 3, -1))
        attended: Tensor = flat + self.proj_out(_attend(*mixed.unbind(2)))
        return attended.view_as(features)


class _AttentionPool(nn.Module):
    """One vector for the whole image, asked for by its mean; here all queries lie before all keys."""

    def __init__(self, side: int, channels: int, head_channels: int, classes: int) -> None:
        super().__init__()
        self._heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.zeros(channels, side * side + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        flat = features.flatten(2)
        flat = torch.cat([flat.mean(dim=-1, keepdim=True), flat], dim=-1) + self.positional_embedding
        mixed = self.qkv_proj(flat).unflatten(1, (3, self._heads, -1))
        logits: Tensor = self.c_proj(_attend(*mixed.unbind(1)))[:, :, 0]
        return logits


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Scaled dot-product attention of tensors (B, heads, channels, places) to (B, heads * channels, places)."""
    query, key, value = (tensor.transpose(2, 3) for tensor in (queries, keys, values))
    return functional.scaled_dot_product_attention(query, key, value).transpose(2, 3).flatten(1, 2)
