"""A small room with coloured boxes, ray-cast with numpy, so that every depth, pose and answer is known exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vega3d_plugin.contracts.errors import SettingsError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# The world: metres, x and y along the floor from one corner of the room, z up.
ROOM = np.array([8.0, 7.0, 3.2])
LIGHT = np.array([3.4, 3.9, 3.0])
FIELD_OF_VIEW = 75.0  # degrees, horizontal
COLOURS = {
    "red": (0.86, 0.10, 0.12),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.12, 0.28, 0.88),
    "yellow": (0.97, 0.88, 0.10),
    "purple": (0.55, 0.14, 0.72),
    "orange": (1.00, 0.50, 0.05),
}
# Boxes stand in the cells of this grid (x, y), the camera flies around it.
_CELLS = (3, 2)
_CELL = np.array([1.25, 1.45])
_SMALLEST = 16


@dataclass(frozen=True)
class Box:
    """An axis-aligned box that stands on the floor.

    ``centre`` and ``size`` are (x, y, z) in metres in the world frame (z up); ``colour`` is RGB in 0..1.
    """

    name: str
    colour: tuple[float, float, float]
    centre: tuple[float, float, float]
    size: tuple[float, float, float]

    @property
    def lower(self) -> Floats:
        """The corner with the smallest coordinates, [3], metres."""
        return np.array(self.centre) - np.array(self.size) / 2

    @property
    def upper(self) -> Floats:
        """The corner with the largest coordinates, [3], metres."""
        return np.array(self.centre) + np.array(self.size) / 2


@dataclass(frozen=True)
class RoomClip:
    """A rendered fly-through with its exact geometry.

    ``frames`` uint8 [T, H, W, 3] RGB; ``depth`` float32 [T, H, W], metres along the camera's z axis, positive;
    ``intrinsics`` float64 [3, 3], pixels, the centre of the top left pixel is (0, 0); ``world_to_camera`` float64
    [T, 4, 4], OpenCV convention (x right, y down, z forward); ``instance`` [T, H, W], the index into ``boxes`` or -1.
    Depth and instance are taken at pixel centres, frames are averaged over each pixel.
    """

    frames: NDArray[np.uint8]
    depth: NDArray[np.float32]
    intrinsics: Floats
    world_to_camera: Floats
    boxes: tuple[Box, ...]
    instance: NDArray[np.int8]


def render_room(frames: int = 16, size: tuple[int, int] = (120, 160), seed: int = 0) -> RoomClip:
    """Render a fly-through of a room with six coloured boxes.

    Args:
        frames: number of frames T; the path is the same for every T, more frames sample it more finely.
        size: (height, width) in pixels, each at least 16.
        seed: draws the arrangement of the boxes and the path of the camera; the same seed gives the same clip.

    Raises:
        SettingsError: ``frames``, ``size`` or ``seed`` cannot be used.
    """
    height, width = _checked(frames, size, seed)
    rng = np.random.default_rng(seed)
    boxes = _place_boxes(rng)
    poses = _fly(rng, frames)
    focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])

    colour = np.empty((frames, height, width, 3), np.uint8)
    depth = np.empty((frames, height, width), np.float32)
    instance = np.empty((frames, height, width), np.int8)
    for i, pose in enumerate(poses):
        hit = _cast(*_rays(intrinsics, pose, (height, width), 1), boxes)
        depth[i] = hit.distance.reshape(height, width)
        instance[i] = hit.box.reshape(height, width)
        # Frames see 2x2 rays per pixel, so that edges and far textures do not flicker.
        fine = _shade(_cast(*_rays(intrinsics, pose, (height, width), 2), boxes), boxes)
        mean = fine.reshape(3, height, 2, width, 2).mean(axis=(2, 4))
        colour[i] = np.round(255 * np.clip(mean, 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return RoomClip(colour, depth, intrinsics, poses, boxes, instance)


def save_geometry(clip: RoomClip, path: str | Path) -> None:
    """Write the clip's exact geometry as one ``.npz`` file; missing folders are made.

    Arrays: ``depth`` float32 [T, H, W] metres, ``world_to_camera`` float64 [T, 4, 4], ``intrinsics`` float64 [3, 3],
    ``instance`` int8 [T, H, W], ``box_names`` text [B], ``box_centres`` and ``box_sizes`` float64 [B, 3] metres in the
    world frame. It holds no pickled objects: read it with ``numpy.load(path)``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # a path would get ".npz" added to its name
        np.savez_compressed(
            file,
            depth=clip.depth,
            world_to_camera=clip.world_to_camera,
            intrinsics=clip.intrinsics,
            instance=clip.instance,
            box_names=np.array([box.name for box in clip.boxes]),
            box_centres=np.array([box.centre for box in clip.boxes]),
            box_sizes=np.array([box.size for box in clip.boxes]),
        )


