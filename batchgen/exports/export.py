"""An export: images in another program's layout, and the list by which its results find their rows again."""

import csv
import io
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgen.dataset.dataset import Dataset, open_dataset
from batchgen.errors import InputError
from batchgen.exports.geneval import geneval
from batchgen.exports.layout import Placed
from batchgen.images import decode, encode
from batchgen.options import ImageFormat
from batchgen.storage import open_store

__all__ = ["EXPORTS", "Exported", "export"]

WRITERS = 16  # objects written side by side
LIST = "rows.csv"

EXPORTS: Mapping[str, Callable[[Dataset], Placed]] = {"geneval": geneval}
"""What lays out an output for whom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export wrote."""

    images: int
    prompts: int
    folder: str


def export(uri: str, to: str, folder: str, storage_options: Mapping[str, Any] | None = None) -> Exported:
    """Write an output's images into another program's layout, as PNG, and `rows.csv`: file name, id, fingerprint.

    Args:
        uri: the output.
        to: a name of `EXPORTS`.
        folder: where it goes; a folder or prefix that is empty.
        storage_options: of both, over what the environment says.

    Raises:
        InputError: no such output, one that lacks what the program reads, or a folder that is not empty.
        StoreError: something cannot be read or written.
    """
    dataset = open_dataset(uri, storage_options)
    placed = EXPORTS[to](dataset)
    store = open_store(folder, storage_options)
    if store.names(""):
        raise InputError(f"--output {folder}: is not empty, and what lies there would be evaluated, too; name another")
    for place, content in placed.texts.items():
        store.write(place, content.encode())
    written = []
    with ThreadPoolExecutor(WRITERS) as pool:
        pending: list[Future[None]] = []
        for row, image in dataset.rows_ahead():
            if (key := placed.keys.get(row.cells["id"])) is None:
                continue
            written.append({"filename": key, "id": row.cells["id"], "fingerprint": row.cells["fingerprint"]})
            pending.append(pool.submit(store.write, key, _png(dataset, image.result())))
            if len(pending) >= 2 * WRITERS:
                pending.pop(0).result()
        for one in pending:
            one.result()
    text = io.StringIO()
    writer = csv.DictWriter(text, ["filename", "id", "fingerprint"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(written, key=lambda row: row["filename"]))
    store.write(LIST, text.getvalue().encode())
    return Exported(images=len(written), prompts=len(placed.texts), folder=store.uri)


def _png(dataset: Dataset, data: bytes) -> bytes:
    return (
        data
        if dataset.format.image_format is ImageFormat.PNG
        else encode(np.asarray(decode(data).convert("RGB")), ImageFormat.PNG)
    )
