"""Tiny Stable Diffusion models of every system, seeded random weights, real formats: `python tests/tiny_models.py OUT`.

Architectures, file layouts and config values are those of the published models; only widths, depths and the size of a
image (64 px) are small. `width` is the number of channels of the UNet's first level, a multiple of 8; text towers
are twice as wide. A seed gives the same bytes every time.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

__all__ = [
    "BUILDERS",
    "build_class_conditional",
    "build_depth",
    "build_latent_upscaler",
    "build_lcm",
    "build_llava",
    "build_pix2pix",
    "build_refiner",
    "build_safety_checker",
    "build_sd1",
    "build_sd2",
    "build_sdxl",
    "build_single_file",
    "build_unconditional",
    "build_upscaler",
    "original_unet_key",
    "original_vae_state",
    "seeded",
    "tiny_vae",
    "tiny_vision_config",
]

_START, _END = "<|startoftext|>", "<|endoftext|>"
_LAYERS = 1  # residual blocks a level, in UNet and autoencoder
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

_LLAVA_SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "<pad>")
_LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)

Variant = Literal["fp16"]
Prediction = Literal["epsilon", "v_prediction"]


# Models in the folders of diffusers


def build_sd1(
    folder: Path,
    *,
    seed: int = 0,
    in_channels: int = 4,
    variant: Variant | None = None,
    width: int = 16,
    with_safety_checker: bool = False,
) -> Path:
    """Stable Diffusion 1.x; `in_channels=9` makes an inpainting UNet, `variant="fp16"` half-precision files.

    The safety checker flags about half of the model's own images.
    """
    with seeded(seed):
        pipeline = _sd1(in_channels, width)
        if with_safety_checker:
            pipeline.register_modules(
                safety_checker=_safety_checker(pipeline), feature_extractor=CLIPImageProcessor(size=32, crop_size=32)
            )
            pipeline.register_to_config(requires_safety_checker=True)
    return _save(pipeline, folder, variant)


def build_sd2(
    folder: Path,
    *,
    seed: int = 0,
    prediction: Prediction = "v_prediction",
    in_channels: int = 4,
    variant: Variant | None = None,
    width: int = 16,
) -> Path:
    """Stable Diffusion 2.x, of the 768 px kind (velocity prediction) or of the base kind."""
    with seeded(seed):
        pipeline = StableDiffusionPipeline(
            **_sd2_text(width),
            unet=_sd2_unet(width, in_channels=in_channels),
            vae=tiny_vae(),
            scheduler=_ddim(prediction_type=prediction),
            **_UNCHECKED,
        )
    return _save(pipeline, folder, variant)


def build_sdxl(
    folder: Path, *, seed: int = 0, in_channels: int = 4, variant: Variant | None = None, width: int = 16
) -> Path:
    """Stable Diffusion XL base; `in_channels=9` makes the inpainting model, whose pipeline class is its own."""
    kind = {4: StableDiffusionXLPipeline, 9: StableDiffusionXLInpaintPipeline}[in_channels]
    with seeded(seed):
        pipeline = kind(
            text_encoder=_text_tower(_tokenizer(_END), width),
            tokenizer=_tokenizer(_END),
            text_encoder_2=_text_tower(_tokenizer("!"), 2 * width, projects=True),
            tokenizer_2=_tokenizer("!"),
            # six numbers: original size, crop, target size
            unet=_sdxl_unet(width, in_channels=in_channels, cross_attention_dim=6 * width, numbers=6),
            vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
            scheduler=_euler(),
        )
    return _save(pipeline, folder, variant)


def build_refiner(folder: Path, *, seed: int = 0, variant: Variant | None = None, width: int = 16) -> Path:
    """Stable Diffusion XL refiner: the second text tower only, aesthetic score instead of target size.

    It fits the base of the same width: equal tower and autoencoder shapes.
    """
    with seeded(seed):
        pipeline = StableDiffusionXLImg2ImgPipeline(
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=_text_tower(_tokenizer("!"), 2 * width, projects=True),
            tokenizer_2=_tokenizer("!"),
            # five numbers: original size, crop, score
            unet=_sdxl_unet(width, in_channels=4, cross_attention_dim=4 * width, numbers=5),
            vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
            scheduler=_euler(),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
        )
    return _save(pipeline, folder, variant)


def build_depth(folder: Path, *, seed: int = 0, variant: Variant | None = None, width: int = 16) -> Path:
    """Stable Diffusion 2 depth-to-image, with a DPT-Hybrid estimator of 64 px."""
    with seeded(seed):
        pipeline = StableDiffusionDepth2ImgPipeline(
            **_sd2_text(width),
            unet=_sd2_unet(width, in_channels=5),
            vae=tiny_vae(),
            scheduler=_ddim(),
            depth_estimator=_depth_estimator(),
            feature_extractor=DPTImageProcessor(size={"height": 64, "width": 64}),
        )
    return _save(pipeline, folder, variant)


def build_pix2pix(folder: Path, *, seed: int = 0, variant: Variant | None = None, width: int = 16) -> Path:
    """InstructPix2Pix: a Stable Diffusion 1.x whose UNet also sees the latents of the image to edit."""
    with seeded(seed):
        plain = _sd1(8, width).components
        pipeline = StableDiffusionInstructPix2PixPipeline(
            **{**plain, "scheduler": EulerAncestralDiscreteScheduler(**_NOISE, steps_offset=1)},
            requires_safety_checker=False,
        )
    return _save(pipeline, folder, variant)


def build_upscaler(folder: Path, *, seed: int = 0, variant: Variant | None = None, width: int = 16) -> Path:
    """Stable Diffusion x4 upscaler: latents of the size of the image given, 16 px by default."""
    with seeded(seed):
        pipeline = StableDiffusionUpscalePipeline(
            **_sd2_text(width),
            unet=_sd2_unet(width, in_channels=7, num_class_embeds=1000, sample_size=16),
            vae=tiny_vae(levels=3, scaling_factor=0.08333),
            scheduler=_ddim(beta_start=0.0001, beta_end=0.02, prediction_type="v_prediction"),
            low_res_scheduler=DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear"),
            max_noise_level=350,
        )
    return _save(pipeline, folder, variant)


def build_latent_upscaler(folder: Path, *, seed: int = 0, variant: Variant | None = None, width: int = 16) -> Path:
    """Stable Diffusion x2 latent upscaler. `width` is that of the text tower: the UNet's blocks come in 32 channels."""
    with seeded(seed):
        tokenizer = _tokenizer(_END)
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=8,
            out_channels=5,
            layers_per_block=_LAYERS,
            block_out_channels=(32, 64, 64),
            down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
            mid_block_type=None,
            up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
            act_fn="gelu",
            attention_head_dim=8,
            cross_attention_dim=2 * width,
            cross_attention_norm="layer_norm",
            conv_in_kernel=1,
            conv_out_kernel=1,
            norm_num_groups=None,
            resnet_time_scale_shift="scale_shift",
            time_embedding_type="fourier",
            time_cond_proj_dim=128 + 2 * width,  # 128 numbers for the noise level, and the pooled prompt
            timestep_post_act="gelu",
        )
        pipeline = StableDiffusionLatentUpscalePipeline(
            text_encoder=_text_tower(tokenizer, width),
            tokenizer=tokenizer,
            unet=unet.eval(),
            vae=tiny_vae(),
            scheduler=EulerDiscreteScheduler(**_NOISE, prediction_type="sample"),
        )
    return _save(pipeline, folder, variant)


