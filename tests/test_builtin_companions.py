"""The companions of the built-in model: every stage, check and export at a tiny scale, through the real commands."""

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from jobs.builtin.__main__ import CHECKED, COMPANIONS, SHIPPED, main
from jobs.builtin.autoencoder import psnr, reconstruct, to_tensor
from jobs.builtin.captions import canonical_caption
from jobs.builtin.companions.anchors import ANCHOR, ANCHORS
from jobs.builtin.companions.conditions import canny, depth_image, edge_image, inverse_depth
from jobs.builtin.companions.export import EXPORTS
from jobs.builtin.companions.ink import INK, PAPER, draw_in_ink
from jobs.builtin.companions.masks import draw_mask
from jobs.builtin.companions.measures import (
    edge_agreement,
    gradient_error,
    palette_distance,
    psnr_where,
    relief_correlation,
    sharpness,
)
from jobs.builtin.companions.ruby_ring import TOKEN, TOKENS, draw_concept
from jobs.builtin.companions.stages import COMPANIONS as TABLE
from jobs.builtin.companions.stages import foundation, run_companion
from jobs.builtin.companions.upscaler import FACTOR, build_upscaler, draw_large, draw_noise, shrink_image
from jobs.builtin.export import load_finished
from jobs.builtin.latents import digest
from jobs.builtin.recipe import TEST_SEED_OFFSET, Folders, Recipe, RecipeError, Training
from jobs.builtin.renderer import IMAGE_SIZE, render
from jobs.builtin.scenes import YAWS, Color, Finish, Shape, draw_scene
from jobs.builtin.scorer import ScorerTask
from jobs.builtin.stages import TRAINING, Workshop, autoencoder_task, run_unet, unet_task
from jobs.builtin.text import WIDTH
from jobs.builtin.training import Draw, Hardware, Run, averaged, learning_rate, train
from jobs.builtin.unet import TAUGHT_FROM

pytestmark = [pytest.mark.slow, pytest.mark.recipe]

SCENES = 16
IMAGE = render(draw_scene(7, 2))


