"""What a model is for, by a small file of its own beside model_index.json. Knows nothing of rows.

    about = "a cube or a sphere in one of two colors"
    words = ["a", "blue", "cube", "red", "sphere"]
    sizes = [128]

    [defaults]
    guidance_scale = 3.5

All of it may be absent. It is not loaded with the model and not in its fingerprint: who corrects it has nothing made
again but rows that take another default.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.manifest.values import parse_defaults
from batchgen.reading import read_file
from batchgen.toml_tables import read_fields

__all__ = ["FILE", "Purpose", "read_purpose"]

FILE = "batchgen.toml"

_COLUMNS = {column.name for column in COLUMNS.values() if column.kind in (Kind.INTEGER, Kind.NUMBER)} - {
    "class_label", "height", "num_images_per_prompt", "seed", "width",
} | {"scheduler"}  # fmt: skip
"""What a model may have defaults of: numbers that say how it samples, and its sampler."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purpose:
    """What a model is for; what is empty is not known.

    `about` goes on after "it makes", `words` are all that its captions had, in lower case, `sizes` the sides in pixels
    of the squares that it was trained on, and `defaults` what stands for null cells, by column.
    """

    about: str = ""
    words: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


def read_purpose(folder: Path, name: str) -> Purpose:
    """What the file in a model's folder says; nothing where there is none.

    Raises:
        InputError: it is not TOML, has unknown keys, or values of the wrong type; all at once.
    """
    path = folder / FILE
    try:
        table = tomllib.loads(read_file(path).decode())
    except FileNotFoundError:
        return Purpose()
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise InputError(f"model {name!r}: {path}: {error}") from error
    wrong: list[str] = []
    said = read_fields(Purpose, table, wrong)
    said["words"] = tuple(word.lower() for word in said.get("words", ()))
    said["defaults"] = parse_defaults(said.get("defaults", {}), _COLUMNS, wrong)
    if wrong:
        raise InputError("\n".join(f"model {name!r}: {path}: {line}" for line in sorted(wrong)))
    return Purpose(**said)