def build_lcm(folder: Path, *, seed: int = 0, variant: Variant | None = None, width: int = 16) -> Path:
    """A latent consistency model distilled from Stable Diffusion 1.x: its UNet is told the guidance scale."""
    with seeded(seed):
        plain = _sd1(4, width, time_cond_proj_dim=32).components
        with torch.no_grad():  # so that guidance shows in images
            plain["unet"].time_embedding.cond_proj.weight *= 8
        pipeline = LatentConsistencyModelPipeline(
            **{**plain, "scheduler": LCMScheduler(**_NOISE, steps_offset=1)}, requires_safety_checker=False
        )
    return _save(pipeline, folder, variant)


def build_unconditional(folder: Path, *, seed: int = 0, width: int = 16) -> Path:
    """An unconditional diffusion model of 32 px images."""
    with seeded(seed):
        pipeline = DDPMPipeline(unet=_pixel_unet(width), scheduler=DDPMScheduler())
    return _save(pipeline, folder, None)


def build_class_conditional(
    folder: Path, *, seed: int = 0, width: int = 16, classes: int = 10, learned_variance: bool = False
) -> Path:
    """A class-conditional diffusion model of 32 px images, as ADM's with a variance beside the noise if asked for.

    The folder names DDPMPipeline, which cannot give its UNet the class labels that it then demands: diffusers has no
    pipeline of this kind.
    """
    with seeded(seed):
        variance = {"variance_type": "learned_range"} if learned_variance else {}
        unet = _pixel_unet(width, num_class_embeds=classes, out_channels=6 if learned_variance else 3)
        pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler(**variance))
    return _save(pipeline, folder, None)


# One file, as trained


