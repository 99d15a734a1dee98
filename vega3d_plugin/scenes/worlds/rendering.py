"""Pictures, depth and instances of a room, by casting rays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import SettingsError
from ..scene import Scene, View
from .room import Room, build_room
from .solids import Solid

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

FIELD_OF_VIEW = 75.0  # degrees, horizontal
_SMALLEST, _LARGEST, _MOST = 16, 4096, 10_000
_AMBIENT, _LAMP = 0.58, 0.85


def rendered_scene(seed: int = 0, views: int = 8, size: tuple[int, int] = (96, 128)) -> Scene:
    """A furnished room seen by a wandering camera, with exact depth, poses, instances and objects.

    Pictures are rendered when they are asked for. The same seed gives the same room, however many views there are.

    Args:
        seed: draws the room, its furniture, textures and the way of the camera.
        views: along the way.
        size: (height, width) of the pictures, and of depth.

    Raises:
        SettingsError: a seed below 0, or views or sizes that cannot be rendered.
    """
    wrong = []
    if seed < 0:
        wrong.append(f"seed is {seed}: give 0 or a positive number")
    if not 1 <= views <= _MOST:
        wrong.append(f"views is {views}: give 1 to {_MOST:,}")
    if len(size) != 2 or not all(_SMALLEST <= side <= _LARGEST for side in size):
        wrong.append(f"size is {tuple(size)}: give (height, width), each {_SMALLEST} to {_LARGEST} pixels")
    if wrong:
        raise SettingsError(f"The room cannot be rendered: {'; '.join(wrong)}.")
    height, width = size
    room = build_room(seed)
    focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    intrinsics = torch.tensor(
        [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=torch.float64
    )
    pictures = [_Picture(seed, i, views, size) for i in range(views)]
    return Scene(
        f"room_{seed:04d}",
        f"room:{seed}",
        tuple(
            View(
                f"{picture.index:05d}",
                (height, width),
                picture.frame,
                picture.depth,
                intrinsics,
                pose=torch.from_numpy(pose),
                read_instances=picture.instances,
            )
            for picture, pose in zip(pictures, room.poses(views), strict=True)
        ),
        torch.eye(4, dtype=torch.float64),
        room.objects,
    )


@dataclass(frozen=True)
class _Picture:
    """One view of a room, as four numbers: cheap to copy to another process."""

    seed: int
    index: int
    views: int
    size: tuple[int, int]

    def frame(self) -> Tensor:
        # Four rays a pixel, so that edges and far textures do not flicker.
        cast = self._cast(2, np.float32)
        colours = _shade(cast)
        height, width = self.size
        mean = colours.reshape(3, height, 2, width, 2).mean(axis=(2, 4))
        pixels = np.round(255 * np.clip(mean, 0, 1)).astype(np.uint8)
        return torch.from_numpy(pixels).float() / 255

    def depth(self) -> Tensor:
        return torch.from_numpy(self._cast(1, np.float64).distance.astype(np.float32))

    def instances(self) -> Tensor:
        cast = self._cast(1, np.float64)
        owners = np.array([solid.owner for solid in cast.room.solids] + [-1])
        return torch.from_numpy(owners[cast.solid])

    def _cast(self, samples: int, dtype: Any) -> _Cast:
        room = build_room(self.seed)
        pose = room.poses(self.views)[self.index]
        return _cast(room, pose, self.size, samples, dtype)


@dataclass(frozen=True, eq=False)
class _Cast:
    """What the rays of a picture met.

    ``distance`` ``[H, W]`` along the camera's z axis; ``solid`` ``[H, W]``, -1 for the room's own surfaces; ``face``
    ``[H, W]``, which of these; ``points`` ``[3, H, W]`` in the room.
    """

    room: Room
    distance: Floats
    solid: Ints
    face: Ints
    points: Floats


def _cast(room: Room, pose: Floats, size: tuple[int, int], samples: int, dtype: Any) -> _Cast:
    height, width = size
    focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    v = ((np.arange(height * samples) + 0.5) / samples - 0.5 - (height - 1) / 2) / focal
    u = ((np.arange(width * samples) + 0.5) / samples - 0.5 - (width - 1) / 2) / focal
    y, x = np.meshgrid(v, u, indexing="ij")
    # Of length 1 along the camera's z axis, so that lengths along rays are depth.
    rays = np.einsum("ij,jhw->ihw", pose[:3, :3], np.stack([x, y, np.ones_like(x)])).astype(dtype)
    origin = pose[:3, 3].astype(dtype)

    distance, face = _leave(room, origin, rays)
    solid = np.full(distance.shape, -1)
    for number, piece in enumerate(room.solids):
        window = _window(piece, pose, (u, v))
        if window is None:
            continue
        met = piece.meet(origin, rays[:, window[0], window[1]])
        nearer = met < distance[window]
        distance[window][nearer] = met[nearer]
        solid[window][nearer] = number
    return _Cast(room, distance, solid, face, origin[:, None, None] + rays * distance)


def _leave(room: Room, origin: Floats, rays: Floats) -> tuple[Floats, Ints]:
    """Where rays meet the room's own walls, and which: -x, +x, -y, +y, floor, ceiling."""
    safe = np.where(np.abs(rays) < 1e-9, 1e-9, rays).astype(rays.dtype)
    ahead = safe > 0
    walls = np.where(ahead, room.size.astype(rays.dtype)[:, None, None], 0)
    reach = (walls - origin[:, None, None]) / safe
    axis = reach.argmin(axis=0)
    face = 2 * axis + np.take_along_axis(ahead, axis[None], axis=0)[0]
    return reach.min(axis=0), face