def workshop(work: Path, *, steps: int = 2) -> Workshop:
    """A recipe of a few scenes and steps."""
    tiny = Training(steps=steps, batch=2, learning_rate=1e-3, warmup=1, save_every=2)
    recipe = Recipe(
        scenes=SCENES,
        autoencoder=tiny,
        text=tiny,
        unet=tiny,
        companions=dict.fromkeys(TABLE, tiny),
    )
    return Workshop(
        recipe=recipe, folders=Folders(root=work), hardware=Hardware(processes=1, bfloat16=False), log=print
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A work folder with a tiny base, all companions and a scorer; the base is exported beside it as `builtin`."""
    root = tmp_path_factory.mktemp("companions")
    shop = workshop(root / "work")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("renders", "latents"):
            patch.setattr(f"jobs.builtin.{module}.CHUNK_SCENES", SCENES)
        patch.setattr("jobs.builtin.companions.ruby_ring.SCENES", 4)
        patch.setattr("jobs.builtin.companions.upscaler.NORMALISED", 2)
        patch.setattr("jobs.builtin.companions.stages.LARGE_SCENES", 4)
        patch.setattr("jobs.builtin.companions.upscaler.CROPS", (16, 32))
        for images in ("HELD_OUT", "NORMALISED"):
            patch.setattr(f"jobs.builtin.stages.{images}", SCENES)
        for stage in ("render", "autoencoder", "text", "latents", "unet"):
            TRAINING[stage](shop)
        scorer = ScorerTask(renders=shop.folders.renders, scenes=SCENES)
        train(scorer, shop.recipe.unet, shop.folders.stage("scorer"), seed=0, hardware=shop.hardware, log=print)
        for name in TABLE:
            run_companion(shop, name)
        assert invoke(shop, "export", "--output", str(root / "builtin")).exit_code == 0
        yield root


def invoke(shop: Workshop, *arguments: str) -> Result:
    scale = SCENES / Recipe().scenes
    return CliRunner().invoke(main, ["--work", str(shop.folders.root), "--scale", str(scale), *arguments])


@pytest.fixture(scope="module")
def exported(finished: Path) -> Path:
    """The folder that holds `builtin` and all its companions, checked before."""
    shop = workshop(finished / "work")
    checked = invoke(shop, "check-companions", "--count", "2", "--steps", "2")
    assert checked.exit_code == 0, checked.output
    done = invoke(shop, "export-companions", "--base", str(finished / "builtin"), "--note", "A test's.")
    assert done.exit_code == 0, done.output
    return finished


def test_a_run_goes_on_from_an_exported_model(finished: Path, tmp_path: Path) -> None:
    """Autoencoder and UNet begin as they were exported, more gently; the card counts the steps of both runs."""
    shop, model = workshop(tmp_path / "work"), finished / "builtin"
    assert invoke(shop, "adopt", "--model", str(model)).exit_code == 0
    again = invoke(shop, "adopt", "--model", str(model))
    assert again.exit_code == 2
    assert "choose another work folder" in again.output
    (shop.folders.renders).symlink_to(finished / "work" / "renders")
    for task, part in ((autoencoder_task(shop), "vae"), (unet_task(shop), "unet")):
        stored = load_file(model / part / "diffusion_pytorch_model.safetensors")
        built = {name.removeprefix("unet."): value for name, value in task.build().state_dict().items()}
        assert all(torch.equal(built[name], value.float()) for name, value in stored.items())
    adopted = load_finished(shop).unet.state_dict()
    assert all(torch.equal(adopted[name], value.float()) for name, value in
               load_file(model / "unet" / "diffusion_pytorch_model.safetensors").items())  # fmt: skip
    for stage in ("autoencoder", "latents", "unet"):
        TRAINING[stage](shop)
    state = torch.load(shop.folders.stage("unet") / "checkpoint.pt", weights_only=True)
    gently = replace(shop.recipe.unet, learning_rate=shop.recipe.unet.learning_rate / 2)
    assert state["optimizer"]["param_groups"][0]["lr"] == learning_rate(gently, gently.steps - 1)
    assert invoke(shop, "export", "--output", str(tmp_path / "builtin")).exit_code == 0
    notes = json.loads((tmp_path / "builtin" / "training.json").read_text())
    assert notes["autoencoder"]["before"]["steps"] == notes["unet"]["before"]["steps"] == 2
    card = (tmp_path / "builtin" / "README.md").read_text()
    assert all(f"| 4 of {getattr(Recipe(), stage).steps:,} |" in card for stage in ("autoencoder", "unet"))


def test_predictions_without_a_caption_are_taught_by_those_with_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every caption dropped the target is the net's own word on the caption; before that it is the noise."""
    monkeypatch.setattr("jobs.builtin.unet.CAPTION_DROPOUT", 1.0)
    device = torch.device("cpu")
    task = unet_task(workshop(finished / "work"))
    model = averaged(task, finished / "work" / "unet")
    loss_of = replace(task, keep_tower=True).open(device)  # without the loss of naming

    def loss(progress: float) -> float:
        draw = Draw(rng=np.random.default_rng(1), noise=torch.Generator().manual_seed(1), batch=4, progress=progress,
                    device=device)  # fmt: skip
        return loss_of(model, draw).item()

    assert 0 < loss(TAUGHT_FROM) < 0.1 * loss(TAUGHT_FROM - 0.01)


@pytest.mark.parametrize("broken", ["companion", "no unet", "unwritable"])
def test_what_cannot_be_adopted_leaves_no_trace(finished: Path, exported: Path, tmp_path: Path, broken: str) -> None:
    model, work = tmp_path / "builtin", tmp_path / "work"
    shutil.copytree(exported / ("builtin-depth" if broken == "companion" else "builtin"), model, symlinks=True)
    if broken == "no unet":
        shutil.rmtree(model / "unet")
    if broken == "unwritable":
        work.write_text("in the way")
    result = invoke(workshop(work), "adopt", "--model", str(model))
    assert result.exit_code == 2
    assert {"companion": "of a base", "no unet": "no unet", "unwritable": "cannot write"}[broken] in result.output
    assert "Traceback" not in result.output
    assert broken == "unwritable" or not work.exists()


def test_an_adopted_base_has_no_clip_until_the_text_stage_has_run(finished: Path, tmp_path: Path) -> None:
    shop, base = workshop(tmp_path / "work"), str(finished / "builtin")
    assert invoke(shop, "adopt", "--model", base).exit_code == 0
    for arguments in (
        ["check-companions", "clip"],
        ["export-companions", "clip", "--base", base],
        ["check-companions"],
    ):
        result = invoke(shop, *arguments)
        assert result.exit_code == 2
        assert "first" in result.output
        assert "Traceback" not in result.output


def test_the_upscalers_autoencoder_begins_as_one_that_shrinks_and_enlarges(finished: Path) -> None:
    torch.manual_seed(0)
    model: Any = TABLE["upscaler-autoencoder"].task(workshop(finished / "work")).build()
    images = draw_large(draw_scene(TEST_SEED_OFFSET, 0))[None]
    shrunk = np.stack([shrink_image(image) for image in images])
    enlarged = shrunk.repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)
    assert psnr(reconstruct(model, images), enlarged) > 38
    with torch.no_grad():
        latents = model.encode(to_tensor(images)).latent_dist.mean[:, :3]
    assert np.corrcoef(latents.ravel(), to_tensor(shrunk).ravel())[0, 1] > 0.999


