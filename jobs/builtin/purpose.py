"""What each model of the recipe is for, as batchgen reads it from a file in the model's folder.

    python -m jobs.builtin.purpose

writes these files into the package's own weights, of which they are no part.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from batchgen import builtin
from batchgen.models.purpose import FILE
from jobs.builtin.captions import vocabulary
from jobs.builtin.renderer import IMAGE_SIZE

ABOUT = (
    "a sphere, cube, cylinder, cone or ring, or two of them side by side, in eight colors, on a plain background or a "
    "checkered floor, at sunset, at night, in a meadow or a desert"
)
DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "base": {"guidance_scale": 3.5},
    "depth": {"guidance_scale": 3.5},
    "inpainting": {"guidance_scale": 3.5},
    "upscaler": {"guidance_scale": 1.0, "noise_level": 0},
}
"""Where each scored best: the cards say how."""


def render_purpose(name: str) -> str:
    """The file of the base, or of a companion that is a model."""
    words = textwrap.fill(", ".join(f'"{word}"' for word in vocabulary()), 116, break_on_hyphens=False)
    defaults = "\n".join(f"{column} = {value}" for column, value in DEFAULTS[name].items())
    return (
        "# What this model is for; batchgen reads it, and warns of rows that ask for something else.\n"
        f'about = "{ABOUT}"\n'
        f"words = [\n{textwrap.indent(words, '    ')},\n]\n"
        f"sizes = [{IMAGE_SIZE}]\n\n"
        f"[defaults]\n{defaults}\n"
    )


def write_purpose(folder: Path, name: str) -> None:
    """Write it into an exported folder."""
    (folder / FILE).write_text(render_purpose(name), encoding="utf-8")


if __name__ == "__main__":
    for name in DEFAULTS:
        write_purpose(builtin.model_path("builtin" if name == "base" else f"builtin-{name}"), name)