def build_single_file(file: Path, *, seed: int = 0) -> Path:
    """Write the model of `build_sd1(seed=seed)` as a checkpoint with the key names of the original implementation.

    Its config is the folder that `build_sd1` writes.
    """
    with seeded(seed):
        pipeline = _sd1(4, 16)
    state = {f"model.diffusion_model.{original_unet_key(k)}": v for k, v in pipeline.unet.state_dict().items()}
    for key, value in original_vae_state(pipeline.vae).items():
        state[f"first_stage_model.{key}"] = value
    for key, value in pipeline.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file


# Parts


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on the seed only, and leave no trace in the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _save(pipeline: Any, folder: Path, variant: Variant | None) -> Path:
    if variant == "fp16":
        pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, variant=variant)
    # Where torchvision is missing, processors are saved under names that other machines do not know.
    for file in (folder / "model_index.json", folder / "feature_extractor" / "preprocessor_config.json"):
        if file.exists():
            file.write_text(file.read_text().replace("ImageProcessorPil", "ImageProcessor"))
    return folder


def _sd1(in_channels: int, width: int, **unet: Any) -> Any:
    tokenizer = _tokenizer(_END)
    return StableDiffusionPipeline(
        text_encoder=_text_tower(tokenizer, width),
        tokenizer=tokenizer,
        unet=_unet(width, in_channels=in_channels, cross_attention_dim=2 * width, **unet),
        vae=tiny_vae(),
        scheduler=_ddim(),
        **_UNCHECKED,
    )


def _sd2_text(width: int) -> dict[str, Any]:
    tokenizer = _tokenizer("!")
    return {"text_encoder": _text_tower(tokenizer, width, hidden_act="gelu"), "tokenizer": tokenizer}


def _text_tower(tokenizer: Any, width: int, *, projects: bool = False, **config: Any) -> Any:
    kind = CLIPTextModel
    if projects:
        kind, config = CLIPTextModelWithProjection, {"projection_dim": 2 * width, "hidden_act": "gelu", **config}
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=2 * width,
            intermediate_size=4 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    ).eval()


def _unet(width: int, **config: Any) -> Any:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "layers_per_block": _LAYERS,
            "block_out_channels": (width, 2 * width),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": 4,
            "norm_num_groups": 8,
            **config,
        }
    ).eval()


