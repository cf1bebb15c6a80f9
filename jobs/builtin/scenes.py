"""What a scene is: its vocabulary, its values and the draw of random scenes; knows nothing of pixels or words."""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.random import Generator


class Shape(StrEnum):
    """The solids that the renderer can intersect."""

    SPHERE = "sphere"
    CUBE = "cube"
    CYLINDER = "cylinder"
    CONE = "cone"
    RING = "ring"


class Color(StrEnum):
    """The object colours; white and black backgrounds stand in `Background`."""

    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    CYAN = "cyan"
    BLUE = "blue"
    PURPLE = "purple"
    WHITE = "white"


class Size(StrEnum):
    """Large objects are about 50 pixels wide in a 128-pixel image, small ones a little more than half of that."""

    SMALL = "small"
    LARGE = "large"


class Finish(StrEnum):
    """Shiny surfaces have a highlight and reflect the surroundings, matt ones do neither."""

    SHINY = "shiny"
    MATT = "matt"


class Background(StrEnum):
    """Eight plain studio colours and five kinds of scenery."""

    GRAY = "gray"
    WHITE = "white"
    BLUE = "blue"
    GREEN = "green"
    PINK = "pink"
    YELLOW = "yellow"
    PURPLE = "purple"
    BLACK = "black"
    CHECKERED = "checkered floor"
    SUNSET = "sunset"
    NIGHT = "night sky"
    MEADOW = "meadow"
    DESERT = "desert"

    @property
    def is_scenery(self) -> bool:
        return self in SCENERY


SCENERY = frozenset({Background.CHECKERED, Background.SUNSET, Background.NIGHT, Background.MEADOW, Background.DESERT})

SCALES = {Size.LARGE: 1.0, Size.SMALL: 0.55}
SCALE_JITTER = 0.06  # keeps the two sizes far apart: 0.58 at most against 0.94 at least
YAWS = dict.fromkeys(Shape, (0.18, 0.62)) | {Shape.CUBE: (0.4, 0.8)}  # radians; a ring shows its hole, a cube two sides
CAMERA_HEIGHTS = (1.9, 2.3)  # world units; a large cube is 1.7 high at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One object that stands on the ground.

    `x` and `z` are world units on the ground (right and away from the camera), `yaw` is in radians, `scale` is the
    half-extent in world units.
    """

    shape: Shape
    color: Color
    size: Size
    finish: Finish
    x: float
    z: float
    yaw: float
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that decides an image; two objects are ordered from left to right.

    `camera_height` is in world units, `sun_azimuth` in radians from the viewing direction, `sun_elevation` in radians
    above the horizon, `detail` seeds stars, clouds and textures.
    """

    background: Background
    things: tuple[Thing, ...]
    camera_height: float
    sun_azimuth: float
    sun_elevation: float
    detail: int


def draw_scene(seed: int, index: int, *, pair_share: float = 0.5) -> Scene:
    """Draw scene `index` of the endless sequence that belongs to `seed`; the same two numbers give the same scene.

    `pair_share` in [0, 1] is the share of scenes with two objects. Half of the backgrounds are scenery.
    """
    rng = np.random.default_rng((seed, index))
    paired = rng.random() < pair_share
    background = _draw_background(rng)
    if paired:
        gap = rng.uniform(1.06, 1.28)
        shift = rng.uniform(-0.12, 0.12)
        things: tuple[Thing, ...] = (
            _draw_thing(rng, x=-gap + shift, spread=0.08),
            _draw_thing(rng, x=gap + shift, spread=0.08),
        )
    else:
        things = (_draw_thing(rng, x=0.0, spread=0.45),)
    return Scene(
        background=background,
        things=things,
        camera_height=float(rng.uniform(*CAMERA_HEIGHTS)),
        sun_azimuth=float(rng.choice((-1.0, 1.0)) * rng.uniform(2.0, 2.7)),  # behind the camera's shoulder
        sun_elevation=float(rng.uniform(0.75, 1.05)),
        detail=int(rng.integers(1 << 31)),
    )


def recolored(scene: Scene) -> Scene:
    """The scene with its first object in the color three places on."""
    first, *others = scene.things
    colors = list(Color)
    other = colors[(colors.index(first.color) + 3) % len(colors)]
    return replace(scene, things=(replace(first, color=other), *others))


def _draw_background(rng: Generator) -> Background:
    scenery = rng.random() < 0.45
    kind = [background for background in Background if background.is_scenery == scenery]
    return kind[int(rng.integers(len(kind)))]


def _draw_thing(rng: Generator, *, x: float, spread: float) -> Thing:
    shape, color, size, finish = (
        list(values)[int(rng.integers(len(values)))] for values in (Shape, Color, Size, Finish)
    )
    assert isinstance(shape, Shape) and isinstance(color, Color) and isinstance(size, Size)
    assert isinstance(finish, Finish)
    return Thing(
        shape=shape,
        color=color,
        size=size,
        finish=finish,
        x=float(x + rng.uniform(-spread, spread)),
        z=float(rng.uniform(-0.3, 0.5)),
        yaw=float(rng.choice((-1.0, 1.0)) * rng.uniform(*YAWS[shape])),
        scale=float(SCALES[size] * rng.uniform(1 - SCALE_JITTER, 1 + SCALE_JITTER)),
    )
