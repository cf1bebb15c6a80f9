"""Finds rows whose scheduler would refuse them on the device: its options by value, or the number of steps.

Only diffusers' classes know what they take, and the driver does not import diffusers: what no test has tried is tried
in a process of its own, once for all rows of a kind. Knows nothing of stores.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchgen.errors import InfrastructureError, InputError
from batchgen.generation.samplers import FORCED, NAMES, OPTIONS
from batchgen.generation.tasks import TASKS
from batchgen.identity import canonical
from batchgen.index import Index
from batchgen.manifest.problems import ProblemLog
from batchgen.models.catalog import Family, Model, Source, cached_file
from batchgen.models.configs import MOST_TIMESTEPS, read_config

__all__ = ["TRIED_STEPS", "Trial", "try_schedulers"]

TRIED_STEPS = 150
"""Samplers by their names can do up to so many steps with the published configs, but for some; a test holds that."""

_MOST: Mapping[str, int] = dict.fromkeys(("LCMScheduler", "TCDScheduler"), 50)  # of `original_inference_steps`
_LEAST: Mapping[str, int] = {"PNDMScheduler": 4}  # its Runge-Kutta steps need as many
_ENDS_NOISY = frozenset({"DEISMultistepScheduler", "SASolverScheduler"})  # their last sigma repeats the one before
_USUAL_TIMESTEPS = 1000
_NAMED = frozenset((sampler.class_name, canonical(dict(sampler.kwargs))) for sampler in NAMES.values())
_TIMEOUT = 900.0  # seconds; a thousand steps of LMS take up to twenty
_CONFIG = "scheduler_config.json"
_ANSWERS: dict[str, str | None] = {}  # of trials, for as long as this process and so its libraries last
_PUBLISHED: Mapping[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": _USUAL_TIMESTEPS,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""What the models of Stable Diffusion have, from 1.1 to XL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A scheduler's class, its options, the model's config of its scheduler, and the number of steps.

    `forced` are options that the pipeline sets whatever is asked.
    """

    class_name: str
    kwargs: Mapping[str, Any]
    config: Mapping[str, Any]
    steps: int
    forced: Mapping[str, Any] = field(default_factory=dict)

    @property
    def as_json(self) -> str:
        """As the process that tries takes it."""
        own = {name: value for name, value in self.forced.items() if name in OPTIONS[self.class_name]}
        return canonical([self.class_name, {**self.kwargs, **own}, dict(self.config), self.steps])

    @property
    def is_named(self) -> bool:
        """Whether the options are those that a sampler's name brings."""
        return (self.class_name, canonical(dict(self.kwargs))) in _NAMED

    @property
    def is_known(self) -> bool:
        """Whether it goes well without a try."""
        usual = self.config.get("num_train_timesteps", _USUAL_TIMESTEPS) == _USUAL_TIMESTEPS
        least, most = _LEAST.get(self.class_name, 1), _MOST.get(self.class_name, TRIED_STEPS)
        if self.class_name in _ENDS_NOISY:
            least = 2
        return self.is_named and usual and least <= self.steps <= most


def try_schedulers(
    index: Index, models: Mapping[str, Model], problems: ProblemLog, *, survey: Callable[[], object]
) -> None:
    """Note the rows of the index whose scheduler cannot do what they ask, but for those that the output has recorded.

    Args:
        index: the manifest's rows.
        models: by name.
        problems: where they are noted.
        survey: marks in the index what the output has recorded; called where some scheduler fails.

    Raises:
        InfrastructureError: the process that tries ended without an answer.
        InputError: a model's scheduler config is not JSON.
    """
    configs = {name: _config(model) for name, model in models.items()}
    trials = {key: [one for one in _trials(key, models, configs) if not one.is_known] for key in index.batch_keys()}
    reasons = _tried({one.as_json for listed in trials.values() for one in listed})
    failed = {
        key: next((reasons[one.as_json], one.is_named) for one in listed if one.as_json in reasons)
        for key, listed in trials.items()
        if any(one.as_json in reasons for one in listed)
    }
    if not failed:
        return
    survey()
    for key, row in index.pending(by_key=False):
        if key in failed:
            reason, is_named = failed[key]
            column = "num_inference_steps" if is_named else "scheduler_kwargs"
            problems.add(row.file, row.number, column, f"{reason}; try other steps, options or another scheduler")


def _trials(key: str, models: Mapping[str, Model], configs: Mapping[str, Mapping[str, Any]]) -> Iterator[Trial]:
    """What the rows of a batch key ask of the schedulers of their model and its refiner.

    The second pass of the hires fix has the steps, the options and the forced ones of the first.
    """
    name, _, task, shared, *_ = json.loads(key)
    if shared.get("scheduler") is None:
        return
    pipeline = TASKS[task].pipeline(models[name].family, controlled=bool(shared.get("controlnet")))
    for model, forced in {name: FORCED.get(pipeline or "", {}), shared.get("refiner"): {}}.items():
        if model is not None:
            yield Trial(
                class_name=shared["scheduler"],
                kwargs=shared.get("scheduler_kwargs") or {},
                config=configs[model],
                steps=shared["num_inference_steps"],
                forced=forced,
            )


def _tried(trials: Set[str]) -> dict[str, str]:
    """Why trials fail, by themselves; those that go well are left out."""
    if asked := sorted(trials - _ANSWERS.keys()):  # equal schedulers side by side: building takes longer than steps
        _ANSWERS.update(zip(asked, _try(asked), strict=True))
    return {trial: answer for trial in trials if (answer := _ANSWERS[trial]) is not None}


def _try(asked: Sequence[str]) -> list[str | None]:
    """Why each fails, by the process that tries; None for those that go well."""
    command = [sys.executable, "-m", "batchgen.diffusion.trial"]
    try:
        done = subprocess.run(
            command, input=f"[{','.join(asked)}]", capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InfrastructureError(f"schedulers could not be tried: {error}") from error
    answers: list[str | None] = json.loads(done.stdout)
    return answers


def _config(model: Model) -> Mapping[str, Any]:
    """The config of a model's scheduler; that of the published models where it is not at hand before loading."""
    for file in _config_files(model):
        if file.is_file():
            try:
                config = read_config(file)
                config.number("num_train_timesteps", most=MOST_TIMESTEPS)
                return config.content
            except InputError as error:
                raise InputError(f"model {model.name!r}: {error}") from None
    return {} if model.family is Family.PIXELS else _PUBLISHED


def _config_files(model: Model) -> Iterator[Path]:
    """Where it may lie: the oldest models of pixels are flat, those of the hub left their configs in its cache."""
    places = {Source.FOLDER: str(model.folder), Source.SINGLE_FILE: model.config, Source.HUB: model.location}
    place = places[model.source]
    if place is None:
        return
    if Path(place).is_dir():
        yield from (Path(place, "scheduler", _CONFIG), Path(place, _CONFIG))
    elif (cached := cached_file(place, f"scheduler/{_CONFIG}", model.revision)) is not None:
        yield cached