def _checked(frames: int, size: tuple[int, int], seed: int) -> tuple[int, int]:
    wrong = []
    if frames < 1:
        wrong.append(f"frames is {frames}: ask for at least 1")
    if len(size) != 2 or min(size) < _SMALLEST:
        wrong.append(f"size is {tuple(size)}: give (height, width), each at least {_SMALLEST} pixels")
    if seed < 0:
        wrong.append(f"seed is {seed}: give 0 or a positive number")
    if wrong:
        raise SettingsError(f"The room cannot be rendered: {'; '.join(wrong)}.")
    return size


def _place_boxes(rng: np.random.Generator) -> tuple[Box, ...]:
    """One box in each cell of a grid in the middle of the room, so that none overlap; places and sizes are drawn."""
    cells = [(i, j) for i in range(_CELLS[0]) for j in range(_CELLS[1])]
    order = rng.permutation(len(cells))
    corner = ROOM[:2] / 2 - np.array(_CELLS) * _CELL / 2
    boxes = []
    for (name, colour), k in zip(COLOURS.items(), order, strict=True):
        size = rng.uniform([0.5, 0.5, 0.4], [0.8, 0.85, 1.15])
        slack = _CELL - size[:2] - 0.15
        spot = corner + np.array(cells[k]) * _CELL + 0.075 + size[:2] / 2 + rng.uniform(0, 1, 2) * slack
        x, y = (float(v) for v in spot)
        w, d, h = (float(v) for v in size)
        boxes.append(Box(name, colour, (x, y, h / 2), (w, d, h)))
    return tuple(boxes)


def _fly(rng: np.random.Generator, frames: int) -> Floats:
    """Poses [T, 4, 4] along a wavy arc around the boxes, between them and the walls, looking slightly down."""
    start, phase = rng.uniform(0, 2 * np.pi, 2)
    turn = rng.choice([-1.0, 1.0])
    s = np.linspace(0, 1, frames)
    angle = start + turn * np.radians(150) * s
    reach = 0.95 + 0.05 * np.sin(2 * np.pi * s + phase)
    eye = np.stack(
        [
            ROOM[0] / 2 + 3.45 * reach * np.cos(angle),
            ROOM[1] / 2 + 3.05 * reach * np.sin(angle),
            1.95 + 0.25 * np.sin(2 * np.pi * s + 2 * phase),
        ],
        axis=1,
    )
    target = np.array([ROOM[0] / 2, ROOM[1] / 2, 0.6]) + 0.2 * np.stack(
        [np.sin(3 * s + phase), np.cos(4 * s + phase), np.zeros_like(s)], axis=1
    )
    forward = _unit(target - eye)
    right = _unit(np.cross(forward, [0.0, 0.0, 1.0]))
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    poses[:, :3, 3] = -np.einsum("tij,tj->ti", poses[:, :3, :3], eye)
    return poses


def _unit(v: Floats) -> Floats:
    return np.asarray(v / np.linalg.norm(v, axis=-1, keepdims=True))