def _sd2_unet(width: int, **config: Any) -> Any:
    # heads of a width of 8, as SD 2 has them of 64: their number is told a level
    heads = [width // 8, width // 4]
    return _unet(width, cross_attention_dim=2 * width, attention_head_dim=heads, use_linear_projection=True, **config)


def _sdxl_unet(width: int, *, in_channels: int, cross_attention_dim: int, numbers: int) -> Any:
    return _unet(
        width,
        in_channels=in_channels,
        cross_attention_dim=cross_attention_dim,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[width // 8, width // 4],
        use_linear_projection=True,
        transformer_layers_per_block=[1, 2],
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * numbers + 4 * width,
    )


def _pixel_unet(width: int, **config: Any) -> Any:
    return UNet2DModel(
        sample_size=32,
        layers_per_block=_LAYERS,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        **config,
    ).eval()


def tiny_vae(levels: int = 4, **config: Any) -> Any:
    """An autoencoder that halves the sides `levels - 1` times."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16)[-levels:],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=_LAYERS,
        norm_num_groups=4,
        sample_size=64,
        **config,
    ).eval()


def tiny_vision_config() -> Any:
    """A CLIP vision tower for images of 32 px."""
    return CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=16,
    )


def build_llava(folder: Path, *, seed: int = 0) -> Path:
    """LLaVA, which answers questions about images of 32 px in words of a short list, with its processor."""
    words = [*_LLAVA_SPECIAL, "Yes", "No", "USER:", "ASSISTANT:", *"a red cube blue ring Does this figure show".split()]
    words_of = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    words_of.pre_tokenizer = WhitespaceSplit()
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    with seeded(seed):
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=tiny_vision_config(),
                text_config=text,
                image_token_index=words.index("<image>"),
                image_seq_length=16,
            )
        )
    processor = LlavaProcessor(
        CLIPImageProcessor(size=32, crop_size=32),
        PreTrainedTokenizerFast(
            tokenizer_object=words_of,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_LLAVA_TEMPLATE,
    )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def build_safety_checker(folder: Path, images: Sequence[Any], *, seed: int = 0) -> Path:
    """A checker of 32 px that flags about half of these images, and takes special care with about half."""
    prepare = CLIPImageProcessor(size=32, crop_size=32)
    with seeded(seed):
        checker = StableDiffusionSafetyChecker(
            CLIPConfig(vision_config=tiny_vision_config().to_dict(), projection_dim=16)
        ).eval()
    with torch.no_grad():
        pixels = prepare(list(images), return_tensors="pt").pixel_values
        seen = checker.visual_projection(checker.vision_model(pixels).pooler_output)
        directions = torch.linalg.svd(seen - seen.mean(0)).Vh
        for place, vectors, thresholds in (
            (0, checker.concept_embeds, checker.concept_embeds_weights),
            (1, checker.special_care_embeds, checker.special_care_embeds_weights),
        ):
            vectors[0] = directions[place]
            thresholds[0] = torch.cosine_similarity(seen, vectors[:1]).median()
    checker.save_pretrained(folder)
    prepare.save_pretrained(folder)
    return folder


def _ddim(**config: Any) -> Any:
    return DDIMScheduler(**{**_NOISE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **config})


def _euler() -> Any:
    return EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading", steps_offset=1)


def _depth_estimator() -> Any:
    estimator = DPTForDepthEstimation(
        DPTConfig(
            is_hybrid=True,
            image_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[16, 16, 32, 32],
            fusion_hidden_size=16,
            backbone_featmap_shape=[1, 32, 4, 4],
            backbone_config={
                "model_type": "bit",
                "layer_type": "bottleneck",
                "global_padding": "same",
                "embedding_dynamic_padding": True,
                "out_features": ["stage1", "stage2", "stage3"],
                "depths": [1, 1, 1],
                "hidden_sizes": [16, 16, 32],
                "embedding_size": 16,
                "num_groups": 2,
            },
        )
    ).eval()
    with torch.no_grad():  # as initialised, depths are of the order of 1e-4
        for layer in (0, 2, 4):
            estimator.head.head[layer].weight *= 20
        estimator.head.head[4].bias += 1  # an even map has no range to be scaled to
    return estimator


def _safety_checker(pipeline: Any) -> Any:
    """A checker whose one reachable concept is the direction in which images of the model differ most."""
    config = CLIPConfig(vision_config=tiny_vision_config().to_dict(), projection_dim=16)
    checker = StableDiffusionSafetyChecker(config).eval()
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    images = pipeline([""] * 8, generator=generators, num_inference_steps=4).images
    pixels = CLIPImageProcessor(size=32, crop_size=32)(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = checker.visual_projection(checker.vision_model(pixels).pooler_output)
        checker.concept_embeds[0] = torch.linalg.svd(seen - seen.mean(0)).Vh[0]
        likeness = torch.cosine_similarity(seen, checker.concept_embeds[:1])
        checker.concept_embeds_weights[0] = likeness.sort().values[3:5].mean()
    return checker


def _tokenizer(pad: str) -> Any:
    """CLIP's byte-level BPE over the 256 bytes, with a merge or two so that merging happens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(hidden))]
    merges = [("t", "h"), ("th", "e</w>")]
    words = [*letters, *[f"{letter}</w>" for letter in letters], *[a + b for a, b in merges], _START, _END]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)


# Names of the original implementation


def original_vae_state(vae: Any) -> dict[str, torch.Tensor]:
    """The parameters of an autoencoder as the original implementation names and shapes them."""
    state = {}
    for key, value in vae.state_dict().items():
        original = _vae_key(key)
        is_projection = ".attn_1." in original and ".norm." not in original and original.endswith("weight")
        # The original autoencoder's attention is made of 1x1 convolutions.
        state[original] = value[:, :, None, None] if is_projection else value
    return state


def original_unet_key(key: str) -> str:
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
        case _:
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
        case _:
            pass  # named alike
    return ".".join(parts)


BUILDERS: Mapping[str, Callable[[Path], Path]] = {
    "sd1": build_sd1,
    "sd1-fp16": lambda folder: build_sd1(folder, variant="fp16"),
    "sd1-inpainting": lambda folder: build_sd1(folder, in_channels=9),
    "sd1-checked": lambda folder: build_sd1(folder, with_safety_checker=True),
    "sd2": build_sd2,
    "sd2-base": lambda folder: build_sd2(folder, prediction="epsilon"),
    "sdxl": build_sdxl,
    "sdxl-inpainting": lambda folder: build_sdxl(folder, in_channels=9),
    "sdxl-refiner": build_refiner,
    "depth": build_depth,
    "pix2pix": build_pix2pix,
    "upscaler": build_upscaler,
    "latent-upscaler": build_latent_upscaler,
    "lcm": build_lcm,
    "unconditional": build_unconditional,
    "class-conditional": build_class_conditional,
}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, build in BUILDERS.items():
        build(out / name)
    build_single_file(out / "sd1.safetensors")
