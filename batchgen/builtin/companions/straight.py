"""Weights to begin with that keep colors as they are: what restores pictures has no use for GroupNorm.

GroupNorm takes mean and spread out of what it sees, that is, out of a picture's colors, and judges a crop by other
numbers than the whole. Networks for super-resolution leave normalisation out (Lim et al. 2017, "Enhanced deep residual
networks for single image super-resolution"); diffusers' models cannot. Here each has one group, with two channels that
hold a constant and its negative, so large that the norm divides by the same number whatever the picture. Residual
branches begin at zero (Goyal et al. 2017, "Accurate, large minibatch SGD"), since nothing else tames them.
"""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

STRAIGHT = 8  # channels that are handed on past the residual branches, the first of every level
ANCHORS = (6, 7)  # those of them that hold the constant and its negative
ANCHOR = 32.0
LOG_VARIANCE = -6.0  # of an autoencoder's latents at first


def _give(layer: nn.Conv2d | nn.Linear, outputs: slice | list[int], constants: Tensor | float) -> None:
    """Have a layer give constants where `outputs` says, whatever comes in."""
    assert layer.bias is not None
    layer.weight[outputs], layer.bias[outputs] = 0, constants


def _lead(conv: nn.Conv2d, straight: Tensor, anchors: Sequence[int] = ANCHORS) -> None:
    """Have the first channels be `straight`, (n, in, h, w), of what comes in; the rest see none of the constants."""
    if conv.in_channels > max(anchors):
        conv.weight[:, list(anchors)] = 0
    _give(conv, slice(len(straight)), 0)
    conv.weight[: len(straight), : straight.shape[1]] = straight


def _silence(layer: nn.Conv2d | nn.Linear) -> None:
    """Have a layer leave the constants as they are."""
    _give(layer, list(ANCHORS), 0)


def _anchor(conv: nn.Conv2d) -> None:
    """Have a layer give the constants."""
    _give(conv, list(ANCHORS), torch.tensor([ANCHOR, -ANCHOR]))


def _level(norm: nn.GroupNorm, anchors: Sequence[int] = ANCHORS) -> None:
    """Have a norm give what it is given, but for the constants."""
    nn.init.constant_(norm.weight, ANCHOR * (len(anchors) / norm.num_channels) ** 0.5)
    norm.weight[list(anchors)] = 0


def _each() -> Tensor:
    return torch.eye(STRAIGHT)[:, :, None, None]


def _pixel() -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


def _box() -> Tensor:
    """The mean of four pixels, where the convolution pads below and to the right alone."""
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 1 / 4
    return kernel


def _open_residual(block: ResnetBlock2D, hidden: int) -> None:
    """`hidden` channels come from the block before, what is more from the other half of a UNet."""
    anchors = [*ANCHORS, *((hidden + anchor for anchor in ANCHORS) if block.in_channels > hidden else ())]
    _level(block.norm1, anchors)
    _anchor(block.conv1)
    if block.time_emb_proj is not None:
        _silence(block.time_emb_proj)
    _level(block.norm2)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)
    if block.conv_shortcut is not None:
        _lead(block.conv_shortcut, _each(), anchors)


@torch.no_grad()
def keep_range(model: UNet2DConditionModel | Encoder | Decoder) -> None:
    """Have a fresh UNet, encoder or decoder with norms of one group begin without normalisation, in place."""
    _anchor(model.conv_in)
    hidden = model.conv_in.out_channels
    for block in (*getattr(model, "down_blocks", ()), model.mid_block, *getattr(model, "up_blocks", ())):
        for residual in block.resnets:
            _open_residual(residual, hidden)
            hidden = residual.out_channels
    for module in model.modules():
        if isinstance(module, Downsample2D):
            _lead(module.conv, _each() * (_pixel() if module.padding else _box()))
        elif isinstance(module, Upsample2D):
            _lead(module.conv, _each() * _pixel())
        elif isinstance(module, Transformer2DModel):
            _level(module.norm)
            _silence(module.proj_out)
    _level(model.conv_norm_out)


@torch.no_grad()
def let_colors_pass(model: AutoencoderKL) -> None:
    """Have a fresh autoencoder begin as one that shrinks and enlarges: three of its latents are mean colors. In place.

    The first channels of every level carry the colors and their negatives, since SiLU(x) - SiLU(-x) = x.
    """
    signed = torch.stack([torch.eye(3), -torch.eye(3)], dim=1).reshape(6, 3)[:, :, None, None]
    for half in (model.encoder, model.decoder):
        _lead(half.conv_in, signed * _pixel())
        keep_range(half)
        _lead(half.conv_out, signed.transpose(0, 1) * _pixel())
    spread = slice(model.config.latent_channels, None)
    model.encoder.conv_out.weight[spread], model.encoder.conv_out.bias[spread] = 0, LOG_VARIANCE
    for conv in (model.quant_conv, model.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
