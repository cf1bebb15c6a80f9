"""Adapters before they are loaded: the table of their kinds, where their files lie, their fingerprints.

Adapters are LoRAs, textual-inversion embeddings, hypernetworks, autoencoders, ControlNets, IP-Adapters, classifiers and
what reads poses: all that a row adds to its model by a path. Knows nothing of torch.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from batchgen import builtin
from batchgen.errors import CellError, InputError
from batchgen.manifest.columns import COLUMNS
from batchgen.models.catalog import Model
from batchgen.models.compatibility import (
    CLASSIFIER_WEIGHTS,
    check_architecture,
    check_classifier,
    check_controlnet,
    check_detector,
    check_embedding,
    check_ip_adapter,
    check_vae,
    read_facts,
)
from batchgen.models.hashing import hash_path, hash_text
from batchgen.models.headers import Shapes
from batchgen.models.lora import check_lora, peft_config, peft_scale
from batchgen.places import LONGEST_NAME, Kind, is_remote, join, kind_at, local_path

__all__ = [
    "ADAPTERS",
    "Finder",
    "adapter_files",
    "adapter_fingerprint",
    "adapter_name",
    "anchored",
    "find_adapters",
    "image_encoder",
]

_BUILTIN = re.compile(r"builtin-[a-z0-9-]+")
_SUFFIXES = (".safetensors", ".pt")  # that a name may lack; A1111 saves hypernetworks as the latter
_PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth"})
_WEIGHTS = _PICKLES | {".safetensors"}
_USUAL_NAMES = frozenset({"adapter_model", "learned_embeds", "model", "pytorch_lora_weights"})  # that libraries give


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterKind:
    """What a column's adapters are.

    `names` are the keys a cell may have beside `path`, with their defaults; None is required. `weights` are the names,
    or patterns, of the weights in those that may be folders; `is_folder` says that the folder itself is what is loaded,
    `beside` which other files it must hold. Without a `check` what fits is known when it is loaded.
    """

    what: str
    names: Mapping[str, Any]
    check: Callable[[Shapes, Mapping[str, Any], Model], str | None] | None = None
    weights: tuple[str, ...] = ()
    is_folder: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finder:
    """Where the adapters of one manifest's rows lie.

    `folder` is what relative paths start from, `lora_folder` where the LoRAs and hypernetworks lie that prompts name.
    """

    folder: str
    lora_folder: str | None = None
    allow_pickle: bool = False

    def named(self, name: str) -> str:
        """The path of an adapter that a prompt names: a file's name without its suffix, or a built-in companion's."""
        if self.lora_folder is None or _BUILTIN.fullmatch(name):
            return name
        return str(local_path(self.lora_folder) / name)


def adapter_name(path: str) -> str:
    """What an adapter is called: its file's name or, where all such files have one, its folder's."""
    file = Path(path)
    return file.parent.name if file.stem in _USUAL_NAMES else file.stem if file.suffix in _WEIGHTS else file.name


def find_adapters(column: str, cell: Any, model: Model, finder: Finder) -> Any:
    """What a row's cell asks for, as it is applied and recorded.

    Returns:
        A dict with `path`, `sha256` and what else the cell says (`scale`, `token`), or a tuple of such.

    Raises:
        CellError: no such file, a pickle that is not allowed, not that kind of adapter, or made for another model.
    """
    kind = ADAPTERS[column]
    if not COLUMNS[column].listed:
        if isinstance(cell, (list, tuple)):
            raise CellError(f"is a list; give one {kind.what}")
        return _find(kind, cell, model, finder)
    cells = list(cell) if isinstance(cell, (list, tuple)) else [cell]
    found = tuple(_find(kind, one, model, finder) for one in cells)
    keys = [(one["path"], one.get("token")) for one in found]
    if len(set(keys)) < len(keys) and column != "controlnet":
        raise CellError(f"names the same {kind.what} twice")
    return found


def _find(kind: AdapterKind, cell: Any, model: Model, finder: Finder) -> dict[str, Any]:
    if isinstance(cell, str):
        cell = {"path": cell}
    if not isinstance(cell, Mapping) or not isinstance(cell.get("path"), str) or not cell["path"].strip():
        raise CellError(f"wants a {kind.what}: a path, or an object with 'path' and {_listed(kind)}")
    given = {name: value for name, value in cell.items() if value is not None}
    if unknown := given.keys() - kind.names.keys() - {"path"}:
        raise CellError(f"has an unknown key {min(unknown)!r}; a {kind.what} takes 'path' and {_listed(kind)}")
    path = _locate(given["path"], kind, finder)
    if kind is ADAPTERS["ip_adapter"] and image_encoder(path) is None:
        raise CellError(f"{path} has no image_encoder/ beside it; keep the folders as they were published")
    shapes, config = read_facts(path, kind.weights)
    try:
        reason = None if kind.check is None else kind.check(shapes, config, model)
    except InputError as error:  # of its config
        reason = str(error)
    if reason is not None:
        raise CellError(f"{given['path']}: {reason}")
    if kind is ADAPTERS["loras"]:
        peft_scale(path)
    if missing := [name for name in kind.beside if not (path / name).is_file()]:
        raise CellError(f"{path} holds no {missing[0]}; is the folder complete?")
    result: dict[str, Any] = {"path": str(path), "sha256": adapter_fingerprint(path)}
    for name, default in kind.names.items():
        value = given.get(name, default)
        if name == "scale" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise CellError(f"has scale {value!r}, not a number")
        if name == "scale" and not -10 <= value <= 10:
            raise CellError(f"has scale {value}; between -10 and 10")
        if name == "token" and (not isinstance(value, str) or not value.strip()):
            raise CellError("has no 'token'; name the word of the prompt that stands for it")
        result[name] = float(value) if name == "scale" else value
    return result


def _listed(kind: AdapterKind) -> str:
    return ", ".join(repr(name) for name in kind.names) or "nothing else"


def _locate(name: str, kind: AdapterKind, finder: Finder) -> Path:
    if is_remote(finder.folder) and not (is_remote(name) or Path(name).is_absolute() or _BUILTIN.fullmatch(name)):
        name = join(finder.folder, name)  # which is not on this machine
    try:
        path = builtin.companion_path(name) if _BUILTIN.fullmatch(name) else local_path(name, finder.folder)
        path, what = _existing(path)
    except (LookupError, InputError) as error:
        raise CellError(str(error.args[0])) from None
    if what is None:
        raise CellError(f"{path} does not exist; paths start from {finder.folder}")
    if what is Kind.OTHER:
        raise CellError(f"{path} is a device, a pipe or a socket; a {kind.what} is a file")
    if what is Kind.FOLDER and not kind.weights:
        raise CellError(f"{path} is a folder; a {kind.what} is a file")
    if what is Kind.FOLDER:
        path = _weights_in(path, kind)
    if path.suffix in _PICKLES and not finder.allow_pickle:
        raise CellError(
            f"{path} is a pickle, which can run code when it is loaded; convert a file you trust to .safetensors, or "
            "set allow_pickle = true in the job to have it read with torch's weights-only loader"
        )
    if path.suffix not in _PICKLES | {".safetensors"} and path.is_file():
        raise CellError(f"{path} is neither .safetensors nor a file that torch saved")
    return path.absolute()  # links are not followed: one that is turned elsewhere is another adapter


def _existing(path: Path) -> tuple[Path, Kind | None]:
    """A path, or the same with a suffix where only that is there, and what is at it."""
    if (what := kind_at(path)) is not None:
        return path, what
    for suffix in _SUFFIXES if len(os.fsencode(path.name)) < LONGEST_NAME - max(map(len, _SUFFIXES)) else ():
        whole = path.with_name(f"{path.name}{suffix}")
        if (what := kind_at(whole)) is not None:
            return whole, what
    return path, None


def _weights_in(folder: Path, kind: AdapterKind) -> Path:
    """The folder itself where it holds a model of its own, else the one file of weights in it."""
    files = [file for pattern in kind.weights for file in sorted(folder.glob(pattern))]
    if not files:
        raise CellError(f"{folder} holds no {' or '.join(kind.weights)}; give the {kind.what}'s file or folder")
    if kind.is_folder and (folder / "config.json").is_file():
        return folder
    if len(files) > 1 and not kind.is_folder and files[0].stem != files[1].stem:
        raise CellError(f"{folder} holds {files[0].name} and {files[1].name}; name one of them")
    return files[0]


def image_encoder(weights: Path) -> Path | None:
    """The folder of the image encoder that goes with an IP-Adapter's weights, as its authors lay them out."""
    places = (weights.parent / "image_encoder", weights.parent.parent / "models" / "image_encoder")
    return next((place for place in places if (place / "config.json").is_file()), None)


