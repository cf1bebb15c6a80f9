"""The stages in their order: each reads what the ones before it finished and leaves its own finished model."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from jobs.builtin.autoencoder import AutoencoderTask, normalise, psnr, reconstruct, to_tensor
from jobs.builtin.captions import draw_caption
from jobs.builtin.latents import latents_stage
from jobs.builtin.recipe import SCORER_SEED_OFFSET, TEST_SEED_OFFSET, Folders, Recipe, RecipeError, Training
from jobs.builtin.renderer import render
from jobs.builtin.renders import open_renders, render_stage
from jobs.builtin.scenes import draw_scene
from jobs.builtin.scorer import SCENES as SCORER_SCENES
from jobs.builtin.scorer import ScorerTask
from jobs.builtin.text import TextTask, Towers, judge_towers, open_tokenizer
from jobs.builtin.tokenizer import train_tokenizer
from jobs.builtin.training import Hardware, Outcome, averaged, train
from jobs.builtin.unet import Denoiser, UNetTask

PIPELINE_STAGES = ("autoencoder", "text", "unet")
CLIP = "clip"  # where the text stage leaves the whole pair
RESULT = "result.json"  # what a stage notes down when it has finished
TRAINING_NOTE = "training.json"  # the notes of all stages, in an exported model
HELD_OUT = 128  # images on which a finished autoencoder or pair of towers is judged
STARTED_RATE = 0.5  # of the learning rate, where a stage begins from weights of an earlier run
NORMALISED = 512  # images over which a finished autoencoder's latents are normalised


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """A recipe (already scaled), where its work lies, what it runs on and where its progress goes."""

    recipe: Recipe
    folders: Folders
    hardware: Hardware
    log: Callable[[str], None]

    def with_steps(self, stage: str, steps: int) -> "Workshop":
        """The same with another number of steps in one stage."""
        if stage in self.recipe.companions:
            companions = {**self.recipe.companions, stage: self.recipe.companions[stage].with_steps(steps)}
            return replace(self, recipe=replace(self.recipe, companions=companions))
        changed: dict[str, Any] = {stage: self.recipe.training(stage).with_steps(steps)}
        return replace(self, recipe=replace(self.recipe, **changed))

    def progress(self, stage: str) -> Callable[[int, int], None]:
        """A callback that reports every tenth part of a stage."""

        def report(done: int, total: int) -> None:
            if done == total or done % max(1, total // 10) == 0:
                self.log(f"{stage}: {done}/{total} chunks")

        return report

    def renders_task(self) -> dict[str, Any]:
        return {"renders": self.folders.renders, "scenes": self.recipe.scenes}


def put_in_place(folder: Path, save: Callable[[Path], None]) -> None:
    """Let `save` fill a new folder and put it in the place of `folder`."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def note_outcome(
    folder: Path,
    outcome: Outcome,
    shop: Workshop,
    *,
    scenes: int | None = None,
    before: dict[str, Any] | None = None,
    inputs: str | None = None,
    **scores: float,
) -> None:
    """Write down how a stage ended; `inputs` is the digest of what it was trained on top of."""
    note = {
        **asdict(outcome),
        "device": shop.hardware.device,
        "processes": shop.hardware.processes,
        "seed": shop.recipe.seed,
        "scenes": shop.recipe.scenes if scenes is None else scenes,
        **({} if before is None else {"before": before}),
        **({} if inputs is None else {"inputs": inputs}),
        **scores,
    }
    (folder / RESULT).write_text(json.dumps(note, indent=2) + "\n")
    told = {"loss": outcome.loss, **scores}
    shop.log(f"{folder.name}: finished, " + ", ".join(f"{name} {value:.3f}" for name, value in told.items()))


def held_out(seed: int, count: int) -> NDArray[np.uint8]:
    """Renders that no stage trains on, uint8 (count, 128, 128, 3)."""
    return np.stack([render(draw_scene(seed + TEST_SEED_OFFSET, index)).rgb for index in range(count)])


def run_render(shop: Workshop) -> None:
    """Render the training scenes."""
    render_stage(
        shop.folders.renders,
        seed=shop.recipe.seed,
        scenes=shop.recipe.scenes,
        workers=os.cpu_count() or 1,
        progress=shop.progress("render"),
    )


