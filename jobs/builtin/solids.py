"""Rays against solids of unit size; knows nothing of colours, cameras or images.

Rays are given by origin and direction, each a tuple of three float32 arrays (x, y, z) that broadcast against each
other; y points up and every solid stands on y = 0. Directions have length one. A miss is a distance of infinity.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.builtin.scenes import Shape

Array = NDArray[np.float32]
Vector = tuple[Array, Array, Array]

MISS = np.float32(np.inf)
NEAR = 1e-3  # world units; nearer hits are the surface that the ray starts on

CUBE_HALF = 0.8
CYLINDER_RADIUS, CYLINDER_HEIGHT = 0.76, 1.7
CONE_RADIUS, CONE_HEIGHT = 0.95, 2.05
RING_MAJOR, RING_MINOR = 0.72, 0.26
RING_STEPS = 28  # sphere tracing: 28 steps leave less than 0.1 % of the ring's pixels unsettled


@dataclass(frozen=True, kw_only=True, slots=True)
class Solid:
    """`intersect(origin, direction)` gives distances, `normal(points)` unit normals at surface points.

    `center` is the height and `radius` the radius of the bounding sphere; `footprint` the radius of the contact with
    the ground.
    """

    intersect: Callable[[Vector, Vector], Array]
    normal: Callable[[Vector], Vector]
    center: float
    radius: float
    footprint: float


def _first(near: Array, far: Array, valid_near: NDArray[np.bool_], valid_far: NDArray[np.bool_]) -> Array:
    return np.where(valid_near & (near > NEAR), near, np.where(valid_far & (far > NEAR), far, MISS))


def _sphere(o: Vector, d: Vector) -> Array:
    (ox, oy, oz), (dx, dy, dz) = o, d
    oy = oy - np.float32(1.0)
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - np.float32(1.0)
    disc = b * b - c
    hit = disc > 0
    root = np.sqrt(np.maximum(disc, 0))
    return _first(-b - root, -b + root, hit, hit)


def _sphere_normal(p: Vector) -> Vector:
    return p[0], p[1] - np.float32(1.0), p[2]


def _cube(o: Vector, d: Vector) -> Array:
    half = np.float32(CUBE_HALF)
    near, far = np.array(-np.inf, dtype=np.float32), np.array(np.inf, dtype=np.float32)
    for origin, direction in ((o[0], d[0]), (o[1] - half, d[1]), (o[2], d[2])):
        inverse = np.float32(1.0) / np.where(np.abs(direction) < 1e-7, np.float32(1e-7), direction)
        a, b = (-half - origin) * inverse, (half - origin) * inverse
        near, far = np.maximum(near, np.minimum(a, b)), np.minimum(far, np.maximum(a, b))
    hit = far > near
    return _first(near, far, hit, hit)


def _cube_normal(p: Vector) -> Vector:
    x, y, z = p[0], p[1] - np.float32(CUBE_HALF), p[2]
    ax, ay, az = np.abs(x), np.abs(y), np.abs(z)
    on_x = (ax >= ay) & (ax >= az)
    on_y = ~on_x & (ay >= az)
    zero = np.float32(0)
    return (
        np.where(on_x, np.sign(x), zero),
        np.where(on_y, np.sign(y), zero),
        np.where(on_x | on_y, zero, np.sign(z)),
    )


def _cap(o: Vector, d: Vector, *, height: float, radius: float) -> Array:
    down = np.where(np.abs(d[1]) < 1e-7, np.float32(1e-7), d[1])
    t = (np.float32(height) - o[1]) / down
    x, z = o[0] + t * d[0], o[2] + t * d[2]
    return np.where((t > NEAR) & (x * x + z * z < radius * radius), t, MISS)


def _cylinder(o: Vector, d: Vector) -> Array:
    (ox, oy, oz), (dx, dy, dz) = o, d
    a: Array = np.maximum(dx * dx + dz * dz, np.float32(1e-9))
    b = ox * dx + oz * dz
    c = ox * ox + oz * oz - np.float32(CYLINDER_RADIUS**2)
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    near, far = (-b - root) / a, (-b + root) / a
    y_near, y_far = oy + near * dy, oy + far * dy
    top = np.float32(CYLINDER_HEIGHT)
    hit = disc > 0
    side = _first(near, far, hit & (y_near > 0) & (y_near < top), hit & (y_far > 0) & (y_far < top))
    return np.minimum(side, _cap(o, d, height=CYLINDER_HEIGHT, radius=CYLINDER_RADIUS))


def _cylinder_normal(p: Vector) -> Vector:
    on_top = (p[1] > CYLINDER_HEIGHT - 2e-3) & (p[0] ** 2 + p[2] ** 2 < (CYLINDER_RADIUS - 1e-3) ** 2)
    zero, one = np.float32(0), np.float32(1)
    return np.where(on_top, zero, p[0]), np.where(on_top, one, zero), np.where(on_top, zero, p[2])


def _cone(o: Vector, d: Vector) -> Array:
    (ox, oy, oz), (dx, dy, dz) = o, d
    k = np.float32((CONE_RADIUS / CONE_HEIGHT) ** 2)
    h = np.float32(CONE_HEIGHT) - oy
    a = dx * dx + dz * dz - k * dy * dy
    a = np.where(np.abs(a) < 1e-7, np.float32(1e-7), a)
    b = ox * dx + oz * dz + k * h * dy
    c = ox * ox + oz * oz - k * h * h
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    t1, t2 = (-b - root) / a, (-b + root) / a
    near, far = np.minimum(t1, t2), np.maximum(t1, t2)
    y_near, y_far = oy + near * dy, oy + far * dy
    top, hit = np.float32(CONE_HEIGHT), disc > 0
    return _first(near, far, hit & (y_near > 0) & (y_near < top), hit & (y_far > 0) & (y_far < top))


def _cone_normal(p: Vector) -> Vector:
    slope = np.float32(CONE_RADIUS / CONE_HEIGHT)
    return p[0], slope * np.sqrt(p[0] * p[0] + p[2] * p[2]), p[2]


def _ring_distance(x: Array, y: Array, z: Array) -> Array:
    tube = np.sqrt(x * x + y * y) - np.float32(RING_MAJOR)
    return np.sqrt(tube * tube + z * z) - np.float32(RING_MINOR)


def _ring(o: Vector, d: Vector) -> Array:
    """Sphere tracing of an upright torus, on the rays that cross its bounding sphere only (Hart 1996)."""
    ox, oy, oz, dx, dy, dz = np.broadcast_arrays(o[0], o[1] - np.float32(RING_MAJOR + RING_MINOR), o[2], *d)
    b = ox * dx + oy * dy + oz * dz
    disc = b * b - (ox * ox + oy * oy + oz * oz - np.float32((RING_MAJOR + RING_MINOR) ** 2))
    root = np.sqrt(np.maximum(disc, 0))
    active = np.flatnonzero((disc > 0) & (root - b > NEAR))
    result = np.full(ox.shape, MISS, dtype=np.float32)
    flat = result.reshape(-1)
    ox, oy, oz, dx, dy, dz, b, root = (np.ravel(v)[active] for v in (ox, oy, oz, dx, dy, dz, b, root))
    t, end = np.maximum(-b - root, np.float32(0)), root - b
    for step in range(RING_STEPS):
        distance = _ring_distance(ox + t * dx, oy + t * dy, oz + t * dz)
        settled = distance < 1e-3
        if step == RING_STEPS - 1:
            settled = distance < 2e-2
        settled &= t > NEAR
        flat[active[settled]] = t[settled]
        t = t + np.maximum(distance, np.float32(2e-3))
        going = ~settled & (t < end)
        active, t, end = active[going], t[going], end[going]
        ox, oy, oz, dx, dy, dz = (v[going] for v in (ox, oy, oz, dx, dy, dz))
        if not active.size:
            break
    return result


def _ring_normal(p: Vector) -> Vector:
    x, y, z = p[0], p[1] - np.float32(RING_MAJOR + RING_MINOR), p[2]
    pull = np.float32(1.0) - np.float32(RING_MAJOR) / np.maximum(np.sqrt(x * x + y * y), np.float32(1e-6))
    return x * pull, y * pull, z


SOLIDS: dict[Shape, Solid] = {
    Shape.SPHERE: Solid(intersect=_sphere, normal=_sphere_normal, center=1.0, radius=1.0, footprint=0.35),
    Shape.CUBE: Solid(intersect=_cube, normal=_cube_normal, center=CUBE_HALF, radius=CUBE_HALF * 3**0.5, footprint=1.0),
    Shape.CYLINDER: Solid(
        intersect=_cylinder,
        normal=_cylinder_normal,
        center=CYLINDER_HEIGHT / 2,
        radius=(CYLINDER_RADIUS**2 + CYLINDER_HEIGHT**2 / 4) ** 0.5,
        footprint=0.8,
    ),
    Shape.CONE: Solid(intersect=_cone, normal=_cone_normal, center=0.8, radius=1.27, footprint=0.95),
    Shape.RING: Solid(
        intersect=_ring,
        normal=_ring_normal,
        center=RING_MAJOR + RING_MINOR,
        radius=RING_MAJOR + RING_MINOR,
        footprint=0.3,
    ),
}
