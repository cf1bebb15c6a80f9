"""A companion's card: what it is, how it was made and what its check found, in Markdown; knows nothing of files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.builtin.card import Part


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a card says of any training of this companion; `use` is Python, `fits` gets the base's digest."""

    title: str
    library: str
    text: str
    data: str
    use: str
    fits: str = "It was trained on the base `{}` and fits no other."


@dataclass(frozen=True, kw_only=True, slots=True)
class CompanionCard:
    """A page with what was measured; `checks` are what the check stage wrote of each part, empty before it."""

    page: Page
    note: str  # what was unusual about the run
    base: str  # digest of the base it was trained on
    seed: int
    hardware: str
    parts: tuple[Part, ...]
    checks: tuple[Mapping[str, Any], ...]


_READS = "It was trained on the base `{}` and fits all that have its text tower and autoencoder."
_CONTROLNET = """
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from batchgen.builtin import model_path

base = model_path("builtin")
controlnet = ControlNetModel.from_pretrained(base.with_name("{}"))
pipeline = StableDiffusionControlNetPipeline.from_pretrained(base, controlnet=controlnet)
pipeline("a large red cube in a meadow", image=image, num_inference_steps=25, guidance_scale=5)
"""

PAGES: Mapping[str, Page] = {
    "controlnet-edges": Page(
        title="ControlNet for edges",
        library="diffusers",
        text="A ControlNet (Zhang et al. 2023) without attention for the built-in model. It takes white edges on "
        "black, 128 x 128, as cv2.Canny at 100 and 200 draws them.",
        data="renders with their edges: half of them the renderer's own, half by Canny; 30 % of captions dropped",
        use=_CONTROLNET.format("builtin-controlnet-edges"),
    ),
    "controlnet-depth": Page(
        title="ControlNet for depth",
        library="diffusers",
        text="A ControlNet (Zhang et al. 2023) without attention for the built-in model. It takes inverse depth "
        "as gray, near is white, stretched from black to white, 128 x 128.",
        data="renders with the renderer's depth; 30 % of captions dropped",
        use=_CONTROLNET.format("builtin-controlnet-depth"),
    ),
    "depth-estimator": Page(
        title="depth estimator",
        library="transformers",
        text="A small DPT (Ranftl et al. 2021) that estimates the inverse depth of images of the built-in model's "
        "world.",
        data="renders with the renderer's depth",
        use="""
from transformers import AutoImageProcessor, DPTForDepthEstimation
from batchgen.builtin import companion_path

folder = companion_path("builtin-depth-estimator")
estimator, processor = DPTForDepthEstimation.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
depth = estimator(**processor(images=image, return_tensors="pt")).predicted_depth
""",
        fits="It needs no other model.",
    ),
    "depth": Page(
        title="depth-to-image",
        library="diffusers",
        text="The built-in model with depth as a fifth channel of its UNet, as Stable Diffusion 2 Depth has it, and a "
        "small DPT (Ranftl et al. 2021) that estimates inverse depth. Autoencoder, text tower and tokenizer are the "
        "built-in model's own.",
        data="renders with the renderer's depth",
        use="""
from diffusers import StableDiffusionDepth2ImgPipeline
from batchgen.builtin import model_path

pipeline = StableDiffusionDepth2ImgPipeline.from_pretrained(model_path("builtin-depth"))
pipeline("a large red cube in a meadow", image=image, strength=1.0, num_inference_steps=25, guidance_scale=5)
""",
        fits=_READS,
    ),
    "ink": Page(
        title="LoRA for ink drawings",
        library="diffusers",
        text="A LoRA (Hu et al. 2021) of rank 8 on the UNet's attention and convolutions: blue ink on cream paper. End "
        'prompts in ", ink drawing".',
        data="renders turned into drawings: luminance as a wash, the renderer's edges as lines",
        use="""
from diffusers import StableDiffusionPipeline
from batchgen.builtin import model_path

base = model_path("builtin")
pipeline = StableDiffusionPipeline.from_pretrained(base)
pipeline.load_lora_weights(base.with_name("builtin-ink"), weight_name="pytorch_lora_weights.safetensors")
pipeline("a large red cube in a meadow, ink drawing", cross_attention_kwargs={"scale": 1.0})
""",
    ),
    "ruby-ring": Page(
        title="embedding of a ruby ring",
        library="diffusers",
        text="Textual inversion (Gal et al. 2022): two word vectors, written `<ruby-ring>`, that mean a shiny red "
        "ring.",
        data="64 renders of shiny red rings of both sizes on all backgrounds",
        use="""
from diffusers import StableDiffusionPipeline
from batchgen.builtin import model_path

base = model_path("builtin")
pipeline = StableDiffusionPipeline.from_pretrained(base)
pipeline.load_textual_inversion(base.with_name("builtin-ruby-ring") / "learned_embeds.safetensors")
pipeline("a photo of <ruby-ring> in the desert", num_inference_steps=25, guidance_scale=5)
""",
        fits=_READS,
    ),
    "inpainting": Page(
        title="inpainting",
        library="diffusers",
        text="The built-in model with a UNet of nine channels that paints what a mask hides (Rombach et al. 2022). "
        "Autoencoder, text tower and tokenizer are the built-in model's own.",
        data="renders with fixed masks: objects dilated (30 %) or as boxes (40 %), rectangles, whole images (5 %)",
        use="""
from diffusers import StableDiffusionInpaintPipeline
from batchgen.builtin import model_path

pipeline = StableDiffusionInpaintPipeline.from_pretrained(model_path("builtin-inpainting"))
pipeline("a large red cube in a meadow", image=image, mask_image=mask, num_inference_steps=25, guidance_scale=5)
""",
        fits=_READS,
    ),
    "vae-sharp": Page(
        title="sharper autoencoder",
        library="diffusers",
        text="The built-in model's autoencoder with its decoder trained on for crisper outlines. The encoder is "
        "unchanged, so it decodes what the built-in model paints.",
        data="whole renders, some recolored; six times the base's weight on differences of neighbouring pixels",
        use="""
from diffusers import AutoencoderKL, StableDiffusionPipeline
from batchgen.builtin import model_path

base = model_path("builtin")
vae = AutoencoderKL.from_pretrained(base.with_name("builtin-vae-sharp"))
pipeline = StableDiffusionPipeline.from_pretrained(base, vae=vae)
""",
        fits="It was trained on the base `{}` and fits all that have its autoencoder.",
    ),
    "clip": Page(
        title="CLIP",
        library="transformers",
        text="A small pair of CLIP towers (Radford et al. 2021): how well does a caption fit an image of the built-in "
        "model's world? The UNet's own text tower began as such a tower, too.",
        data="renders and captions, with the contrastive loss and by naming the scene's attributes",
        use="""
from transformers import CLIPModel, CLIPProcessor
from batchgen.builtin import companion_path

folder = companion_path("builtin-clip")
model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
inputs = processor(text=["a red cube", "a blue ring"], images=image, padding=True, return_tensors="pt")
likeness = model(**inputs).logits_per_image.softmax(dim=-1)
""",
        fits="It needs no other model.",
    ),
    "upscaler": Page(
        title="x4 upscaler",
        library="diffusers",
        text="An upscaler as Stable Diffusion's: an image of 128 x 128 to one of 512 x 512, told what it shows. Its "
        "autoencoder is of factor 4; text tower and tokenizer are the built-in model's own.",
        data="crops of 1,024 renders of 512 x 512 beside the same at a quarter of the size, noised up to level 350, "
        "seldom so far; latents with noise of several sizes; 30 % of captions dropped",
        use="""
from diffusers import StableDiffusionUpscalePipeline
from batchgen.builtin import model_path

pipeline = StableDiffusionUpscalePipeline.from_pretrained(model_path("builtin-upscaler"))
prompt = "a large red cube in a meadow"
large = pipeline(prompt, image=image, num_inference_steps=25, guidance_scale=1, noise_level=0).images[0]
""",
        fits="It was trained on the base `{}` and fits all that have its text tower.",
    ),
}


