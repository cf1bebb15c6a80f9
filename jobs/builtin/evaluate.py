"""The evaluation: fresh prompts to images, judged by the scorer; writes scores as JSON and contact sheets."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from numpy.typing import NDArray

from jobs.builtin.autoencoder import psnr, reconstruct
from jobs.builtin.captions import draw_caption
from jobs.builtin.export import SCORES
from jobs.builtin.naming import ATTRIBUTES, THING_ATTRIBUTES, UNNAMED, scene_labels
from jobs.builtin.painting import paint
from jobs.builtin.recipe import TEST_SEED_OFFSET
from jobs.builtin.renderer import render
from jobs.builtin.scenes import Scene, draw_scene
from jobs.builtin.scorer import ScorerTask, name_attributes
from jobs.builtin.sheets import write_sheet
from jobs.builtin.stages import Workshop
from jobs.builtin.tasks import measure_tasks
from jobs.builtin.training import averaged

FIRST_PROMPT = 10_000  # of the held-out sequence; the images before it judge the autoencoder
USED_SCENES = 64  # of the exam, for what else the weights do
USES_GUIDANCE = 5.0
PLACES = {attribute.name: number for number, attribute in enumerate(ATTRIBUTES)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """Fresh scenes with one complete caption each."""

    scenes: tuple[Scene, ...]
    prompts: tuple[str, ...]
    labels: NDArray[np.int64]  # (n, attributes)


def draw_exam(seed: int, count: int) -> Exam:
    """`count` prompts of scenes that no stage has seen, half of them with two objects."""
    scenes = tuple(draw_scene(seed + TEST_SEED_OFFSET, FIRST_PROMPT + index) for index in range(count))
    rng = np.random.default_rng((seed, FIRST_PROMPT))
    return Exam(
        scenes=scenes,
        prompts=tuple(draw_caption(rng, scene, complete=True).text for scene in scenes),
        labels=np.array([scene_labels(scene) for scene in scenes]),
    )


def score_answers(answered: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Shares of right answers, both (n, attributes); the names are explained in the card."""
    right = answered == labels
    known = labels != UNNAMED
    result = {name: float(right[:, PLACES[name]].mean()) for name in ("number", "background")}
    for attribute in THING_ATTRIBUTES:
        columns = [PLACES[f"{attribute}_{thing}"] for thing in (1, 2)]
        result[attribute] = float(right[:, columns][known[:, columns]].mean())

    def all_right(rows: NDArray[np.bool_], names: Sequence[str]) -> float:
        return (
            float(right[rows][:, [PLACES[name] for name in names]].all(axis=1).mean()) if rows.any() else float("nan")
        )

    pairs = labels[:, PLACES["number"]] == 1
    two_colors = pairs & (labels[:, PLACES["color_1"]] != labels[:, PLACES["color_2"]])
    result["single"] = all_right(~pairs, ("shape_1", "color_1"))
    result["pair"] = all_right(pairs, ("shape_1", "color_1", "shape_2", "color_2"))
    result["relation"] = all_right(two_colors, ("color_1", "color_2"))
    return result


def evaluate(
    shop: Workshop, model: Path, *, count: int, guidances: Sequence[float], steps: int, output: Path
) -> dict[str, dict[str, float]]:
    """Score `model` (a pipeline folder) and write `scores.json` and the sheets to `output`."""
    scorer = averaged(ScorerTask(renders=shop.folders.root / "scorer-renders"), shop.folders.stage("scorer"))
    pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32).to(shop.hardware.device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    exam = draw_exam(shop.recipe.seed, count)
    truth = np.stack([render(scene).rgb for scene in exam.scenes])
    assert isinstance(pipeline.vae, AutoencoderKL)
    restored = reconstruct(pipeline.vae, truth)
    output.mkdir(parents=True, exist_ok=True)
    write_sheet(
        output / "sheet-autoencoder.png", np.stack([truth, restored], axis=1).reshape(-1, *truth.shape[1:])[:64]
    )
    rows = {
        "renders": score_answers(name_attributes(scorer, truth), exam.labels),
        "through the autoencoder": score_answers(name_attributes(scorer, restored), exam.labels),
    }
    for guidance in guidances:
        images = paint(pipeline, exam.prompts, guidance=guidance, steps=steps)
        name = f"guidance {guidance:g}"
        rows[name] = score_answers(name_attributes(scorer, images), exam.labels)
        write_sheet(output / f"sheet-{name.replace(' ', '-')}.png", images[:64], exam.prompts[:64])
        shop.log(f"evaluate: {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in rows[name].items()))
    scores = {
        "count": count,
        "steps": steps,
        "scheduler": "DPM++ 2M",
        "psnr": psnr(truth, restored),
        "rows": rows,
        "uses": measure_tasks(pipeline, scorer, exam.scenes[:USED_SCENES], guidance=USES_GUIDANCE, steps=steps),
    }
    (output / SCORES).write_text(json.dumps(scores, indent=2) + "\n")
    return rows
