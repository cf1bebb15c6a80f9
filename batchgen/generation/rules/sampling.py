"""The scheduler: a sampler's name becomes a class of diffusers and its options."""

from difflib import get_close_matches

from batchgen.errors import UnknownSampler
from batchgen.generation.rules.draft import Defaults, Draft, Problems, asked
from batchgen.generation.samplers import OPTIONS, find_sampler, option_problems
from batchgen.manifest.cells import Parsed
from batchgen.models.catalog import Family, Model

__all__ = ["named_sampler", "scheduler_rule"]


def named_sampler(parsed: Parsed, model: Model, defaults: Defaults) -> str:
    """The sampler as it was written, whose class and options are what is applied; the model's class where none was."""
    name: str | None = asked("scheduler", parsed, model, defaults)
    return name or model.scheduler


def scheduler_rule(draft: Draft) -> Problems:
    """Scheduler class and options: a sampler's name brings options of its own, `scheduler_kwargs` adds to them."""
    values, model = draft.values, draft.model
    try:
        sampler = find_sampler(values["scheduler"] or model.scheduler)
    except UnknownSampler as error:
        yield "scheduler", str(error)
        values["scheduler"], values["scheduler_kwargs"] = model.scheduler, {}
        return
    if model.family is Family.LATENT_UPSCALER and sampler.class_name != "EulerDiscreteScheduler":
        yield "scheduler", f"is {sampler.class_name}; a {model.family} takes EulerDiscreteScheduler only"
    options = {**sampler.kwargs, **(values["scheduler_kwargs"] or {})}
    for name in options:
        if name == "noise_sampler_seed":
            yield "scheduler_kwargs", "noise_sampler_seed follows from the row's seed; leave it out"
        elif name not in OPTIONS[sampler.class_name]:
            near = get_close_matches(name, OPTIONS[sampler.class_name], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see diffusers' page of the class"
            yield "scheduler_kwargs", f"{sampler.class_name} takes no option {name!r}; {hint}"
    for problem in option_problems(options):
        yield "scheduler_kwargs", problem
    values["scheduler"], values["scheduler_kwargs"] = sampler.class_name, options