@lru_cache(maxsize=1024)
def adapter_fingerprint(path: Path) -> str:
    """sha256 of an adapter's bytes, of all its files where it is a folder; read once in a process."""
    hashes = [hash_path(one) for one in adapter_files(path)]
    return hashes[0] if len(hashes) == 1 else hash_text("".join(hashes))


@lru_cache(maxsize=1024)
def adapter_files(path: Path) -> tuple[Path, ...]:
    """What an adapter is read from: its file or folder, and what belongs to it and lies beside a file of weights."""
    beside = () if path.is_dir() else (image_encoder(path), peft_config(path))
    return (path, *(one for one in beside if one is not None))


ADAPTERS: Mapping[str, AdapterKind] = {
    "loras": AdapterKind(
        what="LoRA",
        names={"scale": 1.0},
        check=check_lora,
        weights=("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_model.safetensors"),
    ),
    "embeddings": AdapterKind(
        what="textual-inversion embedding",
        names={"token": None},
        check=check_embedding,
        weights=("learned_embeds.safetensors", "learned_embeds.bin"),
    ),
    "hypernetwork": AdapterKind(what="hypernetwork", names={"scale": 1.0}),  # A1111 pickles them
    "vae": AdapterKind(
        what="autoencoder",
        names={},
        check=check_vae,
        is_folder=True,
        weights=("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    ),
    "controlnet": AdapterKind(
        what="ControlNet",
        names={},
        check=check_controlnet,
        is_folder=True,
        weights=("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
    ),
    "classifier": AdapterKind(
        what="classifier", names={}, check=check_classifier, is_folder=True, weights=CLASSIFIER_WEIGHTS
    ),
    "pose_estimator": AdapterKind(
        what="pose estimator",
        names={},
        check=lambda _shapes, config, _model: check_architecture(config, "VitPoseForPoseEstimation"),
        is_folder=True,
        beside=("preprocessor_config.json",),
        weights=("model.safetensors",),
    ),
    "person_detector": AdapterKind(
        what="person detector",
        names={},
        check=lambda _shapes, config, _model: check_detector(config),
        is_folder=True,
        beside=("preprocessor_config.json",),
        weights=("model.safetensors",),
    ),
    "ip_adapter": AdapterKind(
        what="IP-Adapter", names={}, check=check_ip_adapter, weights=("*ip*adapter*.safetensors", "*ip*adapter*.bin")
    ),
}


def anchored(cell: Any, folder: str) -> Any:
    """An adapter's cell with the files that lie in a folder named by absolute paths; other names stay."""
    if isinstance(cell, list):
        return [anchored(one, folder) for one in cell]
    if isinstance(cell, dict):
        return {**cell, "path": anchored(cell["path"], folder)} if "path" in cell else cell
    here = isinstance(cell, str) and (Path(folder) / cell).exists()
    return str((Path(folder) / cell).resolve()) if here else cell
