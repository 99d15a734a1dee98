"""A folder of pictures, or one picture: no geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...contracts.errors import SceneError
from ..files import FileContent, missing
from ..images import IMAGES, find_images, in_order, read_image
from ..pixels import picture_size, picture_turn
from ..scene import Scene, View


@dataclass(frozen=True)
class UprightPicture:
    """A picture as a viewer shows it, float32 ``[3, H, W]`` in [0, 1]: turned where its file says so."""

    path: Path

    def __call__(self) -> Tensor:
        """Read it. Raises :class:`VideoError` when it is no picture, or damaged."""
        return torch.from_numpy(read_image(self.path)).permute(2, 0, 1).float() / 255


def matches(path: Path) -> bool:
    """Whether it is a picture, or a folder of pictures."""
    if path.is_dir():
        return bool(find_images(path))
    return path.suffix.lower() in IMAGES and path.is_file()


def read(path: Path) -> Scene:
    """The pictures in the order of their names, in which numbers count by their value.

    Raises:
        SceneError: no pictures, or one that is none.
    """
    if not path.exists():
        raise SceneError(missing(path))
    pictures = in_order(find_images(path)) if path.is_dir() else [path]
    if not pictures:
        raise SceneError(f"{path} has no pictures ({', '.join(IMAGES)}).")
    views = tuple(
        View(each.name, _upright_size(each), UprightPicture(each), content=FileContent((each,))) for each in pictures
    )
    return Scene(path.resolve().stem if path.is_file() else path.resolve().name, str(path), views)


def _upright_size(path: Path) -> tuple[int, int]:
    """(height, width) after the turn that the file asks for."""
    height, width = picture_size(path)
    # 5 to 8 lie on their side.
    return (width, height) if picture_turn(path) in (5, 6, 7, 8) else (height, width)
