"""No row fails later for its scheduler alone: what a class refuses is found before anything is made."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from conftest import WriteManifest
from safetensors.torch import save_file
from tiny_models import build_refiner, build_sdxl

from batchgen import builtin
from batchgen.diffusion.trial import try_scheduler
from batchgen.driver import resolved_rows
from batchgen.errors import ManifestProblems
from batchgen.generation.samplers import FORCED, NAMES
from batchgen.generation.tasks import TASKS
from batchgen.identity import canonical
from batchgen.job import Job
from batchgen.trials import TRIED_STEPS, Trial

_SD = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "builtin": json.loads((builtin.model_path("builtin") / "scheduler" / "scheduler_config.json").read_text()),
    "SD 1.5": _SD,
    "SDXL": _SD | {"timestep_spacing": "leading", "interpolation_type": "linear", "use_karras_sigmas": False},
}
BAD: Mapping[str, tuple[Mapping[str, Any], str, str]] = {
    "PNDM in too few steps": ({"scheduler": "PNDMScheduler", "steps": 3}, "num_inference_steps", "cannot do 3 steps"),
    "LCM in more than it was distilled to": ({"scheduler": "LCM", "steps": 60}, "num_inference_steps", "than 50"),
    "a beta of text": ({"scheduler_kwargs": {"beta_start": "abc"}}, "scheduler_kwargs", "'beta_start': 'abc'"),
    "betas of text": ({"scheduler_kwargs": {"trained_betas": "abc"}}, "scheduler_kwargs", "does not take"),
    "negative timesteps": (
        {"scheduler": "Euler", "scheduler_kwargs": {"num_train_timesteps": -5}},
        "scheduler_kwargs",
        "num_train_timesteps is -5",
    ),
    "past the end": (
        {"scheduler": "DDIM", "steps": 1000, "scheduler_kwargs": {"timestep_spacing": "leading", "steps_offset": 1}},
        "scheduler_kwargs",
        "cannot do 1000 steps",
    ),
    "past the end by the offset that pipelines set": (
        {"scheduler": "PLMS", "steps": 1000, "scheduler_kwargs": {"timestep_spacing": "leading", "steps_offset": 0}},
        "scheduler_kwargs",
        "cannot do 1000 steps",
    ),
    "less than no noise": (
        {"scheduler": "Euler Karras", "scheduler_kwargs": {"sigma_min": -1}},
        "scheduler_kwargs",
        "less than no noise",
    ),
    "noise that grows": (
        {"scheduler": "Euler Karras", "scheduler_kwargs": {"sigma_min": 50.0, "sigma_max": 5.0}},
        "scheduler_kwargs",
        "noise grows on the way",
    ),
    "a switch of text, which is true": (
        {"scheduler": "DDIM", "scheduler_kwargs": {"clip_sample": "false"}},
        "scheduler_kwargs",
        "clip_sample is 'false'; write true or false",
    ),
    "no noise is taken": ({"scheduler": "DEIS Karras", "steps": 1}, "num_inference_steps", "as much noise"),
    "no finite number is left": ({"scheduler_kwargs": {"beta_end": 4}}, "scheduler_kwargs", "not finite"),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_not_tried_goes_well(config: str) -> None:
    for sampler in {canonical([one.class_name, dict(one.kwargs)]): one for one in NAMES.values()}.values():
        for steps in (1, 2, 3, 4, 25, *([TRIED_STEPS] if config == "SD 1.5" else [])):
            one = Trial(class_name=sampler.class_name, kwargs=sampler.kwargs, config=CONFIGS[config], steps=steps)
            if one.is_known:
                with torch.inference_mode():
                    assert try_scheduler(one.class_name, one.kwargs, one.config, one.steps) is None
            else:
                assert steps in (1, 2, 3, TRIED_STEPS)


@pytest.mark.parametrize("sampler", ["DPM++ 2M Beta", "UniPC Beta"])
def test_long_beta_schedules_go_well(sampler: str) -> None:
    """Incident: their first timestep stands twice from 32 steps on, and the last step had no noise level."""
    found = NAMES[sampler]
    with torch.inference_mode():
        assert [try_scheduler(found.class_name, found.kwargs, _SD, steps) for steps in (40, 1000)] == [None] * 2


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_pipelines_force_on_schedulers_is_known() -> None:
    names = {name for task in TASKS.values() for made in (task.pipelines, task.controlled) for name in made.values()}
    for name in names - {"DDPMPipeline", "StableDiffusionLatentUpscalePipeline"}:  # which take one class alone
        kind = getattr(diffusers, name)
        found: dict[str, Any] = {}
        arguments = dict.fromkeys(list(inspect.signature(kind.__init__).parameters)[1:])
        for given in (diffusers.DDIMScheduler(clip_sample=True), diffusers.PNDMScheduler()):
            before = dict(given.config)
            after = kind(**{**arguments, "scheduler": given}).scheduler.config
            found |= {option: value for option, value in after.items() if value != before.get(option, value)}
        assert found == FORCED.get(name, {}), name


@pytest.mark.parametrize(
    ("sampler", "kwargs", "steps"),
    [
        ("DDPM", {}, 100),
        ("DDIM", {}, 250),
        ("DPM++ 2M", {}, 100),
        ("DPM++ 2M", {"solver_order": 3}, 20),
        ("UniPC", {}, 60),
    ],
)
def test_models_that_learnt_their_variance_are_not_refused(sampler: str, kwargs: Mapping[str, Any], steps: int) -> None:
    """Incident: a trial gave these classes no variance, and rows of ADM's models that go well were refused."""
    config = {"num_train_timesteps": 1000, "beta_schedule": "linear", "variance_type": "learned_range"}
    found = NAMES[sampler]
    with torch.inference_mode():
        assert try_scheduler(found.class_name, {**found.kwargs, **kwargs}, config, steps) is None


