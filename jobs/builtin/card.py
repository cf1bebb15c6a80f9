"""The model card: what was measured, in Markdown; knows nothing of models or files."""

from dataclasses import dataclass
from typing import Any

COLUMNS = ("number", "background", "shape", "color", "size", "finish", "single", "pair", "relation")
MEANING = (
    "number: one or two objects; shape, color, size, finish: over all named objects; single: color and shape right "
    "with one object; pair: color and shape right on both of two; relation: both colors at their sides, over prompts "
    "with two colors"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One trained part of the pipeline."""

    name: str
    parameters: int
    megabytes: float
    steps: int
    full_steps: int  # of the full recipe
    seconds: float
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Everything that the card says; `scores` is what the evaluation wrote, empty before it."""

    note: str
    seed: int
    scenes: int
    hardware: str
    parts: tuple[Part, ...]
    psnr: float
    matched: float
    scores: dict[str, Any]


def _score_table(scores: dict[str, Any]) -> str:
    if not scores:
        return "Not evaluated yet."
    lines = [
        f"| {scores['count']} prompts | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, row in scores["rows"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[column]:.2f}" for column in COLUMNS) + " |")
    return (
        f"{scores['steps']} steps of {scores['scheduler']}, judged by a small convolutional net that was trained on "
        f"other renders; the first rows are its own limits. {MEANING}.\n\n" + "\n".join(lines)
    )


def _uses_table(scores: dict[str, Any]) -> str:
    if "uses" not in scores:
        return "Not measured yet."
    lines = [f"| {name} | {value:.2f} |" for name, value in scores["uses"].items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def render_card(card: Card) -> str:
    """The card as Markdown."""
    short = any(part.steps < part.full_steps for part in card.parts)
    made = "a short run of the recipe (steps below)" if short else "the full recipe"
    parts = "\n".join(
        f"| {part.name} | {part.parameters / 1e6:.2f} M | {part.megabytes:.1f} MB | "
        f"{part.steps:,} of {part.full_steps:,} | {part.seconds / 60:.0f} min | {part.loss:.4f} |"
        for part in card.parts
    )
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# batchgen's built-in model

A small latent diffusion model in Stable Diffusion's layout (AutoencoderKL, CLIP text tower, UNet2DConditionModel,
v-prediction), 128 x 128 pixels. It knows one world: a sphere, cube, cylinder, cone or ring, or two of them side by
side, small or large, shiny or matt, in eight colors, before eight plain backgrounds, on a checkered floor, at sunset,
under a night sky, in a meadow or in a desert. Outside of that world it follows no prompt.

This checkpoint is {made}. {card.note}

## Data and recipe

{card.scenes:,} scenes rendered by `jobs/builtin/renderer.py`, captions drawn afresh at every step; the autoencoder
also learns crops of them in other colors. Nothing was downloaded and no other model's weights were used. Seed
{card.seed}. The recipe is `python -m jobs.builtin train`. Trained on {card.hardware}.

| part | weights | size | steps | training time | last loss |
|---|---|---|---|---|---|
{parts}

The autoencoder restores held-out renders at {card.psnr:.1f} dB PSNR. The pair of CLIP towers, which ships as
`builtin-clip`, finds the right one of 128 captions for {card.matched:.0%} of held-out images.

## Scores

{_score_table(card.scores)}

## What else the weights do

Negative prompts, image-to-image and inpainting with the same weights, guidance 5: shares of images with that color on
their object, and likeness in dB. The autoencoder alone gives the dB at strength 0.

{_uses_table(card.scores)}

## Use

```python
from diffusers import StableDiffusionPipeline
from batchgen.builtin import model_path

pipeline = StableDiffusionPipeline.from_pretrained(model_path("builtin"))
pipeline("a large red sphere on a white background", num_inference_steps=25, guidance_scale=5, height=128, width=128)
```

The weights are stored in float16 and load in float32 unless another dtype is asked for.
"""
