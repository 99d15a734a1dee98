"""A reconstruction of COLMAP: pictures, cameras and poses; lengths are known up to one scale.

Folders as COLMAP and its kin leave them: the model in ``.``, ``sparse``, ``sparse/0``, ``colmap/sparse/0`` or
``dslr/colmap``; pictures in ``images`` beside it. Depth is that of a dense workspace (``stereo/depth_maps``), or, if
asked for, that of the sparse points.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...contracts.errors import SceneError
from ..cameras import check_pose
from ..files import FileContent, below, is_there, missing
from ..images import in_order
from ..pixels import PictureFile, picture_size
from ..scene import Scene, View
from .colmap_model import Camera, Image, Model, read_model
from .lens import for_picture, pinhole
from .posing import rigid, rotation

MODELS = (".", "sparse", "sparse/0", "colmap/sparse/0", "colmap", "dslr/colmap")
PICTURES = ("images", "../images", "../../images", "../../../images", "dslr/resized_undistorted_images", ".")


def matches(path: Path) -> bool:
    """Whether a folder holds a model."""
    return path.is_dir() and _model(path) is not None


def read(
    path: Path, *, images: str | Path | None = None, sparse_depth: bool = False, ignore_distortion: bool = False
) -> Scene:
    """Read one reconstruction.

    Args:
        path: the folder of the model, or one above it.
        images: the folder of the pictures; found by default.
        sparse_depth: take the sparse points that a picture sees for its depth where there is no dense one; every
            other pixel is not measured.
        ignore_distortion: see :func:`.lens.pinhole`.

    Raises:
        SceneError: a damaged model, missing pictures, or a camera that is no pinhole.
    """
    folder = _model(path)
    if folder is None:
        raise SceneError(missing(path / "sparse" / "0" / "cameras.bin"))
    model = read_model(folder)
    root = _pictures(path, folder, model, images)
    dense = path / "stereo" / "depth_maps"
    intrinsics = {
        number: (_intrinsics(camera, f"{folder}, camera {number}", ignore_distortion), camera.size)
        for number, camera in model.cameras.items()
        if any(image.camera == number for image in model.images)
    }
    views = []
    for image in _sorted(model):
        matrix, size = intrinsics[image.camera]
        views.append(_view(root, image, matrix, size, model, dense, sparse_depth, f"{folder}, {image.name}"))
    return Scene(path.resolve().name, str(path), tuple(views), metric=False)


def _model(path: Path) -> Path | None:
    found = (path / name for name in MODELS)
    return next((each for each in found if any((each / f"images.{kind}").is_file() for kind in ("bin", "txt"))), None)


def _pictures(path: Path, folder: Path, model: Model, given: str | Path | None) -> Path:
    first = model.images[0].name
    if given is not None:
        return Path(given).expanduser()
    for name in PICTURES:
        for base in (path, folder):
            root = base / name
            if root.is_dir() and below(root, first, str(folder)).is_file():
                return root
    raise SceneError(
        f"{folder}: its picture {first!r} is in none of {', '.join(PICTURES)}. Give their folder with `images`."
    )


def _sorted(model: Model) -> list[Image]:
    by_name = {Path(image.name): image for image in model.images}
    if len(by_name) < len(model.images):
        raise SceneError("Two pictures of the COLMAP model have one name.")
    return [by_name[name] for name in in_order(list(by_name))]


def _intrinsics(camera: Camera, where: str, ignore: bool) -> Tensor:
    p = camera.parameters
    if camera.model in ("PINHOLE", "OPENCV", "FULL_OPENCV"):
        focal, middle, rest = (p[0], p[1]), (p[2], p[3]), p[4:]
    elif camera.model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        focal, middle, rest = (p[0], p[0]), (p[1], p[2]), p[3:]
    else:
        raise SceneError(
            f"{where}: {camera.model} is no pinhole camera. Undistort the pictures first: `colmap image_undistorter` "
            "writes pictures and a model for them."
        )
    # OpenCV's order: two radial, two tangential, then four more radial ones.
    names = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
    return pinhole(focal, middle, dict(zip(names, rest, strict=False)), camera.size, where, ignore)


def _view(
    root: Path,
    image: Image,
    intrinsics: Tensor,
    size: tuple[int, int],
    model: Model,
    dense: Path,
    sparse: bool,
    where: str,
) -> View:
    picture = below(root, image.name, where)
    if not picture.is_file():
        raise SceneError(f"{where}: {missing(picture)}")
    actual = picture_size(picture)
    to_camera = check_pose(rigid(rotation(image.quaternion, where), image.translation), where)
    depth: DenseDepth | SparseDepth | None = None
    files = [picture]
    found = next(
        (f for kind in ("geometric", "photometric") if is_there(f := dense / f"{image.name}.{kind}.bin")), None
    )
    if found is not None:
        depth = DenseDepth(found)
        files.append(found)
    elif sparse:
        depth = _sparse(image, model, to_camera, size)
    return View(
        image.name,
        actual,
        PictureFile(picture),
        depth,
        for_picture(intrinsics, size, actual, where),
        pose=torch.linalg.inv(to_camera),
        content=FileContent(tuple(files), "" if not isinstance(depth, SparseDepth) else depth.key),
    )


@dataclass(frozen=True)
class DenseDepth:
    """A depth map of COLMAP's stereo: ``width&height&channels&``, then float32 row by row."""

    path: Path

    def __call__(self) -> Tensor:
        """``[H, W]``. Raises :class:`SceneError` when the file is damaged."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SceneError(f"{self.path} cannot be read: {error}.") from error
        header = re.match(rb"(\d{1,6})&(\d{1,6})&(\d{1,6})&", data)
        if header is None or int(header[3]) != 1:
            raise SceneError(f"{self.path} is no depth map of COLMAP: it should begin with width&height&1&.")
        width, height, left = int(header[1]), int(header[2]), len(data) - header.end()
        if left != 4 * width * height or not left:
            raise SceneError(f"{self.path}: its header tells {width}x{height} floats, it has {left} bytes of them.")
        values = np.frombuffer(data, "<f4", offset=header.end()).reshape(height, width).copy()
        # Where stereo found nothing it writes 0, or less.
        values[~np.isfinite(values) | (values < 0)] = 0
        return torch.from_numpy(values)


@dataclass(frozen=True, eq=False)
class SparseDepth:
    """Depth at the pixels where a picture sees sparse points: ``pixels`` int64 ``[N, 2]`` (u, v), ``depth`` ``[N]``."""

    size: tuple[int, int]
    pixels: Tensor
    depth: Tensor

    def __call__(self) -> Tensor:
        """``[H, W]``, the nearest where several points share a pixel."""
        plane = torch.full(self.size, torch.inf)
        places = self.pixels[:, 1] * self.size[1] + self.pixels[:, 0]
        plane.view(-1).scatter_reduce_(0, places, self.depth, "amin")
        return torch.where(torch.isfinite(plane), plane, torch.zeros(()))

    @property
    def key(self) -> str:
        """Stands for its content."""
        digest = hashlib.sha256(self.pixels.numpy().tobytes())
        digest.update(self.depth.numpy().tobytes())
        return digest.hexdigest()


def _sparse(image: Image, model: Model, to_camera: Tensor, size: tuple[int, int]) -> SparseDepth:
    # The nearest pixel: COLMAP counts from the picture's corner, so that of (0.5, 0.5) is number 0.
    pixels = np.floor(image.pixels)
    inside = (pixels >= 0).all(axis=1) & (pixels < np.array([size[1], size[0]])).all(axis=1)
    seen = [i for i in np.flatnonzero(inside & (image.points >= 0)) if int(image.points[i]) in model.points]
    places = torch.tensor([model.points[int(image.points[i])] for i in seen], dtype=torch.float64).reshape(-1, 3)
    distance = (places @ to_camera[:3, :3].T + to_camera[:3, 3])[:, 2]
    ahead = torch.isfinite(distance) & (distance > 0)
    chosen = torch.from_numpy(pixels[seen].astype(np.int64))
    return SparseDepth(size, chosen[ahead], distance[ahead].float())