def _start(shop: Workshop, stage: str) -> Path | None:
    folder = shop.folders.start(stage)
    return folder if folder.exists() else None


def _training(shop: Workshop, stage: str) -> Training:
    """How a stage that may go on from earlier weights trains: then more gently, or it unlearns what they know."""
    training = shop.recipe.training(stage)
    if _start(shop, stage) is None:
        return training
    return replace(training, learning_rate=training.learning_rate * STARTED_RATE)


def _before(shop: Workshop, stage: str) -> dict[str, Any] | None:
    """What was noted of the weights that a stage began from."""
    path = shop.folders.start(stage) / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def autoencoder_task(shop: Workshop) -> AutoencoderTask:
    """The autoencoder's task on the renders."""
    return AutoencoderTask(**shop.renders_task(), start=_start(shop, "autoencoder"))


def run_autoencoder(shop: Workshop) -> None:
    """Train the autoencoder and finish it: averaged weights, normalised latents."""
    task, folder = autoencoder_task(shop), shop.folders.stage("autoencoder")
    training = _training(shop, "autoencoder")
    outcome = train(task, training, folder, seed=shop.recipe.seed, hardware=shop.hardware, log=shop.log)
    finish_autoencoder(shop, outcome)


def finish_autoencoder(shop: Workshop, outcome: Outcome) -> None:
    """Turn the autoencoder's checkpoint into the model that later stages and the pipeline use."""
    folder = shop.folders.stage("autoencoder")
    model = averaged(autoencoder_task(shop), folder)
    assert isinstance(model, AutoencoderKL)
    renders = open_renders(shop.folders.renders, scenes=shop.recipe.scenes)
    normalise(model, renders.batch(np.linspace(0, renders.count - 1, NORMALISED).astype(np.int64)))
    images = held_out(shop.recipe.seed, HELD_OUT)
    quality = psnr(images, reconstruct(model, images))
    put_in_place(shop.folders.finished("autoencoder"), model.save_pretrained)
    note_outcome(folder, outcome, shop, before=_before(shop, "autoencoder"), psnr=quality)


def run_text(shop: Workshop) -> None:
    """Learn the tokenizer and train the pair of CLIP towers."""
    open_renders(shop.folders.renders, scenes=shop.recipe.scenes)
    if not shop.folders.tokenizer.exists():
        tokenizer = train_tokenizer(shop.recipe.seed)
        put_in_place(shop.folders.tokenizer, lambda folder: tokenizer.save_pretrained(folder))
    task = TextTask(**shop.renders_task(), tokenizer=shop.folders.tokenizer)
    folder = shop.folders.stage("text")
    outcome = train(task, shop.recipe.text, folder, seed=shop.recipe.seed, hardware=shop.hardware, log=shop.log)
    towers = averaged(task, folder)
    assert isinstance(towers, Towers)
    rng = np.random.default_rng(shop.recipe.seed + TEST_SEED_OFFSET)
    texts = [
        draw_caption(rng, draw_scene(shop.recipe.seed + TEST_SEED_OFFSET, index), complete=True).text
        for index in range(HELD_OUT)
    ]
    images = to_tensor(held_out(shop.recipe.seed, HELD_OUT))
    matched = judge_towers(towers, open_tokenizer(shop.folders.tokenizer), images, texts)

    put_in_place(
        shop.folders.finished("text"), lambda target: towers.clip.text_model.save_pretrained(target / "text_encoder")
    )
    put_in_place(shop.folders.finished(CLIP), towers.clip.save_pretrained)
    note_outcome(shop.folders.stage(CLIP), outcome, shop, matched=matched)
    note_outcome(folder, outcome, shop, before=_before(shop, "text"), matched=matched)


def run_latents(shop: Workshop) -> None:
    """Encode every training render with the finished autoencoder."""
    latents_stage(
        shop.folders.latents,
        **shop.renders_task(),
        autoencoder=shop.folders.finished("autoencoder"),
        device=shop.hardware.device,
        progress=shop.progress("latents"),
    )


