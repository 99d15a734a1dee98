"""A furnished room drawn from a seed: walls, furniture, things on the walls, a lamp, and the way of the camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..scene import SceneObject
from .furniture import AT_WALLS, KINDS, Piece, Workshop
from .solids import Solid
from .textures import Material

Floats = NDArray[np.floating]

_GAP = 0.06  # metres between pieces
_PICTURE = 0.02  # half the thickness of what hangs on a wall
_CLEARANCE = 0.4  # metres between the camera and what is as high as it
_TRIES = 300


@dataclass(frozen=True, eq=False)
class Room:
    """Everything in a room. Metres; x and y along the floor from one corner, z up.

    Attributes:
        seed: it was drawn from this.
        size: (x, y, z).
        surfaces: materials of -x, +x, -y, +y wall, floor and ceiling.
        solids: of all objects.
        objects: what stands or hangs in it; :attr:`Solid.owner` points here.
        light: place of the lamp.
        curve: numbers that the way of the camera is made of, see :meth:`poses`.
    """

    seed: int
    size: Floats
    surfaces: tuple[Material, ...]
    solids: tuple[Solid, ...]
    objects: tuple[SceneObject, ...]
    light: Floats
    curve: dict[str, Any]

    def poses(self, count: int) -> Floats:
        """Camera-to-world ``[count, 4, 4]``, OpenCV convention; more views sample the same way more finely."""
        return _along(self.curve, np.linspace(0, 1, count) if count > 1 else np.array([0.5]))


@lru_cache(maxsize=64)
def build_room(seed: int) -> Room:
    """The room of a seed."""
    rng = np.random.default_rng([seed, 20260])
    workshop = Workshop(rng)
    size = np.array([rng.uniform(4.2, 6.5), rng.uniform(3.8, 5.8), rng.uniform(2.5, 3.0)])
    surfaces = _surfaces(workshop)
    placed = _furnish(workshop, size)
    placed += _on_walls(workshop, size, placed)
    solids: list[Solid] = []
    objects: list[SceneObject] = []
    for piece, place, yaw in placed:
        low, high = piece.bounds
        c, s = np.cos(yaw), np.sin(yaw)

        def moved(point: Any, c: float = c, s: float = s, place: Floats = place) -> tuple[float, float, float]:
            x, y, z = point
            return float(place[0] + c * x - s * y), float(place[1] + s * x + c * y), float(place[2] + z)

        extent = (float(high[0] - low[0]), float(high[1] - low[1]), float(high[2] - low[2]))
        for part in piece.parts:
            solids.append(Solid(part.shape, moved(part.centre), part.half, yaw, part.material, len(objects)))
        objects.append(SceneObject(piece.name, moved((low + high) / 2), extent, (yaw, 0.0, 0.0)))
    light = np.array([size[0] * rng.uniform(0.35, 0.65), size[1] * rng.uniform(0.35, 0.65), size[2] - 0.15])
    curve = _wander(rng, size, placed)
    return Room(seed, size, surfaces, tuple(solids), tuple(objects), light, curve)


_Placed = tuple[Piece, Floats, float]


def _surfaces(workshop: Workshop) -> tuple[Material, ...]:
    walls = [workshop.material("bricks", "stripes", "diamonds", "patches", "planks", size=(0.2, 0.5)) for _ in range(4)]
    floor = (
        workshop.wood() if workshop.rng.random() < 0.5 else workshop.material("checker", "diamonds", size=(0.25, 0.5))
    )
    grey = workshop.between(0.75, 0.95)
    ceiling = Material("checker", (grey, grey, grey), (grey * 0.9, grey * 0.9, grey * 0.88), 0.6, 5)
    return (*walls, floor, ceiling)


def _footprint(piece: Piece, place: Floats, yaw: float) -> Floats:
    """Axis-aligned bounds (x0, y0, x1, y1) on the floor."""
    low, high = piece.bounds
    corners = np.array([(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])])
    c, s = np.cos(yaw), np.sin(yaw)
    turned = corners @ np.array([[c, s], [-s, c]]) + place[:2]
    return np.concatenate([turned.min(axis=0), turned.max(axis=0)])


def _free(box: Floats, taken: list[Floats], size: Floats) -> bool:
    if (box[:2] < 0.01).any() or (box[2:] > size[:2] - 0.01).any():
        return False
    return all(
        box[0] > other[2] + _GAP or other[0] > box[2] + _GAP or box[1] > other[3] + _GAP or other[1] > box[3] + _GAP
        for other in taken
    )


def _furnish(workshop: Workshop, size: Floats) -> list[_Placed]:
    """Draw pieces and places; what finds no place is left out."""
    rng = workshop.rng
    inner = [name for name in KINDS if name not in AT_WALLS]
    at_walls = list(rng.permutation(AT_WALLS)[: int(rng.integers(3, 6))])
    # A table is the middle of most rooms.
    others = ["table", "chair", *rng.choice(inner, int(rng.integers(6, 10)))]
    placed: list[_Placed] = []
    taken: list[Floats] = []
    for name in [*at_walls, *others]:
        piece = workshop.build(str(name))
        for _ in range(40):
            place, yaw = _spot(rng, piece, size, name in AT_WALLS)
            box = _footprint(piece, place, yaw)
            if _free(box, taken, size):
                placed.append((piece, place, yaw))
                taken.append(box)
                break
    return placed


def _spot(rng: np.random.Generator, piece: Piece, size: Floats, at_wall: bool) -> tuple[Floats, float]:
    low, high = piece.bounds
    if not at_wall:
        yaw = float(rng.choice([0, np.pi / 2])) + float(rng.uniform(-0.5, 0.5))
        return np.array([rng.uniform(0.3, size[0] - 0.3), rng.uniform(0.3, size[1] - 0.3), 0.0]), yaw
    # The back of a piece is its +y side: yaw 0 stands at the wall of the largest y.
    wall = int(rng.integers(4))
    yaw = wall * np.pi / 2
    along = rng.uniform(-low[0] + 0.05, size[wall % 2] - high[0] - 0.05)
    away = high[1] + 0.02
    x, y = [
        (along, size[1] - away),
        (away, along),
        (along, away),
        (size[0] - away, along),
    ][wall]
    return np.array([x, y, 0.0]), yaw


def _on_walls(workshop: Workshop, size: Floats, placed: list[_Placed]) -> list[_Placed]:
    """Paintings, a window and a door; flat pieces that do not hide behind tall furniture by more than chance."""
    from .furniture import Part

    rng = workshop.rng
    hung: list[_Placed] = []
    used: list[tuple[int, float, float]] = []
    for name in ("door", "window", *["painting"] * int(rng.integers(3, 7))):
        half, level = {
            "door": (0.42, 1.0),
            "window": (workshop.between(0.45, 0.75), workshop.between(0.4, 0.55)),
            "painting": (workshop.between(0.18, 0.42), workshop.between(0.18, 0.36)),
        }[name]
        middle = 1.0 if name == "door" else size[2] * workshop.between(0.52, 0.62)
        look = {
            "door": workshop.wood(),
            "window": Material("checker", (0.72, 0.86, 0.98), (0.93, 0.95, 0.97), max(half, level), 3, 0.05),
            "painting": workshop.material(size=(0.06, 0.16)),
        }[name]
        frame = Part("box", (0, 0, 0), (half + 0.04, _PICTURE * 0.6, level + 0.04), workshop.wood())
        piece = Piece(name, (frame, Part("box", (0, -0.01, 0), (half, _PICTURE, level), look)))
        for _ in range(20):
            wall = int(rng.integers(4))
            along = float(rng.uniform(half + 0.1, size[wall % 2] - half - 0.1))
            if all(wall != w or abs(along - a) > half + h + 0.1 for w, a, h in used):
                used.append((wall, along, half))
                away = _PICTURE * 0.4
                x, y = [(along, size[1] - away), (away, along), (along, away), (size[0] - away, along)][wall]
                hung.append((piece, np.array([x, y, middle]), wall * np.pi / 2))
                break
    return hung


def _wander(rng: np.random.Generator, size: Floats, placed: list[_Placed]) -> dict[str, Any]:
    """A smooth way that keeps clear of what is as high as the camera; the clearest of many, if none is."""
    boxes = [
        (_footprint(piece, place, yaw), place[2] + piece.bounds[1][2]) for piece, place, yaw in placed if place[2] < 0.5
    ]
    best, widest = None, -np.inf
    for _ in range(_TRIES):
        curve = {
            "middle": size[:2] * rng.uniform(0.4, 0.6, 2),
            "reach": size[:2] * rng.uniform(0.18, 0.36, 2),
            "phase": rng.uniform(0, 2 * np.pi, 5),
            "turn": rng.choice([-1.0, 1.0]) * np.radians(rng.uniform(80, 170)),
            "look": rng.uniform(-0.3, 0.3),
            "height": rng.uniform(1.35, min(1.9, size[2] - 0.6)),
            "dip": np.radians(rng.uniform(10, 22)),
        }
        eyes = _eyes(curve, np.linspace(0, 1, 40))
        clear = min([float(np.min([eyes[:, :2], size[:2] - eyes[:, :2]])), *[_distance(eyes, *box) for box in boxes]])
        if clear > widest:
            best, widest = curve, clear
        if clear > _CLEARANCE:
            break
    assert best is not None
    if widest < 0.15:  # crowded: above everything
        best["height"] = size[2] - 0.35
    return best


def _distance(eyes: Floats, box: Floats, top: float) -> float:
    """The least distance on the floor between the camera and a piece that reaches near its height."""
    near = eyes[:, 2] < top + 0.3
    away = np.maximum(np.maximum(box[:2] - eyes[:, :2], eyes[:, :2] - box[2:]), 0)
    return float(np.hypot(*away[near].T).min()) if near.any() else np.inf


def _eyes(curve: dict[str, Any], s: Floats) -> Floats:
    p = curve["phase"]
    angle = p[0] + curve["turn"] * s
    x = curve["middle"][0] + curve["reach"][0] * np.cos(angle) * (0.85 + 0.15 * np.sin(4 * s + p[1]))
    y = curve["middle"][1] + curve["reach"][1] * np.sin(angle) * (0.85 + 0.15 * np.sin(5 * s + p[2]))
    return np.stack([x, y, curve["height"] + 0.12 * np.sin(2 * np.pi * s + p[3])], axis=1)


def _along(curve: dict[str, Any], s: Floats) -> Floats:
    eyes, p = _eyes(curve, s), curve["phase"]
    # Across the room, so that there is something to see.
    yaw = p[0] + curve["turn"] * s + np.pi + curve["look"] + 0.25 * np.sin(5 * s + p[4])
    dip = curve["dip"] + np.radians(5) * np.sin(3 * s + p[1])
    forward = np.stack([np.cos(yaw) * np.cos(dip), np.sin(yaw) * np.cos(dip), -np.sin(dip)], axis=1)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (len(s), 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=2)
    poses[:, :3, 3] = eyes
    return poses