def _window(solid: Solid, pose: Floats, grid: tuple[Floats, Floats]) -> tuple[slice, slice] | None:
    """The rows and columns of rays that may meet a solid; None where none can."""
    seen = (solid.corners() - pose[:3, 3]) @ pose[:3, :3]
    z = seen[:, 2]
    if z.max() <= 0.01:
        return None
    u, v = grid
    if z.min() <= 0.01:
        return slice(0, len(v)), slice(0, len(u))
    across, down = seen[:, 0] / z, seen[:, 1] / z
    left, right = np.searchsorted(u, across.min()), np.searchsorted(u, across.max(), "right")
    top, bottom = np.searchsorted(v, down.min()), np.searchsorted(v, down.max(), "right")
    return None if left >= right or top >= bottom else (slice(int(top), int(bottom)), slice(int(left), int(right)))


def _shade(cast: _Cast) -> Floats:
    """Colours ``[3, H, W]``: pattern times light of the sky and of one lamp that casts shadows."""
    points = cast.points.reshape(3, -1)
    colours, normals = np.empty_like(points), np.empty_like(points)
    for where, local, facing, material, turned in _surfaces(cast, points):
        colours[:, where] = material.paint(local, facing)
        normals[:, where] = turned
    to_light = cast.room.light.astype(points.dtype)[:, None] - points
    away = np.linalg.norm(to_light, axis=0)
    lamp = np.clip((normals * to_light).sum(axis=0) / away, 0, 1) / (0.6 + 0.08 * away**2)
    lamp[_shadowed(cast.room, points, normals, away)] = 0
    # Sides that meet at an edge differ in the light of the sky, so that the edge shows in the shadow too.
    sky = _AMBIENT * (1 + 0.12 * normals[0] + 0.2 * normals[2] - 0.06 * normals[1] ** 2)
    return np.asarray((colours * (sky + _LAMP * lamp)).reshape(cast.points.shape))


def _surfaces(cast: _Cast, points: Floats) -> Iterator[tuple[Ints, Floats, Floats, Any, Floats]]:
    """For each surface in the picture: its rays, points and normals in its own axes, look, normals in the room."""
    solid, face = cast.solid.ravel(), cast.face.ravel()
    # One sort in place of a search for each of a hundred solids.
    keys = np.where(solid >= 0, solid + 6, face)
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    for key, where in zip(found, np.split(order, starts[1:]), strict=True):
        if key < 6:
            normals = np.zeros((3, len(where)), points.dtype)
            normals[key // 2] = 1 - 2 * (key % 2)
            yield where, points[:, where], normals, cast.room.surfaces[key], normals
            continue
        piece = cast.room.solids[key - 6]
        local = piece.inward(points[:, where] - np.array(piece.centre, points.dtype)[:, None])
        normals = piece.normals(local)
        yield where, local, normals, piece.material, piece.outward(normals).astype(points.dtype)


def _shadowed(room: Room, points: Floats, normals: Floats, away: Floats) -> NDArray[np.bool_]:
    """Which points have something between them and the lamp."""
    light = room.light.astype(points.dtype)
    beams = points - light[:, None]
    dark = np.zeros(points.shape[1], bool)
    for solid in room.solids:
        middle = np.array(solid.centre, points.dtype) - light
        along = middle @ beams / away
        near = (along > 0) & (along < away + solid.radius)
        beside = (middle @ middle) - along**2 < solid.radius**2
        maybe = np.flatnonzero(near & beside & ~dark)
        if len(maybe):
            start = points[:, maybe] + 2e-3 * normals[:, maybe]
            dark[maybe] = solid.meet(start, light[:, None] - start) < 1
    return dark
