"""Pieces of furniture as solids, in a frame of their own: on the floor, the front towards -y."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .solids import Shape
from .textures import PATTERNS, Colour, Material


@dataclass(frozen=True)
class Part:
    """A solid of a piece: centre, half extents (metres) and look."""

    shape: Shape
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    material: Material


@dataclass(frozen=True)
class Piece:
    """A piece of furniture.

    Attributes:
        name: its category.
        parts: at least one.
    """

    name: str
    parts: tuple[Part, ...]

    @property
    def bounds(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Smallest and largest coordinates, each [3], metres."""
        low = np.min([np.subtract(part.centre, part.half) for part in self.parts], axis=0)
        return low, np.max([np.add(part.centre, part.half) for part in self.parts], axis=0)


class Workshop:
    """Builds pieces; sizes, colours and patterns are drawn."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def build(self, name: str) -> Piece:
        """A piece of a kind in :data:`KINDS`."""
        return Piece(name, tuple(KINDS[name](self)))

    def between(self, low: float, high: float) -> float:
        """A number drawn evenly."""
        return float(self.rng.uniform(low, high))

    def colour(
        self, saturation: tuple[float, float] = (0.25, 0.9), value: tuple[float, float] = (0.35, 0.95)
    ) -> Colour:
        """An RGB colour."""
        return colorsys.hsv_to_rgb(self.between(0, 1), self.between(*saturation), self.between(*value))

    def material(self, *patterns: str, size: tuple[float, float] = (0.08, 0.25)) -> Material:
        """One of the patterns (any, if none are named) in two colours."""
        pattern = str(self.rng.choice(patterns or sorted(PATTERNS)))
        one = self.colour()
        # The second is the first, lighter or darker, or another one.
        factor = self.between(0.35, 0.75)
        two = (one[0] * factor, one[1] * factor, one[2] * factor) if self.rng.random() < 0.6 else self.colour()
        return Material(pattern, one, two, self.between(*size), int(self.rng.integers(1 << 30)))

    def wood(self) -> Material:
        """Planks in a brown."""
        shade = self.between(0.35, 0.85)
        one = (shade, shade * self.between(0.6, 0.8), shade * self.between(0.35, 0.55))
        return Material(
            "planks", one, (one[0] * 0.6, one[1] * 0.6, one[2] * 0.6), 0.2, int(self.rng.integers(1 << 30)), 0.15
        )


def _legs(width: float, depth: float, height: float, thick: float, material: Material, shape: Shape) -> list[Part]:
    return [
        Part(shape, (x * (width - thick), y * (depth - thick), height / 2), (thick, thick, height / 2), material)
        for x in (-1, 1)
        for y in (-1, 1)
    ]


def _table(w: Workshop) -> list[Part]:
    width, depth, height = w.between(0.5, 0.8), w.between(0.35, 0.5), w.between(0.65, 0.78)
    top, legs = (w.wood(), w.wood()) if w.rng.random() < 0.6 else (w.material(), w.wood())
    parts = [Part("box", (0, 0, height), (width, depth, 0.025), top)]
    if w.rng.random() < 0.4:
        radius = min(width, 0.6)
        parts = [Part("cylinder", (0, 0, height), (radius, radius, 0.025), top)]
        width = depth = radius * 0.75
    parts += _legs(width, depth, height - 0.025, 0.035, legs, "box")
    return parts + _things_on(w, height + 0.025, width * 0.6, depth * 0.6)


def _things_on(w: Workshop, level: float, width: float, depth: float) -> list[Part]:
    parts = []
    for side in (-1, 1)[: int(w.rng.integers(0, 3))]:
        x, y = side * w.between(0.3, 1) * width, w.between(-1, 1) * depth
        size = w.between(0.04, 0.11)
        shape: Shape = ("box", "cylinder", "ellipsoid")[int(w.rng.integers(3))]
        tall = size if shape == "ellipsoid" else w.between(0.04, 0.16)
        parts.append(Part(shape, (x, y, level + tall), (size, size, tall), w.material(size=(0.03, 0.08))))
    return parts


def _chair(w: Workshop) -> list[Part]:
    side, height, back = w.between(0.2, 0.24), w.between(0.42, 0.48), w.between(0.35, 0.5)
    frame, seat = w.wood(), w.material()
    return [
        Part("box", (0, 0, height), (side, side, 0.03), seat),
        Part("box", (0, side - 0.02, height + back / 2 + 0.05), (side, 0.02, back / 2), seat),
        *_legs(side, side, height - 0.03, 0.022, frame, "box"),
    ]


def _stool(w: Workshop) -> list[Part]:
    radius, height = w.between(0.17, 0.22), w.between(0.4, 0.65)
    return [
        Part("cylinder", (0, 0, height), (radius, radius, 0.03), w.material()),
        *_legs(radius * 0.75, radius * 0.75, height - 0.03, 0.02, w.wood(), "cylinder"),
    ]


def _shelf(w: Workshop) -> list[Part]:
    width, depth, height, wood = w.between(0.4, 0.65), w.between(0.14, 0.18), w.between(1.2, 1.9), w.wood()
    parts = [Part("box", (side * width, 0, height / 2), (0.02, depth, height / 2), wood) for side in (-1, 1)]
    parts.append(Part("box", (0, depth - 0.01, height / 2), (width, 0.01, height / 2), w.material("plain", "stripes")))
    levels = np.linspace(0.08, height - 0.02, int(w.rng.integers(4, 6)))
    parts += [Part("box", (0, 0, float(level)), (width, depth, 0.015), wood) for level in levels]
    for level in levels[:-1]:
        tall, wide = w.between(0.09, 0.13), w.between(0.12, 0.8) * width
        x = w.between(-1, 1) * (width - wide - 0.02)
        books = w.material("stripes", "patches", size=(0.03, 0.06))
        parts.append(Part("box", (x, -0.02, float(level) + 0.015 + tall), (wide, depth * 0.7, tall), books))
    return parts


def _sofa(w: Workshop) -> list[Part]:
    width, depth, cloth = w.between(0.75, 1.0), w.between(0.38, 0.45), w.material()
    cushion = w.material()
    return [
        Part("box", (0, 0, 0.2), (width, depth, 0.2), cloth),
        Part("box", (0, depth - 0.09, 0.58), (width, 0.09, 0.2), cloth),
        *[Part("box", (side * (width - 0.08), 0, 0.48), (0.08, depth, 0.1), cloth) for side in (-1, 1)],
        *[Part("ellipsoid", (side * width * 0.45, 0.12, 0.52), (0.22, 0.1, 0.16), cushion) for side in (-1, 1)],
    ]


def _bed(w: Workshop) -> list[Part]:
    width, length, wood = w.between(0.5, 0.8), w.between(0.95, 1.02), w.wood()
    return [
        Part("box", (0, 0, 0.14), (width, length, 0.14), wood),
        Part("box", (0, -0.02, 0.36), (width - 0.03, length - 0.04, 0.1), w.material(size=(0.15, 0.35))),
        Part("box", (0, length - 0.02, 0.45), (width, 0.03, 0.45), wood),
        Part("ellipsoid", (0, length - 0.3, 0.5), (width * 0.55, 0.18, 0.09), w.material("plain", "stripes", "dots")),
    ]


def _cabinet(w: Workshop) -> list[Part]:
    width, depth, height = w.between(0.4, 0.6), w.between(0.2, 0.28), w.between(0.7, 1.7)
    body, metal = w.material(size=(0.1, 0.3)), Material("plain", (0.8, 0.8, 0.82), (0.5, 0.5, 0.52), 0.05, 7, 0.05)
    doors = [
        Part(
            "box", (side * width / 2, -depth - 0.01, height / 2), (width / 2 - 0.02, 0.01, height / 2 - 0.04), w.wood()
        )
        for side in (-1, 1)
    ]
    knobs = [
        Part("ellipsoid", (side * 0.06, -depth - 0.04, height * 0.55), (0.02, 0.02, 0.02), metal) for side in (-1, 1)
    ]
    return [Part("box", (0, 0, height / 2), (width, depth, height / 2), body), *doors, *knobs]


def _lamp(w: Workshop) -> list[Part]:
    height, shade = w.between(1.2, 1.6), w.between(0.16, 0.24)
    metal = Material("plain", (0.35, 0.35, 0.38), (0.2, 0.2, 0.22), 0.05, 3, 0.05)
    return [
        Part("cylinder", (0, 0, 0.02), (0.14, 0.14, 0.02), metal),
        Part("cylinder", (0, 0, height / 2), (0.015, 0.015, height / 2), metal),
        Part("cylinder", (0, 0, height), (shade, shade, 0.14), w.material("stripes", "dots", "plain", "diamonds")),
    ]


def _plant(w: Workshop) -> list[Part]:
    pot, tall = w.between(0.12, 0.18), w.between(0.22, 0.34)
    green = Material("patches", (0.10, 0.42, 0.12), (0.35, 0.62, 0.20), 0.05, int(w.rng.integers(1 << 30)), 0.35)
    leaves = [
        Part(
            "ellipsoid",
            (w.between(-0.12, 0.12), w.between(-0.12, 0.12), 2 * tall + w.between(0.1, 0.5)),
            (w.between(0.14, 0.26), w.between(0.14, 0.26), w.between(0.15, 0.3)),
            green,
        )
        for _ in range(3)
    ]
    return [Part("cylinder", (0, 0, tall), (pot, pot, tall), w.material()), *leaves]


def _ball(w: Workshop) -> list[Part]:
    radius = w.between(0.12, 0.24)
    return [
        Part("ellipsoid", (0, 0, radius), (radius, radius, radius), w.material("patches", "stripes", "dots", "checker"))
    ]


def _crate(w: Workshop) -> list[Part]:
    x, y, z = w.between(0.18, 0.32), w.between(0.18, 0.32), w.between(0.15, 0.35)
    return [Part("box", (0, 0, z), (x, y, z), w.material())]


def _bin(w: Workshop) -> list[Part]:
    radius, tall = w.between(0.12, 0.18), w.between(0.16, 0.26)
    return [Part("cylinder", (0, 0, tall), (radius, radius, tall), w.material())]


def _monitor(w: Workshop) -> list[Part]:
    width, level = w.between(0.35, 0.55), w.between(0.42, 0.55)
    black = Material("plain", (0.08, 0.08, 0.09), (0.15, 0.15, 0.16), 0.05, 11, 0.1)
    screen = w.material("patches", size=(0.06, 0.12))
    return [
        Part("box", (0, 0, level / 2), (width * 1.2, 0.2, level / 2), w.wood()),
        Part("box", (0, 0, level + 0.05 + width * 0.56), (width, 0.025, width * 0.56), black),
        Part("box", (0, -0.03, level + 0.05 + width * 0.56), (width * 0.94, 0.006, width * 0.5), screen),
    ]


KINDS: Mapping[str, Callable[[Workshop], list[Part]]] = {
    "table": _table,
    "chair": _chair,
    "stool": _stool,
    "shelf": _shelf,
    "sofa": _sofa,
    "bed": _bed,
    "cabinet": _cabinet,
    "lamp": _lamp,
    "plant": _plant,
    "ball": _ball,
    "crate": _crate,
    "bin": _bin,
    "television": _monitor,
}
#: Pieces that stand with their back to a wall; the others stand where there is room.
AT_WALLS = ("shelf", "sofa", "bed", "cabinet", "television")
