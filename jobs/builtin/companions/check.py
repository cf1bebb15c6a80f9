"""The checks: every finished companion on fresh scenes, measured beside the same thing without it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPModel

from jobs.builtin.autoencoder import reconstruct, to_tensor
from jobs.builtin.captions import canonical_caption, caption_around
from jobs.builtin.companions import ink, inpainting, ruby_ring
from jobs.builtin.companions.bench import FIRST_SCENE, Bench, Finding, Rows, to_pillow
from jobs.builtin.companions.conditions import canny, depth_image, edge_image
from jobs.builtin.companions.depth import build_feature_extractor
from jobs.builtin.companions.foundation import widened
from jobs.builtin.companions.masks import box
from jobs.builtin.companions.measures import (
    Images,
    edge_agreement,
    palette_distance,
    psnr_where,
    saturation,
)
from jobs.builtin.companions.restoration import check_upscaler, check_upscaler_autoencoder, check_vae_sharp
from jobs.builtin.companions.stages import COMPANIONS
from jobs.builtin.export import load_finished
from jobs.builtin.latents import digest
from jobs.builtin.naming import ATTRIBUTES, VALUES
from jobs.builtin.recipe import RecipeError
from jobs.builtin.scenes import Color, Shape, recolored
from jobs.builtin.sheets import write_sheet
from jobs.builtin.stages import CLIP, Workshop
from jobs.builtin.text import open_tokenizer, tokenize

CHECKS_FILE = "companions.json"
SHOWN = 24  # scenes on a contact sheet
HOLE_MARGIN = 8  # pixels around the object that is painted anew
PLACES = {attribute.name: number for number, attribute in enumerate(ATTRIBUTES)}


def _guided(bench: Bench, stage: str, control: Images, prompts: Sequence[str]) -> Images:
    controlnet = ControlNetModel.from_pretrained(bench.finished(stage), dtype=torch.float32)
    pipeline = StableDiffusionControlNetPipeline(**load_finished(bench.shop).components, controlnet=controlnet,
                                                 requires_safety_checker=False)  # fmt: skip
    return bench.paint(pipeline, prompts, inputs={"image": to_pillow(control)})


def check_controlnet_edges(bench: Bench) -> Finding:
    wanted = [canny(image) for image in bench.truth]
    control = np.stack([edge_image(edges) for edges in wanted])
    guided = _guided(bench, "controlnet-edges", control, bench.prompts)

    def agreement(images: Images) -> dict[str, float]:
        return {"F1": float(np.mean([edge_agreement(canny(p), w) for p, w in zip(images, wanted, strict=True)]))}

    rows = {
        "with": agreement(guided),
        "without": agreement(bench.plain),
        "renders through the autoencoder": agreement(bench.restored),
    }
    return Finding(
        question="Do the edges of the image lie within 2 pixels of those of the conditioning image (and the "
        "reverse)? F1 of the two maps by Canny.",
        rows=rows,
        passes=rows["with"]["F1"] > rows["without"]["F1"] + 0.1,
        columns=(control, bench.plain, guided),
    )


def check_controlnet_depth(bench: Bench) -> Finding:
    control = np.stack([depth_image(inverse) for inverse in bench.inverse])
    return _depth_finding(bench, _guided(bench, "controlnet-depth", control, bench.vague_prompts), shown=control)


class _DepthAlone(StableDiffusionDepth2ImgPipeline):  # type: ignore[misc]  # diffusers has no types
    """Begins from a gray image: even at strength 1 the noise holds 7 % of the latents, and these tell the layout."""

    def prepare_latents(self, image: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        latents: torch.Tensor = super().prepare_latents(torch.zeros_like(image), *arguments, **options)
        return latents


def check_depth(bench: Bench) -> Finding:
    base = load_finished(bench.shop).components
    pipeline = _DepthAlone(
        **{name: base[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")},
        unet=UNet2DConditionModel.from_pretrained(bench.finished("depth"), dtype=torch.float32),
        depth_estimator=bench.open_estimator(),
        feature_extractor=build_feature_extractor(),
    )
    painted = bench.paint(pipeline, bench.vague_prompts, inputs={"image": to_pillow(bench.truth)}, strength=1.0)
    return _depth_finding(bench, painted, shown=bench.truth)


def _depth_finding(bench: Bench, images: Images, *, shown: Images) -> Finding:
    rows = {
        "with": {"correlation": bench.relief(images)},
        "without": {"correlation": bench.relief(bench.vague)},
        "renders through the autoencoder": {"correlation": bench.relief(bench.restored)},
    }
    return Finding(
        question="Does the image have the depth that was asked for? Correlation of the depth that the estimator sees "
        "with the scene's, both less the average scene. The prompts name the background and how many objects, no more.",
        rows=rows,
        passes=rows["with"]["correlation"] > rows["without"]["correlation"] + 0.1,
        columns=(shown, bench.vague, images),
    )


def check_estimator(bench: Bench) -> Finding:
    maps = bench.estimate(bench.truth)
    error = float(np.abs(maps - bench.inverse).mean())
    average = np.broadcast_to(bench.inverse.mean(axis=0), bench.inverse.shape)
    rows = {
        "with": {"correlation": bench.relief_of(maps), "error": error},
        "without": {"correlation": 0.0, "error": float(np.abs(average - bench.inverse).mean())},
    }
    seen = np.stack([depth_image(np.clip(one, 0, 1)) for one in maps])
    return Finding(
        question="Does it see the depth of fresh renders? Correlation with the true inverse depth, both less the "
        "average scene, and mean absolute error; without it, the average scene is all there is.",
        rows=rows,
        passes=rows["with"]["correlation"] > 0.5 and error < rows["without"]["error"],
        columns=(bench.truth, np.stack([depth_image(inverse) for inverse in bench.inverse]), seen),
    )


def check_ink(bench: Bench) -> Finding:
    pipeline = load_finished(bench.shop)
    pipeline.load_lora_weights(bench.finished("ink"), weight_name=ink.FILE)
    prompts = [prompt + ink.PHRASE for prompt in bench.prompts]
    rows: Rows = {}
    columns = []
    for scale in (0.0, 0.5, 1.0):
        images = bench.paint(pipeline, prompts, cross_attention_kwargs={"scale": scale})
        rows[f"scale {scale:g}"] = _ink_numbers(images)
        columns.append(images)
    drawn = np.stack([ink.draw_in_ink(image.rgb, image.edges) for image in bench.renders])
    limit = "drawings through the autoencoder"
    rows[limit] = _ink_numbers(reconstruct(pipeline.vae, drawn))
    far, near, limits = (rows[name]["distance"] for name in ("scale 0", "scale 1", limit))
    return Finding(
        question="Are the images in ink on paper? Mean distance of their pixels to mixtures of the two colours, in "
        "1/255 of a channel, and mean saturation; scale 0 is without the LoRA. The autoencoder sets the limit.",
        rows=rows,
        passes=far - near > 0.75 * (far - limits),
        columns=tuple(columns),
    )


def _ink_numbers(images: Images) -> dict[str, float]:
    return {"distance": palette_distance(images, ink.INK, ink.PAPER), "saturation": saturation(images)}


def check_ruby_ring(bench: Bench) -> Finding:
    pipeline = load_finished(bench.shop)
    pipeline.load_textual_inversion(bench.finished("ruby-ring") / ruby_ring.FILE)

    def paint(subject: str) -> Images:
        rng = np.random.default_rng((bench.shop.recipe.seed, FIRST_SCENE))
        prompts = [caption_around(rng, f"a photo of {subject}", scene.background) for scene in bench.scenes]
        return bench.paint(pipeline, prompts)

    def numbers(images: Images) -> dict[str, float]:
        answered = bench.answers(images)
        ring = answered[:, PLACES["shape_1"]] == VALUES["shape"].index(Shape.RING)
        red = answered[:, PLACES["color_1"]] == VALUES["color"].index(Color.RED)
        return {"red ring": float((ring & red).mean()), "ring": float(ring.mean()), "red": float(red.mean())}

    with_it, without = paint(ruby_ring.TOKEN), paint(" ".join([ruby_ring.START] * len(ruby_ring.TOKENS)))
    rows = {"with": numbers(with_it), "without": numbers(without)}
    return Finding(
        question=f"Is the object of '{ruby_ring.TOKEN}' on any background a red ring, as the scorer sees it? Without "
        f"training its vectors are those of the word '{ruby_ring.START}'.",
        rows=rows,
        passes=rows["with"]["red ring"] > rows["without"]["red ring"] + 0.2,
        columns=(without, with_it),
    )


def check_inpainting(bench: Bench) -> Finding:
    wanted = [recolored(scene) for scene in bench.scenes]
    holes = np.stack([box(image.objects == 1, HOLE_MARGIN) for image in bench.renders])
    prompts = [f"a {scene.things[0].size} {scene.things[0].color} {scene.things[0].shape}" for scene in wanted]
    hole_images = [Image.fromarray(hole.astype(np.uint8) * 255) for hole in holes]
    inputs = {"image": to_pillow(bench.truth), "mask_image": hole_images}
    base = load_finished(bench.shop).components
    trained = UNet2DConditionModel.from_pretrained(bench.finished("inpainting"), dtype=torch.float32)
    unets = {
        "with": trained,
        "without, the base's UNet widened": widened(base["unet"], inpainting.CHANNELS),
        "without, the base's UNet and blended latents": base["unet"],
    }
    colors = np.array([VALUES["color"].index(scene.things[0].color) for scene in wanted])

    def numbers(images: Images) -> dict[str, float]:
        return {
            "color": float((bench.answers(images)[:, PLACES["color_1"]] == colors).mean()),
            "PSNR outside": psnr_where(images, bench.truth, ~holes),
        }

    rows: Rows = {}
    painted: dict[str, Images] = {}
    for name, unet in unets.items():
        pipeline = StableDiffusionInpaintPipeline(**{**base, "unet": unet}, requires_safety_checker=False)
        painted[name] = bench.paint(pipeline, prompts, inputs=inputs, strength=1.0)
        rows[name] = numbers(painted[name])
    rows["renders through the autoencoder"] = numbers(bench.restored)
    mine, untrained = rows["with"], rows["without, the base's UNet widened"]
    hidden = np.stack([inpainting.hide(*pair) for pair in zip(bench.truth, holes, strict=True)])
    return Finding(
        question="One object is hidden by a box and asked for in another colour; the prompt names nothing else. Does "
        "the scorer see the new colour, and is the rest of the image as it was (dB)?",
        rows=rows,
        passes=mine["color"] > 0.5 and mine["PSNR outside"] > untrained["PSNR outside"] + 3,
        columns=(hidden, painted["without, the base's UNet and blended latents"], painted["with"]),
    )


@torch.no_grad()
def check_clip(bench: Bench) -> Finding:
    model = CLIPModel.from_pretrained(bench.finished(CLIP), dtype=torch.float32).eval()
    tokenizer = open_tokenizer(bench.shop.folders.tokenizer)

    others = [recolored(scene) for scene in bench.scenes]
    texts = [*bench.prompts, *(canonical_caption(scene) for scene in [*bench.scenes, *others])]
    output = model(input_ids=tokenize(tokenizer, texts, full=False), pixel_values=to_tensor(bench.truth))
    own, true, false = np.split(output.logits_per_image.numpy(), 3, axis=1)
    rows = {
        "with": {
            "own caption": float((own.argmax(axis=1) == np.arange(len(own))).mean()),
            "own color": float((true.diagonal() > false.diagonal()).mean()),
        },
        "without, by chance": {"own caption": 1 / len(own), "own color": 0.5},
    }
    return Finding(
        question="Which caption belongs to a fresh render? Share of images whose own is the likeliest of all the "
        "captions, and whose own is likelier than the same with another color for the first object.",
        rows=rows,
        passes=rows["with"]["own caption"] > 0.5 and rows["with"]["own color"] > 0.75,
        columns=(bench.truth,),
    )


CHECKS: Mapping[str, Callable[[Bench], Finding]] = {
    "controlnet-edges": check_controlnet_edges,
    "depth-estimator": check_estimator,
    "depth": check_depth,
    "ink": check_ink,
    "ruby-ring": check_ruby_ring,
    "inpainting": check_inpainting,
    "controlnet-depth": check_controlnet_depth,
    "vae-sharp": check_vae_sharp,
    "upscaler-autoencoder": check_upscaler_autoencoder,
    "upscaler": check_upscaler,
    CLIP: check_clip,
}


def check_companions(shop: Workshop, names: Sequence[str], *, count: int, steps: int) -> dict[str, Any]:
    """Check the named companions, or all finished ones, and write `companions.json` and a sheet of each.

    What stands in `companions.json` of other companions is kept. Raises RecipeError when a named companion, the base
    or the scorer has not been finished, or when none has.
    """
    assert set(CHECKS) == {*COMPANIONS, CLIP}
    names = names or [name for name in CHECKS if shop.folders.finished(name).exists()]
    if not names:
        raise RecipeError(f"no finished companion in {shop.folders.root}: run a companion's stage first")
    path, bench = shop.folders.root / CHECKS_FILE, Bench(shop, count, steps)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        weights = digest(bench.finished(name))
        finding = CHECKS[name](bench)
        found[name] = {
            "weights": weights,
            "count": count,
            "steps": steps,
            **{key: value for key, value in asdict(finding).items() if key != "columns"},
        }
        path.write_text(json.dumps(found, indent=2) + "\n")
        shown = np.stack([column[:SHOWN] for column in finding.columns], axis=1)
        write_sheet(
            shop.folders.root / f"sheet-{name}.png",
            shown.reshape(-1, *shown.shape[2:]),
            columns=4 * len(finding.columns),
        )
        numbers = "; ".join(
            f"{row}: " + ", ".join(f"{measure} {value:.3f}" for measure, value in values.items())
            for row, values in finding.rows.items()
        )
        shop.log(f"check {name}: {'passed' if finding.passes else 'NO EFFECT'}; {numbers}")
    return found