def unet_task(shop: Workshop) -> UNetTask:
    """The UNet's task on what the earlier stages finished, or on the UNet and tower that it goes on from."""
    start = _start(shop, "unet")
    return UNetTask(
        **shop.renders_task(),
        latents=shop.folders.latents,
        autoencoder=shop.folders.finished("autoencoder"),
        text_encoder=(start or shop.folders.finished("text")) / "text_encoder",
        tokenizer=shop.folders.tokenizer,
        start=start and start / "unet",
        keep_tower=shop.recipe.keep_tower,
    )


def adopt(shop: Workshop, model: Path) -> None:
    """Take an exported model as the finished base, and its autoencoder, UNet and text tower to go on from.

    Raises RecipeError when `model` is not a whole base that this recipe exported, when stages of the base were begun in
    the work folder, or when that cannot be written.
    """
    note = model / TRAINING_NOTE
    results = json.loads(note.read_text()) if note.exists() else {}
    if not results.keys() >= set(PIPELINE_STAGES):
        raise RecipeError(f"{model} has no {TRAINING_NOTE} of a base: only such that this recipe exported can be taken")
    for part in ("tokenizer", "vae", "unet", "text_encoder"):
        if not (model / part).is_dir():
            raise RecipeError(f"{model} is not whole: it has no {part}")
    for folder in (shop.folders.tokenizer, *(shop.folders.stage(stage) for stage in PIPELINE_STAGES)):
        if folder.exists():
            raise RecipeError(f"{folder} is there already; choose another work folder")
    try:
        shutil.copytree(model / "tokenizer", shop.folders.tokenizer)
        for place in (shop.folders.finished("autoencoder"), shop.folders.start("autoencoder")):
            shutil.copytree(model / "vae", place)
        for place in (shop.folders.finished("unet"), shop.folders.start("unet")):
            for part in ("unet", "text_encoder"):
                shutil.copytree(model / part, place / part)
        for stage in PIPELINE_STAGES:
            shop.folders.start(stage).mkdir(parents=True, exist_ok=True)
            for folder in (shop.folders.stage(stage), shop.folders.start(stage)):
                (folder / RESULT).write_text(json.dumps(results[stage], indent=2) + "\n")
    except OSError as error:
        raise RecipeError(f"cannot write to {shop.folders.root}: {error}") from error
    shop.log(f"adopt: {model}; next come render and latents, then any stage after them")


def run_unet(shop: Workshop) -> None:
    """Train the UNet and its text tower on the latents."""
    task, folder = unet_task(shop), shop.folders.stage("unet")
    training = _training(shop, "unet")
    outcome = train(task, training, folder, seed=shop.recipe.seed, hardware=shop.hardware, log=shop.log)
    model = averaged(task, folder)
    assert isinstance(model, Denoiser)

    def save(target: Path) -> None:
        model.unet.save_pretrained(target / "unet")
        model.text_encoder.save_pretrained(target / "text_encoder")

    put_in_place(shop.folders.finished("unet"), save)
    note_outcome(folder, outcome, shop, before=_before(shop, "unet"))


def run_scorer(shop: Workshop) -> None:
    """Render the scorer's own scenes and train it; it takes no part in the model."""
    renders, seed = shop.folders.root / "scorer-renders", shop.recipe.seed + SCORER_SEED_OFFSET
    render_stage(
        renders, seed=seed, scenes=SCORER_SCENES, workers=os.cpu_count() or 1, progress=shop.progress("scorer renders")
    )
    folder = shop.folders.stage("scorer")
    outcome = train(
        ScorerTask(renders=renders), shop.recipe.scorer, folder, seed=seed, hardware=shop.hardware, log=shop.log
    )
    note_outcome(folder, outcome, shop, scenes=SCORER_SCENES)


TRAINING = {
    "render": run_render,
    "autoencoder": run_autoencoder,
    "text": run_text,
    "latents": run_latents,
    "unet": run_unet,
    "scorer": run_scorer,
}


def read_result(shop: Workshop, stage: str) -> dict[str, Any]:
    """What a finished stage noted down; raises RecipeError when it has not finished."""
    path = shop.folders.stage(stage) / RESULT
    if not path.exists():
        raise RecipeError(f"the {stage} stage has not finished in {shop.folders.root}: run it first")
    result: dict[str, Any] = json.loads(path.read_text())
    return result
