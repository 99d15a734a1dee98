"""What surfaces look like: patterns in space, so that each place of a room has a look of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """A pattern of two colours.

    Attributes:
        pattern: a name in :data:`PATTERNS`.
        one: RGB in 0..1.
        two: the other colour.
        size: of one element of the pattern, metres.
        seed: shifts the pattern and its grain.
        grain: how much the brightness varies from place to place, a share.
    """

    pattern: str
    one: Colour
    two: Colour
    size: float
    seed: int
    grain: float = 0.22

    def paint(self, points: Floats, normals: Floats) -> Floats:
        """Colours ``[3, N]`` in 0..1.

        Args:
            points: ``[3, N]`` metres, in the axes of the thing.
            normals: ``[3, N]``, likewise; patterns that lie on a surface need them.
        """
        u, v = _on_surface(points, normals)
        shift = (self.seed % 97) * 0.37
        weight = PATTERNS[self.pattern](u / self.size + shift, v / self.size + shift, self.seed).astype(points.dtype)
        one, two = (np.array(colour, points.dtype)[:, None] for colour in (self.one, self.two))
        mixed = one + (two - one) * weight
        light = 1 + self.grain * (2 * _clouds(points * 3.1 + shift, self.seed) - 1)
        return mixed * (light + 0.5 * self.grain * (2 * _hash(u * 23, v * 23, self.seed) - 1)).astype(points.dtype)


def _on_surface(points: Floats, normals: Floats) -> tuple[Floats, Floats]:
    """Two coordinates along a surface, metres: those of the axes that its normal has least of."""
    axis = np.abs(normals).argmax(axis=0)
    u = np.where(axis == 0, points[1], points[0])
    v = np.where(axis == 2, points[1], points[2])
    return u, v


def _hash(i: Floats, j: Floats, seed: int, k: Floats | int = 0) -> Floats:
    """A fixed pseudo-random number in 0..1 for each cell of whole numbers."""
    a, b, c = (np.floor(x).astype(np.int64) for x in (i, j, np.asarray(k, np.float32)))
    mixed = (a * 73856093) ^ (b * 19349663) ^ (c * 83492791) ^ (seed * 2654435761 & 0x7FFFFFFF)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).astype(np.float32) / 65535


def _clouds(points: Floats, seed: int) -> Floats:
    """Smooth noise in 0..1 with one wave a metre or so."""
    low = np.floor(points)
    part = points - low
    part = part * part * (3 - 2 * part)
    total = np.zeros(points.shape[1], np.float32)
    for corner in range(8):
        step = [(corner >> axis) & 1 for axis in range(3)]
        weight = np.prod([part[a] if step[a] else 1 - part[a] for a in range(3)], axis=0)
        total += (weight * _hash(low[0] + step[0], low[1] + step[1], seed, low[2] + step[2])).astype(np.float32)
    return total


def _checker(u: Floats, v: Floats, seed: int) -> Floats:
    return np.asarray(np.mod(np.floor(u) + np.floor(v), 2) * (0.8 + 0.2 * _hash(u, v, seed)))


def _stripes(u: Floats, v: Floats, seed: int) -> Floats:
    return np.asarray(np.mod(np.floor(u), 2) * (0.75 + 0.25 * _hash(u, 0 * v, seed)))


def _bricks(u: Floats, v: Floats, seed: int) -> Floats:
    row = np.floor(v * 2)
    shifted = u + 0.5 * np.mod(row, 2)
    joint = (np.mod(v * 2, 1) < 0.12) | (np.mod(shifted, 1) < 0.06)
    return np.where(joint, 1.0, 0.55 * _hash(shifted, row, seed))


def _planks(u: Floats, v: Floats, seed: int) -> Floats:
    row = np.floor(v * 2)
    along = u * 0.4 + 3.7 * _hash(row, row, seed)
    joint = (np.mod(v * 2, 1) < 0.05) | (np.mod(along, 1) < 0.02)
    fibre = 0.25 * np.sin(v * 40 + 3 * np.sin(u * 2 + row))
    return np.where(joint, 1.0, 0.35 * _hash(along, row, seed) + 0.2 + 0.5 * fibre * fibre)


def _dots(u: Floats, v: Floats, seed: int) -> Floats:
    x, y = np.mod(u, 1) - 0.5, np.mod(v, 1) - 0.5
    return np.where(np.hypot(x, y) < 0.2 + 0.18 * _hash(u, v, seed), 1.0, 0.0)


def _diamonds(u: Floats, v: Floats, seed: int) -> Floats:
    return np.asarray(np.mod(np.floor(u + v) + np.floor(u - v), 2) * (0.7 + 0.3 * _hash(u + v, u - v, seed)))


def _patches(u: Floats, v: Floats, seed: int) -> Floats:
    return _hash(u, v, seed)


def _plain(u: Floats, v: Floats, seed: int) -> Floats:
    return 0.3 * _hash(u, v, seed)


PATTERNS: Mapping[str, Callable[[Floats, Floats, int], Floats]] = {
    "checker": _checker,
    "stripes": _stripes,
    "bricks": _bricks,
    "planks": _planks,
    "dots": _dots,
    "diamonds": _diamonds,
    "patches": _patches,
    "plain": _plain,
}
