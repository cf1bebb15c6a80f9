"""GenEval's layout: a numbered folder a prompt, with `metadata.jsonl` of one object and `samples/00000.png`.

What its evaluator reads (djghosh13/geneval, evaluation/evaluate_images.py): folders whose names are digits, `tag`,
`include`, `exclude` and `prompt` of the metadata, where an absent key means something else than null, and images whose
names are digits and `.png`. Other files in the folder it passes by.
"""

import json
from collections import defaultdict
from typing import Any

from batchgen.dataset.dataset import Dataset
from batchgen.errors import InputError
from batchgen.exports.layout import Placed

__all__ = ["geneval"]

_WANTED = ("tag", "include")
_KEYS = (*_WANTED, "exclude", "prompt")  # in the order of the published list


def geneval(dataset: Dataset) -> Placed:
    """Prompts in the order of their metadata's text, so that equal lists get equal numbers; samples by seed.

    Raises:
        InputError: rows do not carry what the evaluator reads.
    """
    schema = dataset.format.schema.names
    if missing := [name for name in _WANTED if name not in schema]:
        raise InputError(
            f"{dataset.uri} has no column {missing[0]!r}, which says what an image must show; "
            "run GenEval's prompts/evaluation_metadata.jsonl as the manifest"
        )
    table = dataset.to_table([name for name in ("id", "seed", *_KEYS) if name in schema])
    prompts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in table.to_pylist():
        own = {key: _published(row[key]) if key in ("include", "exclude") else row[key] for key in _KEYS if key in row}
        metadata = {key: value for key, value in own.items() if value is not None}
        if any(name not in metadata for name in _WANTED):
            continue  # of another list in the same output
        prompts[json.dumps(metadata, ensure_ascii=False)].append((row["seed"], row["id"]))
    if not prompts:
        raise InputError(f"{dataset.uri} has no image of a row with {' and '.join(_WANTED)}")
    keys: dict[str, str] = {}
    texts: dict[str, str] = {}
    for number, (metadata_text, samples) in enumerate(sorted(prompts.items())):
        texts[f"{number:05d}/metadata.jsonl"] = metadata_text
        for sample, (_, id_) in enumerate(sorted(samples)):
            keys[id_] = f"{number:05d}/samples/{sample:05d}.png"
    return Placed(keys=keys, texts=texts)


def _published(cell: Any) -> Any:
    """A list of objects as it was published: nested cells travel as JSON, or with nulls for what an object lacks."""
    return _without_nulls(json.loads(cell) if isinstance(cell, str) else cell)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