def test_the_upscaler_sees_in_a_crop_what_it_sees_in_the_whole() -> None:
    """Its norms do nothing; a fresh net with diffusers' usual ones judges a crop by the spread of the crop."""
    torch.manual_seed(0)
    model = build_upscaler()
    usual = UNet2DConditionModel.from_config({**model.config, "norm_num_groups": 16})
    contrast = torch.linspace(0.1, 1, IMAGE_SIZE)  # less of it to the left
    image, text = torch.randn(1, 7, IMAGE_SIZE, IMAGE_SIZE) * contrast, torch.randn(1, 77, WIDTH)

    def shift(unet: UNet2DConditionModel) -> float:
        for residual in unet.modules():
            if isinstance(residual, ResnetBlock2D):
                residual.conv2.reset_parameters()  # at first it gives nothing
        with torch.no_grad():
            whole, crop = (
                unet(pixels, torch.tensor([500]), text, class_labels=torch.tensor([0])).sample
                for pixels in (image, image[:, :, 32:96, 32:96])
            )
        return float((whole[:, :, 56:72, 56:72] - crop[:, :, 24:40, 24:40]).std() / whole.std())

    assert shift(model) < 0.04
    assert shift(usual) > 0.1


def test_training_leaves_the_anchors_where_they_are() -> None:
    """All of a net learns but what makes the constants, so that norms go on doing nothing."""
    torch.manual_seed(0)
    model, seen = build_upscaler(), []
    for norm in model.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, ANCHORS]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    moved = set()
    for _ in range(10):
        seen.clear()
        samples = torch.randn(2, 7, 16, 16)
        text, steps = torch.randn(2, 77, WIDTH), torch.tensor([20, 700])
        output = model(samples, steps, text, class_labels=torch.tensor([0, 9])).sample
        optimizer.zero_grad()
        (output - samples[:, 3:]).square().mean().backward()
        moved |= {name for name, value in model.named_parameters() if value.grad is not None and value.grad.any()}
        optimizer.step()
    held = torch.tensor([ANCHOR, -ANCHOR])[:, None, None]
    assert len(seen) == 27
    assert all(torch.allclose(values, held.expand_as(values), atol=0.1) for values in seen)
    assert moved == {name for name, _ in model.named_parameters()}


