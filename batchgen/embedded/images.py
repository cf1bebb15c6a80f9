"""A folder of images as rows of a manifest: what each says of how it was made."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from batchgen.embedded.a1111 import read_parameters
from batchgen.embedded.comfyui import read_graph
from batchgen.embedded.invokeai import read_metadata
from batchgen.embedded.said import Said
from batchgen.errors import InputError
from batchgen.manifest.writer import require_place_for, write_rows
from batchgen.places import local_path
from batchgen.reading import open_file

__all__ = ["Imported", "import_images"]

_FORMATS = ("PNG", "JPEG", "WEBP")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LARGEST_TEXT = 64 << 20  # bytes; graphs of ComfyUI hold images in base64, Pillow's own limit is 1 MiB
_TOOLS = {  # names of texts in images, and who writes them; the first that says something counts
    "invokeai_metadata": ("InvokeAI", read_metadata),
    "parameters": ("A1111", read_parameters),
    "prompt": ("ComfyUI", read_graph),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What was found in a folder of images."""

    rows: int
    unread: Mapping[str, Sequence[str]]  # what has no column or is not in the image, by file
    silent: Sequence[str]  # files that say nothing of how they were made, or cannot be read


def import_images(folder: str, output: str) -> Imported:
    """Write a manifest of what the images of a folder, and of those below it, say of how they were made.

    The rows have the parameters that other programs used. The images will not be the same: programs draw noise in
    ways of their own. Names of models are carried as `source_model`: they mean something only where they come from.

    Args:
        folder: of `.png`, `.jpg` and `.webp` files.
        output: URI of the manifest, ending in `.parquet`. One that was written so before is replaced.

    Raises:
        InputError: there is no such folder, no image in it says anything, or the output cannot be written.
        StoreError: the output cannot be written.
    """
    require_place_for(output)
    root = local_path(folder)
    if not root.is_dir():
        raise InputError(f"{folder}: no such folder; name one that holds images")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
    rows: list[Mapping[str, Any]] = []
    unread: dict[str, Sequence[str]] = {}
    silent: list[str] = []
    stems = Counter(file.with_suffix("") for file in files)
    for file in files:
        name = _utf8(file.relative_to(root).as_posix())
        if (said := _read(file)) is None:
            silent.append(name)
            continue
        alone = stems[file.with_suffix("")] == 1  # a.png beside a.jpg: both keep their suffix
        cells = {column: _utf8(cell) for column, cell in said.cells.items()}
        rows.append({"id": name.removesuffix(file.suffix) if alone else name, **cells, "source_file": name})
        if said.unread:
            unread[name] = said.unread
    if not rows:
        raise InputError(f"{folder}: none of its {len(files):,} images says how it was made")
    write_rows(rows, output, folder)
    return Imported(rows=len(rows), unread=unread, silent=silent)


def _utf8(cell: Any) -> Any:
    """A cell that Parquet takes: names of files and JSON's escapes may hold halves of surrogate pairs."""
    return cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell


def _read(file: Path) -> Said | None:
    texts = dict(_texts(file))
    for name, (tool, read) in _TOOLS.items():
        try:
            said = read(texts[name]) if name in texts else None
        except RecursionError:  # nested beyond what any program writes
            continue
        if said is not None:
            said.cells["source_tool"] = "SwarmUI" if "sui_image_params" in texts[name][:100] else tool
            return said
    return None


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    """The texts that an image holds, by name; none where it cannot be read."""
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _LARGEST_TEXT
    try:
        with open_file(file) as stream, Image.open(stream, formats=_FORMATS) as image:
            if isinstance(image, PngImagePlugin.PngImageFile):
                yield from ((name, str(text)) for name, text in image.text.items())
            exif = image.getexif()
            comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
            if comment is not None:
                yield "parameters", _comment(comment)
            for tag in (ExifTags.Base.Make, ExifTags.Base.Model):  # where ComfyUI puts its texts into WebP
                name, found, text = str(exif.get(tag, "")).partition(":")
                if found:
                    yield name.lower(), text
    except (OSError, ValueError, SyntaxError, InputError, Image.DecompressionBombError):
        return
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = limits


def _comment(comment: bytes | str) -> str:
    """EXIF's comment: eight bytes name its encoding; A1111 writes UTF-16, big end first."""
    if isinstance(comment, str):
        return comment
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        encoding = "utf-16-le" if text[1:2] == b"\0" and text[:1] != b"\0" else "utf-16-be"
        return text.decode(encoding, "replace")
    return text.decode("utf-8", "replace")
