"""The column contract of manifests: names, types, ranges, aliases, defaults. Knows nothing of files or models.

The names are diffusers' argument names. A null or absent cell takes the job's default for the column, then the one in
this table, then what the model brings (size, scheduler).
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from batchgen.errors import CellError

__all__ = [
    "ALIASES",
    "COLUMNS",
    "MAX_SEED",
    "MAX_SIDE",
    "RESERVED",
    "WORDING",
    "Column",
    "Kind",
    "image_column",
    "input_name",
    "parse_cell",
]


class Kind(StrEnum):
    """What a cell holds."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    NUMBERS = "numbers"
    SIZE = "size"
    FLAG = "flag"
    OPTIONS = "options"
    IMAGE = "image"
    ADAPTER = "adapter"


WORDING: Mapping[Kind, str] = {
    Kind.TEXT: "text",
    Kind.INTEGER: "a whole number",
    Kind.NUMBER: "a number",
    Kind.NUMBERS: "a number, or a list of them",
    Kind.SIZE: "two whole numbers, as [height, width]",
    Kind.FLAG: "true or false",
    Kind.OPTIONS: "a JSON object",
    Kind.IMAGE: "an image (a URI, or a struct of bytes and path)",
    Kind.ADAPTER: "an adapter (text, a list, or JSON)",
}
"""The kinds as messages name them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of the contract.

    `low` and `high` are inclusive bounds. `shared` says that all rows of a micro-batch must agree on the value, so that
    it enters the batch key. `choices` are the texts it may hold; `listed` says that a cell may be a list as well.

    `neutral` is the value at which a column changes nothing, besides null. It is left out of fingerprints and batch
    keys, so that no image is made again for a column that came later. The columns of the first release have none: their
    defaults are in every fingerprint there is, and the goldens of the tests freeze them.
    """

    name: str
    kind: Kind
    default: Any = None
    low: float | None = None
    high: float | None = None
    multiple_of: int | None = None
    shared: bool = False
    choices: tuple[str, ...] = ()
    listed: bool = False
    neutral: Any = None

    def is_neutral(self, value: Any) -> bool:
        """Whether the value changes nothing: null, or the column's neutral one."""
        return value is None or (self.neutral is not None and value == self.neutral)


MAX_SEED = 2**63 - 1  # torch takes 64 bits, the metadata's int64 one less
MAX_SIDE = 8192  # pixels; the largest that a tiled VAE is known to decode, and a guard against typing errors


def _text(name: str, **kwargs: Any) -> Column:
    return Column(name=name, kind=Kind.TEXT, **kwargs)


def _number(name: str, **kwargs: Any) -> Column:
    return Column(name=name, kind=Kind.NUMBER, **kwargs)


def _integer(name: str, **kwargs: Any) -> Column:
    return Column(name=name, kind=Kind.INTEGER, **kwargs)


def _numbers(name: str, **kwargs: Any) -> Column:
    return Column(name=name, kind=Kind.NUMBERS, shared=True, listed=True, **kwargs)


def _image(name: str, **kwargs: Any) -> Column:
    return Column(name=name, kind=Kind.IMAGE, **kwargs)


def _adapter(name: str, *, shared: bool = True, **kwargs: Any) -> Column:
    return Column(name=name, kind=Kind.ADAPTER, shared=shared, **kwargs)


COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        _text("id"),
        _text("task"),
        _text("prompt"),
        _text("negative_prompt"),
        _text("prompt_2"),
        _text("negative_prompt_2"),
        _text("prompt_syntax", default="plain", choices=("plain", "a1111")),
        _integer("seed", low=0, high=MAX_SEED),
        _integer("num_images_per_prompt", default=1, low=1, high=10_000),
        _integer("width", low=8, high=MAX_SIDE, multiple_of=8, shared=True),
        _integer("height", low=8, high=MAX_SIDE, multiple_of=8, shared=True),
        _integer("num_inference_steps", default=25, low=1, high=1000, shared=True),
        _number("guidance_scale", default=7.5, low=0, high=100),
        _number("guidance_rescale", low=0, high=1, shared=True),
        _number("eta", default=0.0, low=0, high=1, shared=True),
        _integer("clip_skip", low=1, high=24),
        _text("scheduler", shared=True),
        Column(name="scheduler_kwargs", kind=Kind.OPTIONS, shared=True),
        _text("model", shared=True),
        _text("refiner", shared=True),
        _adapter("vae"),
        _image("image"),
        _number("strength", default=0.8, low=0, high=1),
        _image("mask_image"),
        Column(name="keep_unmasked", kind=Kind.FLAG, default=False),
        _image("control_image", listed=True),
        _text("control_preprocess", default="none", choices=("none", "canny", "depth", "pose"), listed=True),
        _adapter("pose_estimator"),
        _adapter("person_detector"),
        _adapter("controlnet", listed=True),
        _numbers("controlnet_conditioning_scale", default=1.0, low=0, high=10),
        _numbers("control_guidance_start", default=0.0, low=0, high=1),
        _numbers("control_guidance_end", default=1.0, low=0, high=1),
        _image("depth_map"),
        _adapter("ip_adapter"),
        _image("ip_adapter_image"),
        _number("ip_adapter_scale", default=1.0, low=0, high=10, shared=True),
        _number("image_guidance_scale", default=1.5, low=0, high=100),
        _adapter("loras", listed=True),
        _adapter("embeddings", shared=False, listed=True),
        _adapter("hypernetwork"),
        _number("denoising_start", low=0, high=1, shared=True),
        _number("denoising_end", low=0, high=1, shared=True),
        _number("hires_scale", low=1, high=4, shared=True),
        _number("hires_strength", default=0.6, low=0, high=1, shared=True),
        Column(name="original_size", kind=Kind.SIZE, low=1, high=MAX_SIDE),
        Column(name="crops_coords_top_left", kind=Kind.SIZE, low=0, high=MAX_SIDE),
        Column(name="target_size", kind=Kind.SIZE, low=1, high=MAX_SIDE),
        _integer("noise_level", default=20, low=0, high=350, shared=True),
        _integer("class_label", low=0),
        _text("watermark"),
        _adapter("classifier"),
        _number("classifier_scale", default=1.0, low=0, high=1000),
    )
}

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
}

RESERVED = frozenset(
    "fingerprint file_name step_images flagged status error error_class sha256 model_fingerprint batch_size device "
    "dtype seconds prompt_tokens sample_index torch_version diffusers_version".split()
) | {f"{column.name}_{part}" for column in COLUMNS.values() if column.kind is Kind.IMAGE for part in ("uri", "sha256")}
"""Names of the result columns; a manifest that brings one of them is refused."""


def input_name(column: str, place: int) -> str:
    """The name of one image of a column that may hold several; `place` counts from 0."""
    return column if place == 0 else f"{column}_{place + 1}"


def image_column(name: str) -> str:
    """The column of an image's name."""
    return re.sub(r"_\d+$", "", name)


def parse_cell(column: Column, cell: Any, *, from_text: bool) -> Any:
    """The cell's value in the column's type: str, int, float, bool, dict, or, for images and adapters, the cell itself.

    Sizes become a tuple of two, columns of several numbers or choices a tuple; lists of images and adapters are read
    from JSON text and else left as they are.

    Args:
        cell: a value as the manifest's reader gives it, not null.
        from_text: the file has no types of its own (CSV): numbers and JSON are read from text.

    Raises:
        CellError: wrong type, not a number, or out of range.
    """
    match column.kind:
        case Kind.TEXT if column.listed:
            return tuple(_parse_text(column, item) for item in _as_list(cell))
        case Kind.TEXT:
            return _parse_text(column, cell)
        case Kind.INTEGER | Kind.NUMBER:
            return _parse_number(column, cell, from_text)
        case Kind.NUMBERS:
            return tuple(float(_parse_number(column, item, from_text)) for item in _as_list(cell))
        case Kind.SIZE:
            return _parse_size(column, cell, from_text)
        case Kind.FLAG:
            return _parse_flag(cell)
        case Kind.OPTIONS:
            return _parse_options(cell)
        case Kind.IMAGE | Kind.ADAPTER:
            return _from_json(cell) if column.listed or column.kind is Kind.ADAPTER else cell


