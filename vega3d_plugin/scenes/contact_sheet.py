"""Chosen views of a scene on one sheet, with the way of the camera from above and what each view adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .export import pixels, write_file
from .floor_plan import ACCENT, FAINT, INK, PAPER, floor_plan
from .scene import Scene
from .views import ViewChoice

_GAP, _LABEL = 8, 20
_COLUMN = 440  # width of what stands right of the pictures
_WIDEST = 1000  # of the pictures together
_SMALLEST, _LARGEST = 150, 300  # width of one picture
_BARS = 150  # height of the bars
_MOST_BARS = 64


def contact_sheet(scene: Scene, choice: ViewChoice, path: Path) -> None:
    """Write a PNG: the chosen views in time order; beside them, where poses are known, the scene from above, and
    bars of the voxels that each view adds, in the order of choice.

    Args:
        scene: any.
        choice: of its views.
        path: ending in ``.png``.

    Raises:
        SceneError: a picture or depth map cannot be read, or the file cannot be written.
    """
    sheet = draw_contact_sheet(scene, choice)
    write_file(path, lambda temporary: sheet.save(temporary, format="PNG"))


def draw_contact_sheet(scene: Scene, choice: ViewChoice) -> Image.Image:
    """As :func:`contact_sheet`, the picture itself."""
    shown = list(dict.fromkeys(choice.indices))
    beside = [floor_plan(scene, shown)] if scene.has_poses else []
    if choice.gains is not None:
        beside.append(_bars(choice))
    grid = _grid(scene, shown, choice)
    title = _title(scene, choice)
    head = 34
    width = grid.width + (_COLUMN if beside else 0)
    height = head + max(grid.height, sum(part.height + _GAP for part in beside)) + _GAP
    sheet = Image.new("RGB", (max(width, 480), height), PAPER)
    ImageDraw.Draw(sheet).text((_GAP, 8), title, INK, font=ImageFont.load_default(size=18))
    sheet.paste(grid, (0, head))
    y = head
    for part in beside:
        sheet.paste(part, (grid.width + (_COLUMN - part.width) // 2, y))
        y += part.height + _GAP
    return sheet


def _title(scene: Scene, choice: ViewChoice) -> str:
    covered = "" if choice.covered is None else f", {choice.covered:.0%} of all voxels seen"
    name = scene.name if len(scene.name) <= 40 else scene.name[:37] + "..."
    return f"{name}: {len(set(choice.indices))} of {len(scene)} views, {choice.how}{covered}"


def _grid(scene: Scene, shown: Sequence[int], choice: ViewChoice) -> Image.Image:
    """The pictures, each with its number and what it adds."""
    columns = min(len(shown), max(3, math.ceil(math.sqrt(len(shown) * 1.2))))
    width = min(_LARGEST, max(_SMALLEST, _WIDEST // columns - _GAP))
    columns = min(columns, max(1, _WIDEST // (width + _GAP)))
    pictures = [_thumbnail(scene, index, width) for index in shown]
    tallest = max(picture.height for picture in pictures)
    rows = math.ceil(len(shown) / columns)
    grid = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (tallest + _LABEL + _GAP)), PAPER)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=13)
    for place, (index, picture) in enumerate(zip(shown, pictures, strict=True)):
        x, y = _GAP + (place % columns) * (width + _GAP), (place // columns) * (tallest + _LABEL + _GAP)
        added = "" if choice.gains is None else f"  +{choice.gains[choice.indices.index(index)]:,}"
        draw.text((x, y + 2), f"{index}", INK, font=font)
        end = x + draw.textlength(f"{index}", font=font)
        draw.text((end, y + 2), added, ACCENT, font=font)
        grid.paste(picture, (x, y + _LABEL))
    return grid


def _thumbnail(scene: Scene, index: int, width: int) -> Image.Image:
    picture = Image.fromarray(pixels(scene.views[index].frame()))
    height = min(max(1, round(picture.height * width / picture.width)), 2 * width)
    return picture.resize(
        (width, height), Image.Resampling.LANCZOS if picture.width > width else Image.Resampling.BICUBIC
    )


def _bars(choice: ViewChoice) -> Image.Image:
    """Voxels added by each view in the order of choice, and the share of all that is seen by then."""
    gains = dict(zip(choice.indices, choice.gains or (), strict=True))
    order = list(dict.fromkeys(choice.order))[:_MOST_BARS]
    width, foot, head = _COLUMN - 2 * _GAP, 34, 22
    picture = Image.new("RGB", (width, _BARS + foot + head), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    draw.text((0, 2), "Voxels that each view adds, in the order of choice (line: share seen so far)", FAINT, font=font)
    step, most = width / len(order), max([*gains.values(), 1])
    sums = np.cumsum([gains[index] for index in order]) / max(choice.total or 1, 1)
    foot_line = head + _BARS
    for place, index in enumerate(order):
        left, top = place * step, foot_line - gains[index] / most * (_BARS - 6)
        draw.rectangle([left + 1, top, left + max(step - 2, 1.5), foot_line], fill=(233, 178, 168))
        if step >= 13 or place % math.ceil(13 / step) == 0:
            draw.text((left + step / 2, foot_line + 3), str(index), FAINT, font=font, anchor="ma")
    line = [((place + 0.5) * step, foot_line - share * (_BARS - 6)) for place, share in enumerate(sums)]
    if len(line) > 1:
        draw.line(line, ACCENT, width=2)
    draw.text((width, line[-1][1] + 3), f"{sums[-1]:.0%}", ACCENT, font=font, anchor="ra")
    return picture
