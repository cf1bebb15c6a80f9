"""The figures of an explanation: noise levels as a chart, strips of what the model saw, where its attention went."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from batchgen.generation.parameters import RowAdapters
from batchgen.generation.watermark import embed
from batchgen.images import encode
from batchgen.machine import gpus
from batchgen.models.catalog import find_model
from batchgen.options import ImageFormat
from batchgen.report.curves import Panel, draw_panels
from batchgen.report.explain import Explanation, Version
from batchgen.report.grid import Grid, Tile, columns_on_screen, draw_grids, in_lines
from batchgen.rows import Row
from batchgen.storage import Store, open_store

if TYPE_CHECKING:
    from batchgen.diffusion.host import PipelineHost, Watched
    from batchgen.diffusion.inspection import NoiseLevel, Token

__all__ = ["Choice", "write_figures"]

_SHOWN = 9  # calls of the model in a strip
_SIDE = 256  # pixels of a tile, at most
_DOWN = ("noised: what the model is given", "x0: what it takes the image for")
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # of matplotlib's "inferno"

Pixels = npt.NDArray[np.uint8]
"""An image, (H, W, 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the figures show: every so many calls of the model (None: nine, spread evenly), so many tiles in a line."""

    every: int | None = None
    columns: int | None = None
    attention: bool = False

    def calls(self, count: int) -> list[int]:
        """The calls that a strip shows, from 1."""
        if self.every is not None:
            return list(range(1, count + 1, self.every))
        if count <= _SHOWN:
            return list(range(1, count + 1))
        return [1 + round(place * (count - 1) / (_SHOWN - 1)) for place in range(_SHOWN)]


def write_figures(explanation: Explanation, output: str, choice: Choice) -> Iterator[str]:
    """Write the explanation and its figures to a folder or a prefix; yields the place of each.

    `explain.json`; `schedule.png`, the noise levels; `image.png`, which is what a run with a batch size of 1 makes;
    `steps.png`, a strip for each sampler and, where the row has LoRAs, one without them; `attention.png` on request.

    Raises:
        StoreError: the place cannot be written to.
        InputError: the model cannot make the row.
    """
    store = open_store(output)
    yield _write(store, "explain.json", json.dumps(explanation.record(), ensure_ascii=False, indent=2).encode() + b"\n")
    yield _write(store, "schedule.png", _png(_chart(explanation)))
    host, inputs = _host(), _inputs(explanation.row)
    grids: list[Grid] = []
    first: Watched | None = None
    for version in explanation.versions:
        attention = choice.attention and first is None
        seen = _watch(host, explanation, version.row, inputs, choice.calls(version.calls), attention)
        if first is None:
            first = seen
            yield _write(store, "image.png", _png(Image.fromarray(seen.image)))
        title = _caption(explanation, version) if not grids else f"{version.sampler}: {version.steps}"
        grids += _strip(version, seen, title, choice)
    assert first is not None, "an explanation has a version"
    if (bare := _without_loras(explanation)) is not None:
        seen = _watch(host, explanation, bare.row, inputs, choice.calls(bare.calls), False)
        grids += _strip(bare, seen, _difference(explanation, first.image, seen.image), choice)
    yield _write(store, "steps.png", _png(draw_grids(grids)))
    if choice.attention and first.attention is not None:
        yield _write(store, "attention.png", _png(_attention(explanation, first.image, first.attention, choice)))


# The chart


def _chart(explanation: Explanation) -> Image.Image:
    versions = explanation.versions
    several = any(level.sigma is None for version in versions for level in version.levels)
    panels = [
        Panel(title="sigma: noise over signal, on a logarithmic scale", curves=_curves(versions, _sigma), is_log=True),
        Panel(title="log SNR: the natural logarithm of signal over noise, squared", curves=_curves(versions, _log_snr)),
        Panel(title="timestep of the training schedule", curves=_curves(versions, lambda level: level.timestep)),
    ]
    ring = " A ring is beyond the axis" + (": no noise, or no signal." if several else ": no noise is left.")
    title = f"Noise levels of {explanation.model.name}\nThe last point of a curve is what its last step leads to.{ring}"
    names = [f"{version.sampler}: {version.steps}" for version in versions]
    return draw_panels(panels, title=title, names=names, x="call of the model")


def _curves(versions: Sequence[Version], value: Callable[["NoiseLevel"], float]) -> list[list[float]]:
    return [[value(level) for level in version.levels] for version in versions]


def _sigma(level: "NoiseLevel") -> float:
    return math.inf if level.sigma is None else level.sigma


def _log_snr(level: "NoiseLevel") -> float:
    if level.log_snr is not None:
        return level.log_snr
    return math.inf if level.sigma == 0 else -math.inf


# Strips


def _host() -> "PipelineHost":
    from batchgen.diffusion.host import PipelineHost

    device: Literal["cpu", "cuda"] = "cuda" if gpus() else "cpu"
    return PipelineHost(device=device, dtype="float16" if device == "cuda" else "float32")


def _inputs(row: Row) -> Mapping[str, Image.Image]:
    from batchgen.diffusion.conditioning import conditioning_images

    return conditioning_images(row, {})


def _watch(
    host: "PipelineHost",
    explanation: Explanation,
    row: Row,
    inputs: Mapping[str, Image.Image],
    calls: Sequence[int],
    attention: bool,
) -> "Watched":
    """The row's image, made alone, and what was seen meanwhile."""
    refiner = row.parameters.refining.refiner
    seen = host.watch(
        explanation.model,
        row,
        inputs,
        refiner=None if refiner is None else find_model(refiner),
        calls=calls,
        attention=attention,
    )
    mark = row.parameters.watermark
    return seen if mark is None else replace(seen, image=embed(seen.image, mark))


def _strip(version: Version, seen: "Watched", title: str, choice: Choice) -> Iterator[Grid]:
    """Above what the model was given at the chosen calls, below what it took the image for; the image is the last."""
    made = _small(seen.image)
    *calls, end = version.levels
    shown = [level for level in calls if level.step in seen.noised]
    noised = [*(_tile(seen.noised[level.step]) for level in shown), Tile(images=[made])]
    estimates = [*(_tile(seen.estimates.get(level.step)) for level in shown), None]
    heads = [*(f"step {level.step}\nsigma {_short(level)}" for level in shown), f"the image\nsigma {_short(end)}"]
    across = choice.columns or columns_on_screen(made.width, labelled=True)
    for start in range(0, len(noised), across):
        part = slice(start, start + across)
        yield Grid(
            rows=[noised[part], estimates[part]], title=title if start == 0 else "", across=heads[part], down=_DOWN
        )


def _caption(explanation: Explanation, version: Version) -> str:
    """Prompt, seed, guidance and sampler: what makes the figure again."""
    parameters = version.row.parameters
    assert parameters.prompting is not None, "explained rows have a prompt"
    said = [f"{version.sampler}: {version.steps}", f"seed {parameters.sampling.seed}"]
    said.append(f"guidance scale {parameters.prompting.guidance_scale:g}")
    if parameters.init.strength is not None:
        said.append(f"strength {parameters.init.strength:g}")
    said += [f"{name} {PurePosixPath(image.uri).name}" for name, image in version.row.inputs.items()]
    said.append(f"model {explanation.model.name}")
    lines = [f'"{parameters.prompting.prompt}"', "; ".join(said)]
    if parameters.prompting.negative_prompt:
        lines.append(f'led away from "{parameters.prompting.negative_prompt}"')
    return "\n".join([*lines, *explanation.adapters])


def _without_loras(explanation: Explanation) -> Version | None:
    """The row without its LoRAs; None where it has none."""
    first, row = explanation.versions[0], explanation.row
    if not row.parameters.adapters.loras:
        return None
    adapters: RowAdapters = replace(row.parameters.adapters, loras=None)
    return replace(first, row=replace(row, parameters=replace(row.parameters, adapters=adapters)))


def _difference(explanation: Explanation, image: Pixels, bare: Pixels) -> str:
    several = len(explanation.row.parameters.adapters.loras or ()) > 1
    apart = np.abs(image.astype(np.int16) - bare).mean()
    return f"The same without its LoRA{'s' * several}: the images differ by {apart:.1f} of 255 levels on average"


def _tile(pixels: Pixels | None) -> Tile | None:
    return None if pixels is None else Tile(images=[_small(pixels)])


def _small(pixels: Pixels) -> Image.Image:
    """The image itself, or one that is small enough for a strip."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return image


def _short(level: "NoiseLevel") -> str:
    return "inf" if level.sigma is None else f"{level.sigma:.3g}"


# Attention


def _attention(explanation: Explanation, image: Pixels, maps: npt.NDArray[np.float32], choice: Choice) -> Image.Image:
    """The image under each token's map, from the map's least value to its largest."""
    shares = maps.mean(axis=(1, 2))
    tiles = [Tile(images=[_small(image)], label="the image")]
    for token, map_, share in zip(explanation.tokens, maps, shares, strict=True):
        tiles.append(Tile(images=[_overlaid(image, map_)], label=f"{_word(token)}\n{share:.1%} of attention"))
    said = (
        "Where each token's cross-attention goes, summed over steps, layers and heads (DAAM): bright is the most that "
        f"the token gets anywhere. The start marker, the end marker and padding get the other {1 - shares.sum():.1%}."
    )
    title = f"{_caption(explanation, explanation.versions[0])}\n{said}"
    return draw_grids([Grid(rows=in_lines(tiles, choice.columns), title=title)])


def _word(token: "Token") -> str:
    return token.text.removesuffix("</w>")


def _overlaid(image: Pixels, map_: npt.NDArray[np.float32]) -> Image.Image:
    small = _small(image)
    low, high = float(map_.min()), float(map_.max())
    levels = (map_ - low) / (high - low) if high > low else np.zeros_like(map_)
    heat = np.asarray(Image.fromarray(levels).resize(small.size, Image.Resampling.BICUBIC)).clip(0, 1)
    anchors = np.linspace(0, 1, len(_HEAT))
    colors = np.stack([np.interp(heat, anchors, [color[part] for color in _HEAT]) for part in range(3)], axis=-1)
    gray = np.asarray(small.convert("L"), dtype=np.float64)[..., None]
    return Image.fromarray((0.35 * gray + 0.65 * colors).round().astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    return encode(np.asarray(image), ImageFormat.PNG)


def _write(store: Store, name: str, data: bytes) -> str:
    store.write(name, data)
    return f"{store.uri}/{name}"
