"""The metrics: what each is called, which columns it gives, what it needs, where it comes from. Data; no library.

A new metric is an entry of `METRICS`, and a class of its family's module that `families` knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Literal

from batchgen.errors import InputError
from batchgen.manifest.names import near_or_known

__all__ = ["METRICS", "Family", "Metric", "ModelKind", "Part", "find_metrics"]


class Family(StrEnum):
    """Which module computes a metric."""

    PIXELS = "pixels"
    CLIP = "clip"
    AESTHETIC = "aesthetic"
    SAFETY = "safety"
    VQA = "vqa"
    FEATURES = "features"
    LPIPS = "lpips"
    DUPLICATES = "duplicates"  # of all images at once, after the others
    SETS = "sets"  # of groups of images, after the others
    ELSEWHERE = "elsewhere"  # by an evaluator whose results were joined


class ModelKind(StrEnum):
    """What a metric's model is; `models` says it in words."""

    CLIP = auto()
    HEAD = auto()
    CHECKER = auto()
    VQA = auto()
    FEATURES = auto()
    LPIPS = auto()
    REFERENCE = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A model that a metric reads, and which one where the user names none."""

    kind: ModelKind
    default: str | None = None
    required: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric: a number, a text or a vector for each image, or numbers for each group of images.

    `models` are by the name under which the command line takes them: the metric's own for `--model NAME=...`, and
    `NAME.part` for what is beside it. `version` is raised when the same image would get another score.
    """

    name: str
    columns: Mapping[str, Literal["number", "text", "vector"]]
    family: Family
    about: str  # one line of documentation
    source: str  # the paper, and the implementation whose numbers these are
    better: Literal["higher", "lower"] | None = None
    models: Mapping[str, Part] = field(default_factory=dict)
    after: tuple[str, ...] = ()  # metrics whose tables it reads
    library: str | None = None  # that is not installed with batchgen
    version: int = 1


_FEATURES = {"features": Part(kind=ModelKind.FEATURES, default="builtin-clip")}
_REFERENCE = {"reference": Part(kind=ModelKind.REFERENCE)}


def _one(name: str, family: Family, about: str, source: str, **more: object) -> Metric:
    """A metric of one number, whose column has its name."""
    return Metric(name=name, columns={name: "number"}, family=family, about=about, source=source, **more)  # type: ignore[arg-type]


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _one(
            "sharpness",
            Family.PIXELS,
            "variance of the Laplacian of the luma, in squares of 8-bit levels",
            "Pech-Pacheco et al. 2000; OpenCV's 3x3 Laplacian",
            better="higher",
        ),
        _one("brightness", Family.PIXELS, "mean luma, 0 to 1", "ITU-R BT.601 luma, as Pillow's mode L"),
        _one("contrast", Family.PIXELS, "RMS contrast: standard deviation of the luma, 0 to 0.5", "Peli 1990"),
        Metric(
            name="phash",
            columns={"phash": "text"},
            family=Family.PIXELS,
            about="perceptual hash of 64 bits, as 16 hexadecimal digits",
            source="Zauner 2010; the bits of ImageHash's phash",
        ),
        Metric(
            name="duplicates",
            columns={"duplicate_of": "text", "duplicate_group": "text"},
            family=Family.DUPLICATES,
            about="near duplicates over the whole output, by perceptual hashes at most 4 bits apart",
            source="phash",
            after=("phash",),
        ),
        _one(
            "clip_score",
            Family.CLIP,
            "likeness of image and prompt: 100 * max(cosine, 0), the prompt cut at 77 tokens",
            "Hessel et al. 2021; torchmetrics' and diffusers' convention",
            better="higher",
            models={"clip_score": Part(kind=ModelKind.CLIP, default="builtin-clip")},
        ),
        _one(
            "pickscore",
            Family.CLIP,
            "what people prefer for a prompt: logit scale * cosine",
            "Kirstain et al. 2023; PickScore_v1",
            better="higher",
            models={"pickscore": Part(kind=ModelKind.CLIP, default="builtin-clip")},
        ),
        _one(
            "aesthetic",
            Family.AESTHETIC,
            "what people find beautiful, about 1 to 10: a perceptron over CLIP ViT-L/14's image embedding",
            "Schuhmann 2022; LAION's improved-aesthetic-predictor",
            better="higher",
            models={"aesthetic": Part(kind=ModelKind.CLIP), "aesthetic.head": Part(kind=ModelKind.HEAD)},
        ),
        Metric(
            name="safety",
            columns={"unsafe": "number", "unsafe_margin": "number"},
            family=Family.SAFETY,
            about="1 where the checker objects, else 0, and by how much; without --model the run's own flag",
            source="Rando et al. 2022; CompVis/stable-diffusion-safety-checker",
            better="lower",
            models={"safety": Part(kind=ModelKind.CHECKER, required=False)},
        ),
        _one(
            "vqa_score",
            Family.VQA,
            "probability that a model answers Yes when asked whether the image shows the prompt",
            "Lin et al. 2024 (VQAScore)",
            better="higher",
            models={"vqa_score": Part(kind=ModelKind.VQA)},
        ),
        _one(
            "lpips",
            Family.LPIPS,
            "how unlike the image in --reference it is that has the row's id for its name",
            "Zhang et al. 2018, version 0.1; torchmetrics' weights",
            better="lower",
            models={"lpips": Part(kind=ModelKind.LPIPS), **_REFERENCE},
            library="torchmetrics",
        ),
        Metric(
            name="features",
            columns={"features": "vector"},
            family=Family.FEATURES,
            about="what a model sees of an image: float32, for fid and kid, and for plots",
            source="clean-fid's CLIP features; the pooled output of other models",
            models=_FEATURES,
        ),
        _one(
            "fid",
            Family.SETS,
            "Fréchet distance of groups of images (--by) from those in --reference",
            "Heusel et al. 2017; torchmetrics",
            better="lower",
            models={**_FEATURES, **_REFERENCE},
            after=("features",),
            library="torchmetrics",
        ),
        Metric(
            name="kid",
            columns={"kid": "number", "kid_std": "number"},
            family=Family.SETS,
            about="kernel distance of the same, without bias in small groups, and its deviation over draws",
            source="Bińkowski et al. 2018; torchmetrics",
            better="lower",
            models={**_FEATURES, **_REFERENCE},
            after=("features",),
            library="torchmetrics",
        ),
    )
}


def find_metrics(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, each once, and before them those whose tables they read.

    Raises:
        InputError: there is none of a name.
    """
    found: dict[str, Metric] = {}
    for name in names:
        if name not in METRICS:
            raise InputError(f"no metric {name!r}; {near_or_known(name, METRICS)}")
        for needed in (*METRICS[name].after, name):
            found.setdefault(needed, METRICS[needed])
    return list(found.values())
