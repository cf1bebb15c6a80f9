"""What is known of a model before it is loaded: where it lies, what it is, its fingerprint. Knows nothing of torch.

A model is `builtin`, a diffusers folder, a single `.safetensors` checkpoint, or a hub id with optional `@revision`.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from batchgen import builtin
from batchgen.errors import InputError

__all__ = ["Model", "Source", "find_model"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
_HASH_BLOCK = 1 << 22  # bytes; large enough that sha256, not system calls, takes the time


class Source(StrEnum):
    """How a model is stored."""

    FOLDER = "folder"
    SINGLE_FILE = "single file"
    HUB = "hub"


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model that exists, by the name the user gave it.

    `fingerprint` is the sha256 over the files that are loaded (for a hub id: over repository and resolved commit).
    `width` and `height` are the size in pixels it was trained at, `scheduler` the class its folder names.
    """

    name: str
    source: Source
    location: str  # path or hub id
    fingerprint: str
    width: int
    height: int
    scheduler: str
    revision: str | None = None  # resolved commit of a hub id
    config: str | None = None  # folder or hub id with the layout of a single file


def find_model(name: str, *, config: str | None = None, base: Path | None = None) -> Model:
    """Look a model up and fingerprint it.

    Args:
        name: as in the command line's MODEL.
        config: for a single file, a diffusers folder of the same architecture (else diffusers asks the hub).
        base: folder against which a relative path resolves; the current one by default.

    Raises:
        InputError: no such model, or a folder or file that is not one.
    """
    if re.fullmatch(r"builtin(-[a-z0-9-]+)?", name):
        try:
            return _folder_model(name, builtin.model_path(name))
        except LookupError as error:
            raise InputError(f"model {name!r}: {error.args[0]}") from None
    path = Path(name) if base is None else base / name
    if path.is_dir():
        return _folder_model(name, path)
    if path.is_file():
        return _single_file_model(name, path, config)
    if "://" not in name and _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _hub_model(name)
    raise InputError(
        f"model {name!r} is neither 'builtin', nor a folder or file here, nor a hub id like 'owner/name@revision'"
    )


def _folder_model(name: str, path: Path) -> Model:
    if not (path / "model_index.json").is_file():
        raise InputError(f"model {name!r}: {path} has no model_index.json; give the folder that save_pretrained wrote")
    index = _read_json(path / "model_index.json", name)
    width, height = _native_size(path, name)
    scheduler = index.get("scheduler") or [None, None]
    return Model(
        name=name,
        source=Source.FOLDER,
        location=str(path.resolve()),
        fingerprint=_fingerprint_folder(path),
        width=width,
        height=height,
        scheduler=str(scheduler[1]),
    )


def _single_file_model(name: str, path: Path, config: str | None) -> Model:
    if path.suffix != ".safetensors":
        raise InputError(f"model {name!r}: only .safetensors checkpoints are read; a pickle can run code when loaded")
    layout = Path(config) if config else None
    if layout is not None and layout.is_dir():
        width, height = _native_size(layout, name)
        scheduler = (_read_json(layout / "model_index.json", name).get("scheduler") or [None, None])[1]
    else:
        width, height, scheduler = 512, 512, "PNDMScheduler"  # what the hub's config of SD 1.x says
    return Model(
        name=name,
        source=Source.SINGLE_FILE,
        location=str(path.resolve()),
        fingerprint=_hash_file(path),
        width=width,
        height=height,
        scheduler=str(scheduler),
        config=str(layout.resolve()) if layout is not None and layout.is_dir() else config,
    )


def _hub_model(name: str) -> Model:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, _, revision = name.partition("@")
    try:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        commit = None if offline else HfApi().model_info(repository, revision=revision or None, timeout=10).sha
        folder = Path(snapshot_download(repository, revision=commit or revision or None, allow_patterns=["*.json"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"model {name!r} is no folder or file here, and the hub could not be asked for it: {reason}"
        ) from error
    commit = folder.name
    width, height = _native_size(folder, name)
    scheduler = _read_json(folder / "model_index.json", name).get("scheduler") or [None, None]
    return Model(
        name=name,
        source=Source.HUB,
        location=repository,
        fingerprint=hashlib.sha256(f"{repository}@{commit}".encode()).hexdigest(),
        width=width,
        height=height,
        scheduler=str(scheduler[1]),
        revision=commit,
    )


def _native_size(folder: Path, name: str) -> tuple[int, int]:
    """Width and height in pixels: the UNet's latent size times the autoencoder's downsampling factor."""
    unet = _read_json(folder / "unet" / "config.json", name)
    vae = _read_json(folder / "vae" / "config.json", name)
    factor = 2 ** (len(vae.get("block_out_channels", (1,) * 4)) - 1)
    sample = unet.get("sample_size") or 64
    height, width = sample if isinstance(sample, list) else (sample, sample)
    return int(width) * factor, int(height) * factor


def _read_json(path: Path, name: str) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"model {name!r}: {path} is missing; is the folder complete?") from None
    except ValueError as error:
        raise InputError(f"model {name!r}: {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"model {name!r}: {path} holds no JSON object")
    return content


def _fingerprint_folder(path: Path) -> str:
    """sha256 over names and contents of all files a pipeline can load; cards and pictures beside them do not count."""
    digest = hashlib.sha256()
    for file in _loaded_files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_hash_file(file)}\n".encode())
    return digest.hexdigest()


def _loaded_files(path: Path) -> Iterator[Path]:
    kinds = {".json", ".safetensors", ".bin", ".txt", ".model"}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix in kinds and not any(part.startswith(".") for part in file.parts[-3:]):
            yield file


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
