"""Scenes to images by ray casting, with the exact depth, objects and edges of every pixel; knows nothing of files."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.builtin.scenery import DISPLAY_GAMMA, Light, ground, light, plain, sky, srgb
from jobs.builtin.scenes import Color, Finish, Scene, Thing
from jobs.builtin.solids import MISS, SOLIDS, Array, Solid, Vector

IMAGE_SIZE = 128
SUPERSAMPLING = 2
FOCAL = 1.42  # in image widths: a field of view of 39 degrees
CAMERA_DISTANCE = 7.0  # world units from the objects' middle
TARGET_HEIGHT = 0.92
WALL = 6.0  # where the plain studio's floor turns into its wall, world units behind the objects
SHADOW_SAMPLES = 6
SUN_RADIUS = 0.13  # radians; large for the sake of soft shadows
CREASE = 0.75  # cosine between neighbouring normals under which they make an edge

COLORS = {
    Color.RED: srgb(222, 36, 40),
    Color.ORANGE: srgb(248, 132, 22),
    Color.YELLOW: srgb(250, 216, 34),
    Color.GREEN: srgb(40, 158, 66),
    Color.CYAN: srgb(44, 206, 216),
    Color.BLUE: srgb(40, 84, 216),
    Color.PURPLE: srgb(138, 54, 190),
    Color.WHITE: srgb(246, 246, 246),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Render:
    """A rendered scene, all arrays (size, size).

    `rgb` is uint8 with a last axis of three. `depth` is float32, the distance along the optical axis in world units,
    infinite in the sky. `objects` is uint8: 0 for the surroundings, i for the i-th thing. `edges` is bool: outlines,
    creases and the horizon. Depth and objects are those of the nearest of a pixel's four rays.
    """

    rgb: NDArray[np.uint8]
    depth: Array
    objects: NDArray[np.uint8]
    edges: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Camera:
    eye: Vector  # shape ()
    pitch: float
    rays: Vector  # unit directions, each (size, size)
    axial: Array  # cosine between ray and optical axis


def _camera(height: float, size: int) -> _Camera:
    pitch = float(np.arctan2(height - TARGET_HEIGHT, CAMERA_DISTANCE))
    slope = ((np.arange(size, dtype=np.float32) + 0.5) / size - np.float32(0.5)) / np.float32(FOCAL)
    right, up = np.broadcast_arrays(slope[None, :], -slope[:, None])
    axial = 1 / np.sqrt(1 + right * right + up * up)
    sine, cosine = np.float32(np.sin(pitch)), np.float32(np.cos(pitch))
    rays = (right * axial, (up * cosine - sine) * axial, (cosine + up * sine) * axial)
    eye = tuple(np.array(value, dtype=np.float32) for value in (0, height, -CAMERA_DISTANCE))
    return _Camera(eye=(eye[0], eye[1], eye[2]), pitch=pitch, rays=rays, axial=axial)


def _to_local(thing: Thing, origin: Vector, direction: Vector) -> tuple[Vector, Vector]:
    sine, cosine, inverse = np.float32(np.sin(thing.yaw)), np.float32(np.cos(thing.yaw)), np.float32(1 / thing.scale)
    x, z = (origin[0] - np.float32(thing.x)) * inverse, (origin[2] - np.float32(thing.z)) * inverse
    turned = (x * cosine - z * sine, origin[1] * inverse, x * sine + z * cosine)
    dx, dy, dz = direction
    return turned, (dx * cosine - dz * sine, dy, dx * sine + dz * cosine)


def _window(thing: Thing, solid: Solid, camera: _Camera, size: int) -> tuple[slice, slice]:
    """The rows and columns of the image that the thing's bounding sphere can touch."""
    sine, cosine = np.sin(camera.pitch), np.cos(camera.pitch)
    y, z = solid.center * thing.scale - float(camera.eye[1]), thing.z + CAMERA_DISTANCE
    depth, up = z * cosine - y * sine, y * cosine + z * sine
    radius = solid.radius * thing.scale / (depth - solid.radius * thing.scale) * 1.02 * FOCAL * size
    column, row = (0.5 + FOCAL * thing.x / depth) * size, (0.5 - FOCAL * up / depth) * size

    def span(middle: float) -> slice:
        return slice(max(0, int(middle - radius)), min(size, int(middle + radius) + 2))

    return span(row), span(column)


def _sun(scene: Scene) -> tuple[float, float, float]:
    level = np.cos(scene.sun_elevation)
    azimuth = scene.sun_azimuth
    return float(np.sin(azimuth) * level), float(np.sin(scene.sun_elevation)), float(np.cos(azimuth) * level)


