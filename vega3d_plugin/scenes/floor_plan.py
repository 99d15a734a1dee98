"""A scene from above: what its views show of the floor, the way of the camera, and where the chosen views look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .coordinates import point_map
from .scene import Scene, View

Floats = NDArray[np.float64]
PAPER, INK, FAINT, ACCENT, PATH = (255, 255, 255), (25, 25, 25), (120, 120, 120), (196, 46, 30), (40, 90, 180)
_MARGIN = 16
_PER_VIEW = 6000  # points drawn of each view
_MOST = 48  # views of which points are drawn
_ABOVE = 0.25  # metres above the camera, from where a ceiling would hide all


def floor_plan(scene: Scene, chosen: Sequence[int], side: int = 420) -> Image.Image:
    """Draw a scene from above, at most ``side`` x ``side`` pixels.

    The surface that the views show is drawn in its own colours, up to the camera's height; the way of the camera is a
    line, and each chosen view an arrow with its number. Up is the z axis of an aligned scene, else the mean of what
    is up in the pictures.

    Args:
        scene: with poses; depth is drawn where it is known.
        chosen: indices of views.
        side: pixels.

    Raises:
        SceneError: there are no poses.
    """
    poses = scene.require("pose").poses
    if scene.alignment is not None:
        poses = scene.alignment @ poses
    axes = _axes(scene, poses)
    flat = _Flat(axes, poses)
    points, colours = _surface(scene, chosen, axes, flat.highest)
    low, high = _bounds(flat.eyes, points[:, :2])
    scale = (side - 2 * _MARGIN) / max(float((high - low).max()), 1e-6)
    size = np.maximum(np.ceil((high - low) * scale).astype(int) + 2 * _MARGIN, 2 * _MARGIN + 40)

    def at(place: Floats) -> Floats:
        # Up in the picture is the second axis of the floor.
        x, y = (np.moveaxis(place, -1, 0) - low.reshape(2, *[1] * (place.ndim - 1))) * scale + _MARGIN
        return np.stack([x, size[1] - y], axis=-1)

    canvas = np.full((size[1], size[0], 3), 238, np.uint8)
    if len(points):
        # The highest comes last, and stays.
        order = np.argsort(points[:, 2], kind="stable")
        x, y = at(points[order, :2]).round().astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < size[0]) & (y < size[1])
        canvas[y[inside], x[inside]] = colours[order][inside]
    picture = Image.fromarray(canvas)
    _draw(picture, at, flat, chosen)
    if scene.metric:
        _draw_metre(picture, scale)
    return picture


@dataclass(frozen=True, eq=False)
class _Flat:
    """Cameras on the floor: where they are ``[T, 2]``, where they look ``[T, 2]``, and a height above all of them."""

    axes: Floats
    poses: Tensor

    @property
    def eyes(self) -> Floats:
        return (self.poses[:, :3, 3].numpy() @ self.axes.T)[:, :2]

    @property
    def looks(self) -> Floats:
        forward = (self.poses[:, :3, 2].numpy() @ self.axes.T)[:, :2]
        return np.asarray(forward / np.maximum(np.linalg.norm(forward, axis=1, keepdims=True), 1e-9))

    @property
    def highest(self) -> float:
        return float((self.poses[:, :3, 3].numpy() @ self.axes.T)[:, 2].max()) + _ABOVE


def _axes(scene: Scene, poses: Tensor) -> Floats:
    """Rows: two axes of the floor, and up; in the world of ``poses``."""
    if scene.alignment is not None:
        return np.eye(3)
    up = -poses[:, :3, 1].mean(dim=0).numpy()
    if np.linalg.norm(up) < 1e-3:
        up = np.array([0.0, 0.0, 1.0])
    up /= np.linalg.norm(up)
    right = poses[0, :3, 0].numpy()
    right = right - up * (right @ up)
    if np.linalg.norm(right) < 1e-3:
        right = np.cross(up, [0.0, 1.0, 0.0] if abs(up[1]) < 0.9 else [1.0, 0.0, 0.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(up, right), up])


def _surface(scene: Scene, chosen: Sequence[int], axes: Floats, highest: float) -> tuple[Floats, NDArray[np.uint8]]:
    """Points below the ceiling in the axes of the floor ``[N, 3]``, and their colours ``[N, 3]``."""
    if not (scene.has_depth and scene.has_intrinsics):
        return np.empty((0, 3)), np.empty((0, 3), np.uint8)
    spread = np.linspace(0, len(scene) - 1, min(len(scene), _MOST), dtype=int)
    found = [_seen(scene.views[i], scene.alignment) for i in sorted({*map(int, spread), *chosen})]
    points = np.concatenate([each for each, _ in found]) @ axes.T
    colours = np.concatenate([each for _, each in found])
    below = points[:, 2] < highest
    return points[below], colours[below]


def _seen(view: View, alignment: Tensor | None) -> tuple[Floats, NDArray[np.uint8]]:
    seen = point_map(view, alignment)
    height, width = seen.valid.shape
    colours = F.interpolate(view.frame()[None], size=(height, width), mode="area")[0].permute(1, 2, 0)
    step = max(1, int((height * width / _PER_VIEW) ** 0.5))
    valid = seen.valid[::step, ::step]
    pixels = (colours[::step, ::step][valid] * 255).round().to(torch.uint8)
    return seen.points[::step, ::step][valid].double().numpy(), pixels.numpy()


def _bounds(eyes: Floats, points: Floats) -> tuple[Floats, Floats]:
    """Of all cameras and nearly all points (a few far ones would make the rest tiny), with some room around."""
    low, high = eyes.min(axis=0), eyes.max(axis=0)
    if len(points):
        nearly = np.percentile(points, [1, 99], axis=0)
        low, high = np.minimum(low, nearly[0]), np.maximum(high, nearly[1])
    free = 0.08 * max(float((high - low).max()), 0.1)
    return low - free, high + free


def _draw(picture: Image.Image, at: Callable[[Floats], Floats], flat: _Flat, chosen: Sequence[int]) -> None:
    """The way of the camera, and an arrow for each chosen view."""
    draw = ImageDraw.Draw(picture)
    eyes, looks = at(flat.eyes), flat.looks * np.array([1, -1])
    if len(eyes) > 1:
        draw.line([(x, y) for x, y in eyes], PATH, width=2)
    for index in chosen:
        start, ahead = eyes[index], looks[index]
        tip, side = start + 20 * ahead, np.array([-ahead[1], ahead[0]])
        draw.line([*start, *tip], ACCENT, width=2)
        draw.polygon([*(tip + 5 * ahead), *(tip + 4 * side), *(tip - 4 * side)], fill=ACCENT)
        draw.ellipse([*(start - 3), *(start + 3)], fill=ACCENT)
        _write(draw, start - 11 * ahead, str(index), "mm")


def _draw_metre(picture: Image.Image, scale: float) -> None:
    draw = ImageDraw.Draw(picture)
    y = picture.height - 9
    draw.line([8, y, 8 + scale, y], INK, width=2)
    _write(draw, np.array([13 + scale, y]), "1 m", "lm")


def _write(draw: ImageDraw.ImageDraw, place: Floats, text: str, anchor: str) -> None:
    font = ImageFont.load_default(size=13)
    draw.text((place[0], place[1]), text, INK, font=font, anchor=anchor, stroke_width=2, stroke_fill=PAPER)
