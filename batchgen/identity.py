"""What makes a row that row: canonical JSON, fingerprints, derived seeds, ids, shard names. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["LEFT_OUT", "canonical", "derive_seed", "fingerprint", "row_id", "shard_id"]

VERSION = 2  # of the fingerprint; raised when the same row would give another image
LEFT_OUT = (
    "batch order",
    "batch size",
    "carried columns",
    "device",
    "dtype",
    "image format",
    "images kept beside the row's own (of steps, of ControlNets)",
    "layout",
    "log level",
    "memory mode",
    "name and place of models, adapters and images (their bytes count)",
    "name of the sampler (its class and options count)",
    "safety policy",
    "shard size",
    "workers",
)
"""What a fingerprint does not depend on; written beside every output."""

_SHORT = 16  # hexadecimal digits of a fingerprint that name a row: 64 bits, one clash expected at 5e9 rows


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: NaN or infinity somewhere inside.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(task: str, values: Mapping[str, Any], model: str, inputs: Mapping[str, str]) -> str:
    """sha256 of everything that decides the pixels, as 64 hexadecimal digits.

    Args:
        task: name of the task.
        values: what is applied, without what only names things (id, model); nulls are left out.
        model: fingerprint of the model.
        inputs: sha256 of the conditioning images' bytes, by column.
    """
    content = [VERSION, task, model, values, inputs]
    return hashlib.sha256(canonical(content).encode("utf-8", "surrogatepass")).hexdigest()


def derive_seed(content: str, occurrence: int) -> int:
    """A seed of 32 bits (so that every other program takes it too) from a row's content without seed.

    Args:
        content: fingerprint of the row without a seed, with the id the user gave it, if any.
        occurrence: 0 for the first of equal rows, 1 for the second, and so on.
    """
    return int.from_bytes(hashlib.sha256(f"{content}/{occurrence}".encode()).digest()[:4], "big")


def row_id(fingerprint: str, occurrence: int = 0) -> str:
    """Name of a row that came without one; the second of two entirely equal rows ends in -1."""
    return fingerprint[:_SHORT] + (f"-{occurrence}" if occurrence else "")


def shard_id(rows: Iterable[tuple[str, str]]) -> str:
    """Name of a shard, from the ids and fingerprints of its rows in order."""
    digest = hashlib.sha256()
    for name, print_ in rows:
        digest.update(f"{len(name)}:{name}{print_}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:_SHORT]
