"""Pictures of what a branch does: its share of each token over the frames, and its features as colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vega3d_plugin.contracts.errors import FramesError
from vega3d_plugin.storage.writing import write_atomically

Pixels = NDArray[np.uint8]

# Dark to light in equal steps of lightness, so that an order of values is an order of colours (print and eyes alike).
_RAMP = np.array(
    [
        [68, 1, 84],
        [70, 50, 127],
        [54, 92, 141],
        [39, 127, 142],
        [31, 161, 135],
        [74, 194, 109],
        [160, 218, 57],
        [253, 231, 37],
    ]
)
_OPACITY = 0.6
_WIDEST = 1320  # width of the frames on a sheet together, pixels; more frames go on below
_SMALLEST, _LARGEST = 160, 320  # width of a frame on the sheet, pixels
_GAP = 8
_CAPTION = 22
_ENDS = "0 = the host's token alone, 1 = the generative token alone"
_ENOUGH = 2048  # tokens that tell the main directions, where channels and tokens are many
_INK, _PAPER, _FAINT = (25, 25, 25), (255, 255, 255), (110, 110, 110)


def share_overlay(
    frames: Pixels,
    shares: NDArray[np.floating[Any]],
    path: str | Path,
    title: str = "Effective share of the generative tokens",
    first_frames: Sequence[int] | None = None,
) -> None:
    """Draw shares as a heat map over the frames, on a PNG contact sheet with the plain frames above.

    Args:
        frames: uint8 [T, H, W, 3] RGB.
        shares: [t, h, w] in 0..1, the effective share of the generative token in each fused one, as
            :func:`vega3d.record_shares` gives it (``shares.generative``; the host's share is the rest). The colours
            span the map's own minimum to maximum; the bar below says which.
        path: the PNG file to write; missing folders are made.
        title: the line at the top.
        first_frames: for each of the t token rows, the index of the frame to show; by default the first of the T / t
            frames the row covers.

    Raises:
        FramesError: wrong shapes or values, or T is no multiple of t and ``first_frames`` is not given.
    """
    _save(share_sheet(frames, shares, title, first_frames), path)


def share_sheet(
    frames: Pixels, shares: NDArray[np.floating[Any]], title: str, first_frames: Sequence[int] | None = None
) -> Image.Image:
    """The picture of :func:`share_overlay`."""
    shares = np.asarray(shares)
    _check_frames(frames)
    _check_shares(shares)
    shown = _shown(len(frames), len(shares), first_frames)
    size = _cell(frames)

    values = shares.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    constant = high - low < 1e-7  # below what float32 can tell apart
    scaled = np.full(values.shape, 0.5) if constant else (values - low) / (high - low)
    plain = [_resized(frames[i], size, Image.Resampling.LANCZOS) for i in shown]
    mixed = [heated(a, plane) for a, plane in zip(plain, scaled, strict=True)]
    sheet = _sheet(title, [f"frame {i}" for i in shown], plain, mixed, footer=64)
    _colour_bar(sheet, values, constant)
    return sheet


def share_frame(
    views: Sequence[Pixels], shares: Sequence[NDArray[np.floating[Any]]], limits: tuple[float, float], caption: str
) -> Pixels:
    """One picture of a video: views side by side, below them the shares of their tokens over them.

    Args:
        views: uint8 [H, W, 3] RGB each.
        shares: of each view ``[h, w]``, the effective share of the generative token; none: the views alone.
        limits: lowest and highest share of the colours, the same in every picture of a video.
        caption: the line at the top.

    Returns:
        uint8 [H', W', 3], both sides even.

    Raises:
        FramesError: wrong shapes or values.
    """
    low, high = limits
    columns = []
    for i, view in enumerate(views):
        _check_frames(view[None])
        width, height = _cell(view[None])
        plain = _resized(view, (width, height), Image.Resampling.LANCZOS)
        below = []
        if shares:
            _check_map(np.asarray(shares[i]), "shares", 2, "[h, w]")
            scaled = np.clip((np.asarray(shares[i], np.float64) - low) / max(high - low, 1e-12), 0, 1)
            below = [heated(plain, scaled)]
        columns.append([plain, *below])
    rows = [max(column[k].height for column in columns) for k in range(len(columns[0]))]
    widths = [column[0].width for column in columns]
    size = sum(widths) + _GAP * (len(widths) - 1), _CAPTION + sum(rows) + _GAP // 2 * (len(rows) - 1)
    picture = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), _PAPER)
    ImageDraw.Draw(picture).text((_GAP // 2, 3), caption, _INK, font=ImageFont.load_default(size=13))
    for i, column in enumerate(columns):
        for k, part in enumerate(column):
            picture.paste(part, (sum(widths[:i]) + _GAP * i, _CAPTION + sum(rows[:k]) + _GAP // 2 * k))
    return np.asarray(picture)


def feature_rgb(features: NDArray[np.floating[Any]]) -> Pixels:
    """Show a feature map's three main directions as red, green and blue.

    The principal components are those of all tokens of the clip together, so a colour means the same in every frame.
    Each is scaled from its 1st to its 99th percentile; its sign is fixed by its largest value being positive. A
    direction in which nothing varies is grey (128). Where there are more than 2048 channels and as many tokens, 2048
    tokens spread evenly tell the directions.

    Args:
        features: float [t, C, h, w], finite.

    Returns:
        uint8 [t, h, w, 3].

    Raises:
        FramesError: a wrong shape, or values that are not finite.
    """
    features = np.asarray(features)
    _check_map(features, "features", 4, "[t, C, h, w]")
    t, channels, h, w = features.shape
    tokens = features.transpose(0, 2, 3, 1).reshape(-1, channels).astype(np.float64)
    tokens -= tokens.mean(axis=0)
    scores = _main_scores(tokens)
    scores *= np.sign(np.take_along_axis(scores, np.abs(scores).argmax(axis=0)[None], axis=0))
    low, high = np.percentile(scores, [1, 99], axis=0)
    span = high - low
    scaled = np.where(span > 0, (scores - low) / np.where(span > 0, span, 1), 0.5)
    return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8).reshape(t, h, w, 3)


def feature_picture(
    frames: Pixels,
    features: NDArray[np.floating[Any]],
    path: str | Path,
    title: str = "Features: first three principal components",
    first_frames: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Draw a PNG contact sheet: frames above, the colours of :func:`feature_rgb` below.

    Args:
        frames: uint8 [T, H, W, 3] RGB.
        features: float [t, C, h, w].
        path: the PNG file to write; missing folders are made.
        title: the line at the top.
        first_frames: for each of the t feature maps, the index of the frame to show; by default the first of the
            T / t frames it covers.
        labels: for each of the T frames, what is written above it; by default its index.

    Raises:
        FramesError: wrong shapes or values, or T is no multiple of t and ``first_frames`` is not given.
    """
    _check_frames(frames)
    colours = feature_rgb(features)
    shown = _shown(len(frames), len(colours), first_frames)
    size = _cell(frames)
    plain = [_resized(frames[i], size, Image.Resampling.LANCZOS) for i in shown]
    below = [_resized(colour, size, Image.Resampling.NEAREST) for colour in colours]
    names = [labels[i] if labels else f"frame {i}" for i in shown]
    _save(_sheet(title, names, plain, below, footer=0), path)


def _main_scores(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centred tokens [N, C] along their three main directions, [N, 3], at any scale; zero where there are fewer."""
    few = tokens
    if min(tokens.shape) > _ENOUGH:
        few = tokens[np.linspace(0, len(tokens) - 1, _ENOUGH).round().astype(int)]
    # The SVD of the smaller product has the same directions as that of the tokens, at a fraction of the time.
    tall = few.shape[0] >= few.shape[1]
    product = few.T @ few if tall else few @ few.T
    vectors, squares, _ = np.linalg.svd(product, hermitian=True)
    vectors, squares = vectors[:, :3], squares[:3]
    if not tall and few is not tokens:
        vectors = few.T @ vectors
    scores = tokens @ vectors if tall or few is not tokens else vectors
    # What is left of a missing direction is rounding noise; scaling it up would paint a pattern.
    scores = scores * (squares > 1e-12 * max(float(squares[0]), 1e-300))
    return np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))


def _check_shares(shares: NDArray[Any]) -> None:
    _check_map(shares, "shares", 3, "[t, h, w]")
    if shares.min() < 0 or shares.max() > 1:
        raise FramesError(f"Shares must lie in 0..1, found {shares.min():.6g} to {shares.max():.6g}.")


def heated(frame: Image.Image, values: NDArray[np.float64]) -> Image.Image:
    """Values ``[h, w]`` in 0..1 as colours over a grey frame, whose own colours cannot be taken for values then."""
    heat = _resized(heat_colours(values), frame.size, Image.Resampling.NEAREST)
    return Image.blend(frame.convert("L").convert("RGB"), heat, _OPACITY)


def _check_frames(frames: Pixels) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3 or min(frames.shape) < 1 or frames.dtype != np.uint8:
        raise FramesError(f"Expected uint8 frames [T, H, W, 3], found {frames.dtype} {list(frames.shape)}.")


def _check_map(values: NDArray[Any], name: str, ndim: int, shape: str) -> None:
    if values.ndim != ndim or min(values.shape, default=0) < 1:
        raise FramesError(f"Expected {name} {shape}, found {list(values.shape)}.")
    if not np.issubdtype(values.dtype, np.floating):
        raise FramesError(f"Expected {name} of floating point, found {values.dtype}. Convert them to float32.")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise FramesError(f"{bad} of {values.size} {name} are NaN or infinite. Look for the step that made them.")


def _shown(total: int, rows: int, first_frames: Sequence[int] | None) -> list[int]:
    if first_frames is None:
        if total % rows:
            raise FramesError(
                f"{total} frames do not divide evenly over {rows} rows in time. Pass first_frames, one index per row."
            )
        return list(range(0, total, total // rows))
    shown = list(first_frames)
    if len(shown) != rows or min(shown) < 0 or max(shown) >= total:
        raise FramesError(f"first_frames must be {rows} indices in 0..{total - 1}, found {shown}.")
    return shown


def _cell(frames: Pixels) -> tuple[int, int]:
    """Width and height of a frame on the sheet."""
    height, width = frames.shape[1:3]
    shown = min(max(width, _SMALLEST), _LARGEST)
    return shown, max(1, round(height * shown / width))


def _resized(pixels: Pixels, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    return Image.fromarray(pixels).resize(size, how)


def heat_colours(values: NDArray[np.float64]) -> Pixels:
    """Colours uint8 [..., 3] for values in 0..1."""
    steps = np.linspace(0, 1, len(_RAMP))
    channels = [np.interp(values, steps, _RAMP[:, k]) for k in range(3)]
    return np.round(np.stack(channels, axis=-1)).astype(np.uint8)


def _sheet(
    title: str, labels: list[str], above: list[Image.Image], below: list[Image.Image], footer: int
) -> Image.Image:
    """Pictures in two rows, one above the other, under a title; what does not fit in the width goes on below."""
    width, height = above[0].size
    bands = math.ceil(len(above) / max(1, _WIDEST // (width + _GAP)))
    columns = math.ceil(len(above) / bands)
    whole = max(columns * (width + _GAP) + _GAP, 480)
    large, small = ImageFont.load_default(size=20), ImageFont.load_default(size=14)
    lines = _wrapped(title, large, whole - 2 * _GAP)
    head, label = _GAP + 26 * len(lines), 20
    band = label + 2 * height + 2 * _GAP
    sheet = Image.new("RGB", (whole, head + bands * band + footer), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _GAP // 2), "\n".join(lines), _INK, font=large)
    for i, (name, top, bottom) in enumerate(zip(labels, above, below, strict=True)):
        x, y = _GAP + (i % columns) * (width + _GAP), head + (i // columns) * band
        draw.text((x, y), name, _FAINT, font=small)
        sheet.paste(top, (x, y + label))
        sheet.paste(bottom, (x, y + label + height + _GAP // 2))
    return sheet


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line for line in lines if line] or [""]


def _colour_bar(sheet: Image.Image, values: NDArray[np.float64], constant: bool) -> None:
    """The scale at the foot of the sheet, with the limits, the mean and what the ends mean."""
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    top = sheet.height - 60
    low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    if constant:
        draw.text((_GAP, top), f"constant: every share is {mean:.7g}", _INK, font=font)
        draw.text((_GAP, top + 22), _ENDS, _FAINT, font=font)
        return
    # Two digits beyond the one in which the limits differ.
    digits = max(3, 2 - math.floor(math.log10(high - low)))
    width = min(sheet.width - 2 * _GAP, 640)
    bar = heat_colours(np.tile(np.linspace(0, 1, width), (16, 1)))
    sheet.paste(Image.fromarray(bar), (_GAP, top))
    at = _GAP + round((mean - low) / (high - low) * (width - 1))
    draw.line((at, top - 3, at, top + 18), _INK, width=2)
    texts = [f"min {low:.{digits}f}", f"mean {mean:.{digits}f}", f"max {high:.{digits}f}"]
    for text, x, anchor in zip(texts, (_GAP, _GAP + width / 2, _GAP + width), ("la", "ma", "ra"), strict=True):
        draw.text((x, top + 20), text, _INK, font=font, anchor=anchor)
    draw.text((_GAP, top + 38), _ENDS, _FAINT, font=font)


def _save(sheet: Image.Image, path: str | Path) -> None:
    write_atomically(Path(path), lambda place: sheet.save(place, format="PNG"), durable=False)