@pytest.mark.slow
def test_what_a_scheduler_refuses_is_a_problem_of_its_rows(
    tmp_path: Path, write_manifest: WriteManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Incident: these rows passed the check and failed on the device, each twice.

    Those of models whose config is not at hand, too: a single file is taken for one of the published models; and those
    of refiners, which have betas of their own. What was tried is known from then on, without another process.
    """
    save_file({"a": torch.zeros(1)}, tmp_path / "single.safetensors")
    build_sdxl(tmp_path / "base")
    build_refiner(tmp_path / "refiner")
    config = tmp_path / "refiner" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_train_timesteps": 10}))
    cells = {"prompt": "a red ball", "steps": 20, "scheduler": "DDIM"}
    base = {**cells, "model": str(tmp_path / "base")}
    single = {**cells, "scheduler": "LCM", "steps": 70, "model": str(tmp_path / "single.safetensors")}
    others = [single, {**base, "refiner": str(tmp_path / "refiner")}]
    rows = [{**cells, **bad} for bad, _, _ in BAD.values()]
    file = write_manifest("m.jsonl", [cells, base, *others, *rows, *rows])
    with pytest.raises(ManifestProblems) as caught, resolved_rows(Job(manifest=str(file))):
        pass
    found = {(problem.row, problem.column): problem.message for problem in caught.value.log.shown}
    for number, (_, column, said) in enumerate(BAD.values(), start=5):
        assert said in found.pop((number, column))
    assert found.keys() == {(number, "num_inference_steps") for number in (3, 4)}  # each fault once
    monkeypatch.setattr("subprocess.run", None)
    with pytest.raises(ManifestProblems) as again, resolved_rows(Job(manifest=str(file))):
        pass
    assert again.value.log.shown == caught.value.log.shown
    assert caught.value.log.total == 2 + 2 * len(BAD)


def test_usual_rows_start_no_process(write_manifest: WriteManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    monkeypatch.setattr("batchgen.trials._ANSWERS", {})
    rows = [{"prompt": "a red ball", "steps": steps, "scheduler": name} for steps in (4, 25) for name in NAMES]
    with resolved_rows(Job(manifest=str(write_manifest("m.jsonl", rows)))) as (index, _):
        assert index.counts().total == len(rows)
