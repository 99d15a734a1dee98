"""Rows as the released code of the spatial-reasoning experiment reads them (``data.preset: released``).

Source: ``src/qwen_vl/data/data_qwen.py::LazySupervisedDataset`` and ``src/qwen_vl/data/utils.py`` of VG-LLM and of
VEGA-3D's branch spatial-reasoning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...contracts.errors import RowError
from ...recipes.blocks import DataSettings
from ...scenes.images import find_images
from .paths import find_path
from .places import frame_places

#: A folder of frames counts as one frame a second, whatever it was cut at.
FOLDER_FPS = 1.0
#: Width of every picture; heights are multiples of :data:`STEP`, and at most the width.
SIDE, STEP = 518, 14
#: Side of a token of Qwen2.5-VL in pixels: patches of 14, merged by twos.
TOKEN = 28
#: A picture that would become taller than this many times the side is not resized only to be cut away.
_TALLEST = 32


def released_row(row: Mapping[str, Any], settings: DataSettings, root: Path | None = None) -> dict[str, Any]:
    """A LLaVA-style row with its placeholders and pictures as the released code leaves them; the given one is kept.

    A folder of frames becomes images, in the order of their names as text (``10`` before ``2``), chosen by
    ``settings``; ``<video>`` in the first turn becomes as many ``<image>``, ``<image>`` and a line break after it
    become ``<image>``, and ``images`` is there as ``image`` too. A video file keeps its key and placeholder, since its
    frames are counted only when it is decoded; ``video_as: images`` then does the same.

    Raises:
        RowError: ``video`` is no path, the folder has no images, or the row has images beside a video.
    """
    new = {**row, "conversations": [dict(t) if isinstance(t, Mapping) else t for t in _turns(row)]}
    first = new["conversations"][0] if new["conversations"] else None
    value = first.get("value") if isinstance(first, dict) else None
    text = value if isinstance(value, str) else ""
    if new.get("video") is not None:
        text = _video(new, text, settings, root)
    text = text.replace(f"{settings.image_token}\n", settings.image_token)
    if isinstance(first, dict) and isinstance(value, str):
        first["value"] = text
    if "images" in new:
        new["image"] = new["images"]
    return new


def fit_width(picture: Image.Image, unit: int = TOKEN) -> Image.Image:
    """Width 518 (bicubic), height to the nearest multiple of 14, its middle 518 rows, then cut to whole tokens.

    The right and the bottom are cut off: 640x480 becomes 504x392, anything upright 504x504.

    Args:
        picture: RGB.
        unit: side of the host's token in pixels.

    Raises:
        RowError: the picture is too flat or too tall for this rule.
    """
    height = round(picture.height * (SIDE / picture.width) / STEP) * STEP
    if not unit <= height <= _TALLEST * SIDE:
        raise RowError(
            f"a picture of {picture.width}x{picture.height} cannot be brought to a width of {SIDE} (data.resize: "
            f"width_518): its height would be {height}"
        )
    picture = picture.resize((SIDE, height), Image.Resampling.BICUBIC)
    top = max(0, (height - SIDE) // 2)
    return picture.crop((0, top, SIDE // unit * unit, top + min(height, SIDE) // unit * unit))


def _turns(row: Mapping[str, Any]) -> list[Any]:
    turns = row.get("conversations")
    return list(turns) if isinstance(turns, list | tuple) else []


def _video(new: dict[str, Any], text: str, settings: DataSettings, root: Path | None) -> str:
    source = new["video"]
    if isinstance(source, Mapping) and not find_path(str(source.get("path")), root).is_dir():
        # A part of a file, which the released code has no way to write.
        return text.replace(f"{settings.video_token}\n", settings.video_token)
    if not isinstance(source, str | Path) or not str(source):
        raise RowError(f"`data.preset: released` takes a path as `video`, found {type(source).__name__}")
    if new.get("images") is not None or new.get("image") is not None:
        raise RowError("the row has images and a video; `data.preset: released` would leave the images out")
    path = find_path(source, root)
    if not path.is_dir():
        return text.replace(f"{settings.video_token}\n", settings.video_token)
    frames = sorted(find_images(path), key=str)
    if not frames:
        raise RowError(f"the folder {path} has no images")
    new["images"] = [frames[i] for i in frame_places(len(frames), FOLDER_FPS, settings)]
    del new["video"]
    return text.replace(settings.video_token, settings.image_token * len(new["images"]))
