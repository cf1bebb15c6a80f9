"""Stable Diffusion's nets with random weights, made on the device from the published configurations.

Speed and memory depend on the architecture, not on what the weights say, so no download is needed to measure them.

Why the scale is right: every matrix and kernel is drawn with variance 1 / fan-in, biases are 0 and norms are 1. An
input of variance 1 then leaves each layer with variance 1, and each residual branch, which begins with a norm, adds at
most about 1 to the variance of what it joins. Seen with these nets whole, at 128 pixels over 20 steps: the largest
number that any module gives is 70 in the UNet of 1.5, 24 in that of 2.1, 161 in XL's and 896 in an autoencoder, where
float16 ends at 65,504. The predicted noise leaves a norm and one convolution with a deviation of about 0.6, so a
sampler ends within some tens of its initial noise, and the autoencoder's last norm makes images of it (levels of
deviation 68 to 72).
Every result says whether latents and images were finite, and the spread of the pixels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from batchgen.diffusion.loading import DTYPES, Components, Loading, quiet
from batchgen.models.catalog import Model

__all__ = ["NETS", "TINY", "Net", "RandomModel", "fill", "write_controlnet", "write_model"]

SEED = 20261127
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_START, _END = "<|startoftext|>", "<|endoftext|>"

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
           "hidden_act": "gelu"}  # fmt: skip
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
           "hidden_act": "gelu", "projection_dim": 1280}  # fmt: skip
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_VAE_XL = {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
_UNET = {"in_channels": 4, "layers_per_block": 2}
_UNET_XL = {
    **_UNET,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Net:
    """A model's architecture: keyword arguments of diffusers' and transformers' classes, and what it costs.

    `tflop` are 10^12 floating-point operations (two a multiply-add; matrix products, convolutions and attention) of one
    forward pass at batch 1 and the native size; `test_bench_gpu.py` counts them again with torch.utils.flop_counter.
    """

    name: str
    pipeline: str
    side: int  # pixels a side, native
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: tuple[Mapping[str, Any], ...]  # the towers, in the order of text_encoder, text_encoder_2
    scheduler: tuple[str, Mapping[str, Any]]
    second_tower_only: bool = False  # as SDXL's refiner
    tflop: Mapping[str, float] | None = None  # unet, decode, text
    hint: tuple[int, ...] = (16, 32, 96, 256)  # channels of a ControlNet's layers over the control image

    def tflop_an_image(self, steps: int) -> float | None:
        """Of one image with classifier-free guidance: two passes of the UNet a step, two prompts, one decoding."""
        if self.tflop is None:
            return None
        return 2 * steps * self.tflop["unet"] + 2 * self.tflop["text"] + self.tflop["decode"]


NETS: Mapping[str, Net] = {
    net.name: net
    for net in (
        Net(
            name="sd15",
            pipeline="StableDiffusionPipeline",
            side=512,
            unet={**_UNET, "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
            vae={**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
            text=(_CLIP_L,),
            scheduler=("DDIMScheduler", {**_NOISE, "clip_sample": False, "set_alpha_to_one": False}),
            tflop={"unet": 0.80327, "decode": 2.51452, "text": 0.01330},
        ),
        Net(
            name="sd21",
            pipeline="StableDiffusionPipeline",
            side=768,
            unet={
                **_UNET,
                "sample_size": 96,
                "cross_attention_dim": 1024,
                "attention_head_dim": [5, 10, 20, 20],
                "use_linear_projection": True,
            },
            vae={**_VAE, "sample_size": 768, "scaling_factor": 0.18215},
            text=(_CLIP_H,),
            scheduler=(
                "DDIMScheduler",
                {**_NOISE, "clip_sample": False, "set_alpha_to_one": False, "prediction_type": "v_prediction"},
            ),
            tflop={"unet": 2.14911, "decode": 5.75430, "text": 0.04513},
        ),
        Net(
            name="sdxl",
            pipeline="StableDiffusionXLPipeline",
            side=1024,
            unet={
                **_UNET_XL,
                "sample_size": 128,
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "attention_head_dim": [5, 10, 20],
                "transformer_layers_per_block": [1, 2, 10],
                "cross_attention_dim": 2048,
                "projection_class_embeddings_input_dim": 2816,
            },
            vae=_VAE_XL,
            text=(_CLIP_L, _CLIP_G),
            scheduler=("EulerDiscreteScheduler", {**_NOISE, "timestep_spacing": "leading"}),
            tflop={"unet": 6.76124, "decode": 10.47039, "text": 0.01330 + 0.09786},
        ),
        Net(
            name="refiner",
            pipeline="StableDiffusionXLImg2ImgPipeline",
            side=1024,
            unet={
                **_UNET_XL,
                "sample_size": 128,
                "block_out_channels": [384, 768, 1536, 1536],
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "attention_head_dim": [6, 12, 24, 24],
                "transformer_layers_per_block": 4,
                "cross_attention_dim": 1280,
                "projection_class_embeddings_input_dim": 2560,
            },
            vae=_VAE_XL,
            text=(_CLIP_G,),
            scheduler=("EulerDiscreteScheduler", {**_NOISE, "timestep_spacing": "leading"}),
            second_tower_only=True,
        ),
    )
}

_TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
              "vocab_size": 514}  # fmt: skip
_TINY_WIDE_TEXT = {**_TINY_TEXT, "hidden_size": 64, "hidden_act": "gelu", "projection_dim": 64}
_TINY_UNET = {
    "sample_size": 4,
    "layers_per_block": 1,
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
_TINY_XL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 2],
    "addition_time_embed_dim": 8,
}
_TINY_VAE = {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}


def _tiny(net: Net, unet: Mapping[str, Any], text: tuple[Mapping[str, Any], ...]) -> Net:
    shrunk = {**net.unet, **_TINY_UNET, **unet}
    return Net(
        name=net.name,
        pipeline=net.pipeline,
        side=32,
        unet=shrunk,
        vae={**net.vae, **_TINY_VAE},
        text=text,
        scheduler=net.scheduler,
        second_tower_only=net.second_tower_only,
        hint=(4, 4, 8, 8),
    )


TINY: Mapping[str, Net] = {
    "sd15": _tiny(NETS["sd15"], {"cross_attention_dim": 32, "attention_head_dim": 4}, (_TINY_TEXT,)),
    "sd21": _tiny(NETS["sd21"], {"cross_attention_dim": 32, "attention_head_dim": [2, 4]}, (_TINY_TEXT,)),
    "sdxl": _tiny(
        NETS["sdxl"],
        {**_TINY_XL, "cross_attention_dim": 96, "projection_class_embeddings_input_dim": 6 * 8 + 64},
        (_TINY_TEXT, _TINY_WIDE_TEXT),
    ),
    "refiner": _tiny(
        NETS["refiner"],
        {**_TINY_XL, "cross_attention_dim": 64, "projection_class_embeddings_input_dim": 5 * 8 + 64},
        (_TINY_WIDE_TEXT,),
    ),
}
"""The same systems, small enough for a CPU core: they run the phases, and measure nothing."""


def write_model(net: Net, folder: Path) -> Path:
    """A model's folder with everything but weights: what `find_model` and the checks of a manifest read."""
    index: dict[str, Any] = {
        "_class_name": net.pipeline,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", net.scheduler[0]],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{name: ["transformers", _text_class(net, place).__name__] for place, name in enumerate(_text_names(net))},
        **{tokenizer: ["transformers", "CLIPTokenizer"] for tokenizer in _tokenizers(net)},
    }
    if net.second_tower_only:
        index |= {"text_encoder": [None, None], "requires_aesthetics_score": True}
    blocks = {"block_out_channels": [320, 640, 1280, 1280]}  # diffusers' default, which a saved config writes out
    configs = {"unet": {**blocks, **net.unet}, "vae": net.vae, "scheduler": net.scheduler[1]}
    configs |= dict(zip(_text_names(net), net.text, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, config in configs.items():
        (folder / part).mkdir(exist_ok=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    for tokenizer in _tokenizers(net):  # made with the weights; the checks want to see that there is one
        (folder / tokenizer).mkdir(exist_ok=True)
        (folder / tokenizer / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


def _tokenizers(net: Net) -> list[str]:
    return [name.replace("text_encoder", "tokenizer") for name in _text_names(net)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomModel:
    """A `Loader` of the net, the same weights for the same seed, whatever the precision; keeps the last components."""

    net: Net
    made: dict[str, Components]

    def __call__(self, model: Model, *, device: torch.device, dtype: torch.dtype, how: Loading) -> Components:
        quiet()
        self.made.clear()
        parts: dict[str, Any] = {}
        if self.net.pipeline == "StableDiffusionPipeline":
            parts |= {"safety_checker": None, "feature_extractor": None}
        if self.net.second_tower_only:
            parts |= {"text_encoder": None, "tokenizer": None}
        with torch.device(device):
            parts["unet"] = UNet2DConditionModel(**self.net.unet)
            parts["vae"] = AutoencoderKL(**self.net.vae)
            for place, name in enumerate(_text_names(self.net)):
                tokenizer = _tokenizer()
                parts[name.replace("text_encoder", "tokenizer")] = tokenizer
                parts[name] = _text_class(self.net, place)(_text_config(self.net.text[place], tokenizer))
        for number, (name, part) in enumerate(sorted(parts.items())):
            if isinstance(part, torch.nn.Module):
                fill(part, SEED + number)
                part.to(DTYPES[how.dtypes[name]] if name in how.dtypes else dtype).eval().requires_grad_(False)
        class_name, config = self.net.scheduler
        parts["scheduler"] = getattr(diffusers, class_name)(**config)
        self.made["components"] = Components(
            parts=parts, options={"requires_aesthetics_score": self.net.second_tower_only}
        )
        return self.made["components"]

    @property
    def parts(self) -> Mapping[str, Any]:
        """The modules that were made last."""
        return self.made["components"].parts


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int) -> None:
    """Random weights of the scale that the module's docstring explains."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        generator = generators.setdefault(parameter.device, torch.Generator(parameter.device).manual_seed(seed))
        fan_in = parameter.numel() // parameter.shape[0]
        parameter.normal_(0, fan_in**-0.5, generator=generator)


def write_controlnet(net: Net, folder: Path, device: torch.device) -> Path:
    """A ControlNet for the net, in float16; its last layers, zero before training, are random too."""
    with torch.device(device):
        unet = UNet2DConditionModel(**net.unet)
        control = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=net.hint, load_weights_from_unet=False
        )
    fill(control, SEED)
    control.half().save_pretrained(folder)
    return folder


def _text_names(net: Net) -> tuple[str, ...]:
    return ("text_encoder_2",) if net.second_tower_only else ("text_encoder", "text_encoder_2")[: len(net.text)]


def _text_class(net: Net, place: int) -> Any:
    projects = net.second_tower_only or place > 0
    return CLIPTextModelWithProjection if projects else CLIPTextModel


def _text_config(config: Mapping[str, Any], tokenizer: Any) -> Any:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextConfig(**{"vocab_size": 49408, **config, **ids})


def _tokenizer() -> Any:
    """CLIP's byte-level BPE with no merges: the vocabulary cannot be downloaded, and how text is cut costs nothing."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]
    words = [*letters, *[f"{letter}</w>" for letter in letters], _START, _END]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=_END, model_max_length=77)