def test_the_upscalers_noise_hides_the_means_of_latents_more_than_white_noise_does() -> None:
    draw = Draw(rng=np.random.default_rng(1), noise=torch.Generator().manual_seed(1), batch=1, progress=0.0,
                device=torch.device("cpu"))  # fmt: skip
    noise = draw_noise(draw, 400, 32)
    means = nn.functional.avg_pool2d(noise, 16)
    assert means.std() > 2 / 16  # that of white noise is 1 / 16
    assert (noise - nn.functional.interpolate(means, size=32)).std() == pytest.approx(1, abs=0.05)


def test_the_text_tower_stays_as_it_is_on_request(finished: Path, tmp_path: Path) -> None:
    """Companions that read the tower stay valid when the UNet goes on with --keep-tower."""
    work, model = tmp_path / "work", finished / "builtin"
    shop = workshop(work)
    assert invoke(shop, "adopt", "--model", str(model)).exit_code == 0
    for part in ("renders", "latents"):
        shutil.copytree(finished / "work" / part, work / part)
    (work / "latents" / "autoencoder.sha256").write_text(digest(work / "autoencoder" / "model"))
    run_unet(replace(shop, recipe=replace(shop.recipe, keep_tower=True)))
    before, after = (load_file(folder / "text_encoder" / "model.safetensors")
                     for folder in (model, work / "unet" / "model"))  # fmt: skip
    assert all(torch.equal(after[name], value.float()) for name, value in before.items())
    name = "diffusion_pytorch_model.safetensors"
    before, after = load_file(model / "unet" / name), load_file(work / "unet" / "model" / "unet" / name)
    assert any(not torch.equal(after[name], value.float()) for name, value in before.items())
    with pytest.raises(RecipeError, match="remove it"):  # the checkpoint was made with the tower kept
        run_unet(shop)


def changed(finished: Path, stage: str) -> dict[str, bool]:
    """Which weights of a companion's checkpoint differ from those it began with."""
    task = TABLE[stage].task(workshop(finished / "work"))
    torch.manual_seed(0)
    before, after = task.build().state_dict(), averaged(task, finished / "work" / stage).state_dict()
    return {name: not torch.equal(before[name], value) for name, value in after.items()}


def test_every_companion_has_a_command() -> None:
    assert tuple(TABLE) == COMPANIONS
    assert tuple(EXPORTS) == SHIPPED
    assert set(TABLE) == set(Recipe().companions)


def test_what_should_be_trained_is_and_nothing_else(finished: Path) -> None:
    assert all(changed(finished, "ruby-ring").values())
    for stage in (
        "controlnet-edges",
        "controlnet-depth",
        "depth",
        "inpainting",
        "depth-estimator",
        "upscaler",
        "upscaler-autoencoder",
    ):
        moved = changed(finished, stage)
        assert sum(moved.values()) > 0.8 * len(moved), stage
    moved = changed(finished, "ink")
    assert all(moved[name] == ("lora_" in name) for name in moved)
    moved = changed(finished, "vae-sharp")
    assert not any(moved[name] for name in moved if name.startswith(("encoder", "quant_conv")))
    assert all(moved[name] for name in moved if name.startswith("decoder") and name.endswith("weight"))


@pytest.mark.parametrize("stage", COMPANIONS)
def test_every_companion_trains_in_bfloat16(finished: Path, stage: str) -> None:
    """As it does on GPUs and on CPUs that have it; the upscaler once stacked float16, which autocast refuses."""
    task, device = TABLE[stage].task(workshop(finished / "work")), torch.device("cpu")
    model, loss_of = task.build(), task.open(device)
    draw = Draw(rng=np.random.default_rng(1), noise=torch.Generator().manual_seed(1), batch=1, progress=0.0,
                device=device)  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, draw)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_new_channels_come_last(finished: Path) -> None:
    shop = workshop(finished / "work")
    base = foundation(shop).open_unet().conv_in.weight
    for stage, channels in (("depth", 5), ("inpainting", 9)):
        weights = TABLE[stage].task(shop).build().state_dict()["conv_in.weight"]
        assert weights.shape[1] == channels
        assert torch.equal(weights[:, :4], base)
        assert weights[:, -1].any()


