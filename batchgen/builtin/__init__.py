"""The built-in models: small diffusion models of our own, their weights and the recipe that made them.

This module finds the weights; `python -m jobs.builtin` is the recipe. What pipelines share with `builtin` are links in
the source tree. A wheel holds no links, and would hold these files four times: it leaves them out, and the folder is
completed when it is asked for.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["companion_path", "model_names", "model_path"]

_WEIGHTS = Path(__file__).parent / "weights"


def model_names() -> list[str]:
    """The names of the models that ship with the package, sorted."""
    return sorted(path.parent.name for path in _WEIGHTS.glob("*/model_index.json"))


def model_path(name: str) -> Path:
    """The diffusers folder of a built-in model.

    Raises LookupError, with the known names, when no model of that name ships with the package.
    """
    if name not in model_names():
        raise LookupError(f"no built-in model {name!r}; there are: {', '.join(model_names()) or 'none'}")
    return _complete(_WEIGHTS / name)


def _complete(folder: Path) -> Path:
    """The folder, or, where it lacks parts of its pipeline, one of links to its files and to the base's parts.

    That one lies in the user's cache, since an installation may not be writable, and is made in one step.
    """
    parts = [part for part, what in json.loads((folder / "model_index.json").read_text()).items() if _is_part(what)]
    missing = [part for part in parts if not (folder / part).is_dir()]
    if not missing:
        return folder
    files = _files(folder)
    for part in missing:
        files |= {Path(part, name): file for name, file in _files(_WEIGHTS / "builtin" / part).items()}
    place = _cache() / f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if _files(place) == files:
        return place
    shutil.rmtree(place, ignore_errors=True)  # of an earlier version at the same path
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent))
    for name, file in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).symlink_to(file)
    try:
        made.rename(place)
    except OSError:  # another process was first
        shutil.rmtree(made)
    return place


def _files(folder: Path) -> dict[Path, Path]:
    """The files below a folder, by their names in it."""
    return {file.relative_to(folder): file.resolve() for file in folder.rglob("*") if file.is_file()}


def _is_part(what: object) -> bool:
    """Whether an entry of model_index.json is a part that is loaded from a folder: [library, class]."""
    return isinstance(what, list) and what[0] is not None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchgen"


def companion_path(name: str) -> Path:
    """The folder of a companion of the built-in model: a ControlNet, a LoRA, an embedding, an autoencoder, a
    depth estimator, a pair of CLIP towers.

    Raises LookupError, with the known names, when nothing of that name ships with the package.
    """
    names = sorted(path.name for path in _WEIGHTS.glob("builtin-*"))
    if name not in names:
        raise LookupError(f"nothing named {name!r} ships with the package; there are: {', '.join(names) or 'none'}")
    return _WEIGHTS / name
