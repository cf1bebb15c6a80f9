"""Shapes of the tensors in a .safetensors file, by its header alone. Knows nothing of torch.

The header is read here and not by the library, whose own check of a hostile one can end the process.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgen.errors import CellError, InputError
from batchgen.manifest.strict_json import parse_json
from batchgen.reading import open_file

__all__ = ["Shapes", "read_shapes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of the tensors in a file, by name."""

_LONGEST = 64 << 20  # bytes of a header; that of the largest models has some hundred KiB
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}  # bytes of a number
_MOST = 1 << 48  # bytes, or numbers of a side; sums of these stay exact


def read_shapes(file: Path) -> Shapes:
    """Shapes by tensor name; the weights are not read.

    Raises:
        CellError: no such file, or one that is cut short or damaged.
    """
    try:
        return _shapes(file)
    except (OSError, ValueError, InputError) as error:
        raise CellError(f"{file} is not a whole .safetensors file: {error}") from None


def _shapes(file: Path) -> Shapes:
    with open_file(file) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= _LONGEST:
            raise ValueError("it begins with no header")
        header = stream.read(length)
        size = stream.seek(0, 2) - 8 - length
    if len(header) < length:
        raise ValueError("its header is cut off")
    parts = parse_json(header.decode())
    if not isinstance(parts, dict):
        raise ValueError("its header is no object")
    parts.pop("__metadata__", None)
    end = 0
    shapes = {}
    for name, one in sorted(parts.items(), key=lambda item: _offsets(*item)):
        start, stop = _offsets(name, one)
        shape = shapes[name] = _whole_numbers(name, one.get("shape"))
        if math.prod(shape) * _SIZES.get(one.get("dtype"), 0) not in (0, stop - start):
            raise ValueError(f"tensor {name!r} has {stop - start} bytes, which its shape {shape} is not")
        if start != end or stop < start:
            raise ValueError(f"tensor {name!r} does not begin where the one before ends")
        end = stop
    if end != size:
        raise ValueError(f"its tensors have {end:,} bytes, and the file holds {size:,}")
    return {name: shapes[name] for name in parts}


def _offsets(name: str, tensor: Any) -> tuple[int, int]:
    found = _whole_numbers(name, tensor.get("data_offsets") if isinstance(tensor, dict) else None)
    if len(found) != 2 or not isinstance(tensor.get("dtype"), str):
        raise ValueError(f"tensor {name!r} has no type, or no place")
    return found[0], found[1]


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or len(value) > 16
        or not all(type(one) is int and 0 <= one < _MOST for one in value)
    ):
        raise ValueError(f"tensor {name!r} has no shape, or no place")
    return tuple(value)
