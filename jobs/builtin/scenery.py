"""The colours of ground, sky and light behind the objects; knows nothing of objects.

All colours are linear light, float32, in [0, 1] or a little above; `srgb` turns display values into them. Positions in
the sky are (u, v): slope to the right and slope upwards of the ray, so v = 0 is the horizon.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from jobs.builtin.scenes import Background

Array = NDArray[np.float32]
DISPLAY_GAMMA = 2.2
TEXTURE_SIZE = 256


def srgb(red: float, green: float, blue: float) -> Array:
    """A display colour (0 to 255 a channel) as linear light, shape (3,)."""
    color: Array = (np.array((red, green, blue), dtype=np.float32) / np.float32(255)) ** np.float32(DISPLAY_GAMMA)
    return color


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """`key` and `fill` are colours of the sun and of the light from everywhere; `above` and `below` are what a shiny
    surface reflects from the sky and from the ground."""

    key: Array
    fill: Array
    above: Array
    below: Array


PLAIN_COLORS = {
    Background.GRAY: srgb(150, 152, 156),
    Background.WHITE: srgb(240, 240, 238),
    Background.BLUE: srgb(92, 142, 222),
    Background.GREEN: srgb(108, 190, 112),
    Background.PINK: srgb(246, 160, 190),
    Background.YELLOW: srgb(248, 218, 96),
    Background.PURPLE: srgb(150, 104, 196),
    Background.BLACK: srgb(30, 30, 34),
}

WHITE_LIGHT = srgb(255, 253, 248)
LIGHTS = {
    Background.CHECKERED: Light(
        key=WHITE_LIGHT * 0.95,
        fill=srgb(150, 152, 158),
        above=srgb(215, 220, 228),
        below=srgb(150, 150, 150),
    ),
    Background.SUNSET: Light(
        key=srgb(255, 236, 214) * 0.9,
        fill=srgb(150, 136, 148),
        above=srgb(240, 140, 120),
        below=srgb(110, 70, 85),
    ),
    Background.NIGHT: Light(
        key=srgb(240, 242, 255) * 0.88,
        fill=srgb(126, 128, 142),
        above=srgb(60, 76, 140),
        below=srgb(40, 48, 80),
    ),
    Background.MEADOW: Light(
        key=srgb(255, 252, 240) * 0.97,
        fill=srgb(146, 156, 158),
        above=srgb(150, 200, 245),
        below=srgb(90, 150, 60),
    ),
    Background.DESERT: Light(
        key=srgb(255, 250, 236) * 0.97,
        fill=srgb(158, 152, 144),
        above=srgb(170, 210, 240),
        below=srgb(215, 175, 115),
    ),
}


def light(background: Background) -> Light:
    """The light of a background; plain studios share one, with their own colour in the reflections."""
    if background in LIGHTS:
        return LIGHTS[background]
    base = PLAIN_COLORS[background]
    return Light(key=WHITE_LIGHT * 0.92, fill=srgb(146, 147, 150), above=0.6 * base + 0.25, below=base)


@cache
def _noise() -> Array:
    """A tileable texture of cloud-like noise in [0, 1], the same in every run: a spectrum that falls as f^-1.5."""
    rng = np.random.default_rng(20261121)
    frequencies = np.fft.fftfreq(TEXTURE_SIZE) * TEXTURE_SIZE
    radius = np.hypot(frequencies[:, None], frequencies[None, :])
    radius[0, 0] = 1
    spectrum = np.fft.fft2(rng.standard_normal((TEXTURE_SIZE, TEXTURE_SIZE))) / radius**1.5
    spectrum[0, 0] = 0
    field = np.fft.ifft2(spectrum).real
    texture: Array = np.clip(0.5 + field / (5 * field.std()), 0, 1).astype(np.float32)
    return texture


def _sample_noise(u: Array, v: Array) -> Array:
    """The texture at (u, v); one unit is one tile."""
    mask = TEXTURE_SIZE - 1
    scale = np.float32(TEXTURE_SIZE)
    values: Array = _noise()[(v * scale).astype(np.int32) & mask, (u * scale).astype(np.int32) & mask]
    return values


def _mix(a: Array, b: Array, weight: Array) -> Array:
    mixed: Array = a + (b - a) * weight[..., None]
    return mixed


def _smooth(low: float, high: float, value: Array) -> Array:
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    eased: Array = t * t * (3 - 2 * t)
    return eased


def plain(background: Background, across: Array, down: Array) -> Array:
    """A seamless studio, brightest behind the object; `across` and `down` are in [-1, 1] over the image."""
    falloff = 1.04 - 0.1 * across * across - 0.08 * (down - np.float32(0.1)) ** 2
    return PLAIN_COLORS[background] * falloff[..., None].astype(np.float32)


def ground(background: Background, x: Array, z: Array, rng: Generator) -> Array:
    """Colours of the ground at world points (x, z), shape (n, 3)."""
    far = _smooth(4, 30, z)
    offset = rng.random(2, dtype=np.float32)
    if background is Background.CHECKERED:
        phase = rng.uniform(0, 2, 2).astype(np.float32)
        odd = (np.floor(x * 0.8 + phase[0]) + np.floor(z * 0.8 + phase[1])) % 2
        tiles = _mix(srgb(66, 68, 76), srgb(226, 226, 224), odd.astype(np.float32))
        return _mix(tiles, srgb(168, 170, 174), _smooth(6, 26, z))
    if background is Background.SUNSET:
        noise = _sample_noise(x * 0.06 + offset[0], z * 0.25 + offset[1])
        near = _mix(srgb(112, 66, 84), srgb(150, 92, 98), noise)
        return _mix(near, srgb(226, 122, 84), far)
    if background is Background.NIGHT:
        noise = _sample_noise(x * 0.08 + offset[0], z * 0.08 + offset[1])
        return _mix(_mix(srgb(50, 60, 92), srgb(74, 86, 122), noise), srgb(42, 52, 96), far)
    if background is Background.MEADOW:
        noise = _sample_noise(x * 0.12 + offset[0], z * 0.12 + offset[1])
        return _mix(_mix(srgb(84, 150, 48), srgb(138, 192, 74), noise), srgb(150, 200, 110), far)
    bend = _sample_noise(x * 0.03 + offset[0], z * 0.03 + offset[1])
    ripple = 0.5 + 0.5 * np.sin(7.0 * z + 14.0 * bend + 0.8 * x)
    weight = (ripple * (1 - _smooth(2, 12, z)) * 0.55 + 0.45 * bend).astype(np.float32)
    return _mix(_mix(srgb(206, 160, 98), srgb(240, 204, 140), weight), srgb(236, 204, 152), far)


def sky(background: Background, u: Array, v: Array, rng: Generator) -> Array:
    """Colours of the sky at slopes (u, v), shape (n, 3)."""
    match background:
        case Background.CHECKERED:
            return _mix(srgb(214, 218, 224), srgb(168, 178, 196), _smooth(0.0, 0.3, v))
        case Background.SUNSET:
            return _sunset(u, v, rng)
        case Background.NIGHT:
            return _night(u, v, rng)
        case Background.MEADOW:
            return _meadow_sky(u, v, rng)
        case _:
            return _desert_sky(u, v, rng)


def _sunset(u: Array, v: Array, rng: Generator) -> Array:
    low = _mix(srgb(255, 186, 84), srgb(238, 104, 92), _smooth(0.0, 0.11, v))
    color = _mix(low, srgb(104, 62, 134), _smooth(0.07, 0.27, v))
    streaks = _sample_noise(u * 0.7 + rng.random(dtype=np.float32), v * 4 + rng.random(dtype=np.float32))
    color = _mix(color, srgb(255, 150, 120), _smooth(0.55, 0.9, streaks) * np.float32(0.5))
    distance = np.hypot(u - np.float32(rng.uniform(-0.24, 0.24)), v - np.float32(rng.uniform(0.03, 0.08)))
    color = _mix(color, srgb(255, 214, 120), np.exp(-((distance / 0.1) ** 2)) * np.float32(0.7))
    return _mix(color, srgb(255, 246, 200), 1 - _smooth(0.046, 0.054, distance))


def _night(u: Array, v: Array, rng: Generator) -> Array:
    color = _mix(srgb(44, 56, 112), srgb(10, 12, 38), _smooth(0.0, 0.24, v))
    for _ in range(26):
        distance = np.hypot(u - np.float32(rng.uniform(-0.36, 0.36)), v - np.float32(rng.uniform(0.02, 0.3)))
        star = np.exp(-((distance / np.float32(0.0042)) ** 2)) * np.float32(rng.uniform(0.3, 1.0))
        color = color + star[..., None] * srgb(255, 250, 230)
    distance = np.hypot(u - np.float32(rng.uniform(-0.26, 0.26)), v - np.float32(rng.uniform(0.08, 0.14)))
    color = _mix(color, srgb(170, 180, 220), np.exp(-((distance / 0.07) ** 2)) * np.float32(0.35))
    return _mix(color, srgb(250, 244, 214), 1 - _smooth(0.036, 0.043, distance))


def _hills(u: Array, v: Array, rng: Generator, *, height: float) -> Array:
    """Coverage in [0, 1] of a ridge of rolling hills, soft over about one pixel."""
    a, b = rng.uniform(0, 2 * np.pi, 2)
    ridge = height * (0.55 + 0.3 * np.sin(7 * u + a) + 0.15 * np.sin(17 * u + b))
    return 1 - _smooth(-0.003, 0.003, (v - ridge).astype(np.float32))


def _meadow_sky(u: Array, v: Array, rng: Generator) -> Array:
    color = _mix(srgb(206, 230, 246), srgb(86, 158, 232), _smooth(0.0, 0.28, v))
    noise = _sample_noise(u * 0.75 + rng.random(dtype=np.float32), v * 1.5 + rng.random(dtype=np.float32))
    color = _mix(color, srgb(252, 252, 255), _smooth(0.5, 0.72, noise) * _smooth(0.02, 0.09, v) * np.float32(0.95))
    return _mix(color, srgb(112, 172, 96), _hills(u, v, rng, height=0.035))


def _desert_sky(u: Array, v: Array, rng: Generator) -> Array:
    color = _mix(srgb(246, 232, 206), srgb(120, 182, 226), _smooth(0.0, 0.26, v))
    distance = np.hypot(u - np.float32(rng.uniform(-0.26, 0.26)), v - np.float32(rng.uniform(0.1, 0.16)))
    color = _mix(color, srgb(255, 250, 225), np.exp(-((distance / 0.06) ** 2)) * np.float32(0.8))
    return _mix(color, srgb(222, 176, 116), _hills(u, v, rng, height=0.05))
