"""Second passes: a refiner for the end of the noise schedule, the hires fix for a larger image."""

from batchgen.errors import InputError
from batchgen.generation.rules.draft import Draft, Problems
from batchgen.manifest.columns import MAX_SIDE
from batchgen.models.catalog import Family

__all__ = ["hires_rule", "refiner_rule"]

_HANDOFF = 0.8  # of the noise schedule: where SDXL's authors let the refiner take over (Podell et al. 2023)


def refiner_rule(draft: Draft) -> Problems:
    """Where a refiner takes over, and that it is one."""
    values, model = draft.values, draft.model
    if values.get("refiner") is not None and values.get("denoising_end") is None:
        values["denoising_end"] = _HANDOFF
    start, end = values.get("denoising_start"), values.get("denoising_end")
    if start is not None and end is not None and start >= end:
        yield "denoising_start", f"is {start:g}, not before denoising_end, {end:g}"
    if values.get("refiner") is None:
        return
    if end in (0.0, 1.0):
        yield "denoising_end", f"is {end:g}, which leaves one of base and refiner without a step"
    try:
        refiner = draft.defaults.find_model(values["refiner"])
    except InputError as error:
        yield "refiner", str(error)
        return
    if refiner.family is not Family.REFINER:
        yield "refiner", f"is {refiner.name!r}, a {refiner.family} model; name a refiner"
    if model.family is not Family.SDXL:
        yield "refiner", f"cannot follow {model.name!r}, a {model.family} model; leave it null"


def hires_rule(draft: Draft) -> Problems:
    """Without a scale of more than 1 there is no second pass; with one, the first goes to its end."""
    values = draft.values
    if "hires_scale" not in values:
        return
    if (scale := values["hires_scale"]) is None:
        if "hires_scale" not in draft.parsed.spoiled:
            yield from draft.drop(("hires_scale", "hires_strength"), "means nothing without a hires_scale")
        return
    if scale == 1.0:
        del values["hires_scale"], values["hires_strength"]
        return
    for name in ("width", "height"):
        if values[name] * scale > MAX_SIDE:
            yield "hires_scale", f"is {scale:g}, which makes the {name} {values[name] * scale:g} pixels"
    for name in ("refiner", "denoising_end"):
        if values.get(name) is not None:
            yield "hires_scale", f"cannot be used together with a {name}; leave one of them null"
            return