def test_a_killed_companion_resumes_to_the_same_weights(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "work", tmp_path / "work", ignore=shutil.ignore_patterns("ink", "controlnet*", "depth*"))
    task = TABLE["ink"].task(workshop(tmp_path / "work", steps=4))

    def run() -> dict[str, torch.Tensor]:
        run_companion(workshop(tmp_path / "work", steps=4), "ink")
        return averaged(task, tmp_path / "work" / "ink").state_dict()

    whole, advance = run(), Run.advance
    shutil.rmtree(tmp_path / "work" / "ink")

    def die_at_three(self: Run, *arguments: Any, **options: Any) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        advance(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "advance", die_at_three)
        run()
    assert not (tmp_path / "work" / "ink" / "model").exists()
    resumed = run()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_companions_of_another_base_are_refused(finished: Path, exported: Path, tmp_path: Path) -> None:
    """Whether the work folder's base or the exported one is another."""
    shutil.copytree(finished / "work", tmp_path / "work")
    shutil.copytree(finished / "builtin", tmp_path / "builtin")
    shop = workshop(tmp_path / "work")
    weights = next((tmp_path / "work" / "unet" / "model" / "unet").glob("*.safetensors"))
    shutil.copy(next((finished / "work" / "depth" / "model").glob("*.safetensors")), weights)
    arguments = ("export-companions", "--base", str(tmp_path / "builtin"))
    other = invoke(shop, *arguments)
    assert other.exit_code == 2
    assert "other weights" in other.output
    shutil.copytree(finished / "builtin", tmp_path / "builtin", dirs_exist_ok=True)
    note = tmp_path / "work" / "ink" / "result.json"
    shutil.rmtree(tmp_path / "work" / "unet")
    shutil.copytree(finished / "work" / "unet", tmp_path / "work" / "unet")
    note.write_text(json.dumps({**json.loads(note.read_text()), "inputs": "of another base"}))
    other = invoke(shop, *arguments, "ink")
    assert other.exit_code == 2
    assert "another base" in other.output
    checkpoint = torch.load(tmp_path / "work" / "ink" / "checkpoint.pt", weights_only=True)
    torch.save({**checkpoint, "inputs": "of another base"}, tmp_path / "work" / "ink" / "checkpoint.pt")
    with pytest.raises(RecipeError, match="remove it"):
        run_companion(shop, "ink")


LATER = tuple(stage for stage in COMPANIONS if stage != "upscaler-autoencoder")  # it renders its images itself


@pytest.mark.parametrize("stage", [*LATER, "check-companions", "export-companions"])
def test_a_stage_out_of_order_says_what_to_run_first(tmp_path: Path, stage: str) -> None:
    result = CliRunner().invoke(main, ["--work", str(tmp_path / "work"), stage])
    assert result.exit_code == 2
    assert "first" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["upscaler", "check-companions --count 2 upscaler", "export-companions upscaler"])
def test_an_upscaler_without_its_autoencoder_says_what_to_run_first(
    finished: Path, exported: Path, tmp_path: Path, command: str
) -> None:
    shutil.copytree(exported / "work", tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "upscaler-autoencoder" / "model")
    command, *names = command.split()
    base = ["--base", str(exported / "builtin")] if command == "export-companions" else []
    result = invoke(workshop(tmp_path / "work"), command, *names, *base)
    assert result.exit_code == 2
    assert "upscaler-autoencoder" in result.output
    assert "Traceback" not in result.output


def test_a_controlnet_begins_as_the_unet_without_its_attention(finished: Path) -> None:
    shop = workshop(finished / "work")
    weights = TABLE["controlnet-edges"].task(shop).build().state_dict()
    unet = foundation(shop).open_unet().state_dict()
    assert not any("attentions" in name for name in weights)
    shared = [name for name in weights if name in unet]
    assert len(shared) > 50
    assert all(torch.equal(weights[name], unet[name]) for name in shared)


