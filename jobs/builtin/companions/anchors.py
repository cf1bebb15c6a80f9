"""Anchors: constants in the channels of a net that leave its GroupNorm nothing to do, so that colors stay as they are.

GroupNorm takes mean and spread out of what it sees, that is, out of an image's colors, and judges a crop by other
numbers than the whole. Networks for super-resolution leave normalisation out (Lim et al. 2017, "Enhanced deep residual
networks for single image super-resolution"); diffusers' models cannot. Here each norm has one group, and two channels
hold a constant and its negative, so large that it divides by nearly the same number whatever the image. No gradient
moves what makes the constants; weight decay takes a few percent of them. Residual branches begin at zero (Goyal et al.
2017, "Accurate, large minibatch SGD"), since nothing else tames them.
"""

from collections.abc import Sequence
from functools import partial

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
ANCHOR = 32.0  # the squares of 96 channels of deviation 1 add a twentieth to those of the two; float16 holds it easily
LOG_VARIANCE = -6.0  # of an autoencoder's latents at first: a deviation of 0.05, little beside the colors' 0.5


def _without(gradient: Tensor, held: Tensor) -> Tensor:
    return gradient.masked_fill(held.to(gradient.device), 0)


def _hold(layer: nn.Conv2d | nn.Linear | nn.GroupNorm, rows: Sequence[int], columns: Sequence[int] = ()) -> None:
    """Have no gradient move these entries of weight and bias; checkpoints know nothing of it."""
    for parameter in layer.parameters():
        held = torch.zeros_like(parameter, dtype=torch.bool)
        held[list(rows)] = True
        if parameter.dim() > 1:
            held[:, list(columns)] = True
        hook = partial(_without, held=held)
        parameter.register_hook(hook)  # type: ignore[no-untyped-call]


def _anchor(layer: nn.Conv2d) -> None:
    """Have a layer always give the constants."""
    assert layer.bias is not None
    layer.weight[list(ANCHORS)] = 0
    layer.bias[list(ANCHORS)] = torch.tensor([ANCHOR, -ANCHOR])
    _hold(layer, ANCHORS)


def _lead(conv: nn.Conv2d, straight: Tensor) -> None:
    """Have the first channels begin as `straight`, (n, in, h, w), of what comes in."""
    assert conv.bias is not None
    conv.weight[: len(straight)], conv.bias[: len(straight)] = 0, 0
    conv.weight[: len(straight), : straight.shape[1]] = straight


def _carry(conv: nn.Conv2d, kernel: Tensor, anchors: Sequence[int] = ANCHORS) -> None:
    """Have a layer hand the straight channels on, weighed by `kernel`, (h, w), and tell the others no constant."""
    conv.weight[:, list(anchors)] = 0
    _lead(conv, torch.eye(STRAIGHT)[:, :, None, None] * kernel)
    _hold(conv, ANCHORS, anchors)


def _level(norm: nn.GroupNorm, anchors: Sequence[int] = ANCHORS) -> None:
    """Have a norm give what it is given, less the mean over channels and pixels, and nothing for the anchors."""
    assert norm.num_groups == 1, "anchors serve a norm of one group"
    nn.init.constant_(norm.weight, ANCHOR * (len(anchors) / norm.num_channels) ** 0.5)
    norm.weight[list(anchors)] = 0
    _hold(norm, anchors)


def _pixel() -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


def _box() -> Tensor:
    """The mean of four pixels, where the convolution pads below and to the right alone."""
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 1 / 4
    return kernel


def _begin_at_zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Have a residual branch begin without effect, and never have one on the anchors."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    _hold(layer, ANCHORS)


def _anchor_residual(block: ResnetBlock2D, hidden: int) -> None:
    """Anchor a block that gets `hidden` channels from the one before and what is more from a UNet's other half."""
    anchors = [*ANCHORS, *((hidden + anchor for anchor in ANCHORS) if block.in_channels > hidden else ())]
    _level(block.norm1, anchors)
    _anchor(block.conv1)
    _level(block.norm2)
    _begin_at_zero(block.conv2)
    if block.conv_shortcut is not None:
        _carry(block.conv_shortcut, torch.ones(1, 1), anchors)


@torch.no_grad()
def anchor(model: UNet2DConditionModel | Encoder | Decoder) -> None:
    """Have the norms of a fresh net do nearly nothing, now and in training. In place.

    Its norms have one group and its levels at least eight channels. Of a UNet the time embedding scales and shifts
    (`resnet_time_scale_shift="scale_shift"`), for what it adds to channels would move the anchors.
    """
    _anchor(model.conv_in)
    hidden = model.conv_in.out_channels
    for block in (*getattr(model, "down_blocks", ()), model.mid_block, *getattr(model, "up_blocks", ())):
        for residual in block.resnets:
            _anchor_residual(residual, hidden)
            hidden = residual.out_channels
    for module in model.modules():
        if isinstance(module, Downsample2D):
            _carry(module.conv, _pixel() if module.padding else _box())
        elif isinstance(module, Upsample2D):
            _carry(module.conv, _pixel())
        elif isinstance(module, Transformer2DModel):
            _level(module.norm)
            _begin_at_zero(module.proj_out)
    _level(model.conv_norm_out)


@torch.no_grad()
def let_colors_pass(model: AutoencoderKL) -> None:
    """Have a fresh autoencoder, anchored, begin as one that shrinks and enlarges: three latents are mean colors.

    In place. The first channels of every level carry the colors and their negatives, since SiLU(x) - SiLU(-x) = x.
    """
    signed = torch.stack([torch.eye(3), -torch.eye(3)], dim=1).reshape(6, 3)[:, :, None, None]
    for half in (model.encoder, model.decoder):
        _lead(half.conv_in, signed * _pixel())
        anchor(half)
        _lead(half.conv_out, signed.transpose(0, 1) * _pixel())
    spread = slice(model.config.latent_channels, None)
    model.encoder.conv_out.weight[spread], model.encoder.conv_out.bias[spread] = 0, LOG_VARIANCE
    for conv in (model.quant_conv, model.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
