"""The scheduler: a sampler's name becomes a class of diffusers and its options."""

from difflib import get_close_matches

from batchgen.errors import UnknownSampler
from batchgen.generation.rules.draft import Draft, Problems
from batchgen.generation.samplers import OPTIONS, find_sampler, option_problems
from batchgen.models.catalog import Family

__all__ = ["scheduler_rule"]


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
