"""Lines of A1111's script "Prompts from file": options of the command line in place of a prompt. Knows names only."""

import shlex
from collections.abc import Mapping

from batchgen.errors import TextError

__all__ = ["is_script_line", "read_script_line"]

LONGEST = 50_000  # characters, which are taken apart one by one
_COLUMNS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "sampler_name": "sampler",
    "steps": "steps",
    "cfg_scale": "cfg_scale",
    "width": "width",
    "height": "height",
    "sd_model": "model",
}
_COUNTED = ("batch_size", "n_iter")  # images of a call, and calls
_TEXTS = ("prompt", "negative_prompt")
_UNSEEN = ("outpath_samples", "outpath_grids", "prompt_for_display", "do_not_save_samples", "do_not_save_grid")


def is_script_line(line: str) -> bool:
    """Whether a line holds options and no prompt; the script takes a line for one by the same rule."""
    return line.lstrip().startswith("--")


def read_script_line(line: str) -> Mapping[str, str]:
    """A line's options by column.

    Raises:
        TextError: an option has no column, lacks its value, or quotes are not closed.
    """
    if len(line) > LONGEST:
        raise TextError(f"has {len(line):,} characters; a line of options has at most {LONGEST:,}")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise TextError(f"{error}; quotes belong around a prompt as a whole") from None
    cells: dict[str, str] = {}
    copies = 1
    while words:
        option = words.pop(0).removeprefix("--")
        values = []
        while words and not words[0].startswith("--"):
            values.append(words.pop(0))
        if not values or (len(values) > 1 and option not in _TEXTS):
            raise TextError(f"--{option} has {len(values)} values; it takes one")
        value = " ".join(values)  # the script, too, takes all words up to the next option for the prompt
        if option in _COLUMNS:
            cells[_COLUMNS[option]] = value
        elif option in _COUNTED:
            if not value.isdigit() or int(value) < 1:
                raise TextError(f"--{option} is {value}; it is a whole number from 1 up")
            copies *= int(value)
        elif option not in _UNSEEN:
            known = ", ".join(f"--{name}" for name in (*_COLUMNS, *_COUNTED))
            raise TextError(f"--{option} is not read; known are {known}")
    if cells.get("seed") == "-1":
        del cells["seed"]
    return {**cells, "num_images_per_prompt": str(copies)} if copies > 1 else cells
