"""What a job lets cells of a manifest name, and how much of it is read: manifests come from strangers, jobs do not.

Knows nothing of rows. What the job's own keys name is read wherever it lies.
"""

import os
from dataclasses import dataclass

from batchgen.errors import InputError, WebError
from batchgen.places import is_remote, is_web, protocol_of
from batchgen.reading import read_input

__all__ = ["SCHEMES", "InputReader", "Inputs", "require_within"]

SCHEMES = ("local", "s3", "gs", "az", "abfs", "oci", "oss", "memory", "http", "https")
"""What [inputs] `schemes` may hold."""
_SAME = {"s3a": "s3", "gcs": "gs", "abfss": "abfs"}
VAIN_REQUESTS = 2  # of a host, too slow or not answered, after which it is not asked for its other images


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Where a manifest's cells may point, and the bounds of what is read of it and for it."""

    schemes: tuple[str, ...] = ("local", "s3")
    roots: tuple[str, ...] = ()  # folders from which files may be named, besides the manifest's own
    image_mib: int = 64  # of one image's file
    megapixels: int = 64  # of all images that are decoded at once
    seconds: float = 20.0  # for one image from the web, redirects and all
    prompt_characters: int = 50_000  # of one cell of text that is no carried one
    carried_mib: int = 4  # of one carried cell
    columns: int = 1000  # of a manifest

    def __post_init__(self) -> None:
        for scheme in self.schemes:
            if scheme not in SCHEMES:
                raise InputError(f"[inputs] schemes has {scheme!r}; known are {', '.join(SCHEMES)}")


def require_within(place: str, folder: str, inputs: Inputs) -> None:
    """Make sure that a cell may name a place; links are followed.

    Args:
        place: a URI, or an absolute path.
        folder: the manifest's own, a path or URI.
        inputs: what the job lets cells name.

    Raises:
        InputError: it may not; the text names the key that would let it.
    """
    scheme = _SAME.get(protocol_of(place), protocol_of(place))
    if scheme not in inputs.schemes:
        listed = ", ".join(f'"{one}"' for one in (*inputs.schemes, scheme))
        known = scheme in SCHEMES
        hint = f"the job can let it: [inputs] schemes = [{listed}]" if known else "copy it to where cells may point"
        raise InputError(f"{place}: cells may point to {', '.join(inputs.schemes)} here, not to {scheme}; {hint}")
    if is_remote(place):
        return
    real = os.path.realpath(place)
    for root in (*inputs.roots, *(() if is_remote(folder) else (folder,))):
        inside = os.path.realpath(root)
        if real == inside or real.startswith(inside.rstrip("/") + "/"):
            return
    raise InputError(
        f"{place} lies outside of the manifest's folder; let cells name it in the job: "
        f'[inputs] roots = ["{os.path.dirname(real)}"]'  # noqa: PTH120 - a text, of a path that may be none
    )


class InputReader:
    """Reads the images that cells name; a host that was too slow, or away, several times is not asked again."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._vain: dict[str, int] = {}  # requests by host

    def read(self, place: str) -> bytes:
        """The bytes at a place that `require_within` lets pass.

        Raises:
            InputError: it is too large, too slow, or no file, or its host was asked in vain before.
            StoreError: it cannot be read.
        """
        most = self._inputs.image_mib << 20
        host = place.split("/")[2].rpartition("@")[2] if is_web(place) else ""
        if self._vain.get(host, 0) >= VAIN_REQUESTS:
            raise InputError(f"{place}: {host} was too slow or away before, and is not asked again")
        try:
            return read_input(place, most=most, seconds=self._inputs.seconds)
        except (InputError, WebError) as error:
            if isinstance(error, WebError) or isinstance(error.__cause__, TimeoutError):
                self._vain[host] = self._vain.get(host, 0) + 1
            raise
