"""What is applied to a row, typed and by group. A field is a column of the manifest and has its name.

`Parameters.from_cells` and `to_cells` are inverse, for cells of a resolved row as for those that come back from an
output's metadata. None stands for a null cell: the column is not applied, or means nothing to the row; a group is None
where all its columns are. Knows nothing of tasks, models and libraries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, NotRequired, Self, TypedDict, get_args, get_type_hints

from batchgen.manifest.columns import COLUMNS, Kind

__all__ = [
    "APPLIED",
    "PROMPTS",
    "Adapter",
    "Canvas",
    "ClassGuidance",
    "Control",
    "Editing",
    "Hires",
    "ImagePrompt",
    "ImageRef",
    "InitImage",
    "Parameters",
    "Prompting",
    "Refining",
    "RowAdapters",
    "Sampling",
    "SizeConditioning",
    "Upscaling",
    "decisive_cells",
]


class Adapter(TypedDict):
    """An adapter that was found, as it is applied and recorded."""

    path: str
    sha256: str
    scale: NotRequired[float]  # of LoRAs and hypernetworks
    token: NotRequired[str]  # of embeddings: the word of the prompt that stands for it


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """A conditioning image that was read and decoded once while the manifest was checked.

    `uri` names an image, or, with `column` and `row`, the manifest file in which that cell holds the bytes.
    """

    uri: str
    sha256: str
    width: int  # pixels
    height: int  # pixels
    column: str | None = None
    row: int | None = None  # 1-based, counted in the file


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """The size in pixels at which a row is sampled; upscalers and the hires fix give larger images."""

    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The scheduler, its steps and the noise."""

    num_inference_steps: int
    scheduler: str  # class name of diffusers
    scheduler_kwargs: Mapping[str, Any]
    seed: int
    eta: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompting:
    """Prompts, how they are read, and how strongly they guide."""

    prompt: str
    prompt_syntax: str
    guidance_scale: float  # above 1 guidance is on
    guidance_rescale: float | None = None
    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    clip_skip: int | None = None

    @property
    def is_guided(self) -> bool:
        """Whether there is an unconditional pass."""
        return self.guidance_scale > 1


PROMPTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
"""Columns that text encoders read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitImage:
    """What becomes of the image that a row starts from."""

    strength: float | None = None
    keep_unmasked: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Editing:
    """How strongly an edit keeps to its image."""

    image_guidance_scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Upscaling:
    """How much noise the x4 upscaler's image gets."""

    noise_level: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """ControlNets, and for each its scale, the part of the steps it guides, and what is made of its image first."""

    controlnet: tuple[Adapter, ...]
    control_preprocess: tuple[str, ...]
    controlnet_conditioning_scale: tuple[float, ...]
    control_guidance_start: tuple[float, ...]
    control_guidance_end: tuple[float, ...]
    pose_estimator: Adapter | None = None
    person_detector: Adapter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePrompt:
    """An IP-Adapter and its weight."""

    ip_adapter: Adapter
    ip_adapter_scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RowAdapters:
    """What else a row adds to its model."""

    loras: tuple[Adapter, ...] | None = None
    embeddings: tuple[Adapter, ...] | None = None
    hypernetwork: Adapter | None = None
    vae: Adapter | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hires:
    """The hires fix: how much larger the latents become, and how strongly they are denoised again."""

    hires_scale: float
    hires_strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Refining:
    """The part of the noise schedule that the model takes, and the model that takes the rest."""

    refiner: str | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeConditioning:
    """The sizes, (height, width) in pixels, that SDXL is conditioned on."""

    original_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassGuidance:
    """The class of an image, and the classifier whose gradient leads there."""

    class_label: int
    classifier: Adapter | None = None
    classifier_scale: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """All that is applied to a row besides its conditioning images."""

    model: str
    watermark: str | None = None
    canvas: Canvas
    sampling: Sampling
    init: InitImage = InitImage()  # shared by all rows without one: it cannot change
    adapters: RowAdapters = RowAdapters()
    refining: Refining = Refining()
    prompting: Prompting | None = None
    sizes: SizeConditioning | None = None
    control: Control | None = None
    image_prompt: ImagePrompt | None = None
    hires: Hires | None = None
    editing: Editing | None = None
    upscaling: Upscaling | None = None
    classes: ClassGuidance | None = None
    _cells: Mapping[str, Any] | None = field(default=None, init=False, repr=False, compare=False)  # it was made of

    @classmethod
    def from_cells(cls, cells: Mapping[str, Any]) -> Self:
        """The parameters of a row's cells by column; null is as good as absent, a list as a tuple.

        Raises:
            KeyError: a column that is not applied to rows.
            TypeError: a group that has some of its columns lacks others.
        """
        kept: dict[str, Any] = {}
        own: dict[str, Any] = {}
        groups: dict[str, dict[str, Any]] = {}
        for name, value in cells.items():
            if value is None:
                continue
            if type(value) is list and name in _TUPLES:
                value = tuple(value)
            kept[name] = value
            group = _GROUP_OF[name]
            if group is None:
                own[name] = value
            else:
                groups.setdefault(group, {})[name] = value
        for group, found in groups.items():
            own[group] = _GROUPS[group].kind(**found)
        made = cls(**own)
        object.__setattr__(made, "_cells", kept)
        return made

    def to_cells(self) -> dict[str, Any]:
        """What is applied, by column, without nulls."""
        return self._read_cells() if self._cells is None else dict(self._cells)

    def _read_cells(self) -> dict[str, Any]:
        cells: dict[str, Any] = {}
        for group, layout in _GROUPS.items():
            part = getattr(self, group)
            if part is not None:
                cells.update(zip(layout.names, layout.values(part), strict=True))
        cells.update((name, getattr(self, name)) for name in _OWN)
        return {name: value for name, value in cells.items() if value is not None}

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], "Parameters"], tuple[dict[str, Any]]]:
        """Pickled as cells, which is smaller and faster than a dozen objects."""
        return _from_cells, (self.to_cells(),)