def _from_json(cell: Any) -> Any:
    """The cell, or what its text says where that is a JSON list or object."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except ValueError as error:
            raise CellError(f"starts like JSON and is none: {error}") from None
    return cell


def _as_list(cell: Any) -> list[Any]:
    cell = _from_json(cell)
    if isinstance(cell, (list, tuple)):
        if not cell:
            raise CellError("is an empty list; leave it null")
        return list(cell)
    return [cell]


def _parse_size(column: Column, cell: Any, from_text: bool) -> tuple[int, ...]:
    if isinstance(cell, str) and "x" in cell.lower():
        raise CellError(f"is {_shown(cell)}; write {WORDING[Kind.SIZE]}, height first")
    numbers = tuple(int(_parse_number(column, item, from_text)) for item in _as_list(cell))
    if len(numbers) != 2:
        raise CellError(f"holds {len(numbers)} numbers; give {WORDING[Kind.SIZE]}")
    return numbers


def _parse_flag(cell: Any) -> bool:
    if isinstance(cell, str) and cell.strip().lower() in ("true", "false"):
        return cell.strip().lower() == "true"
    if not isinstance(cell, bool):
        raise CellError(f"is {_shown(cell)}, not {WORDING[Kind.FLAG]}")
    return cell


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse_text(column: Column, cell: Any) -> str:
    if column.name == "id" and isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)  # what pandas makes of an index
    if not isinstance(cell, str):
        raise CellError(f"is {_shown(cell)}, not text; write the column as strings")
    if "\x00" in cell:
        raise CellError("holds a NUL character; remove it")
    if column.name == "id" and not cell.strip():
        raise CellError("is blank; give each row a name of its own, or drop the column")
    if column.choices and cell not in column.choices:
        raise CellError(f"is {_shown(cell)}; one of {', '.join(column.choices)}")
    return cell


def _parse_number(column: Column, cell: Any, from_text: bool) -> int | float:
    whole = column.kind in (Kind.INTEGER, Kind.SIZE)
    if from_text and isinstance(cell, str):
        try:
            cell = int(cell) if whole and "." not in cell else float(cell)
        except (ValueError, OverflowError):
            raise CellError(f"is {_shown(cell)}, not {WORDING[column.kind]}") from None
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        raise CellError(
            f"is {_shown(cell)}, not {WORDING[column.kind]}; write the column as {'int64' if whole else 'float64'}"
        )
    if isinstance(cell, int) and abs(cell) > 2**64:
        raise CellError(f"is {_shown(cell)}, too large")
    if not math.isfinite(cell):
        raise CellError(f"is {cell}; give a finite number")
    if whole and cell != int(cell):
        raise CellError(f"is {cell}, not {WORDING[column.kind]}")
    value = int(cell) if whole else float(cell)
    _check_range(column, value)
    return value


def _check_range(column: Column, value: float) -> None:
    if column.name == "seed" and value == -1:
        raise CellError("is -1; leave it null to have a seed derived from the row and recorded")
    if (column.low is not None and value < column.low) or (column.high is not None and value > column.high):
        if column.high is None:
            raise CellError(f"is {value}; at least {column.low:g}")
        raise CellError(f"is {value}; between {column.low} and {column.high}")
    if column.multiple_of is not None and value % column.multiple_of:
        step = column.multiple_of
        below = max(step, int(value) // step * step)
        raise CellError(f"is {value}, not a multiple of {step}; try {below} or {below + step}")


def _parse_options(cell: Any) -> dict[str, Any]:
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError as error:
            raise CellError(f"is not JSON: {error}") from None
    if isinstance(cell, list) and all(isinstance(item, tuple) and len(item) == 2 for item in cell):
        cell = dict(cell)  # an Arrow map
    if not isinstance(cell, dict):
        raise CellError(f'is {_shown(cell)}, not {WORDING[Kind.OPTIONS]}; for example {{"use_karras_sigmas": true}}')
    return {key: value for key, value in sorted(cell.items()) if value is not None}