def _shadow(thing: Thing, points: Vector, sun: tuple[float, float, float]) -> Array:
    """The share of the sun that `thing` hides from each of the points, shape (n,), by rays to six spots of its disc."""
    solid = SOLIDS[thing.shape]
    hidden = np.zeros(points[0].shape, dtype=np.float32)
    dx, dy, dz = points[0] - thing.x, points[1] - solid.center * thing.scale, points[2] - thing.z
    along = -(dx * sun[0] + dy * sun[1] + dz * sun[2])
    square = dx * dx + dy * dy + dz * dz - along * along
    reach = solid.radius * thing.scale + SUN_RADIUS * 1.1 * np.maximum(along, 0)
    near = np.flatnonzero((square < reach * reach) & (along > -solid.radius * thing.scale))
    if not near.size:
        return hidden
    origin = (points[0][near], points[1][near], points[2][near])
    side = np.cross(sun, (0.0, 1.0, 0.0))
    side /= np.linalg.norm(side)
    other = np.cross(sun, side)
    count = np.zeros(near.size, dtype=np.float32)
    for sample in range(SHADOW_SAMPLES):
        radius, angle = SUN_RADIUS * np.sqrt((sample + 0.5) / SHADOW_SAMPLES), sample * 2.399963
        spot = np.asarray(sun) + radius * (np.cos(angle) * side + np.sin(angle) * other)
        spot = (spot / np.linalg.norm(spot)).astype(np.float32)
        local, toward = _to_local(thing, origin, (spot[0], spot[1], spot[2]))
        count += solid.intersect(local, toward) < MISS
    hidden[near] = count / np.float32(SHADOW_SAMPLES)
    return hidden


def _soften(values: Array) -> Array:
    """A 3 x 3 tent filter; it hides the steps between the sun's few spots."""
    for axis in (0, 1):
        values = np.float32(0.5) * values + np.float32(0.25) * (
            np.concatenate((values.take([0], axis), values.take(range(values.shape[axis] - 1), axis)), axis)
            + np.concatenate((values.take(range(1, values.shape[axis]), axis), values.take([-1], axis)), axis)
        )
    return values


def _ground_light(scene: Scene, x: Array, z: Array) -> Array:
    """Brightness of the ground in [0, 1] under the things' soft shadows and contact shadows; x and z are (h, w)."""
    sun, lit, contact = _sun(scene), np.ones_like(x), np.ones_like(x)
    points = (x.ravel(), np.zeros(x.size, dtype=np.float32), z.ravel())
    for thing in scene.things:
        lit = lit * (1 - _shadow(thing, points, sun).reshape(x.shape))
        reach = (SOLIDS[thing.shape].footprint + 0.25) * thing.scale
        square = (x - np.float32(thing.x)) ** 2 + (z - np.float32(thing.z)) ** 2
        contact = contact * (1 - np.float32(0.45) * np.exp(-square / np.float32(reach * reach)))
    return (np.float32(0.42) + np.float32(0.58) * _soften(lit)) * contact


def _background(scene: Scene, camera: _Camera, size: int) -> tuple[Array, Array]:
    """Colours (size, size, 3) and axial depth (size, size) of the surroundings."""
    rng = np.random.default_rng(scene.detail)
    dx, dy, dz = camera.rays
    falling = dy < -1e-3
    t = np.where(falling, -camera.eye[1] / np.minimum(dy, np.float32(-1e-3)), MISS)
    if scene.background.is_scenery:
        colors = np.empty((size, size, 3), dtype=np.float32)
        row = int(falling[:, 0].argmax())  # the camera does not roll, so the horizon is a row
        u, v = dx[:row] / dz[:row], dy[:row] / dz[:row]
        colors[:row] = sky(scene.background, u, v, rng)
        x, z = t[row:] * dx[row:], t[row:] * dz[row:] - np.float32(CAMERA_DISTANCE)
        colors[row:] = ground(scene.background, x, z, rng)
    else:
        middle = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size / 2) - 1
        colors = plain(scene.background, *np.broadcast_arrays(middle[None, :], middle[:, None]))
        t = np.minimum(t, np.float32(WALL + CAMERA_DISTANCE) / dz)
    step = SUPERSAMPLING
    coarse = t[::step, ::step]
    x, z = coarse * dx[::step, ::step], coarse * dz[::step, ::step] - np.float32(CAMERA_DISTANCE)
    reached = np.isfinite(coarse) & (z < WALL) & falling[::step, ::step]
    rows = reached.any(axis=1)
    first = int(rows.argmax())
    brightness = np.ones_like(coarse)
    brightness[first:] = _ground_light(scene, x[first:], z[first:])
    brightness = np.where(reached, brightness, np.float32(1))
    colors *= brightness.repeat(step, axis=0).repeat(step, axis=1)[..., None]
    return colors, t * camera.axial


