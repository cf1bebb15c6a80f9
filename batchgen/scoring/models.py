"""The models that metrics read, before they are loaded: where they lie, whether they are of that kind, fingerprints."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchgen import builtin
from batchgen.errors import InputError
from batchgen.models.catalog import hub_configs, is_hub_id
from batchgen.models.configs import read_config
from batchgen.models.hashing import hash_path, hash_text
from batchgen.scoring.metrics import Metric, ModelKind, Part
from batchgen.scoring.reference import Reference

__all__ = ["ScoringModel", "find_models", "flag_of", "processor_folder"]

_WANTED: Mapping[ModelKind, str] = {
    ModelKind.CLIP: "a CLIPModel folder of transformers, or its hub id",
    ModelKind.HEAD: "the predictor's weights, a .safetensors or (with --allow-pickle) .pth file",
    ModelKind.CHECKER: "a StableDiffusionSafetyChecker folder, or its hub id",
    ModelKind.VQA: "an image-text-to-text folder of transformers, or its hub id",
    ModelKind.FEATURES: "a folder of transformers with a model that sees images (CLIP, DINOv2, ViT), or its hub id",
    ModelKind.LPIPS: "AlexNet's or VGG16's weights as torchvision has them, a .safetensors or (with --allow-pickle) "
    ".pth file",
    ModelKind.REFERENCE: "a folder of real images",
}
_FILES = frozenset({ModelKind.HEAD, ModelKind.LPIPS})
_WORDLESS = frozenset({ModelKind.CHECKER, ModelKind.FEATURES})  # without a tokenizer
_PICKLES = frozenset({".pth", ".pt", ".bin", ".ckpt"})
_FLAGS = frozenset({"features", "reference"})  # parts that have flags of their own
_SIBLING = "feature_extractor"  # beside safety_checker/ in the folders of pipelines


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringModel:
    """A model that exists, or a folder of images that metrics compare with, by the name that the user gave it."""

    name: str
    location: str  # path, or hub id
    fingerprint: str  # sha256 of what is loaded; of a hub id: of repository and commit; of images: of how they look
    revision: str | None = None  # commit of a hub id

    @property
    def place(self) -> str:
        """Where it lies on this machine, or its hub id: each installation has the built-in models in its own place."""
        return str(builtin.companion_path(self.name)) if self.name.startswith("builtin-") else self.location


def find_models(
    metrics: Sequence[Metric], given: Mapping[str, str], *, allow_pickle: bool
) -> dict[str, dict[str, ScoringModel]]:
    """The models of metrics: by the metric's name, then by the part's.

    Args:
        metrics: what will be computed.
        given: names of models by part, as on the command line.
        allow_pickle: take weights that are pickles.

    Raises:
        InputError: a model that is missing, or of another kind; a name that no metric takes. A line for each.
    """
    parts = {name: part for metric in metrics for name, part in metric.models.items()}
    wrong = list(_uninstalled(metrics)) + [_unknown(name, parts) for name in given if name not in parts]
    find = cache(lambda named, part: _find(named, part, allow_pickle=allow_pickle))
    found: dict[str, dict[str, ScoringModel]] = {}
    for metric in metrics:
        models = found[metric.name] = {}
        for name, part in metric.models.items():
            named = given.get(name, part.default)
            if named is None and part.required:
                wrong.append(f"{metric.name} needs {_WANTED[part.kind]}; give {flag_of(name)}...")
            if named is None:
                continue
            try:
                models[name] = find(named, part)
            except InputError as error:
                wrong.append(f"{flag_of(name)}{named}: {error}")
    if wrong:
        raise InputError("\n".join(dict.fromkeys(wrong)))
    return found


def flag_of(part: str) -> str:
    """How the command line takes a part's name, up to the name."""
    return f"--{part} " if part in _FLAGS else f"--model {part}="


def processor_folder(folder: Path) -> Path | None:
    """The folder that says how images are prepared for a model: its own, or the one beside it; None without."""
    for place in (folder, folder.parent / _SIBLING):
        if (place / "preprocessor_config.json").is_file() or (place / "processor_config.json").is_file():
            return place
    return None


def _uninstalled(metrics: Iterable[Metric]) -> Iterable[str]:
    wanted = {metric.library: metric.name for metric in metrics if metric.library is not None}
    for library, name in wanted.items():
        if find_spec(library) is None:
            yield f"{name} wants {library}, which is not installed; pip install 'batchgen[distances]'"


def _unknown(name: str, parts: Mapping[str, Part]) -> str:
    if not parts:
        return f"{flag_of(name)}...: none of these metrics reads a model"
    return f"{flag_of(name)}...: these metrics read {', '.join(parts)}"


def _find(named: str, part: Part, *, allow_pickle: bool) -> ScoringModel:
    if part.kind is ModelKind.REFERENCE:
        reference = Reference.open(named)
        return ScoringModel(name=named, location=reference.store.uri, fingerprint=reference.fingerprint)
    if named.startswith("builtin-"):
        try:
            path = builtin.companion_path(named)
        except LookupError as error:
            raise InputError(str(error.args[0])) from None
    else:
        path = Path(named).expanduser()
    if part.kind in _FILES:
        _require_weights_file(path, part.kind, allow_pickle=allow_pickle)
    elif path.is_dir():
        _require_kind(path, part.kind)
        if not any(path.glob("*.safetensors")) and not (allow_pickle and any(path.glob("*.bin"))):
            raise InputError("has no weights as .safetensors; convert them, or give --allow-pickle where they are .bin")
    elif is_hub_id(named):
        repository, folder = hub_configs(named)
        _require_kind(folder, part.kind)
        fingerprint = hash_text(f"{repository}@{folder.name}")
        return ScoringModel(name=named, location=repository, fingerprint=fingerprint, revision=folder.name)
    else:
        raise InputError(f"is no folder here; it wants {_WANTED[part.kind]}")
    return ScoringModel(name=named, location=str(path.resolve()), fingerprint=hash_path(path))


def _require_weights_file(path: Path, kind: ModelKind, *, allow_pickle: bool) -> None:
    if not path.is_file():
        raise InputError(f"is no file here; it wants {_WANTED[kind]}")
    if path.suffix in _PICKLES and not allow_pickle:
        raise InputError(
            "is a pickle; give --allow-pickle to have it read with torch's weights-only loader, or convert it"
        )


def _require_kind(folder: Path, kind: ModelKind) -> None:
    """See in the configs whether a folder is of a kind; architectures that only transformers knows, it judges.

    Raises:
        InputError: it is not.
    """
    config = _read_json(folder / "config.json")
    architectures = config.get("architectures")
    architectures = list(map(str, architectures)) if isinstance(architectures, list) and architectures else [""]
    if kind is ModelKind.CLIP and config.get("model_type") != "clip":
        raise InputError(f"is a model of type {config.get('model_type')!r}; it wants {_WANTED[kind]}")
    if kind is ModelKind.CHECKER and architectures[0] != "StableDiffusionSafetyChecker":
        raise InputError(f"is a {architectures[0] or 'model without a class'}; it wants {_WANTED[kind]}")
    if processor_folder(folder) is None:
        raise InputError("has no preprocessor_config.json, which says how images are prepared; is the folder whole?")
    if kind not in _WORDLESS and not any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")
    ):
        raise InputError("has no tokenizer; is the folder whole?")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        return read_config(path).content
    except InputError:
        raise InputError(f"has no {path.name} that can be read; is it a folder that save_pretrained wrote?") from None
