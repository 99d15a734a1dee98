"""Curves and frames as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Curve = Sequence[tuple[float, float]]
_COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (90, 90, 90))
_PAPER, _INK, _GRID = (255, 255, 255), (30, 30, 30), (220, 220, 220)
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT = 560, 300, 50, 34, 170


def draw_curves(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """One panel below the other: title, then curves by name; points are (step, value), values from 0 to 1."""
    image = Image.new("RGB", (_LEFT + _WIDTH + _RIGHT, len(panels) * (_HEIGHT + 2 * _TOP)), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    for index, (title, curves) in enumerate(panels.items()):
        top = index * (_HEIGHT + 2 * _TOP) + _TOP
        last = max(step for curve in curves.values() for step, _ in curve) or 1

        def place(step: float, value: float, top: int = top, last: float = last) -> tuple[float, float]:
            return _LEFT + _WIDTH * step / last, top + _HEIGHT * (1 - value)

        draw.text((_LEFT, top - 24), title, fill=_INK, font=font)
        for tenths in range(0, 11, 2):
            draw.line([place(0, tenths / 10), place(last, tenths / 10)], fill=_GRID)
            draw.text((_LEFT - 30, place(0, tenths / 10)[1] - 8), f"{tenths / 10:.1f}", fill=_INK, font=font)
            draw.text(
                (place(last * tenths / 10, 0)[0] - 12, top + _HEIGHT + 4),
                f"{last * tenths / 10:.0f}",
                fill=_INK,
                font=font,
            )
        for (name, curve), colour, row in zip(curves.items(), _COLOURS, range(len(_COLOURS)), strict=False):
            draw.line([place(*point) for point in curve], fill=colour, width=2)
            draw.text((_LEFT + _WIDTH + 12, top + 18 * row), name, fill=colour, font=font)
    image.save(path)


def draw_clips(groups: Sequence[Tensor], path: Path, zoom: int = 4) -> None:
    """Clips ``[B, T, 3, H, W]`` in [0, 1]: a row each, the groups side by side."""
    gap = 3
    count, steps, _, height, width = groups[0].shape
    columns = len(groups) * (steps + 1) - 1
    image = Image.new("RGB", (columns * (zoom * width + gap), count * (zoom * height + gap)), _PAPER)
    for index, clips in enumerate(groups):
        pixels = (clips.permute(0, 1, 3, 4, 2) * 255).round().byte().numpy()
        for row in range(count):
            for step in range(steps):
                frame = Image.fromarray(pixels[row, step]).resize(
                    (zoom * width, zoom * height), Image.Resampling.NEAREST
                )
                image.paste(frame, ((index * (steps + 1) + step) * (zoom * width + gap), row * (zoom * height + gap)))
    image.save(path)
