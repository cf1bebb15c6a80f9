"""Finds rows whose scheduler would refuse them on the device: its options by value, or the number of steps.

Only diffusers' classes know what they take, and the driver does not import diffusers: what no test has tried is tried
in a process of its own, once for all rows of a kind. Knows nothing of outputs.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchgen.errors import InfrastructureError
from batchgen.generation.samplers import NAMES
from batchgen.identity import canonical
from batchgen.index import Index
from batchgen.manifest.problems import ProblemLog
from batchgen.models.catalog import Model, Source
from batchgen.rows import decode_row

__all__ = ["TRIED_STEPS", "Trial", "try_schedulers"]

TRIED_STEPS = 50
"""Samplers by their names can do up to so many steps with the published configs, but for some; a test holds that."""

_BETA_STEPS = 25  # 25 go well and 50 do not: some of its noise levels fall together
_PNDM_STEPS = 4  # its Runge-Kutta steps need as many
_USUAL_TIMESTEPS = 1000
_NAMED = frozenset((sampler.class_name, canonical(dict(sampler.kwargs))) for sampler in NAMES.values())
_TIMEOUT = 900.0  # seconds; a thousand steps of DPM++ SDE take ten


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A scheduler's class, its options, the model's config of its scheduler, and the number of steps."""

    class_name: str
    kwargs: Mapping[str, Any]
    config: Mapping[str, Any]
    steps: int

    @property
    def as_json(self) -> str:
        """As the process that tries takes it."""
        return canonical([self.class_name, dict(self.kwargs), dict(self.config), self.steps])

    @property
    def is_named(self) -> bool:
        """Whether the options are those that a sampler's name brings."""
        return (self.class_name, canonical(dict(self.kwargs))) in _NAMED

    @property
    def is_known(self) -> bool:
        """Whether it goes well without a try."""
        usual = self.config.get("num_train_timesteps", _USUAL_TIMESTEPS) == _USUAL_TIMESTEPS
        few = self.class_name == "PNDMScheduler" and self.steps < _PNDM_STEPS
        most = _BETA_STEPS if self.kwargs.get("use_beta_sigmas") else TRIED_STEPS
        return self.is_named and usual and not few and self.steps <= most


def try_schedulers(index: Index, models: Mapping[str, Model], problems: ProblemLog) -> None:
    """Note all rows of the index whose scheduler cannot do what they ask.

    Raises:
        InfrastructureError: the process that tries ended without an answer.
    """
    configs = {name: _config(model) for name, model in models.items()}
    trials: dict[str, Trial] = {}
    for key in index.batch_keys():
        name, _, _, shared, *_ = json.loads(key)
        config = configs[name]
        if config is not None and shared.get("scheduler") is not None:
            trial = Trial(
                class_name=shared["scheduler"],
                kwargs=shared.get("scheduler_kwargs") or {},
                config=config,
                steps=shared["num_inference_steps"],
            )
            if not trial.is_known:
                trials[key] = trial
    reasons = _tried(trials)
    for key, text, carried in index.encoded() if reasons else ():
        if key in reasons:
            row, trial = decode_row(text, carried), trials[key]
            column = "num_inference_steps" if trial.is_named else "scheduler_kwargs"
            problems.add(row.file, row.number, column, f"{reasons[key]}; try other steps, options or another scheduler")


def _tried(trials: Mapping[str, Trial]) -> dict[str, str]:
    """Why trials fail, by their keys; those that go well are left out."""
    asked = {key: one.as_json for key, one in trials.items()}
    distinct = list(dict.fromkeys(asked.values()))
    if not distinct:
        return {}
    command = [sys.executable, "-m", "batchgen.diffusion.trial"]
    try:
        done = subprocess.run(
            command, input=f"[{','.join(distinct)}]", capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"schedulers could not be tried: {error}") from error
    answers: dict[str, str | None] = dict(zip(distinct, json.loads(done.stdout), strict=True))
    return {key: reason for key, trial in asked.items() if (reason := answers[trial]) is not None}


def _config(model: Model) -> Mapping[str, Any] | None:
    """The config of a model's scheduler; None where it is not at hand before the model is loaded."""
    file = model.folder / "scheduler" / "scheduler_config.json"
    if model.source is not Source.FOLDER or not file.is_file():
        return None
    config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config