def test_an_unwritable_folder_is_a_clear_error(finished: Path) -> None:
    shop = workshop(finished / "work")
    (finished / "file").write_text("in the way")
    shutil.copytree(finished / "builtin", finished / "elsewhere" / "builtin")
    (finished / "elsewhere" / "builtin-ink").write_text("in the way")
    result = invoke(shop, "export-companions", "ink", "--base", str(finished / "elsewhere" / "builtin"))
    assert result.exit_code == 2
    assert "cannot write" in result.output


def test_the_checks_measure_with_and_without(exported: Path) -> None:
    found = json.loads((exported / "work" / "companions.json").read_text())
    assert set(found) == set(CHECKED)
    for name, check in found.items():
        assert len(check["rows"]) >= 2
        assert (exported / "work" / f"sheet-{name}.png").stat().st_size > 10_000
    assert not found["controlnet-edges"]["passes"]  # after two steps nothing is learnt, and the check must say so


def test_exported_folders_name_no_place_and_say_how_they_were_made(exported: Path) -> None:
    folders = sorted(path for path in exported.glob("builtin-*"))
    assert [path.name.removeprefix("builtin-") for path in folders] == sorted(SHIPPED)
    for folder in folders:
        card = (folder / "README.md").read_text()
        assert "2 of" in card
        assert "fresh scenes" in card
        for config in folder.rglob("*.json"):
            assert str(exported) not in config.read_text()
        for file in folder.rglob("*.*"):
            assert file.exists(), f"{file} is a link to nothing"
            assert not file.is_symlink() or not Path(file.readlink()).is_absolute()


@pytest.mark.parametrize(
    ("name", "own"), [("depth", {"unet"}), ("inpainting", {"unet"}), ("upscaler", {"unet", "vae"})]
)
def test_what_pipelines_share_with_the_base_is_linked(exported: Path, name: str, own: set[str]) -> None:
    for part in ("vae", "text_encoder", "tokenizer", "scheduler", "unet"):
        folder, files = (
            exported / f"builtin-{name}" / part,
            {file.name for file in (exported / "builtin" / part).iterdir()},
        )
        assert not folder.is_symlink()
        assert {file.name for file in folder.iterdir()} == files
        assert {file.is_symlink() for file in folder.iterdir()} == {part not in own}


def paint(pipeline: Any, prompt: str = "a red ring", **options: Any) -> "np.ndarray[Any, np.dtype[np.float32]]":
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator("cpu").manual_seed(0)
    images: list[np.ndarray[Any, np.dtype[np.float32]]] = pipeline(
        prompt, num_inference_steps=2, generator=noise, output_type="np", **options
    ).images
    assert images[0].shape == (128, 128, 3)
    assert np.isfinite(images[0]).all()
    return images[0]


