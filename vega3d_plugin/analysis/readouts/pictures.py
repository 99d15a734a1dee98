"""Frames and depth maps inside a result's text, and the sheet that shows them side by side."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...contracts.errors import AnalysisError
from ...scenes.pixel_limits import opened_picture
from ..charts import FAINT, Canvas, DotRow, dot_chart, stacked, wrapped
from ..pictures import heat_colours
from ..records import ITSELF

if TYPE_CHECKING:
    from .records import DepthExample, PriorReadout, ReadoutScores

#: Sides beyond which nothing that a result holds is decoded.
_LARGEST = 4096
#: Controls that are shown beside a prior.
SHOWN = ("untrained twin", "position only")
_WIDTH, _GAP, _PAD = 200, 8, 16


def encode_depth(depth: Tensor) -> str:
    """Depth ``[H, W]`` in metres, 0 to 65 (0 for none), as a 16-bit PNG of millimetres in base64."""
    millimetres = (depth.clamp(0, 65.535) * 1000).round().to(torch.int32).numpy().astype(np.uint16)
    return _encoded(Image.fromarray(millimetres), "PNG")


def encode_frame(frame: Tensor, longest: int = 480) -> str:
    """A frame ``[3, H, W]`` in [0, 1] as a JPEG of at most ``longest`` pixels a side in base64."""
    pixels = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return _encoded(image, "JPEG")


def decode_depth(text: str, size: tuple[int, int], where: str) -> NDArray[np.float32]:
    """Metres ``[H, W]`` of what :func:`encode_depth` made.

    Raises:
        AnalysisError: another size, another picture, or none.
    """
    image = _decoded(text, "PNG", where)
    if (image.height, image.width) != tuple(size) or image.mode not in ("I;16", "I;16B", "I;16L"):
        raise AnalysisError(
            f"{where}: expected a depth map of {size[1]}x{size[0]} with 16 bits, found {image.width}x{image.height}, "
            f"mode {image.mode}."
        )
    return np.asarray(image).astype(np.float32) / np.float32(1000)


def decode_frame(text: str, where: str) -> Image.Image:
    """The picture that :func:`encode_frame` made. Raises :class:`AnalysisError` when it is none."""
    return _decoded(text, "JPEG", where).convert("RGB")


def _encoded(image: Image.Image, kind: str) -> str:
    file = BytesIO()
    image.save(file, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return base64.b64encode(file.getvalue()).decode("ascii")


def _decoded(text: str, kind: str, where: str) -> Image.Image:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise AnalysisError(f"{where} is no {kind} picture in base64, or damaged ({error}).") from None
    with opened_picture(data, AnalysisError, where, (kind,)) as image:
        if max(image.size) > _LARGEST:
            raise AnalysisError(f"{where} is {image.width}x{image.height}; at most {_LARGEST} pixels a side are read.")
        image.load()
        return image.copy()


def depth_maps(example: DepthExample, controls: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """The true depth (``true``) and what was predicted, in metres, by control; those that there are.

    Raises:
        AnalysisError: one that cannot be read.
    """
    where = f"the example {example.scene!r}, {example.view!r}"
    found = {"true": decode_depth(example.true, example.size, f"True depth of {where}")}
    for control in controls:
        if control in example.predicted:
            found[control] = decode_depth(example.predicted[control], example.size, f"Depth ({control}) of {where}")
    return found


def depth_colours(maps: dict[str, NDArray[np.float32]]) -> tuple[dict[str, Image.Image], float, float]:
    """Depth maps of one view as pictures on one scale, near ones light, no depth black; and the scale's ends.

    The scale spans the true depth.
    """
    true = maps["true"][maps["true"] > 0]
    low, high = (float(true.min()), float(true.max())) if true.size else (0.0, 1.0)
    pictures = {}
    for name, depth in maps.items():
        scaled = np.clip((high - depth) / max(high - low, 1e-6), 0, 1).astype(np.float64)
        colours = heat_colours(scaled)
        colours[depth <= 0] = 0
        pictures[name] = Image.fromarray(colours)
    return pictures, low, high


def readout_picture(result: ReadoutScores) -> Image.Image:
    """The main figures with their intervals beside their controls, and below predicted beside true depth.

    Raises:
        AnalysisError: an example that cannot be read.
    """
    rows = []
    for readout, control, figures in result.rows():
        if control == ITSELF:
            rows.append(DotRow(readout.label, heading=True))
        rows.append(DotRow(f"  {control}", [figures[name] for name in result.headlines], strong=control == ITSELF))
    notes = [f"{name}: {result.figures[name]}." for name in result.headlines]
    held_out = len(result.priors[0].held_out)
    notes.append(f"Bars are 95% intervals by bootstrap over {held_out} held-out scenes.")
    chart = dot_chart("Read-outs", result.headlines, rows, notes)
    examples = [(readout, example) for readout in result.priors for example in readout.examples]
    return stacked([chart, _depth_sheet(examples)]) if examples else chart


def _depth_sheet(rows: Sequence[tuple[PriorReadout, DepthExample]]) -> Image.Image:
    """What each prior saw, the true depth and what was read out."""
    controls = [ITSELF, *(c for c in SHOWN if any(c in example.predicted for _, example in rows))]
    names = ["what the prior sees", "true depth", *("read out" if c == ITSELF else c for c in controls)]
    width = 2 * _PAD + len(names) * (_WIDTH + _GAP) - _GAP
    heights = [max(1, round(_WIDTH * example.size[0] / example.size[1])) for _, example in rows]
    notes = wrapped(
        "Depth of held-out views through a linear head, one scale a row: near is light.", width - 2 * _PAD, 12
    )
    canvas = Canvas(width, 76 + sum(height + 26 for height in heights) + 18 * len(notes) + _PAD)
    canvas.text(_PAD, 26, "Read-outs: predicted against true depth", size=17)
    for column, name in enumerate(names):
        canvas.text(_PAD + column * (_WIDTH + _GAP), 58, name, bold=True)
    top = 76
    for (readout, example), height in zip(rows, heights, strict=True):
        pictures, low, high = depth_colours(depth_maps(example, controls))
        frame = decode_frame(example.frame, f"The frame of {example.scene!r}, {example.view!r}")
        canvas.paste(frame.resize((_WIDTH, height), Image.Resampling.LANCZOS), _PAD, top)
        for column, name in enumerate(["true", *controls], start=1):
            if name in pictures:
                shown = pictures[name].resize((_WIDTH, height), Image.Resampling.NEAREST)
                canvas.paste(shown, _PAD + column * (_WIDTH + _GAP), top)
        about = f"{readout.label}, {example.scene}, {example.view}: {low:.1f} to {high:.1f} m"
        canvas.text(_PAD, top + height + 10, about, FAINT, 12)
        top += height + 26
    for number, line in enumerate(notes):
        canvas.text(_PAD, top + 12 + 18 * number, line, FAINT, 12)
    return canvas.picture()
