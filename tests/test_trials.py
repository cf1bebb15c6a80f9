"""No row fails later for its scheduler alone: what a class refuses is found before anything is made."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from conftest import WriteManifest

from batchgen import builtin
from batchgen.diffusion.trial import try_scheduler
from batchgen.driver import resolved_rows
from batchgen.errors import ManifestProblems
from batchgen.generation.samplers import NAMES
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
        "cannot do 20 steps",
    ),
    "past the end": (
        {"scheduler": "DDIM", "steps": 1000, "scheduler_kwargs": {"timestep_spacing": "leading", "steps_offset": 1}},
        "scheduler_kwargs",
        "cannot do 1000 steps",
    ),
    "more steps than timesteps": ({"scheduler": "DPM++ 2M Beta", "steps": 1000}, "num_inference_steps", "1000 steps"),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 25, TRIED_STEPS])
def test_what_is_not_tried_goes_well(config: str, steps: int) -> None:
    trials = [
        Trial(class_name=sampler.class_name, kwargs=sampler.kwargs, config=CONFIGS[config], steps=steps)
        for sampler in NAMES.values()
    ]
    known = {trial.as_json: trial for trial in trials if trial.is_known}
    assert len(known) > 30
    with torch.inference_mode():
        reasons = [try_scheduler(one.class_name, one.kwargs, one.config, one.steps) for one in known.values()]
    assert [reason for reason in reasons if reason is not None] == []


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
def test_what_a_scheduler_refuses_is_a_problem_of_its_rows(write_manifest: WriteManifest) -> None:
    """Incident: these rows passed the check and failed on the device, each twice."""
    cells = [{"prompt": "a red ball", "steps": 20, "scheduler": "DDIM"}]
    rows = [{**cells[0], **bad} for bad, _, _ in BAD.values()]
    file = write_manifest("m.jsonl", [*cells, *rows, *rows])
    with pytest.raises(ManifestProblems) as caught, resolved_rows(Job(manifest=str(file))):
        pass
    found = {(problem.row, problem.column): problem.message for problem in caught.value.log.shown}
    for number, (_, column, said) in enumerate(BAD.values(), start=2):
        assert said in found[number, column]
    assert len(found) == len(BAD)  # each fault once
    assert caught.value.log.total == 2 * len(BAD)


def test_usual_rows_start_no_process(write_manifest: WriteManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    rows = [{"prompt": "a red ball", "steps": steps, "scheduler": name} for steps in (4, 25) for name in NAMES]
    with resolved_rows(Job(manifest=str(write_manifest("m.jsonl", rows)))) as (index, _):
        assert index.counts().total == len(rows)