def _rays(intrinsics: Floats, pose: Floats, size: tuple[int, int], samples: int) -> tuple[Floats, Floats]:
    """Origin [3] and directions [3, N] in the world, ``samples`` x ``samples`` per pixel, row by row.

    Directions have length 1 along the camera's z axis, so the distance along a ray is the depth.
    """
    height, width = size
    v = (np.arange(height * samples) + 0.5) / samples - 0.5
    u = (np.arange(width * samples) + 0.5) / samples - 0.5
    y, x = np.meshgrid(
        (v - intrinsics[1, 2]) / intrinsics[1, 1], (u - intrinsics[0, 2]) / intrinsics[0, 0], indexing="ij"
    )
    rotation, translation = pose[:3, :3], pose[:3, 3]
    directions = rotation.T @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    return -rotation.T @ translation, directions


@dataclass(frozen=True)
class _Hits:
    """What N rays met first: ``box`` is -1 for the room itself; ``axis`` and ``sign`` give the surface's normal."""

    point: Floats  # [3, N]
    distance: Floats  # [N]
    box: Ints  # [N]
    axis: Ints  # [N]
    sign: Floats  # [N]


def _slabs(origin: Floats, inverse: Floats, lower: Floats, upper: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave the three pairs of planes of a box, each [3, N]."""
    one = (lower[:, None] - origin) * inverse
    two = (upper[:, None] - origin) * inverse
    return np.minimum(one, two), np.maximum(one, two)


def _inverse(directions: Floats) -> Floats:
    # A ray exactly along a plane must not divide by zero; 1e-12 is far below any pixel.
    return 1 / np.where(np.abs(directions) < 1e-12, 1e-12, directions)


def _cast(origin: Floats, directions: Floats, boxes: tuple[Box, ...]) -> _Hits:
    start = origin[:, None]
    inverse = _inverse(directions)
    _, leave = _slabs(start, inverse, np.zeros(3), ROOM)
    axis = leave.argmin(axis=0)
    distance = leave.min(axis=0)
    box = np.full(distance.shape, -1)
    for i, b in enumerate(boxes):
        enter, leave = _slabs(start, inverse, b.lower, b.upper)
        near = enter.max(axis=0)
        closer = np.flatnonzero((near < leave.min(axis=0)) & (near > 0) & (near < distance))
        distance[closer] = near[closer]
        axis[closer] = enter[:, closer].argmax(axis=0)
        box[closer] = i
    # Every surface that is seen faces the camera.
    sign = -np.sign(np.take_along_axis(directions, axis[None], axis=0)[0])
    return _Hits(start + directions * distance, distance, box, axis, sign)


def _shade(hits: _Hits, boxes: tuple[Box, ...]) -> Floats:
    """Colours [3, N] in 0..1: texture times ambient light and one lamp that casts shadows."""
    normal = np.zeros_like(hits.point)
    np.put_along_axis(normal, hits.axis[None], hits.sign[None], axis=0)
    to_light = LIGHT[:, None] - hits.point
    away = np.sqrt((to_light**2).sum(axis=0))
    lamp = np.clip((normal * to_light).sum(axis=0) / away, 0, 1) / (0.55 + 0.06 * away**2)

    start = hits.point + 1e-3 * normal
    inverse = _inverse(LIGHT[:, None] - start)
    for b in boxes:
        enter, leave = _slabs(start, inverse, b.lower, b.upper)
        first, last = enter.max(axis=0), leave.min(axis=0)
        lamp[(first < last) & (last > 0) & (first < 1)] = 0

    # Sides that meet at an edge get different ambient light, so that the edge shows in the shadow too.
    ambient = np.array([0.68, 0.80, 0.62])[hits.axis]
    return np.asarray(_texture(hits, boxes) * (ambient + 0.50 * lamp))


def _texture(hits: _Hits, boxes: tuple[Box, ...]) -> Floats:
    colour = np.empty_like(hits.point)
    wall = 2 * hits.axis + (hits.sign < 0)
    for face, paint in enumerate(_WALLS):
        here = np.flatnonzero((hits.box < 0) & (wall == face))
        across, along = (np.delete(np.arange(3), face // 2)).tolist()
        colour[:, here] = paint(hits.point[across, here], hits.point[along, here])
    for i, b in enumerate(boxes):
        here = np.flatnonzero(hits.box == i)
        colour[:, here] = np.array(b.colour)[:, None] * _crate(hits.point[:, here], hits.axis[here], b)
    return colour


def _crate(point: Floats, axis: Ints, box: Box) -> Floats:
    """Brightness [N] of a box's surface: a darker frame along its edges and a faint checker."""
    edge = np.minimum(point - box.lower[:, None], box.upper[:, None] - point)
    np.put_along_axis(edge, axis[None], np.inf, axis=0)
    cells = np.floor((point - box.lower[:, None]) / 0.13 + 1e-6)
    np.put_along_axis(cells, axis[None], 0, axis=0)
    return np.asarray(np.where(edge.min(axis=0) < 0.035, 0.62, 0.90 + 0.10 * (cells.sum(axis=0) % 2)))


def _grain(i: Floats, j: Floats) -> Floats:
    """A fixed pseudo-random number in 0..1 for each integer cell, so that no two tiles look the same."""
    a = i.astype(np.int64) * 73856093 ^ j.astype(np.int64) * 19349663
    return np.asarray(((a ^ a >> 13) * 60493 & 1023) / 1023)


def _mix(weight: Floats, one: tuple[float, float, float], two: tuple[float, float, float]) -> Floats:
    return np.asarray(np.array(one)[:, None] * (1 - weight) + np.array(two)[:, None] * weight)


def _skirting(colour: Floats, z: Floats) -> Floats:
    colour[:, z < 0.14] = np.array([[0.24], [0.22], [0.21]])
    return colour


def _bricks(x: Floats, z: Floats) -> Floats:
    row = np.floor(z / 0.2)
    column = np.floor(x / 0.5 + 0.5 * (row % 2))
    joint = (z / 0.2 - row < 0.1) | (x / 0.5 + 0.5 * (row % 2) - column < 0.05)
    body = _mix(_grain(row, column), (0.60, 0.47, 0.42), (0.78, 0.66, 0.60))
    return _skirting(np.where(joint, 0.86, body), z)


def _stripes(x: Floats, z: Floats) -> Floats:
    band = np.floor(x / 0.35)
    colour = _mix(band % 2, (0.80, 0.84, 0.82), (0.50, 0.60, 0.60)) * (0.9 + 0.1 * _grain(band, band))
    colour[:, (z > 1.0) & (z < 1.12)] *= 0.55
    return _skirting(colour, z)


def _diamonds(y: Floats, z: Floats) -> Floats:
    i, j = np.floor((y + z) / 0.45), np.floor((y - z) / 0.45)
    return _skirting(_mix((i + j) % 2, (0.86, 0.82, 0.72), (0.62, 0.58, 0.52)) * (0.88 + 0.12 * _grain(i, j)), z)


def _blocks(y: Floats, z: Floats) -> Floats:
    i, j = np.floor(y / 0.7), np.floor(z / 0.4)
    joint = (y / 0.7 - i < 0.04) | (z / 0.4 - j < 0.07)
    return _skirting(np.where(joint, 0.30, _mix(_grain(i, j), (0.52, 0.55, 0.64), (0.80, 0.82, 0.88))), z)


def _tiles(x: Floats, y: Floats) -> Floats:
    i, j = np.floor(x / 0.5), np.floor(y / 0.5)
    return _mix((i + j) % 2, (0.38, 0.37, 0.36), (0.82, 0.80, 0.77)) * (0.85 + 0.15 * _grain(i, j))


def _panels(x: Floats, y: Floats) -> Floats:
    i, j = np.floor(x / 0.8), np.floor(y / 0.8)
    joint = (x / 0.8 - i < 0.03) | (y / 0.8 - j < 0.03)
    return np.where(joint, 0.5, _mix(_grain(i, j), (0.84, 0.84, 0.86), (0.98, 0.98, 0.98)))


# In the order of the normal: +x, -x, +y, -y, floor, ceiling.
_WALLS = (_blocks, _diamonds, _bricks, _stripes, _tiles, _panels)
