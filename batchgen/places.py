"""What paths and URIs name, and which were hardly meant as they are written: those would be taken for a folder's name.

Opens nothing; of what is there it asks at most whether something of a name is.
"""

import os
import re
import stat
from enum import Enum, auto
from pathlib import Path

from batchgen.errors import InputError

__all__ = [
    "LONGEST_NAME",
    "Kind",
    "is_remote",
    "is_web",
    "join",
    "kept_by_ray",
    "kind_at",
    "local_path",
    "misspelling",
    "misspelt_uri",
    "pattern_in",
    "protocol_of",
    "without_query",
]

_PROTOCOLS = frozenset("abfs abfss adl az file ftp gcs gs hdfs hf http https local memory oss s3 s3a sftp".split())
_LOCAL = ("file", "local")
_WITH_COLON = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
_WITHOUT_COLON = re.compile(r"([A-Za-z0-9]+)//+(.*)", re.DOTALL)
LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes that Linux takes
_PATTERNS = ("[", "*", "?", "::", "\\")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_RAYS = re.compile(r".*/(session_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+_\d+|runtime_resources/working_dir_files)(?=/|$)")
_VARIABLE = re.compile(r"\$\{[^}]*\}?|\$\(|\$[A-Za-z_]\w*|%[A-Z_]{3,}%|\{\{")


def misspelling(place: str) -> str | None:
    """What is wrong with a place, and what was probably meant; None for one that may be meant as it is."""
    if (why := misspelt_uri(place)) is not None:
        return why
    if place != place.strip():
        return "begins or ends with a blank; remove it"
    if found := _VARIABLE.search(place):
        return f"holds {found[0]!r}, a variable that nobody filled in; write what it stands for"
    return None


def misspelt_uri(place: str) -> str | None:
    """The same of what begins like a URI or a path of another system; of keys in a bucket nothing else is known."""
    if (meant := _uri(place)) not in (None, place):
        return f"is no URI; did you mean {meant!r}?"
    if _DRIVE.match(place):
        return "is a path of Windows; give one of this machine, with /"
    return None


def _uri(place: str) -> str | None:
    """The URI that a text is, or was probably meant to be; None for a path."""
    if match := _WITH_COLON.match(place):
        name, slashes, rest = match.groups()
        if not slashes and name.lower() not in _PROTOCOLS:
            return None
    elif (match := _WITHOUT_COLON.match(place)) and match[1].lower() in _PROTOCOLS:
        name, slashes, rest = match[1], "//", match[2]
    else:
        return None
    if not rest.strip("/"):
        return None
    return f"{name.lower()}:///{rest}" if name.lower() in _LOCAL and len(slashes) != 2 else f"{name.lower()}://{rest}"


def is_remote(uri: str) -> bool:
    """Whether the URI names a protocol other than the local file system's."""
    return "://" in uri and not uri.startswith(("file://", "local://"))


def protocol_of(uri: str) -> str:
    """What a URI begins with, without `://`; `local` for a path."""
    return uri.partition("://")[0] if is_remote(uri) else "local"


def is_web(uri: str) -> bool:
    """Whether a URI is one of the web, from which files are fetched whole."""
    return uri.startswith(("http://", "https://"))


def without_query(uri: str) -> str:
    """A URI of the web without what stands behind its path; any other place as it is, where `?` belongs to a name."""
    return re.split(r"[?#]", uri, maxsplit=1)[0] if is_web(uri) else uri


def local_path(uri: str, folder: str = "") -> Path:
    """The path of a local file or folder, absolute, with `~` and `file://` resolved.

    Args:
        uri: the path as somebody wrote it.
        folder: what a relative one starts from; the current folder where empty.

    Raises:
        InputError: it is a URI of another protocol, no path that a system takes, or misspelt, and nothing of that very
            name is there.
    """
    if is_remote(uri):
        raise InputError(f"{uri} {misspelling(uri) or 'has to be read from this machine; copy it here'}")
    try:
        path = Path(uri.split("://", 1)[1] if "://" in uri else uri).expanduser()
    except RuntimeError:
        raise InputError(f"{uri}: there is no such user here; write ./{uri} for a folder of that name") from None
    path = Path(folder, path).absolute()
    if (why := _impossible(str(path))) is not None:
        raise InputError(f"{_shortened(uri)} {why}")
    if misspelling(uri) is not None and not os.path.lexists(path):
        there = next(parent for parent in path.parents if os.path.lexists(parent))
        if why := misspelt_uri(uri) or misspelling(str(path.relative_to(there))):
            raise InputError(f"{uri} {why}")
    return path


def kept_by_ray(path: Path) -> str | None:
    """The folder above a path, or the path, that Ray fills for a session or a job and removes afterwards, if any.

    A submitted job starts in one: its relative paths lead there.
    """
    found = next(filter(None, (_RAYS.match(str(one)) for one in (path, path.resolve()))), None)
    return None if found is None else found[0]


class Kind(Enum):
    """What a path may lead to."""

    FILE = auto()
    FOLDER = auto()
    OTHER = auto()  # a device, a pipe or a socket


def kind_at(path: Path) -> Kind | None:
    """What is at a path, links followed; None where nothing is.

    Raises:
        InputError: it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be looked at: {error.strerror}") from None
    return Kind.FILE if stat.S_ISREG(mode) else Kind.FOLDER if stat.S_ISDIR(mode) else Kind.OTHER


def _impossible(path: str) -> str | None:
    """Why no file can have a path, so that nothing else needs to ask; None for one that can be looked for."""
    if "\0" in path:
        return "holds a NUL character, which no path does"
    try:
        data = path.encode()
    except UnicodeEncodeError:
        return "is no UTF-8, in which names have to be written down; rename it"
    if len(data) > _LONGEST_PATH or any(len(name) > LONGEST_NAME for name in data.split(b"/")):
        return f"is no path: it has {len(data):,} bytes, with names of at most {LONGEST_NAME} in {_LONGEST_PATH:,}"
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def join(base: str, relative: str) -> str:
    """The URI that `relative` names seen from the folder `base`; absolute paths and URIs stay as they are.

    A relative path is normalised, and leads out of no bucket. The folder's own name is a key, in which `//` may stand.

    Raises:
        InputError: `relative` is misspelt, and nothing of that very name is there.
    """
    if "://" in relative or relative.startswith(("/", "~")):
        if is_remote(relative) and misspelt_uri(relative) is None:
            return relative
        return str(local_path(relative))
    if is_remote(base):
        if (why := misspelt_uri(relative)) is not None:
            raise InputError(f"{relative} {why}")
        protocol, _, path = base.partition("://")
        bucket, *folders = path.split("/")
        for name in os.path.normpath(relative).split("/"):
            if name == "..":
                folders = folders[:-1]
            elif name != ".":
                folders.append(name)
        return f"{protocol}://{'/'.join([bucket, *folders])}"
    return os.path.normpath(local_path(relative, str(local_path(base))))


def pattern_in(uri: str) -> str | None:
    """What in a path DuckDB, Polars or `datasets` take for a pattern, a chain or an escape; None where nothing is."""
    return next((mark for mark in _PATTERNS if mark in uri.rpartition("://")[2]), None)
