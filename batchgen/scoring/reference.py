"""A folder of real images: which there are, and the features of each part of it, kept beside the scores."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL.Image import Image

from batchgen.dataset.dataset import READERS
from batchgen.dataset.tables import encode_table, stored_table
from batchgen.errors import ImageError, InputError, StoreError
from batchgen.identity import row_id
from batchgen.images import decode
from batchgen.models.hashing import hash_text
from batchgen.storage import Store, open_store

__all__ = ["PART", "Reference", "identity_of_features", "keep_part", "kept_parts", "read_images", "read_parts"]

PART = 256  # images of one unit of work
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_KEPT = ".batchgen/references"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The images at or below a folder."""

    store: Store
    names: Mapping[str, str]  # keys by what they are without their suffix, in order
    fingerprint: str  # of names, sizes and versions: no image is read for it

    @classmethod
    def open(cls, uri: str) -> Self:
        """The images that a folder or a prefix holds.

        Raises:
            InputError: it holds fewer than two.
            StoreError: it cannot be listed.
        """
        store = open_store(uri)
        found = sorted(
            (entry.key, entry.size, entry.version)
            for entry in store.entries("")
            if PurePosixPath(entry.key).suffix.lower() in _SUFFIXES and "/." not in f"/{entry.key}"
        )
        if len(found) < 2:
            raise InputError(
                f"holds {len(found)} images; it wants a folder of real ones ({', '.join(sorted(_SUFFIXES))})"
            )
        names = {str(PurePosixPath(key).with_suffix("")): key for key, _, _ in found}
        return cls(store=store, names=names, fingerprint=hash_text(repr(found)))

    def image(self, id_: str) -> Image | None:
        """The real image that has a row's id for its name; None where there is none.

        Raises:
            ImageError: it cannot be read.
        """
        return _read_image(self.store, self.names[id_]) if id_ in self.names else None


def read_images(folder: Store, keys: Sequence[str]) -> list[Image | ImageError]:
    """Images by key, or why there are none."""

    def read(key: str) -> Image | ImageError:
        try:
            return _read_image(folder, key)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, keys))


def _read_image(folder: Store, key: str) -> Image:
    try:
        return decode(folder.read(key)).convert("RGB")
    except StoreError as error:
        raise ImageError(str(error)) from error


def identity_of_features(model: str, reference: str) -> str:
    """What the features of a folder are kept under, by the fingerprints of what saw it and of the folder."""
    return row_id(hash_text(f"{model} {reference}"))


def keep_part(store: Store, identity: str, part: int, keys: Sequence[str], cells: Sequence[Mapping[str, Any]]) -> None:
    """Store the features of a part of the folder, or why an image has none.

    Args:
        store: the output.
        identity: of the folder and of what saw it.
        part: its number.
        keys: of the images.
        cells: `features` and `features_error` of each.
    """
    vectors = pa.array([row.get("features") for row in cells], pa.list_(pa.float32()))
    errors = pa.array([row.get("features_error") for row in cells], pa.string())
    table = pa.table({"name": pa.array(keys, pa.string()), "features": vectors, "features_error": errors})
    store.write(f"{_KEPT}/{identity}/{part:06d}.parquet", encode_table(table))


def kept_parts(store: Store, identity: str) -> set[int]:
    """Numbers of the parts whose features are stored."""
    names = store.names(f"{_KEPT}/{identity}")
    return {int(name.removesuffix(".parquet")) for name in names if name.endswith(".parquet") and name[0] != "."}


def read_parts(store: Store, identity: str) -> npt.NDArray[np.float32]:
    """Features of all images that have some, (n, d).

    Raises:
        Damaged: a part cannot be read.
    """
    found = list(_read(store, identity))
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def _read(store: Store, identity: str) -> Iterator[npt.NDArray[np.float32]]:
    for part in sorted(kept_parts(store, identity)):
        key = f"{_KEPT}/{identity}/{part:06d}.parquet"
        table = stored_table(store, key, "remove it, and score again", columns=["features"])
        vectors = table["features"].drop_null()
        if len(vectors):
            yield np.stack(vectors.to_numpy())
