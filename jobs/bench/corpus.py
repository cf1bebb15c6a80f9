"""Manifests for the benchmarks, generated row by row from their number alone: `python corpus.py OUT --rows N`.

`uniform` has one batch key and distinct prompts; `mixed` has eight batch keys, half of the seeds and most negative
prompts missing, text of many lengths and scripts, and a carried column.
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["KINDS", "mixed", "uniform", "write"]

ROW_GROUP = 10_000  # rows; some MiB of text in memory at a time

_SUBJECTS = (
    "a lighthouse",
    "two red cubes",
    "eine Katze auf dem Dach",
    "月の下の猫",
    'a "quoted" sign',
    "a city\nat night",
)
_STYLES = ("oil painting", "watercolour, soft light", "pencil sketch, " + "highly detailed, " * 30, "", "35 mm photo")
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float64()),
        ("scheduler", pa.string()),
        ("my_label", pa.string()),
    ]
)


def uniform(number: int, steps: int) -> dict[str, Any]:
    """Row of that number: a prompt and a seed of its own, everything else shared, so that all rows fit in one key."""
    return {
        "id": f"row-{number:07}",
        "prompt": _prompt(number),
        "seed": 1000 + number,
        "num_inference_steps": steps,
        "guidance_scale": 7.5,
    }


def mixed(number: int, steps: int) -> dict[str, Any]:
    """Row of that number: two step counts, with and without guidance, two schedulers; every other seed is missing."""
    return {
        "id": f"row-{number:07}",
        "prompt": _prompt(number),
        "negative_prompt": "blurry, low quality" if number % 3 == 0 else None,
        "seed": 7 * number if number % 2 else None,
        "num_inference_steps": steps + number // 2 % 2,
        "guidance_scale": (7.5, 5.0, 1.0)[number % 3],
        "scheduler": "Euler a" if number // 4 % 2 else None,  # draws noise at every step; null: the model's own
        "my_label": f"label {number % 97}",
    }


KINDS: Mapping[str, Callable[[int, int], dict[str, Any]]] = {"uniform": uniform, "mixed": mixed}


def write(file: Path, make: Callable[[int, int], dict[str, Any]], rows: int, steps: int) -> Path:
    """Write `rows` rows as Parquet, one row group in memory at a time.

    Args:
        file: written anew.
        make: `uniform` or `mixed`.
        rows: how many.
        steps: denoising steps of an image.
    """
    numbers = iter(range(rows))
    with pq.ParquetWriter(file, _SCHEMA) as writer:
        while group := [make(number, steps) for number in islice(numbers, ROW_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, _SCHEMA))
    return file


def _prompt(number: int) -> str:
    subject, style = _SUBJECTS[number % len(_SUBJECTS)], _STYLES[number // len(_SUBJECTS) % len(_STYLES)]
    return f"{subject}, number {number}, {style}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--kind", choices=list(KINDS), default="mixed")
    arguments = parser.parse_args()
    write(arguments.file, KINDS[arguments.kind], arguments.rows, arguments.steps)


if __name__ == "__main__":
    main()
