"""A scene: views of one place, with depth, intrinsics and poses where they are known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..clips import check_frames
from ..errors import SceneError, UnknownNameError
from .cameras import check_intrinsics, check_pose, rescaled_intrinsics

Known = Literal["depth", "pose", "intrinsics", "alignment"]
_KNOWN: tuple[Known, ...] = ("depth", "pose", "intrinsics", "alignment")


@dataclass(frozen=True, eq=False)
class View:
    """One picture of a place. Pictures and depth are read when asked for, each time anew.

    Attributes:
        name: unique in its scene, such as ``00120.jpg``.
        size: (height, width) of the picture, pixels.
        read_frame: what :meth:`frame` calls.
        read_depth: what :meth:`depth` calls; None where no depth is known.
        intrinsics: ``[3, 3]`` float64, for the picture's pixels; the centre of the top left pixel is (0, 0).
        depth_intrinsics: ``[3, 3]`` float64, the depth map's own; None: see :meth:`intrinsics_of_depth`.
        pose: ``[4, 4]`` float64, camera-to-world, metres, OpenCV convention (x right, y down, z forward).
        read_instances: what :meth:`instances` calls; None where no instances are known.
        content: returns a text that stands for the picture's and the depth's content; None: both are read and hashed.

    Raises:
        SceneError: a size below 1, or intrinsics or a pose that cannot be (see :mod:`vega3d_plugin.scenes.cameras`).
    """

    name: str
    size: tuple[int, int]
    read_frame: Callable[[], Tensor]
    read_depth: Callable[[], Tensor] | None = None
    intrinsics: Tensor | None = None
    depth_intrinsics: Tensor | None = None
    pose: Tensor | None = None
    read_instances: Callable[[], Tensor] | None = None
    content: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise SceneError(f"View {self.name!r}: the picture's size is {tuple(self.size)}, height or width below 1.")
        for key in ("intrinsics", "depth_intrinsics"):
            if (matrix := getattr(self, key)) is not None:
                object.__setattr__(self, key, check_intrinsics(matrix, f"View {self.name!r}, {key}"))
        if self.pose is not None:
            object.__setattr__(self, "pose", check_pose(self.pose, f"View {self.name!r}, pose"))

    def frame(self) -> Tensor:
        """The picture, float32 ``[3, H, W]`` in [0, 1].

        Raises:
            SceneError: it is not of :attr:`size`.
            Vega3dError: the file cannot be read.
        """
        frame = self.read_frame()
        if tuple(frame.shape) != (3, *self.size):
            raise SceneError(
                f"View {self.name!r}: the picture is {list(frame.shape)}, {[3, *self.size]} was told when the scene "
                "was opened. Open the scene again."
            )
        return check_frames(frame[None], f"View {self.name!r}")[0].float()

    def depth(self) -> Tensor | None:
        """Distance along the camera's z axis, float32 ``[Hd, Wd]`` metres, 0 where not measured; None if unknown.

        Raises:
            SceneError: another shape, a negative value, NaN or infinity.
            Vega3dError: the file cannot be read.
        """
        if self.read_depth is None:
            return None
        depth = self.read_depth().float()
        if depth.ndim != 2 or min(depth.shape) < 1:
            raise SceneError(f"View {self.name!r}: depth is {list(depth.shape)}, expected [height, width].")
        if not bool(torch.isfinite(depth).all()) or float(depth.min()) < 0:
            raise SceneError(f"View {self.name!r}: depth holds negative values, NaN or infinity; 0 is not measured.")
        return depth

    def instances(self) -> Tensor | None:
        """Index into the scene's objects for each pixel, int64 ``[H, W]``, -1 for none of them; None if unknown."""
        return None if self.read_instances is None else self.read_instances().long()

    def intrinsics_of_depth(self, size: Sequence[int]) -> Tensor | None:
        """``[3, 3]`` for a depth map of ``size`` (height, width): its own, else the picture's, rescaled."""
        if self.depth_intrinsics is not None or self.intrinsics is None:
            return self.depth_intrinsics
        return rescaled_intrinsics(self.intrinsics, self.size, (size[0], size[1]))

    @property
    def has_depth(self) -> bool:
        """Whether depth is known, without reading it."""
        return self.read_depth is not None

    @cached_property
    def fingerprint(self) -> str:
        """Key of everything that the view shows and knows, 32 hex digits; neither path nor time enters."""
        digest = hashlib.sha256(repr(tuple(self.size)).encode())
        digest.update((self.content or partial(_content, self))().encode())
        for matrix in (self.intrinsics, self.depth_intrinsics, self.pose):
            digest.update(b"none" if matrix is None else matrix.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class SceneObject:
    """A thing in a scene: an axis-aligned or turned box around it.

    Attributes:
        name: its category, such as ``chair``.
        centre: (x, y, z), metres; in the axis-aligned world where the scene has an alignment, else in the world.
        size: full extent along its axes, metres.
        angles: Euler angles in radians, as EmbodiedScan writes them (z, x, y); None for an axis-aligned box.
    """

    name: str
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    angles: tuple[float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """Views of one place, in time order.

    Attributes:
        name: short, such as ``scene0000_00``.
        source: where it came from, for messages and reports.
        views: at least one, with unique names.
        alignment: ``[4, 4]`` float64, world to axis-aligned world (z up); None if unknown.
        objects: what is known to be in it.
        metric: whether lengths are metres; False where they are known up to one common scale only.

    Raises:
        SceneError: no views, two views of one name, or an alignment that is no rigid motion.
    """

    name: str
    source: str
    views: tuple[View, ...]
    alignment: Tensor | None = None
    objects: tuple[SceneObject, ...] = ()
    metric: bool = True

    def __post_init__(self) -> None:
        if not self.views:
            raise SceneError(f"Scene {self.name!r} ({self.source}) has no views.")
        object.__setattr__(self, "views", tuple(self.views))
        names = [view.name for view in self.views]
        if len(set(names)) != len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise SceneError(f"Scene {self.name!r} ({self.source}) has two views with the name {twice!r}.")
        if self.alignment is not None:
            where = f"Scene {self.name!r} ({self.source}), alignment"
            object.__setattr__(self, "alignment", check_pose(self.alignment, where))

    @classmethod
    def from_arrays(
        cls,
        frames: Any,
        depth: Any = None,
        intrinsics: Any = None,
        poses: Any = None,
        *,
        name: str = "arrays",
        source: str = "arrays",
        names: Sequence[str] | None = None,
        alignment: Any = None,
    ) -> Scene:
        """A scene from what a simulator or a program of your own holds.

        Args:
            frames: ``[T, 3, H, W]`` floats in [0, 1], or uint8 ``[T, H, W, 3]`` RGB; tensor or array.
            depth: ``[T, Hd, Wd]`` metres along the camera's z axis, 0 where not measured.
            intrinsics: ``[3, 3]`` of all views or ``[T, 3, 3]``, for the picture's pixels.
            poses: ``[T, 4, 4]`` camera-to-world, OpenCV convention, metres.
            names: of the views; their numbers by default.
            alignment: ``[4, 4]``, world to axis-aligned world.

        Raises:
            SceneError: shapes or counts that do not fit, or values that cannot be.
        """
        where = f"Scene {name!r} ({source})"
        pictures = _pictures(frames, where)
        count = len(pictures)
        maps = None if depth is None else _counted(depth, count, (3,), "depth", where)
        poses = None if poses is None else _counted(poses, count, (3,), "poses", where)
        if intrinsics is not None:
            intrinsics = _tensor(intrinsics, "intrinsics", where)
            intrinsics = intrinsics.expand(count, *intrinsics.shape) if intrinsics.ndim == 2 else intrinsics
            intrinsics = _counted(intrinsics, count, (3,), "intrinsics", where)
        names = [f"{i:05d}" for i in range(count)] if names is None else names
        if len(names) != count:
            raise SceneError(f"{where}: {count} frames, but {len(names)} names.")
        views = tuple(
            View(
                names[i],
                (pictures.shape[2], pictures.shape[3]),
                partial(torch.clone, pictures[i]),
                None if maps is None else partial(torch.clone, maps[i]),
                None if intrinsics is None else intrinsics[i],
                pose=None if poses is None else poses[i],
            )
            for i in range(count)
        )
        return cls(name, source, views, None if alignment is None else _tensor(alignment, "alignment", where))

    def __len__(self) -> int:
        return len(self.views)

    @property
    def has_depth(self) -> bool:
        """Whether every view has depth."""
        return not self._lacking("depth")

    @property
    def has_poses(self) -> bool:
        """Whether every view has a pose."""
        return not self._lacking("pose")

    @property
    def has_intrinsics(self) -> bool:
        """Whether every view has intrinsics."""
        return not self._lacking("intrinsics")

    def require(self, *what: Known) -> Scene:
        """Return the scene itself if every view has all of ``what``.

        Args:
            what: ``depth``, ``pose``, ``intrinsics`` (the picture's) or ``alignment``.

        Raises:
            SceneError: the message names the scene and everything that is missing, with the views.
        """
        lacking = []
        for each in what:
            if each not in _KNOWN:
                raise UnknownNameError("part of a scene", each, _KNOWN)
            if each == "alignment":
                lacking += [] if self.alignment is not None else ["its alignment to the axes"]
            elif without := self._lacking(each):
                some = "all" if len(without) == len(self) else f"{len(without)} of {len(self)}"
                lacking.append(f"{each} ({some} views, first {without[0]!r})")
        if lacking:
            raise SceneError(
                f"Scene {self.name!r} ({self.source}) lacks {' and '.join(lacking)}. "
                f"`vega3d scene info` shows what a scene holds; give one with {', '.join(what)}."
            )
        return self

    def select(self, indices: Sequence[int]) -> Scene:
        """The scene with the views at ``indices`` only, in the order given; a repeated index is taken once.

        Raises:
            SceneError: no index, or one outside 0..T-1.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise SceneError(
                    f"Scene {self.name!r} ({self.source}) has {len(self)} views: there is no view {index}, give 0 to "
                    f"{len(self) - 1}."
                )
        return replace(self, views=tuple(self.views[i] for i in dict.fromkeys(indices)))

    def frames(self) -> Tensor:
        """All pictures, float32 ``[T, 3, H, W]`` in [0, 1].

        Raises:
            SceneError: views of different sizes.
        """
        sizes = {view.size: view.name for view in self.views}
        if len(sizes) > 1:
            (one, first), (two, second) = list(sizes.items())[:2]
            raise SceneError(
                f"Scene {self.name!r} ({self.source}) has pictures of different sizes: {first!r} is {one[1]}x{one[0]}, "
                f"{second!r} is {two[1]}x{two[0]}. Choose views of one size, or resize them first."
            )
        return torch.stack([view.frame() for view in self.views])

    @property
    def poses(self) -> Tensor:
        """``[T, 4, 4]`` float64, see :attr:`View.pose`. Raises :class:`SceneError` where one is missing."""
        return torch.stack([view.pose for view in self.require("pose").views if view.pose is not None])

    @cached_property
    def fingerprint(self) -> str:
        """Key of the content of all views in their order, and of the alignment, 32 hex digits; no path enters."""
        digest = hashlib.sha256("".join(view.fingerprint for view in self.views).encode())
        digest.update(b"none" if self.alignment is None else self.alignment.contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def _lacking(self, what: Known) -> list[str]:
        def there(view: View) -> bool:
            if what == "depth":
                return view.has_depth
            return (view.pose if what == "pose" else view.intrinsics) is not None

        return [view.name for view in self.views if not there(view)]


def _content(view: View) -> str:
    depth = view.depth()
    digest = hashlib.sha256(_bytes((view.frame() * 255).round().to(torch.uint8)))
    digest.update(b"none" if depth is None else repr(tuple(depth.shape)).encode() + _bytes(depth))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def _tensor(value: Any, what: str, where: str) -> Tensor:
    try:
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise SceneError(f"{where}: {what} is no tensor or array of numbers ({error}).") from error
    if tensor.is_complex():
        raise SceneError(f"{where}: {what} holds complex numbers.")
    return tensor


def _counted(value: Any, count: int, ranks: tuple[int, ...], what: str, where: str) -> Tensor:
    tensor = _tensor(value, what, where)
    if tensor.ndim not in ranks or len(tensor) != count:
        raise SceneError(f"{where}: {count} frames, but {what} of shape {list(tensor.shape)}.")
    return tensor


def _pictures(frames: Any, where: str) -> Tensor:
    """``[T, 3, H, W]`` float32 in [0, 1], copied so that a simulator may reuse its buffer."""
    tensor = _tensor(frames, "frames", where)
    if tensor.dtype == torch.uint8:
        if tensor.ndim != 4 or tensor.shape[3] != 3:
            raise SceneError(f"{where}: uint8 frames are [T, H, W, 3], found {list(tensor.shape)}.")
        tensor = tensor.permute(0, 3, 1, 2).float() / 255
    if tensor.ndim == 4 and tensor.shape[0] == 0:
        raise SceneError(f"{where}: there are no frames.")
    return check_frames(tensor, where).float().clone()
