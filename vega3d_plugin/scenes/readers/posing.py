"""What readers of posed pictures share: views from files, and counts that must agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SceneError, SettingsError
from ...warnings import Vega3dWarning
from ..files import FileContent
from ..pixels import DepthFile, PictureFile, picture_size
from ..scene import View

MILLIMETRES = 1000.0


class ViewsLeftOutWarning(Vega3dWarning):
    """Views that the files name are not part of the scene; the message says why."""


def file_view(
    name: str,
    picture: Path,
    where: str = "",
    *,
    depth: Path | None = None,
    depth_units: float = MILLIMETRES,
    intrinsics: Tensor | None = None,
    depth_intrinsics: Tensor | None = None,
    pose: Tensor | None = None,
) -> View:
    """A view of a picture, and a depth map, on disk.

    Args:
        name: of the view.
        picture: its header is read for the size.
        where: what names it, for messages; the picture itself by default.
        depth: a 16-bit picture or an array.
        depth_units: how many units of the depth map are one metre.
        intrinsics: for the picture's pixels.
        depth_intrinsics: for those of the depth map, where they differ.
        pose: camera-to-world.

    Raises:
        SceneError: no picture, or intrinsics or a pose that cannot be; the message names the file.
    """
    files = (picture,) if depth is None else (picture, depth)
    try:
        return View(
            name,
            picture_size(picture),
            PictureFile(picture),
            None if depth is None else DepthFile(depth, depth_units),
            intrinsics,
            depth_intrinsics if depth is not None else None,
            pose,
            content=FileContent(files, f"{depth_units:g}"),
        )
    except SceneError as error:
        if not where and str(picture) in str(error):
            raise
        raise SceneError(f"{where or picture}: {error}") from None


def check_units(depth_units: float | None, default: float) -> float:
    """The units to use.

    Raises:
        SettingsError: not a positive finite number.
    """
    units = default if depth_units is None else depth_units
    if not 0 < units < float("inf"):
        raise SettingsError(f"depth_units is {units:g}: give how many units of the file are one metre, such as 1000.")
    return units


def check_counts(where: Path, pictures: Sequence[str], others: Mapping[str, Sequence[str]]) -> None:
    """Each kind of file is there for every picture, or for none.

    Args:
        where: the folder.
        pictures: names (without suffix) of the pictures.
        others: the same for each other kind, such as ``depth maps``.

    Raises:
        SceneError: which counts differ, and the first that is alone.
    """
    for kind, names in others.items():
        without = [name for name in pictures if name not in set(names)] if names else []
        alone = [name for name in names if name not in set(pictures)]
        if without or alone:
            first = f"the first without one is {without[0]}" if without else f"{alone[0]} has no picture"
            raise SceneError(f"{where} has {len(pictures)} pictures, but {len(names)} {kind}: {first}.")


def check_depth_of_all(views: Sequence[View], where: str) -> None:
    """Every view has a depth map, or none has.

    Raises:
        SceneError: some have, and which is the first without.
    """
    without = [view.name for view in views if not view.has_depth]
    if without and len(without) < len(views):
        raise SceneError(
            f"{where}: {len(views)} pictures, but {len(views) - len(without)} depth maps: the first picture without "
            f"one is {without[0]}."
        )


def rotation(quaternion: Sequence[float], where: str) -> Tensor:
    """``[3, 3]`` float64 of a quaternion (w, x, y, z), which need not be of length 1 to the last digit.

    Raises:
        SceneError: NaN, infinity, or a length other than 1 by over 1%.
    """
    w, x, y, z = quaternion
    length = math.sqrt(w * w + x * x + y * y + z * z)
    if not abs(length - 1) < 0.01:
        raise SceneError(f"{where}: a rotation is a quaternion of length 1, found length {length:.4g}.")
    w, x, y, z = (value / length for value in (w, x, y, z))
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


def rigid(rotation: Tensor, translation: Sequence[float]) -> Tensor:
    """``[4, 4]`` float64 of both."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = rotation
    pose[:3, 3] = torch.tensor(list(translation), dtype=torch.float64)
    return pose
