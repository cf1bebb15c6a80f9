"""What of a model's or an adapter's files counts, and the hashes of it. Knows no model."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from batchgen.errors import InputError
from batchgen.reading import open_file

__all__ = ["Looks", "hash_file", "hash_folder", "hash_path", "hash_text", "loaded_files", "looks_of"]

_LOADED_KINDS = frozenset({".json", ".safetensors", ".bin", ".txt", ".model"})
_MOST_FILES = 10_000  # of a model's folder; the largest of the hub have some hundred
_HASH_BLOCK = 1 << 22  # bytes; large enough that sha256, not system calls, takes the time

Looks = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and time of change in ns of each file that counts."""


def hash_path(path: Path) -> str:
    """sha256 of a file, or of what can be loaded from a folder."""
    return hash_folder(path) if path.is_dir() else hash_file(path)


def hash_folder(path: Path) -> str:
    """sha256 over names and contents of all files a pipeline can load; cards and images beside them do not count."""
    digest = hashlib.sha256()
    for file in loaded_files(path):
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{hash_file(file)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_file(path) as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_text(text: str) -> str:
    """sha256 of a text, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def loaded_files(path: Path) -> Iterator[Path]:
    """The files that count, in the order of their names; what lies behind links to folders counts as what is loaded."""
    files = list(islice(_walk(path, frozenset()), _MOST_FILES + 1))
    if len(files) > _MOST_FILES:
        raise InputError(f"{path} holds more than {_MOST_FILES:,} files, which no model has")
    for file in sorted(files):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix in _LOADED_KINDS and not hidden:
            yield file


def _walk(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """All files below a folder, through links, but for those that lead back up."""
    real = folder.resolve()
    for entry in folder.iterdir() if real not in above else ():
        if entry.is_dir():
            yield from _walk(entry, above | {real})
        elif entry.is_file():
            yield entry


def looks_of(path: Path) -> Looks:
    """Name, size and time of change of a model's files."""
    files = loaded_files(path) if path.is_dir() else [path]
    found = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