def _from_cells(cells: Mapping[str, Any]) -> Parameters:
    return Parameters.from_cells(cells)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """How a group of columns is made and read."""

    kind: Callable[..., Any]
    names: tuple[str, ...]
    values: Callable[[Any], tuple[Any, ...]]


def _groups() -> dict[str, _Group]:
    made = {}
    for name, hint in get_type_hints(Parameters).items():
        kind = next((one for one in (hint, *get_args(hint)) if hasattr(one, "__dataclass_fields__")), None)
        if kind is not None:
            made[name] = _group(kind)
    return made


def _group(kind: Any) -> _Group:
    names = tuple(one.name for one in fields(kind))
    get = attrgetter(*names)
    return _Group(kind=kind, names=names, values=get if len(names) > 1 else lambda part: (get(part),))


_GROUPS = _groups()
_OWN = tuple(one.name for one in fields(Parameters) if one.init and one.name not in _GROUPS)
_GROUP_OF: dict[str, str | None] = {
    **dict.fromkeys(_OWN),
    **{name: group for group, layout in _GROUPS.items() for name in layout.names},
}
"""The group of each column that is applied; None for those of a row as a whole."""
APPLIED = frozenset(_GROUP_OF)
"""Every column that is applied to rows; images are not, they are inputs of rows."""

_NOT_APPLIED = frozenset(
    {"id", "task", "num_images_per_prompt", *(one.name for one in COLUMNS.values() if one.kind is Kind.IMAGE)}
)
_LACKING = sorted(COLUMNS.keys() - _NOT_APPLIED - APPLIED)
assert not _LACKING, (
    f"{', '.join(_LACKING)}: an entry of COLUMNS in manifest/columns.py is no field of generation/parameters.py; add a "
    "field of that name to the group that it belongs to there"
)
_UNKNOWN = sorted(APPLIED - (COLUMNS.keys() - _NOT_APPLIED))
assert not _UNKNOWN, (
    f"{', '.join(_UNKNOWN)}: a field of generation/parameters.py is no column that is applied; add an entry of that "
    "name to COLUMNS in manifest/columns.py"
)

_TUPLES = frozenset(column.name for column in COLUMNS.values() if column.listed or column.kind is Kind.SIZE)


def decisive_cells(cells: Mapping[str, Any], *, refiner: str | None) -> dict[str, Any]:
    """What of a row's applied cells is part of its identity: all that decides pixels, without what only names things.

    Neutral values are left out, the path of an adapter, and the name of the model, whose fingerprint stands for it.

    Args:
        cells: as `Parameters.to_cells` has them; a row that gets its seed from its identity has none yet.
        refiner: fingerprint of the refiner that the cells name, if any.
    """
    decisive = {}
    for name, value in cells.items():
        column = COLUMNS[name]
        if name == "model" or column.is_neutral(value):
            continue
        if column.kind is Kind.ADAPTER:
            listed = value if isinstance(value, tuple) else (value,)
            value = [{key: part for key, part in one.items() if key != "path"} for one in listed]
        decisive[name] = value
    return decisive if refiner is None else {**decisive, "refiner": refiner}
