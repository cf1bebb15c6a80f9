"""The checks of what restores images: autoencoders and the upscaler, beside what is asked for, pixel by pixel."""

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionUpscalePipeline, UNet2DConditionModel
from PIL import Image

from jobs.builtin.autoencoder import psnr, reconstruct
from jobs.builtin.companions.bench import Bench, Finding
from jobs.builtin.companions.conditions import canny
from jobs.builtin.companions.masks import grow
from jobs.builtin.companions.measures import Images, gradient_error, psnr_where, sharpness
from jobs.builtin.companions.upscaler import CLEAN, FACTOR, build_low_res_scheduler, shrink_image
from jobs.builtin.export import load_finished
from jobs.builtin.painting import paint

RESTORED = (
    "PSNR in dB, mean error of the differences between neighbouring pixels in 1/255, and the mean square of these "
    "differences as a share of the renders'."
)


def _restoration(images: Images, truth: Images) -> dict[str, float]:
    return {
        "PSNR": psnr(images, truth),
        "gradient error": gradient_error(images, truth),
        "sharpness": sharpness(images, truth),
    }


def _at_outlines(images: Images, truth: Images) -> float:
    """PSNR in dB where an upscaler is of use: on even surfaces interpolation is right."""
    outlines = np.stack([grow(canny(image), FACTOR) for image in truth])
    return psnr_where(images, truth, outlines)


def check_vae_sharp(bench: Bench) -> Finding:
    model = AutoencoderKL.from_pretrained(bench.finished("vae-sharp"), dtype=torch.float32)
    sharp = reconstruct(model, bench.truth)
    rows = {"with": _restoration(sharp, bench.truth), "without": _restoration(bench.restored, bench.truth)}
    return Finding(
        question=f"How well are fresh renders restored? {RESTORED}",
        rows=rows,
        passes=rows["with"]["gradient error"] < rows["without"]["gradient error"]
        and rows["with"]["sharpness"] > rows["without"]["sharpness"],
        columns=(bench.truth, bench.restored, sharp),
    )


def _open_upscaler_autoencoder(bench: Bench) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(bench.finished("upscaler-autoencoder"), dtype=torch.float32)


def check_upscaler_autoencoder(bench: Bench) -> Finding:
    truth, base = bench.large, load_finished(bench.shop).vae
    restored, bases = reconstruct(_open_upscaler_autoencoder(bench), truth), reconstruct(base, truth)
    rows = {"with": _restoration(restored, truth), "without, the base's of factor 8": _restoration(bases, truth)}
    return Finding(
        question=f"How well does the upscaler's autoencoder restore fresh renders of 512 x 512? {RESTORED}",
        rows=rows,
        passes=rows["with"]["PSNR"] > rows["without, the base's of factor 8"]["PSNR"],
        columns=(truth, bases, restored),
    )


def check_upscaler(bench: Bench) -> Finding:
    base, truth = load_finished(bench.shop).components, bench.large
    autoencoder = _open_upscaler_autoencoder(bench)
    pipeline = StableDiffusionUpscalePipeline(
        **{name: base[name] for name in ("text_encoder", "tokenizer", "scheduler")},
        vae=autoencoder,
        unet=UNet2DConditionModel.from_pretrained(bench.finished("upscaler"), dtype=torch.float32),
        low_res_scheduler=build_low_res_scheduler(),
    ).to(bench.shop.hardware.device)
    small = [Image.fromarray(shrink_image(image)) for image in truth]
    painted = paint(
        pipeline, bench.prompts, guidance=1.0, steps=bench.steps, inputs={"image": small}, noise_level=CLEAN
    )
    size = truth.shape[2], truth.shape[1]
    enlarged = np.stack([np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in small])
    found = {
        "with": painted,
        "without, by bicubic interpolation": enlarged,
        "renders through its autoencoder": reconstruct(autoencoder, truth),
    }
    at_outlines = "PSNR at outlines"
    rows = {
        name: {at_outlines: _at_outlines(images, truth), **_restoration(images, truth)}
        for name, images in found.items()
    }
    mine, plain = rows["with"], rows["without, by bicubic interpolation"]
    return Finding(
        question="How well are fresh renders restored from a quarter of their size? Outlines are what lies within "
        f"{FACTOR} pixels of Canny's edges. {RESTORED}",
        rows=rows,
        passes=abs(1 - mine["sharpness"]) < abs(1 - plain["sharpness"]) and mine[at_outlines] > plain[at_outlines],
        columns=(truth, enlarged, painted),
    )
