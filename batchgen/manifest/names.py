"""Which column of the contract a file's column stands for: other spellings, and the names that other tools use.

Letter case, blanks, dashes and underscores do not matter. Knows names only, not cells.
"""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from batchgen.manifest.columns import COLUMNS

__all__ = [
    "ALIASES",
    "FOREIGN",
    "describes_another",
    "find_column",
    "fold",
    "is_sampler",
    "is_schedule",
    "near_or_known",
    "remark",
    "suggest",
]

ALIASES: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "denoising_strength": "strength",
    "init_image": "image",
    "text": "prompt",
    "caption": "prompt",
    "prompts": "prompt",
}
"""Other names of our own; one beside another of the same column is refused, but for texts beside a prompt."""

FOREIGN: Mapping[str, Mapping[str, str]] = {
    "A1111": {"cfgs": "guidance_scale", "clip_skip": "clip_skip", "hires_upscale": "hires_scale"},
    "ComfyUI": {
        "positive": "prompt",
        "negative": "negative_prompt",
        "noise_seed": "seed",
        "denoise": "strength",
        "ckpt_name": "model",
    },
    "InvokeAI": {"positive_prompt": "prompt", "denoise_strength": "strength"},
    "SwarmUI": {"init_image_creativity": "strength"},
    "DiffusionDB": {"step": "num_inference_steps"},
    "CompVis": {
        "ddim_steps": "num_inference_steps",
        "ddim_eta": "eta",
        "scale": "guidance_scale",
        "H": "height",
        "W": "width",
        "n_samples": "num_images_per_prompt",
        "init_img": "image",
    },
}
"""Names of other tools, by tool; beside a column of our own name they are carried along."""

_SUGGESTED: Mapping[str, str] = {
    "mask": "mask_image",
    "mask_path": "mask_image",
    "image_path": "image",
    "image_file": "image",
    "init_image_path": "image",
    "control": "control_image",
    "batch_count": "num_images_per_prompt",
    "images": "num_images_per_prompt",
    "inference_steps": "num_inference_steps",
    "number_of_steps": "num_inference_steps",
    "step_count": "num_inference_steps",
    "guidance": "guidance_scale",
}
"""Names that are carried along, and may have been meant for a column."""

_REMARKS: Mapping[str, str] = {
    "size": "write it as two columns, 'width' and 'height'",
    "aspect_ratio": "write the size as two columns, 'width' and 'height'",
    "clip_skip": "as diffusers counts: 1 leaves the last layer out, for which A1111 writes 2",
}
_SAMPLERS = ("sampler", "sampler_name")
_SCHEDULES = ("scheduler", "schedule_type")
_SHORTEST = 3  # letters of a name that may be one with letters turned; with others too many or missing, one more


def fold(name: str) -> str:
    """A name without letter case, blanks, dashes and underscores."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _folded(names: Mapping[str, str]) -> dict[str, str]:
    return {fold(name): meaning for name, meaning in names.items()}


_OWN = _folded({name: name for name in COLUMNS} | dict(ALIASES))
_OTHERS = {name: column for names in FOREIGN.values() for name, column in _folded(names).items()}
_MEANT = _folded(_SUGGESTED)
_NEAR = _MEANT | _OWN
_SAID = _folded(_REMARKS)


def find_column(name: str, *, own: bool = False) -> str | None:
    """The column that a name stands for; None for a name that nothing is known of.

    Args:
        own: names of other tools do not count.
    """
    if name in COLUMNS:
        return name
    return _OWN.get(fold(name)) or (None if own else _OTHERS.get(fold(name)))


def describes_another(name: str, columns: Collection[str]) -> bool:
    """Whether a column says the size of an image elsewhere, as LAION's `WIDTH` and `HEIGHT` beside `URL` do."""
    return name not in COLUMNS and fold(name) in ("width", "height") and any(fold(one) == "url" for one in columns)


def suggest(name: str) -> str | None:
    """The column that a name which stands for none may have been meant for: letters turned, missing or too many."""
    folded = fold(name)
    if folded in _MEANT:
        return _MEANT[folded]
    if len(folded) < _SHORTEST or folded in _SAID or folded.endswith("id"):
        return None
    turned = next((one for one in _OWN if sorted(one) == sorted(folded)), None)
    near = [one for one in get_close_matches(folded, _NEAR, n=3, cutoff=0.8) if one[0] == folded[0] and len(one) > 3]
    found = turned or next(iter(near), None)
    return None if found is None else _NEAR[found]


def near_or_known(name: str, known: Collection[str]) -> str:
    """What to say of a name that none of the known ones is: which was probably meant, else all of them."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def remark(name: str) -> str | None:
    """What to say besides of a name that other tools mean in another way."""
    return None if name in COLUMNS else _SAID.get(fold(name))


def is_sampler(name: str) -> bool:
    """Whether a column names samplers in the way of tools that have schedules in a column beside."""
    return fold(name) in map(fold, _SAMPLERS)


def is_schedule(name: str) -> bool:
    """Whether a column, beside one of samplers, names schedules of noise levels."""
    return fold(name) in map(fold, _SCHEDULES)
