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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.columns import COLUMNS, Kind
from batchgen.manifest.names import near_or_known
from batchgen.manifest.values import parse_defaults
from batchgen.storage import read_file

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
    known = [one.name for one in fields(Purpose)]
    wrong = [f"unknown key {key!r}; {near_or_known(key, known)}" for key in table.keys() - set(known)]
    found = Purpose(
        about=_typed(table, "about", str, "text", wrong) or "",
        words=tuple(word.lower() for word in _listed(table, "words", str, "a list of words", wrong)),
        sizes=tuple(_listed(table, "sizes", int, "a list of whole numbers of pixels", wrong)),
        defaults=parse_defaults(_typed(table, "defaults", dict, "a table", wrong), _COLUMNS, wrong),
    )
    if wrong:
        raise InputError("\n".join(f"model {name!r}: {path}: {line}" for line in sorted(wrong)))
    return found


def _typed(table: Mapping[str, Any], key: str, kind: type, wanted: str, wrong: list[str]) -> Any:
    """The key's value; None where it is absent, or of another type, which is a complaint."""
    value = table.get(key)
    if value is None or isinstance(value, kind):
        return value
    wrong.append(f"key {key!r} is {value!r}; wants {wanted}")
    return None


def _listed(table: Mapping[str, Any], key: str, kind: type, wanted: str, wrong: list[str]) -> list[Any]:
    values: list[Any] = _typed(table, key, list, wanted, wrong) or []
    if all(type(value) is kind and value for value in values):
        return values
    wrong.append(f"key {key!r} is {values!r}; wants {wanted}")
    return []
