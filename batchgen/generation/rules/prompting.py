"""Prompts: that there is one, what its syntax asks for besides, and the sizes that SDXL is conditioned on."""

from batchgen.errors import PromptSyntaxError
from batchgen.generation.parameters import PROMPTS
from batchgen.generation.prompt_syntax import find_unsupported, parse_tags
from batchgen.generation.rules.draft import Draft, Problems
from batchgen.manifest.cells import missing_prompt
from batchgen.manifest.columns import COLUMNS
from batchgen.models.adapters import ADAPTERS
from batchgen.models.catalog import Family

__all__ = ["prompt_rule"]

_TAGGED = {"lora": "loras", "lyco": "loras", "hypernet": "hypernetwork"}  # columns, by the kinds of tags in prompts


def prompt_rule(draft: Draft) -> Problems:
    """Size conditioning and the second prompt of SDXL; what a prompt of A1111's syntax asks for besides."""
    values, model = draft.values, draft.model
    if "prompt" not in values:
        return
    if values["prompt"] is None and "prompt" not in draft.parsed.spoiled:
        yield "prompt", missing_prompt(draft.parsed.record)
    for name in PROMPTS:
        if "{prompt}" in (values.get(name) or ""):
            said = "holds {prompt}, as A1111's styles do, where a prompt is to stand; write one row for each prompt"
            yield name, said
    if values["clip_skip"] is not None and values["clip_skip"] >= model.text_layers:
        yield "clip_skip", f"is {values['clip_skip']}; {model.name!r} has {model.text_layers} text layers"
    if model.family in (Family.SDXL, Family.REFINER):
        size = (values["height"], values["width"])
        values["original_size"] = values.get("original_size") or size
        values["target_size"] = values.get("target_size") or size
        values["crops_coords_top_left"] = values.get("crops_coords_top_left") or (0, 0)
    elif values["negative_prompt"] is None:
        values["negative_prompt"] = ""  # the same to one tower; SDXL takes zeros for a missing one
    if values["prompt_syntax"] == "a1111":
        yield from _tagged(draft)


def _tagged(draft: Draft) -> Problems:
    """Adapters that a prompt of A1111's syntax names go to their columns; what is not done of it is refused."""
    values = draft.values
    for name in PROMPTS:
        if reason := find_unsupported(values.get(name) or "", negative=name.startswith("negative")):
            yield name, reason
    try:
        values["prompt"], tags = parse_tags(values["prompt"] or "")
    except PromptSyntaxError as error:
        yield "prompt", str(error)
        return
    for tag in tags:
        column = _TAGGED[tag.kind]
        kind, given = ADAPTERS[column], values.get(column)
        named = {"path": draft.defaults.adapters.named(tag.name), "scale": tag.scale}
        if column not in values:
            yield "prompt", f"names the {kind.what} {tag.name!r}; a {draft.model.family} takes none"
        elif COLUMNS[column].listed:
            listed = given if isinstance(given, (list, tuple)) else () if given is None else (given,)
            values[column] = [*listed, named]
        elif given is None:
            values[column] = named
        else:
            yield "prompt", f"names the {kind.what} {tag.name!r} beside another; a row takes one"
