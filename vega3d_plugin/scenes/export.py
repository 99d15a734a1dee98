"""A scene written down again: as a folder, a video, or rows of data."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import SceneError, UnknownNameError
from ..files import write_atomically
from ..warnings import Vega3dWarning
from .questions import Question
from .readers.posed_images import ALIGNMENT, OBJECTS
from .readers.posing import MILLIMETRES
from .scene import Scene, View

Style = Literal["llava", "vg-llm"]
STYLES: tuple[Style, ...] = ("llava", "vg-llm")
#: What 16 bits of millimetres hold.
FARTHEST = 65.535
_QUALITY = 95


class ExportWarning(Vega3dWarning):
    """A file cannot hold all that the scene knows."""


def export_folder(scene: Scene, folder: Path) -> None:
    """Write a scene in the layout of ``posed_images``, which :func:`open_scene` reads.

    ``00000.jpg`` (quality 95), ``00000.png`` (depth, uint16 millimetres), ``00000.txt`` (camera-to-world),
    ``intrinsic.txt``, ``depth_intrinsic.txt``, ``axis_align_matrix.txt`` and ``objects.json`` (the last two are ours),
    each where the scene knows it. The folder appears whole, or not at all. Instances of pixels are not kept.

    Args:
        scene: one camera for all views.
        folder: a new or empty one.

    Raises:
        SceneError: the folder holds something, views have different intrinsics or know different things, or depth
            is beyond 65.5 m.

    Warns:
        ExportWarning: lengths are not metres, for which the layout has no sign.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise SceneError(f"{folder} cannot be written: it holds something. Name a new folder.")
    _check_same(scene)
    if not scene.metric:
        _warn(f"Scene {scene.name!r} is known up to one scale; its folder will be read as metres.")

    def write(target: Path) -> None:
        for number, view in enumerate(scene.views):
            _write_view(view, target / f"{number:05d}")
        first = scene.views[0]
        if first.intrinsics is not None:
            _write_matrix(target / "intrinsic.txt", first.intrinsics)
            depth = first.depth()
            own = None if depth is None else first.intrinsics_of_depth(depth.shape)
            if own is not None:
                _write_matrix(target / "depth_intrinsic.txt", own)
        if scene.alignment is not None:
            _write_matrix(target / ALIGNMENT, scene.alignment)
        if scene.objects:
            listed = [asdict(thing) for thing in scene.objects]
            (target / OBJECTS).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")

    _write_whole(folder, write)


def export_video(scene: Scene, path: Path, fps: int = 8) -> None:
    """Write the views as an mp4, one after the other.

    Args:
        scene: pictures of one size.
        path: ending in ``.mp4``.
        fps: frames per second.

    Raises:
        SceneError: pictures of different sizes.
        VideoError: the file cannot be written.

    Warns:
        ExportWarning: a side is odd; its last pixel is cut off.
    """
    from ..demo.video import write_video

    frames = pictures(scene)
    height, width = (side - side % 2 for side in frames.shape[1:3])
    if (height, width) != frames.shape[1:3]:
        _warn(f"{path}: videos have even sides, so {frames.shape[2]}x{frames.shape[1]} is cut to {width}x{height}.")
    write_file(
        path, lambda temporary: _renamed(temporary, lambda mp4: write_video(mp4, frames[:, :height, :width], fps))
    )