@pytest.fixture(scope="module")
def base(exported: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(exported / "builtin")


@pytest.mark.parametrize("condition", ["edges", "depth"])
def test_an_exported_controlnet_steers(exported: Path, base: Any, condition: str) -> None:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    controlnet = ControlNetModel.from_pretrained(exported / f"builtin-controlnet-{condition}")
    pipeline = StableDiffusionControlNetPipeline(
        **base.components, controlnet=controlnet, requires_safety_checker=False
    )
    some, other = (Image.fromarray(edge_image(canny(render(draw_scene(7, i)).rgb))) for i in (2, 3))
    assert not np.array_equal(paint(pipeline, image=some), paint(pipeline, image=other))


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_the_exported_depth_pipeline_paints(exported: Path) -> None:
    from diffusers import StableDiffusionDepth2ImgPipeline

    pipeline = StableDiffusionDepth2ImgPipeline.from_pretrained(exported / "builtin-depth")
    assert pipeline.depth_estimator.dtype == pipeline.unet.dtype == pipeline.text_encoder.dtype == torch.float32
    assert pipeline.unet.config.in_channels == 5
    depth = torch.from_numpy(inverse_depth(IMAGE.depth))[None]
    image = Image.fromarray(IMAGE.rgb)
    paint(pipeline, image=image, strength=1.0)  # its depth by the estimator
    some = paint(pipeline, image=image, strength=1.0, depth_map=depth)
    assert not np.array_equal(some, paint(pipeline, image=image, strength=1.0, depth_map=depth.flip(-1)))


def test_the_exported_inpainting_pipeline_paints(exported: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline.from_pretrained(exported / "builtin-inpainting")
    assert pipeline.unet.config.in_channels == 9
    mask = Image.fromarray((IMAGE.objects > 0).astype(np.uint8) * 255)
    paint(pipeline, image=Image.fromarray(IMAGE.rgb), mask_image=mask, strength=1.0)


def test_the_exported_lora_changes_the_image(exported: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(exported / "builtin")
    plain = paint(pipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # PEFT's, when it drops weights
        pipeline.load_lora_weights(exported / "builtin-ink", weight_name="pytorch_lora_weights.safetensors")
    trained = averaged(TABLE["ink"].task(workshop(exported / "work")), exported / "work" / "ink").state_dict()
    loaded = {n.replace("default_0", "default"): v for n, v in pipeline.unet.state_dict().items() if "lora_" in n}
    assert loaded.keys() == {name for name in trained if "lora_" in name}
    assert all(torch.allclose(value, trained[name], atol=1e-3) for name, value in loaded.items())
    assert not np.array_equal(paint(pipeline), plain)
    assert np.allclose(paint(pipeline, cross_attention_kwargs={"scale": 0.0}), plain, atol=1e-4)


def test_the_exported_embedding_is_read_as_two_vectors(exported: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(exported / "builtin")
    before = len(pipeline.tokenizer)
    pipeline.load_textual_inversion(exported / "builtin-ruby-ring")
    assert len(pipeline.tokenizer) == before + 2
    written = pipeline.maybe_convert_prompt(f"a photo of {TOKEN} in the desert", pipeline.tokenizer)
    assert written == f"a photo of {' '.join(TOKENS)} in the desert"
    tokens = pipeline.tokenizer(written, add_special_tokens=False).input_ids
    assert {before, before + 1} < set(tokens)
    stored = pipeline.text_encoder.get_input_embeddings().weight[before:]
    task = TABLE["ruby-ring"].task(workshop(exported / "work"))
    trained = averaged(task, exported / "work" / "ruby-ring").state_dict()["vectors"]
    assert torch.allclose(stored, trained, atol=1e-3)
    paint(pipeline, f"a photo of {TOKEN}")


def test_the_exported_decoder_reads_the_bases_latents(exported: Path, base: Any) -> None:
    from diffusers import AutoencoderKL

    sharp, values = AutoencoderKL.from_pretrained(exported / "builtin-vae-sharp"), torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        mine, theirs = sharp.encode(values).latent_dist.mean, base.vae.encode(values).latent_dist.mean
        assert torch.equal(mine, theirs)
        assert not torch.equal(sharp.decode(mine).sample, base.vae.decode(mine).sample)


def test_the_exported_clip_reads_and_sees(exported: Path, tmp_path: Path) -> None:
    """It loads by transformers' own classes, and an image's likeness does not depend on its size or its mates."""
    from transformers import CLIPModel, CLIPProcessor

    folder = exported / "builtin-clip"
    assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {"torch.float16"}
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    assert model.dtype is torch.float32
    texts = ["a red ring", "two objects side by side on a checkered floor"]
    images = [Image.fromarray(IMAGE.rgb), Image.fromarray(render(draw_scene(7, 3)).rgb)]

    def likeness(texts: list[str], images: list[Image.Image]) -> torch.Tensor:
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        assert inputs["pixel_values"].shape == (len(images), 3, 128, 128)
        with torch.no_grad():
            found: torch.Tensor = model(**inputs).logits_per_image
        return found

    both = likeness(texts, images)
    assert torch.allclose(both[:1, :1], likeness(texts[:1], images[:1]), atol=1e-4)
    large = [image.resize((256, 256), Image.Resampling.NEAREST) for image in images]
    assert not torch.allclose(both[0], both[1])
    assert (both - likeness(texts, large)).abs().max() < 0.2 * (both[0] - both[1]).abs().max()


def test_the_note_is_in_every_companions_card(exported: Path) -> None:
    cards = [folder / "README.md" for folder in exported.glob("builtin-*")]
    assert len(cards) == len(EXPORTS)
    assert all("A test's." in card.read_text() for card in cards)


def test_the_exported_upscaler_makes_images_four_times_as_large(exported: Path) -> None:
    from diffusers import StableDiffusionUpscalePipeline

    pipeline = StableDiffusionUpscalePipeline.from_pretrained(exported / "builtin-upscaler")
    assert pipeline.vae.config.scaling_factor == 0.08333
    assert pipeline.unet.config.num_class_embeds == pipeline.config.max_noise_level + 1
    small = Image.fromarray(IMAGE.rgb).resize((32, 32))  # of 128 it makes 512, which takes sixteen times as long
    plain = paint(pipeline, image=small)
    assert not np.array_equal(plain, paint(pipeline, image=small.rotate(90)))
    assert not np.array_equal(plain, paint(pipeline, image=small, noise_level=350))


def test_conditions_are_as_the_annotators_draw_them() -> None:
    inverse = inverse_depth(IMAGE.depth)
    assert (inverse.min(), inverse.max()) == (0.0, 1.0)
    assert inverse[-1].mean() > inverse[20].mean()  # the floor before the camera is nearer than the wall
    outline = IMAGE.edges & (IMAGE.objects > 0)
    assert edge_agreement(canny(IMAGE.rgb), outline) > 0.3
    assert edge_image(IMAGE.edges).max() == 255
    assert depth_image(inverse).shape == (128, 128, 3)


def test_concept_scenes_show_one_shiny_red_ring() -> None:
    for index in range(40):
        (thing,) = draw_concept(0, index).things
        assert abs(thing.yaw) <= YAWS[Shape.RING][1]
        assert (thing.shape, thing.color, thing.finish) == (Shape.RING, Color.RED, Finish.SHINY)
        assert "red ring" in canonical_caption(draw_concept(0, index))


def test_masks_hide_objects_or_rectangles() -> None:
    rng, shares = np.random.default_rng(0), []
    scenes = [render(draw_scene(3, index)).objects for index in range(6)]
    for objects in 10 * scenes:
        mask = draw_mask(rng, objects)
        assert mask.shape == objects.shape
        assert mask.any()
        shares.append(any(bool(mask[objects == number].all()) for number in np.unique(objects[objects > 0])))
    assert 0.6 < np.mean(shares) < 1


def test_measures_tell_apart_what_they_should() -> None:
    edges = canny(IMAGE.rgb)
    assert edge_agreement(edges, edges) == 1
    assert edge_agreement(edges, np.roll(edges, 1, axis=1)) > 0.95
    assert edge_agreement(edges, np.roll(edges, 40, axis=0)) < 0.8
    maps = np.stack([inverse_depth(render(draw_scene(3, index)).depth) for index in range(4)])
    average = maps.mean(axis=0)
    assert relief_correlation(maps, maps, average) == pytest.approx(1)
    assert relief_correlation(maps, np.roll(maps, 1, axis=0), average) < 0.5
    drawn = draw_in_ink(IMAGE.rgb, IMAGE.edges)
    assert palette_distance(drawn[None], INK, PAPER) < 1
    assert palette_distance(IMAGE.rgb[None], INK, PAPER) > 20
    first, everywhere = IMAGE.rgb[None], np.ones((1, 128, 128), dtype=np.bool_)
    blurred = ((first.astype(np.uint16) + np.roll(first, 1, axis=2)) // 2).astype(np.uint8)
    assert psnr_where(first, first, everywhere) > psnr_where(blurred, first, everywhere)
    assert gradient_error(first, first) == 0 < gradient_error(blurred, first)
    assert sharpness(first, first) == 1 > sharpness(blurred, first)
