"""Paths and URIs that were hardly meant as they are written, and would be taken for a folder's name. Text alone."""

import re

__all__ = ["misspelling", "misspelt_uri"]

_PROTOCOLS = frozenset("abfs abfss adl az file ftp gcs gs hdfs hf http https local memory oss s3 s3a sftp".split())
_LOCAL = ("file", "local")
_WITH_COLON = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
_WITHOUT_COLON = re.compile(r"([A-Za-z0-9]+)//+(.*)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
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
