"""The solids that rooms are made of, and where rays meet them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .textures import Material

Floats = NDArray[np.floating]
Shape = Literal["box", "cylinder", "ellipsoid"]
_TINY = 1e-9


@dataclass(frozen=True)
class Solid:
    """A box, an upright cylinder or an ellipsoid, turned about the vertical.

    Attributes:
        shape: what it is.
        centre: (x, y, z), metres, in the room's frame (z up).
        half: half of its extent along its own axes, metres; a cylinder's first two are its radii.
        yaw: radians, about z.
        material: what its surface looks like.
        owner: index of the object that it is a part of.
    """

    shape: Shape
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    material: Material
    owner: int

    @property
    def radius(self) -> float:
        """Of a ball around it, metres."""
        half = np.array(self.half)
        return float(half.max() if self.shape == "ellipsoid" else np.linalg.norm(half))

    def corners(self) -> Floats:
        """Of its bounding box, ``[8, 3]``."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, 8)
        return np.asarray((self.outward(signs * np.array(self.half)[:, None]) + np.array(self.centre)[:, None]).T)

    def inward(self, vectors: Floats) -> Floats:
        """Vectors ``[3, ...]`` of the room in the solid's axes."""
        c, s = vectors.dtype.type(np.cos(self.yaw)), vectors.dtype.type(np.sin(self.yaw))
        return np.stack([c * vectors[0] + s * vectors[1], c * vectors[1] - s * vectors[0], vectors[2]])

    def outward(self, vectors: Floats) -> Floats:
        """Vectors ``[3, ...]`` in the solid's axes in those of the room."""
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return np.stack([c * vectors[0] - s * vectors[1], s * vectors[0] + c * vectors[1], vectors[2]])

    def meet(self, origin: Floats, directions: Floats) -> Floats:
        """How far along each ray its surface is first met, in lengths of the ray; infinity where it is not.

        Args:
            origin: ``[3]``, or one for each ray.
            directions: ``[3, ...]``, of any length.
        """
        shift = np.array(self.centre, directions.dtype).reshape(3, *[1] * (origin.ndim - 1))
        start, along = self.inward(origin - shift), self.inward(directions)
        if start.ndim == 1:
            start = start.reshape(3, *[1] * (along.ndim - 1))
        half = np.array(self.half, directions.dtype)
        if self.shape == "box":
            enter, leave = _slabs(start, along, half)
        elif self.shape == "ellipsoid":
            enter, leave = _ball(start, along, half)
        else:
            flat, high = _ball(start[:2], along[:2], half[:2]), _slabs(start[2:], along[2:], half[2:])
            enter, leave = np.maximum(flat[0], high[0]), np.minimum(flat[1], high[1])
        return np.where((enter < leave) & (enter > 1e-4), enter, np.inf)

    def normals(self, local: Floats) -> Floats:
        """Outward unit normals ``[3, N]`` (in its own axes) at points of its surface ``[3, N]`` (likewise)."""
        half = np.array(self.half, local.dtype)[:, None]
        if self.shape == "ellipsoid":
            return _unit(local / half**2)
        across = np.abs(local / half)
        if self.shape == "box":
            normals = np.zeros_like(local)
            axis = across.argmax(axis=0)[None]
            np.put_along_axis(normals, axis, np.sign(np.take_along_axis(local, axis, axis=0)), axis=0)
            return normals
        side = _unit(np.stack([local[0] / half[0] ** 2, local[1] / half[1] ** 2, np.zeros_like(local[2])]))
        cap = across[2] > np.hypot(local[0] / half[0], local[1] / half[1])
        return np.where(cap, np.stack([np.zeros_like(local[2]), np.zeros_like(local[2]), np.sign(local[2])]), side)


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=0), _TINY))


def _slabs(start: Floats, along: Floats, half: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave the space between pairs of planes at +-half of each axis."""
    # A ray exactly along a plane must not divide by zero.
    inverse = 1 / np.where(np.abs(along) < _TINY, np.copysign(_TINY, along), along)
    reach = half.reshape(-1, *[1] * (along.ndim - 1)) * np.abs(inverse)
    middle = -start * inverse
    return (middle - reach).max(axis=0), (middle + reach).min(axis=0)


def _ball(start: Floats, along: Floats, half: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave an ellipsoid (three axes) or a cylinder without ends (two)."""
    scale = half.reshape(-1, *[1] * (along.ndim - 1))
    start, along = start / scale, along / scale
    a = np.maximum((along**2).sum(axis=0), _TINY)
    b = (start * along).sum(axis=0)
    c = (start**2).sum(axis=0) - 1
    root = b**2 - a * c
    reach = np.sqrt(np.maximum(root, 0)) / a
    return np.where(root > 0, -b / a - reach, np.inf), np.where(root > 0, -b / a + reach, -np.inf)
