"""Tiny Stable Diffusion 1.x models with seeded random weights, in the real formats: `python tests/tiny_models.py OUT`.

Architecture and file layout are those of SD 1.x; only widths and depths are small (0.3 M parameters, 64 px pictures).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

__all__ = ["build_sd1", "build_single_file"]

_START, _END = "<|startoftext|>", "<|endoftext|>"
_LAYERS = 1  # residual blocks a level, in UNet and autoencoder


def build_sd1(folder: Path, *, seed: int = 0, in_channels: int = 4, variant: str | None = None) -> Path:
    """Write a diffusers folder; `in_channels=9` makes an inpainting UNet, `variant="fp16"` half-precision files."""
    pipeline = _pipeline(seed, in_channels)
    if variant == "fp16":
        pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, variant=variant)
    return folder


def build_single_file(file: Path, *, seed: int = 0) -> Path:
    """Write the model of `build_sd1(seed=seed)` as a checkpoint with the key names of the original implementation.

    Its config is the folder that `build_sd1` writes.
    """
    pipeline = _pipeline(seed, 4)
    state = {f"model.diffusion_model.{_unet_key(k)}": v for k, v in pipeline.unet.state_dict().items()}
    for key, value in pipeline.vae.state_dict().items():
        original = _vae_key(key)
        is_projection = ".attn_1." in original and ".norm." not in original and original.endswith("weight")
        # The original autoencoder's attention is made of 1x1 convolutions.
        state[f"first_stage_model.{original}"] = value[:, :, None, None] if is_projection else value
    for key, value in pipeline.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file


def _pipeline(seed: int, in_channels: int) -> Any:
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        layers_per_block=_LAYERS,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=_LAYERS,
        norm_num_groups=4,
        sample_size=64,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _tokenizer() -> Any:
    """CLIP's byte-level BPE over the 256 bytes, with a merge or two so that merging happens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(hidden))]
    merges = [("t", "h"), ("th", "e</w>")]
    words = [*letters, *[f"{letter}</w>" for letter in letters], *[a + b for a, b in merges], _START, _END]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=_END, model_max_length=77)


def _unet_key(key: str) -> str:
    """Name of a UNet parameter in the original implementation, where blocks are numbered through."""
    outside = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }
    module, _, parameter = key.rpartition(".")
    if module in outside:
        return f"{outside[module]}.{parameter}"
    match key.split("."):
        case ["mid_block", "resnets", number, name, *rest]:
            return ".".join(["middle_block", str(2 * int(number)), inside[name], *rest])
        case ["mid_block", "attentions", _, *rest]:
            return ".".join(["middle_block", "1", *rest])
        case ["down_blocks", level, "resnets", number, name, *rest]:
            block = (_LAYERS + 1) * int(level) + int(number) + 1
            return ".".join(["input_blocks", str(block), "0", inside[name], *rest])
        case ["down_blocks", level, "attentions", number, *rest]:
            return ".".join(["input_blocks", str((_LAYERS + 1) * int(level) + int(number) + 1), "1", *rest])
        case ["down_blocks", level, "downsamplers", _, "conv", *rest]:
            return ".".join(["input_blocks", str((_LAYERS + 1) * (int(level) + 1)), "0.op", *rest])
        case ["up_blocks", level, "resnets", number, name, *rest]:
            block = (_LAYERS + 1) * int(level) + int(number)
            return ".".join(["output_blocks", str(block), "0", inside[name], *rest])
        case ["up_blocks", level, "attentions", number, *rest]:
            return ".".join(["output_blocks", str((_LAYERS + 1) * int(level) + int(number)), "1", *rest])
        case ["up_blocks", level, "upsamplers", _, *rest]:
            # After the block's attention, which the first level here has not.
            return ".".join(["output_blocks", str((_LAYERS + 1) * int(level) + _LAYERS), "1", *rest])
    raise LookupError(key)


def _vae_key(key: str) -> str:
    """Name of an autoencoder parameter in the original implementation, where levels of the decoder count down."""
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
    parts = ["nin_shortcut" if part == "conv_shortcut" else part for part in key.split(".")]
    match parts:
        case [side, "mid_block", "resnets", number, *rest]:
            parts = [side, "mid", f"block_{int(number) + 1}", *rest]
        case [side, "mid_block", "attentions", _, name, *rest]:
            parts = [side, "mid", "attn_1", attention[name], rest[-1]]
        case [side, "down_blocks", level, "resnets", number, *rest]:
            parts = [side, "down", level, "block", number, *rest]
        case [side, "down_blocks", level, "downsamplers", _, *rest]:
            parts = [side, "down", level, "downsample", *rest]
        case [side, "up_blocks", level, "resnets", number, *rest]:
            parts = [side, "up", str(3 - int(level)), "block", number, *rest]
        case [side, "up_blocks", level, "upsamplers", _, *rest]:
            parts = [side, "up", str(3 - int(level)), "upsample", *rest]
        case [side, "conv_norm_out", *rest]:
            parts = [side, "norm_out", *rest]
    return ".".join(parts)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    build_sd1(out / "sd1")
    build_sd1(out / "sd1-fp16", variant="fp16")
    build_sd1(out / "sd1-inpainting", in_channels=9)
    build_single_file(out / "sd1.safetensors")