def export_rows(scene: Scene, path: Path, questions: Sequence[Question], style: Style = "llava") -> int:
    """Write questions about a scene as rows of data, and its pictures beside them.

    ``llava``: ``id``, ``images``, ``conversations`` with one ``<image>`` for each view before the question.
    ``vg-llm``: the same with ``Frame-0: <image>`` and so on, and with the keys of VG-LLM's 3D rows: ``cam2img``,
    ``cam2global`` (for each view) and ``axis_align_matrix``, where the scene knows them.

    Args:
        scene: its pictures go to ``<stem of path>_images/<scene>/``, which must be new.
        path: ending in ``.json``.
        questions: at least one.
        style: a name of :data:`STYLES`.

    Returns:
        The number of rows.

    Raises:
        UnknownNameError: another style.
        SceneError: no questions, or there is such a folder of pictures.
    """
    if style not in STYLES:
        raise UnknownNameError("style of rows", style, STYLES)
    if not questions:
        raise SceneError(f"{path} would hold no rows: there are no questions about the scene {scene.name!r}.")
    folder = path.parent / f"{path.stem}_images" / scene.name
    if folder.exists():
        raise SceneError(f"{folder} cannot be written: it is there. Remove it, or name another file of rows.")

    def write(target: Path) -> None:
        for number, view in enumerate(scene.views):
            _save_picture(view, target / f"{number:05d}.jpg")

    _write_whole(folder, write)
    names = [str((folder / f"{i:05d}.jpg").relative_to(path.parent)) for i in range(len(scene))]
    frames = range(len(scene))
    heads = [f"Frame-{i}: <image>" if style == "vg-llm" else "<image>" for i in frames]
    geometry = _geometry(scene) if style == "vg-llm" else {}
    rows = [
        {
            "id": f"{scene.name}_{number:04d}",
            "conversations": [
                {"from": "human", "value": "\n".join([*heads, question.text])},
                {"from": "gpt", "value": question.answer},
            ],
            "images": names,
            "question_type": question.kind,
            **geometry,
        }
        for number, question in enumerate(questions)
    ]
    text = json.dumps(rows, indent=1, ensure_ascii=False)
    write_file(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return len(rows)


def pictures(scene: Scene) -> NDArray[np.uint8]:
    """uint8 ``[T, H, W, 3]`` RGB. Raises :class:`SceneError` where views differ in size."""
    return pixels(scene.frames()).copy()


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file, whole or not at all.

    Raises:
        SceneError: it cannot be written.
    """
    try:
        write_atomically(path, write)
    except OSError as error:
        raise SceneError(f"{path} cannot be written: {error}.") from error


def pixels(frames: Tensor) -> NDArray[np.uint8]:
    """``[..., 3, H, W]`` in [0, 1] to uint8 ``[..., H, W, 3]``."""
    values: NDArray[np.uint8] = (frames.clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).numpy()
    return values


def _geometry(scene: Scene) -> dict[str, Any]:
    first = scene.views[0].intrinsics
    square = torch.eye(4, dtype=torch.float64)
    if first is not None:
        square[:3, :3] = first
    return {
        **({"cam2img": square.tolist()} if first is not None else {}),
        **({"cam2global": scene.poses.tolist()} if scene.has_poses else {}),
        **({"axis_align_matrix": scene.alignment.tolist()} if scene.alignment is not None else {}),
    }


def _check_same(scene: Scene) -> None:
    first = scene.views[0]
    for view in scene.views:
        for what in ("intrinsics", "depth_intrinsics", "pose"):
            mine, other = getattr(view, what), getattr(first, what)
            same = what == "pose" or mine is None or other is None or torch.allclose(mine, other, rtol=1e-6, atol=1e-6)
            if (mine is None) != (other is None) or not same:
                raise SceneError(
                    f"Scene {scene.name!r} ({scene.source}): views {first.name!r} and {view.name!r} differ in their "
                    f"{what}, which this layout cannot hold. Choose views that agree."
                )
        if view.has_depth != first.has_depth:
            raise SceneError(
                f"Scene {scene.name!r} ({scene.source}): only some views have depth. Choose views that do."
            )


def _write_view(view: View, stem: Path) -> None:
    _save_picture(view, stem.with_suffix(".jpg"))
    depth = view.depth()
    if depth is not None:
        if float(depth.max()) > FARTHEST:
            raise SceneError(
                f"View {view.name!r} has depth of {float(depth.max()):.1f} m; 16 bits of millimetres hold {FARTHEST} m."
            )
        Image.fromarray((depth * MILLIMETRES).round().numpy().astype(np.uint16)).save(stem.with_suffix(".png"))
    if view.pose is not None:
        _write_matrix(stem.with_suffix(".txt"), view.pose)


def _save_picture(view: View, path: Path) -> None:
    # Without subsampling of colours, which moves edges by a pixel.
    Image.fromarray(pixels(view.frame())).save(path, quality=_QUALITY, subsampling=0)


def _write_matrix(path: Path, matrix: Tensor) -> None:
    square = torch.eye(4, dtype=torch.float64)
    square[: len(matrix), : len(matrix)] = matrix
    rows = (" ".join(repr(float(value)) for value in row) for row in square)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder beside the wanted one, then rename it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            filled = Path(temporary) / "filled"
            filled.mkdir()
            write(filled)
            if folder.is_dir():
                folder.rmdir()
            shutil.move(filled, folder)
    except OSError as error:
        raise SceneError(f"{folder} cannot be written: {error}.") from error


def _renamed(temporary: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file whose name ends in ``.mp4``, where the temporary one's does not."""
    named = temporary.with_name(f"{temporary.name}.mp4")
    try:
        write(named)
        named.replace(temporary)
    finally:
        named.unlink(missing_ok=True)


def _warn(text: str) -> None:
    warnings.warn(text, ExportWarning, stacklevel=3)
