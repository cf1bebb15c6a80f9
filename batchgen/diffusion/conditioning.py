"""Conditioning images as pipelines take them: read, known to be those that were checked, in their columns' modes."""

from collections.abc import Mapping
from hashlib import sha256

from PIL.Image import Image

from batchgen.errors import ImageError
from batchgen.generation.parameters import ImageRef
from batchgen.images import decode, fit
from batchgen.manifest.columns import COLUMNS, image_column
from batchgen.reading import read_input
from batchgen.rows import Row

__all__ = ["Embedded", "conditioning_images"]

MOST_PIXELS = 8192 * 8192  # of conditioning images that are decoded at once, besides one that is larger

MOST_BYTES = 256 << 20  # of one file; the check knew a smaller bound, and took its hash

Embedded = Mapping[tuple[str, str, int], bytes]
"""Images that lie in manifests themselves, by file, column and row."""


def conditioning_images(row: Row, embedded: Embedded) -> Mapping[str, Image]:
    """A row's conditioning images by name, in its size.

    Raises:
        ImageError: one cannot be decoded, or changed since the row was checked.
        StoreError: one cannot be read.
    """
    size = row.parameters.canvas.width, row.parameters.canvas.height
    return {
        name: fit(
            decode(_bytes_of(image, embedded), max(image.width * image.height, MOST_PIXELS)),
            COLUMNS[image_column(name)].mode,
            *size,
        )
        for name, image in row.inputs.items()
    }


def _bytes_of(image: ImageRef, embedded: Embedded) -> bytes:
    if image.column is not None and image.row is not None:
        data = embedded[image.uri, image.column, image.row]
    else:
        data = read_input(image.uri, most=MOST_BYTES)
    if sha256(data).hexdigest() != image.sha256:
        raise ImageError(f"{image.uri} changed since the manifest was checked; run again to take it as it is now")
    return data