def _check_table(check: Mapping[str, Any]) -> str:
    rows: Mapping[str, Mapping[str, float]] = check["rows"]
    measures = list(next(iter(rows.values())))
    lines = [f"| {check['count']} fresh scenes | " + " | ".join(measures) + " |", "|---" * (len(measures) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[measure]:.3g}" for measure in measures) + " |")
    verdict = "" if check["passes"] else "\n\n**The check found too little effect.**"
    return f"{check['question']}\n\n" + "\n".join(lines) + verdict


def render_companion_card(card: CompanionCard) -> str:
    """The card as Markdown."""
    short = any(part.steps < part.full_steps for part in card.parts)
    whole = "a run as long as the full recipe's" if card.note else "the full recipe"
    made = "a short run of the recipe (steps below)" if short else whole
    parts = "\n".join(
        f"| {part.name} | {part.parameters / 1e6:.3g} M | {part.megabytes:.3g} MB | "
        f"{part.steps:,} of {part.full_steps:,} | {part.seconds / 60:.1f} min | {part.loss:.4f} |"
        for part in card.parts
    )
    checks = "\n\n".join(_check_table(check) for check in card.checks) or "Not checked yet."
    return f"""---
license: apache-2.0
library_name: {card.page.library}
---
# batchgen's built-in model: {card.page.title}

{card.page.text}

This checkpoint is {made}. {" ".join(filter(None, (card.note, card.page.fits.format(card.base))))}

## Data and recipe

Trained on {card.page.data}. Nothing was downloaded and no other model's weights were used. Seed {card.seed}.
Trained on {card.hardware}.

| part | weights | size | steps | training time | last loss |
|---|---|---|---|---|---|
{parts}

## Check

{checks}

## Use

```python
{card.page.use.strip()}
```
"""
