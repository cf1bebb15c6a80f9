"""File names of images: no two ids meet in one, on whatever file system a dataset is copied to. Pure."""

import hashlib
import re

from batchgen.options import ImageFormat

__all__ = ["image_name"]

# What is a name of its own everywhere: in lower case, since Windows and macOS tell no case apart, and of ASCII alone,
# since they spell what is composed in another normal form; without dots, which end the key of a WebDataset's sample.
_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")
_HASHED = re.compile(r".*--[0-9a-f]{32}")  # 128 bits: nobody finds two ids that meet
_RESERVED = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")  # devices of Windows, whatever follows after a dot
_READABLE = 60  # characters of an id that is hashed


def image_name(id_: str, image_format: ImageFormat, suffix: str = "") -> str:
    """The name of a row's image, or of one beside it, by a suffix that begins with a dot.

    An id that is no name everywhere, and one that looks as if it had been hashed, becomes what can be read of it, two
    dashes and a hash: no other id has that name.
    """
    stem = id_
    if not _PLAIN.fullmatch(id_) or _RESERVED.fullmatch(id_) or _HASHED.fullmatch(id_):
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", id_)[:_READABLE].strip("-") or "id"
        stem = f"{readable}--{hashlib.sha256(id_.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    return f"{stem}{suffix}.{image_format.value}"