def _shade(thing: Thing, scene: Scene, points: Vector, rays: Vector, normals: Vector) -> Array:
    """Colours (n, 3) of surface points of one thing, in world coordinates."""
    lamp: Light = light(scene.background)
    sun = _sun(scene)
    nx, ny, nz = normals
    facing = nx * np.float32(sun[0]) + ny * np.float32(sun[1]) + nz * np.float32(sun[2])
    diffuse = np.clip(facing * np.float32(0.9) + np.float32(0.1), 0, 1)
    for other in scene.things:
        if other is not thing:
            diffuse = diffuse * (1 - _shadow(other, points, sun))
    occlusion = np.float32(0.62) + np.float32(0.38) * np.clip(points[1] / np.float32(1.2 * thing.scale), 0, 1)
    upward = np.float32(0.72) + np.float32(0.28) * ny
    albedo = COLORS[thing.color]
    color: Array = albedo * (diffuse[:, None] * lamp.key + (occlusion * upward)[:, None] * lamp.fill)
    if thing.finish is Finish.MATT:
        return color
    incidence = rays[0] * nx + rays[1] * ny + rays[2] * nz
    mirror = tuple(ray - 2 * incidence * n for ray, n in zip(rays, normals, strict=True))
    aligned = mirror[0] * np.float32(sun[0]) + mirror[1] * np.float32(sun[1]) + mirror[2] * np.float32(sun[2])
    highlight = np.clip(aligned, 0, 1) ** 48 * np.float32(0.95) + np.clip(aligned, 0, 1) ** 10 * np.float32(0.12)
    fresnel = np.float32(0.05) + np.float32(0.5) * np.clip(1 + incidence, 0, 1) ** 4
    skyward = np.clip(mirror[1] * 2 + np.float32(0.5), 0, 1)[:, None]
    surroundings = lamp.below + (lamp.above - lamp.below) * skyward
    glossy: Array = color * (1 - fresnel[:, None]) + fresnel[:, None] * surroundings + highlight[:, None] * lamp.key
    return glossy


def _differs(objects: NDArray[np.uint8], normals: Array, sky_rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a pixel differs from its right or lower neighbour in object, in normal or in being sky."""
    edges = np.zeros(objects.shape, dtype=np.bool_)
    for axis in (0, 1):
        here = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        there = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        crease = (objects[here] > 0) & ((normals[here] * normals[there]).sum(-1) < CREASE)
        edges[here] |= (objects[here] != objects[there]) | crease | (sky_rows[here] != sky_rows[there])
    return edges


def render(scene: Scene, *, size: int = IMAGE_SIZE) -> Render:
    """Render a scene; the same scene gives the same bytes. About 30 ms on one core at 128 pixels."""
    fine = size * SUPERSAMPLING
    camera = _camera(scene.camera_height, fine)
    colors, depth = _background(scene, camera, fine)
    is_sky = np.isinf(depth)
    objects = np.zeros((fine, fine), dtype=np.uint8)
    normals = np.zeros((fine, fine, 3), dtype=np.float32)
    for number, thing in enumerate(scene.things, 1):
        solid = SOLIDS[thing.shape]
        window = _window(thing, solid, camera, fine)
        rays = (camera.rays[0][window], camera.rays[1][window], camera.rays[2][window])
        local_origin, local_rays = _to_local(thing, camera.eye, rays)
        t = solid.intersect(local_origin, local_rays)
        seen = t * np.float32(thing.scale) * camera.axial[window] < depth[window]
        hit = np.nonzero(seen)
        near = t[hit]
        local = tuple(o + near * d[hit] for o, d in zip(local_origin, local_rays, strict=True))
        nx, ny, nz = solid.normal((local[0], local[1], local[2]))
        length = np.sqrt(nx * nx + ny * ny + nz * nz) + np.float32(1e-9)
        sine, cosine = np.float32(np.sin(thing.yaw)), np.float32(np.cos(thing.yaw))
        world = ((nx * cosine + nz * sine) / length, ny / length, (nz * cosine - nx * sine) / length)
        distance = near * np.float32(thing.scale)
        ray = (rays[0][hit], rays[1][hit], rays[2][hit])
        points = tuple(eye + distance * d for eye, d in zip(camera.eye, ray, strict=True))
        place = (hit[0] + window[0].start, hit[1] + window[1].start)
        colors[place] = _shade(thing, scene, (points[0], points[1], points[2]), ray, world)
        normals[place] = np.stack(world, axis=-1)
        objects[place], depth[place] = number, distance * camera.axial[place]
    return _develop(colors, depth, objects, _differs(objects, normals, is_sky), size)


def _develop(colors: Array, depth: Array, objects: NDArray[np.uint8], edges: NDArray[np.bool_], size: int) -> Render:
    """Bring the fine buffers to the image's size; light is averaged before it is coded for the display."""
    step = SUPERSAMPLING
    linear = colors.reshape(size, step, size, step, 3).mean(axis=(1, 3))
    coded = np.clip(linear, 0, 1) ** np.float32(1 / DISPLAY_GAMMA)
    depth_blocks = depth.reshape(size, step, size, step).transpose(0, 2, 1, 3).reshape(size, size, -1)
    object_blocks = objects.reshape(size, step, size, step).transpose(0, 2, 1, 3).reshape(size, size, -1)
    nearest = depth_blocks.argmin(axis=-1)[..., None]
    return Render(
        rgb=(coded * 255 + np.float32(0.5)).astype(np.uint8),
        depth=np.take_along_axis(depth_blocks, nearest, axis=-1)[..., 0],
        objects=np.take_along_axis(object_blocks, nearest, axis=-1)[..., 0],
        edges=np.logical_or.reduce(edges.reshape(size, step, size, step), axis=(1, 3)),
    )
