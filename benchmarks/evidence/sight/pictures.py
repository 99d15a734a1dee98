"""Scenes to judge on: two real stereo pairs, a real plane, rendered rooms and LIBERO's tables; all with exact depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vega3d_plugin.scenes.opening import open_scene, open_scenes
from vega3d_plugin.scenes.readers.stereo import Calibration, _seen_from_the_right
from vega3d_plugin.scenes.scene import Scene

#: In Debian's package ``opencv-doc``.
EXAMPLES = "usr/share/doc/opencv-doc/examples/data"
#: Of graf's plane, in distances of the first camera from it: what lies beyond is nearly edge-on.
HORIZON = 50.0


@dataclass(frozen=True)
class PictureSet:
    """Scenes that are judged together.

    Attributes:
        name: of the set.
        what: in a few words.
        size: (height, width) in pixels that networks are given.
        open: opens the scenes; None where their files are not there.
        real: photographs.
    """

    name: str
    what: str
    size: tuple[int, int]
    open: Callable[[], list[Scene]] | None
    real: bool = True


def picture_sets(
    opencv: Path | None, libero: Path | None, blender: Path | None = None, rooms: int = 24
) -> list[PictureSet]:
    """All sets.

    Args:
        opencv: folder that ``opencv-doc`` was unpacked in, ``dpkg-deb -x opencv-doc_*.deb FOLDER``.
        libero: folder of exported scenes of LIBERO (``vega3d scene export libero:... --to folder``).
        blender: folder of the scenes of ``blender_rooms.py``.
        rooms: how many to render.
    """
    data = None if opencv is None else opencv / EXAMPLES
    tables, furnished = _folders(libero), _folders(blender)

    def rendered() -> list[Scene]:
        found = open_scenes([f"room:0..{rooms - 1}?views=8&size=192x256"], check=False)
        return [in_memory(scene) for scene in found]

    return [
        PictureSet("motorcycle", "stereo pair", (480, 736), lambda: [open_scene("stereo:motorcycle")]),
        PictureSet("aloe", "stereo pair", (480, 544), None if data is None else lambda: [aloe(data)]),
        PictureSet("graf", "painted wall", (480, 608), None if data is None else lambda: [graf(data)]),
        PictureSet("rooms", f"{rooms} rendered rooms", (192, 256), rendered, real=False),
        PictureSet(
            "Blender",
            f"furnished rooms ({len(furnished)}), light traced",
            (224, 320),
            (lambda: [in_memory(scene, 8) for scene in open_scenes(furnished)]) if furnished else None,
            real=False,
        ),
        PictureSet(
            "LIBERO",
            f"{len(tables)} simulated tables",
            (192, 256),
            (lambda: [in_memory(scene) for scene in open_scenes(tables)]) if tables else None,
            real=False,
        ),
    ]


def _folders(folder: Path | None) -> list[str]:
    """Of scenes; a room that is not rendered to its end has a name that begins with a point."""
    if folder is None:
        return []
    return sorted(str(each) for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))


def in_memory(scene: Scene, cut: int = 0) -> Scene:
    """The same scene with its pictures and depth at hand: a room is rendered anew each time it is looked at.

    Args:
        scene: depth maps are as large as pictures.
        cut: rows that are left out above and below.
    """
    rows = slice(cut, scene.views[0].size[0] - cut)
    depth = torch.stack([one for view in scene.views if (one := view.depth()) is not None])
    intrinsics = torch.stack([view.intrinsics for view in scene.views if view.intrinsics is not None])
    intrinsics[:, 1, 2] -= cut
    frames = scene.frames()[:, :, rows]
    return Scene.from_arrays(frames, depth[:, rows], intrinsics, scene.poses, name=scene.name, source=scene.source)


def aloe(data: Path) -> Scene:
    """Middlebury's aloe with its disparity in pixels; focal length and baseline are not told, so any will do."""
    pictures = np.stack([_picture(data / name) for name in ("aloeL.jpg", "aloeR.jpg")])
    left = np.array(Image.open(data / "aloeGT.png")).astype(np.float64)
    left[left == 0] = np.nan
    height, width = left.shape
    calibration = Calibration(float(width), (width / 2, height / 2), 0.0, 0.16)
    depth = np.stack([calibration.depth(each) for each in (left, _seen_from_the_right(left))])
    poses = np.stack([np.eye(4)] * 2)
    poses[1, 0, 3] = calibration.baseline
    scene = Scene.from_arrays(pictures, depth, calibration.intrinsics(False), poses, name="aloe", source="opencv-doc")
    return replace(scene, metric=False)


def graf(data: Path) -> Scene:
    """A painted wall from two sides, whose homography is known: two cameras of an assumed focal length see a plane.

    Whatever the focal length, the homography is exact; the angle between the views depends on it.
    """
    pictures = np.stack([_picture(data / name) for name in ("graf1.png", "graf3.png")])
    text = ElementTree.parse(data / "H1to3p.xml").findtext(".//data") or ""
    homography = np.array(text.split(), dtype=np.float64).reshape(3, 3)
    height, width = pictures.shape[1:3]
    intrinsics = np.array([[width, 0, (width - 1) / 2], [0, width, (height - 1) / 2], [0, 0, 1]], dtype=np.float64)
    rotation, translation, normal = plane_motion(np.linalg.inv(intrinsics) @ homography @ intrinsics)
    y, x = np.mgrid[:height, :width]
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
    # The plane is normal . X = 1 before the first camera; X' = R X + t before the second.
    turned = rotation @ normal
    depth = np.stack([1 / (rays @ normal), (1 + turned @ translation) / (rays @ turned)])
    depth = np.where((depth > 0) & (depth < HORIZON), depth, 0)
    second = np.eye(4)
    second[:3, :3], second[:3, 3] = rotation.T, -rotation.T @ translation
    poses = np.stack([np.eye(4), second])
    depth = depth.astype(np.float32)
    scene = Scene.from_arrays(pictures, depth, intrinsics, poses, name="graf", source="opencv-doc")
    return replace(scene, metric=False)


def plane_motion(homography: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Rotation, translation and plane (``n . X = 1``) of a calibrated homography ``R + t n^T`` up to its scale.

    Of the solutions, the one that leaves the picture's middle before both cameras and whose plane faces the first most.
    Source: O. Faugeras and F. Lustman, Motion and structure from motion in a piecewise planar environment, 1988.
    """
    _, values, vectors = np.linalg.svd(homography)
    scaled = homography / values[1]
    scaled *= np.sign(np.linalg.det(scaled))
    values, (first, middle, last) = values / values[1], vectors
    large, small = values[0] ** 2, values[2] ** 2
    a, b = np.sqrt(max(0.0, 1 - small)), np.sqrt(max(0.0, large - 1))
    found = []
    for sign in (1, -1):
        # Directions within the plane that keep their length.
        kept = (a * first + sign * b * last) / np.sqrt(large - small)
        normal = np.cross(middle, kept)
        own = np.stack([middle, kept, normal], axis=1)
        there = np.stack([scaled @ middle, scaled @ kept, np.cross(scaled @ middle, scaled @ kept)], axis=1)
        rotation = there @ own.T
        translation = (scaled - rotation) @ normal
        if normal[2] < 0:
            normal, translation = -normal, -translation
        found.append((rotation, translation, normal))
    return max(found, key=lambda each: float(each[2][2]))


def _picture(file: Path) -> NDArray[np.uint8]:
    return np.array(Image.open(file).convert("RGB"))
