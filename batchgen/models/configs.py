"""What the configs in a model's folder say: folders come from strangers. Knows nothing of torch.

Keys that are not read are passed over; what is read has its type, and a size that a model can have, or is refused by
name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchgen.errors import InputError
from batchgen.manifest.strict_json import parse_json
from batchgen.reading import read_file

__all__ = [
    "MOST_CHANNELS",
    "MOST_LAYERS",
    "MOST_TIMESTEPS",
    "USUAL_FACTOR",
    "Config",
    "latent_factor",
    "read_config",
    "read_index",
]

MOST_CHANNELS = 1 << 14  # or numbers of a state; the widest of Stable Diffusion XL are 2,048
MOST_LAYERS = 256
MOST_LEVELS = 8
MOST_TIMESTEPS = 10_000  # that a model was trained with; all of Stable Diffusion's have 1,000
_LIBRARIES = ("diffusers", "transformers")
_USUAL = frozenset(
    "AutoencoderKL CLIPImageProcessor CLIPFeatureExtractor CLIPTextModel CLIPTextModelWithProjection CLIPTokenizer "
    "CLIPTokenizerFast CLIPVisionModelWithProjection DDIMScheduler DDPMScheduler DPTFeatureExtractor "
    "DPTForDepthEstimation DPTImageProcessor DPMSolverMultistepScheduler EulerAncestralDiscreteScheduler "
    "EulerDiscreteScheduler LMSDiscreteScheduler PNDMScheduler UNet2DConditionModel UNet2DModel".split()
)
_OF_PIPELINES = {("stable_diffusion", "StableDiffusionSafetyChecker")}  # diffusers' own, in a pipeline's folder
_PARTS = frozenset(
    "depth_estimator feature_extractor image_encoder low_res_scheduler safety_checker scheduler text_encoder "
    "text_encoder_2 tokenizer tokenizer_2 unet vae".split()
)


@dataclass(frozen=True, slots=True)
class Config:
    """The object of a JSON file; keys are read with their types, and within bounds.

    Every method raises `InputError` with the file and the key where they hold something else.
    """

    path: Path | str
    content: Mapping[str, Any]

    def number(self, key: str, *, most: int, least: int = 1) -> int | None:
        """A whole number; None where the config says nothing, or null."""
        if (value := self.content.get(key)) is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise InputError(
                f"{self.path} says {key} is {_shown(value)}; it wants a whole number from {least} to {most:,}"
            )
        return value

    def numbers(self, key: str, *, most: int, count: int | None = None) -> tuple[int, ...]:
        """Whole numbers of one level each, or `count` times one that stands for all; none where nothing is said."""
        value = self.content.get(key)
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value] * (count or 1)
        if len(listed) > MOST_LEVELS or not all(type(one) is int and 1 <= one <= most for one in listed):
            wanted = f"whole numbers from 1 to {most:,}, at most {MOST_LEVELS}"
            raise InputError(f"{self.path} says {key} is {_shown(value)}; it wants {wanted}")
        return tuple(listed)

    def real(self, key: str) -> float | None:
        """A finite number."""
        value = self.content.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not abs(value) <= MOST_CHANNELS:
            raise InputError(f"{self.path} says {key} is {_shown(value)}; it wants a number")
        return float(value)


USUAL_FACTOR = 8
"""Pixels a side of one latent, of all published Stable Diffusion; for models that do not say theirs."""


def latent_factor(levels: Sequence[int] | None) -> int | None:
    """Pixels a side of one latent, by the channels of an autoencoder's levels; None where nothing says these."""
    return 2 ** (len(levels) - 1) if levels else None


def read_config(path: Path) -> Config:
    """The config in a JSON file.

    Raises:
        InputError: there is no such file, or it holds something else; the text names it.
    """
    try:
        content = parse_json(read_file(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; is the folder complete?") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return Config(path, content)


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A pipeline's model_index.json: all of it, and the classes of the parts that it has.

    Raises:
        InputError: a part that is no class of diffusers or transformers, or is said in another way.
    """
    path = folder / "model_index.json"
    index = dict(read_config(path).content)
    classes = {}
    for part, said in index.items():
        if not isinstance(said, list):
            if part in _PARTS and said is not None:
                raise InputError(f"{path} says {part!r} is {_shown(said)}; it wants [library, class]")
            continue
        if said in ([None, None], [None]):
            continue
        if len(said) != 2 or not all(isinstance(one, str) for one in said):
            raise InputError(f"{path} says {part!r} is {_shown(said)}; it wants [library, class]")
        if not _is_class(*said):
            raise InputError(f"{path} says {part!r} is {_shown(said)}, which is no class of diffusers or transformers")
        classes[part] = said[1]
    return index, classes


def _shown(said: Any) -> str:
    text = repr(said)
    return text if len(text) <= 60 else f"{text[:57]}..."


@lru_cache(maxsize=1024)
def _is_class(library: str, name: str) -> bool:
    """Whether a library has a class; for one that is not usual its sources are looked through, and not imported."""
    if (library, name) in _OF_PIPELINES or (library in _LIBRARIES and name in _USUAL):
        return True
    if library not in _LIBRARIES or re.fullmatch(r"[A-Z]\w{2,99}", name, re.ASCII) is None:
        return False
    spec = find_spec(library)
    roots = spec.submodule_search_locations or [] if spec is not None else []
    begun = re.compile(rb"^class %b\b" % name.encode(), re.MULTILINE)
    return any(begun.search(file.read_bytes()) for root in roots for file in Path(root).rglob("*.py"))
