"""What else the same weights do, measured: negative prompts, image-to-image and inpainting, judged by the scorer."""

from collections.abc import Mapping

import numpy as np
from diffusers import (
    AutoencoderKL,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from jobs.builtin.autoencoder import psnr, reconstruct
from jobs.builtin.captions import canonical_caption, with_article
from jobs.builtin.naming import ATTRIBUTES, VALUES
from jobs.builtin.painting import paint
from jobs.builtin.renderer import render
from jobs.builtin.scenes import Color, Scene, Shape, recolored
from jobs.builtin.scorer import name_attributes

STRENGTHS = (0.0, 0.3, 0.6, 1.0)
MARGIN = 6  # pixels of a mask around the object
PLACES = {attribute.name: number for number, attribute in enumerate(ATTRIBUTES)}


def measure_tasks(
    pipeline: StableDiffusionPipeline, scorer: nn.Module, scenes: tuple[Scene, ...], *, guidance: float, steps: int
) -> dict[str, float]:
    """Shares and dB by name; `scenes` are held-out ones, of which those with one object are used."""
    singles = [scene for scene in scenes if len(scene.things) == 1]
    parts = dict(pipeline.components) | {"requires_safety_checker": False}
    results = _negative_prompts(pipeline, scorer, guidance=guidance, steps=steps)
    truth = np.stack([render(scene).rgb for scene in singles])
    wanted = [recolored(scene) for scene in singles]
    prompts = [canonical_caption(scene) for scene in wanted]
    colors = np.array([VALUES["color"].index(scene.things[0].color) for scene in wanted])

    def colored(images: NDArray[np.uint8]) -> float:
        return float((name_attributes(scorer, images)[:, PLACES["color_1"]] == colors).mean())

    assert isinstance(pipeline.vae, AutoencoderKL)
    restored = reconstruct(pipeline.vae, truth)
    for strength in STRENGTHS:
        images = restored
        if int(steps * strength):
            other = StableDiffusionImg2ImgPipeline(**parts)
            inputs = {"image": [Image.fromarray(image) for image in truth]}
            images = paint(other, prompts, guidance=guidance, steps=steps, inputs=inputs, strength=strength)
        results[f"image-to-image at strength {strength:g}: new color"] = colored(images)
        results[f"image-to-image at strength {strength:g}: dB to the input"] = psnr(truth, images)
    masks = np.stack([_mask(scene) for scene in singles])
    inputs = {
        "image": [Image.fromarray(image) for image in truth],
        "mask_image": [Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
    }
    painted = paint(
        StableDiffusionInpaintPipeline(**parts), prompts, guidance=guidance, steps=steps, inputs=inputs, strength=1.0
    )
    results["inpainting: new color"] = colored(painted)
    outside = [
        (one[~mask][None, None], other[~mask][None, None])
        for one, other, mask in zip(truth, painted, masks, strict=True)
    ]
    results["inpainting: dB outside of the mask"] = float(np.mean([psnr(*pair) for pair in outside]))
    return results


def _negative_prompts(
    pipeline: StableDiffusionPipeline, scorer: nn.Module, *, guidance: float, steps: int
) -> dict[str, float]:
    """How often a color comes that nobody asked for, and how often when the negative prompt names it."""
    cases = [(shape, color) for shape in Shape for color in Color]
    prompts = [f"{with_article(f'large {shape}')} on a gray background" for shape, _ in cases]
    negatives = [f"{with_article(f'large {color} {shape}')} on a gray background" for shape, color in cases]
    named = np.array([VALUES["color"].index(color) for _, color in cases])
    inputs: Mapping[str, Mapping[str, list[str]]] = {"without": {}, "with": {"negative_prompt": negatives}}
    results = {}
    for name, added in inputs.items():
        images = paint(pipeline, prompts, guidance=guidance, steps=steps, inputs=added)
        answered = name_attributes(scorer, images)[:, PLACES["color_1"]]
        results[f"color of the negative prompt, {name} it"] = float((answered == named).mean())
    return results


def _mask(scene: Scene) -> NDArray[np.bool_]:
    """The box around the scene's object, bool (128, 128)."""
    objects = render(scene).objects
    spans = (slice(max(0, int(at.min()) - MARGIN), int(at.max()) + MARGIN + 1) for at in np.nonzero(objects))
    mask = np.zeros(objects.shape, dtype=np.bool_)
    mask[tuple(spans)] = True
    return mask
