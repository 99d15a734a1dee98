"""Pictures of correspondence: scores over the part of a frame that the prior saw, matches as lines, features as
colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..demo.pictures import feature_rgb, heat_colours
from ..priors.framing import Framing
from .charts import COLOURS, FAINT, INK, Canvas, wrapped
from .partners import Partners, SharedViews
from .protocols import token_grid

Floats = NDArray[np.float64]
RIGHT, WRONG = COLOURS[0], COLOURS[1]
_WIDTH = 380  # of a frame on the sheet, pixels
_OPACITY = 0.62
_GAP = 10
_MATCHES = 40
_DARK = 0.45  # how much is left of what the prior does not see


@dataclass(frozen=True, eq=False)
class TokenMatches:
    """Tokens of two views that are each other's nearest neighbour, the most similar first.

    Attributes:
        first, second: raster indices ``[n]``.
        error: tokens between the match and where the point truly lies ``[n]``; infinite where the second view does
            not see it.
    """

    first: Tensor
    second: Tensor
    error: Tensor


def centred(features: Tensor) -> Tensor:
    """``[V, C, h, w]`` to unit tokens ``[V, h * w, C]`` without the mean token of all views."""
    tokens = features.flatten(2).transpose(1, 2)
    return F.normalize(tokens - tokens.mean(dim=(0, 1)), dim=-1)


def token_map(units: Tensor, pair: SharedViews, grid: tuple[int, int], back: bool = False) -> Floats:
    """The cosine of each token with its true partner in the other view ``[h, w]``; NaN where there is none.

    Args:
        units: of :func:`centred`.
        pair: the two views.
        grid: (h, w).
        back: of the second view's tokens, in place of the first one's.
    """
    i, j = (pair.second, pair.first) if back else (pair.first, pair.second)
    partners: Partners = (pair.back if back else pair.there).to(units.device)
    values = torch.full((grid[0] * grid[1],), float("nan"), dtype=torch.float64)
    cosine = (units[i, partners.tokens] * units[j, partners.nearest(grid)]).sum(dim=-1)
    values[partners.tokens.cpu()] = cosine.double().cpu()
    return values.view(grid).numpy()


def mutual_matches(units: Tensor, pair: SharedViews, grid: tuple[int, int]) -> TokenMatches:
    """Nearest neighbours of each other in two views, and how far off they are; see :func:`token_map`."""
    cosine = units[pair.first] @ units[pair.second].T
    similarity, there = cosine.max(dim=1)
    back = cosine.max(dim=0).indices
    first = (back[there] == torch.arange(len(there), device=there.device)).nonzero()[:, 0]
    first = first[similarity[first].argsort(descending=True, stable=True)]
    partners = pair.there.to(units.device)
    truth = torch.full((grid[0] * grid[1], 2), float("inf"), device=units.device)
    truth[partners.tokens] = partners.places
    found = token_grid(grid, units.device)[there[first]]
    error = torch.linalg.vector_norm(truth[first] - found, dim=-1)
    return TokenMatches(first.cpu(), there[first].cpu(), error.cpu())


def over_frame(frame: Tensor, colours: NDArray[np.uint8], shown: NDArray[np.bool_], framing: Framing) -> Image.Image:
    """Colours of tokens over the part of a frame that the prior saw; what it did not see is darkened.

    Args:
        frame: ``[3, H, W]`` in [0, 1].
        colours: ``[h, w, 3]``.
        shown: ``[h, w]``, tokens to colour; the frame is left as it is at the others.
        framing: of the prior.
    """
    picture = _picture(frame)
    scale = _WIDTH / picture.width
    size = (_WIDTH, max(1, round(picture.height * scale)))
    plain = picture.resize(size, Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(edge * scale) for edge in framing.box)
    box = (max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1]))
    inside = (box[2] - box[0], box[3] - box[1])
    cut = plain.crop(box)
    heat = Image.fromarray(colours).resize(inside, Image.Resampling.NEAREST)
    mask = Image.fromarray((shown * round(255 * _OPACITY)).astype(np.uint8)).resize(inside, Image.Resampling.NEAREST)
    # Over grey, so that the scene's colours are not taken for values.
    cut = Image.composite(heat, cut.convert("L").convert("RGB"), mask)
    sheet = Image.eval(plain, lambda value: round(value * _DARK))
    sheet.paste(cut, box[:2])
    return sheet


def scores_over_frame(frame: Tensor, values: Floats, framing: Framing, low: float, high: float) -> Image.Image:
    """A map of scores ``[h, w]`` over a frame, colours from ``low`` to ``high``; NaN are left out."""
    scaled = np.clip((np.nan_to_num(values, nan=low) - low) / max(high - low, 1e-9), 0, 1)
    return over_frame(frame, heat_colours(scaled), ~np.isnan(values), framing)


def pair_picture(
    title: str,
    frames: Tensor,
    features: Tensor,
    pairs: Sequence[SharedViews],
    framing: Framing,
    names: Sequence[str],
) -> Image.Image:
    """A sheet with three rows for each pair of views: scores over the frames, matches as lines, features as colours.

    Args:
        title: at the top.
        frames: ``[V, 3, H, W]`` in [0, 1], of all judged views.
        features: ``[V, C, h, w]``.
        pairs: to show.
        framing: of the prior.
        names: of the views.
    """
    grid = (features.shape[2], features.shape[3])
    units = centred(features)
    maps = [(token_map(units, pair, grid), token_map(units, pair, grid, back=True)) for pair in pairs]
    known = np.concatenate([each[~np.isnan(each)] for both in maps for each in both])
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    rgb = feature_rgb(features.float().cpu().numpy())
    width = 2 * _WIDTH + _GAP + 2 * 16
    height = max(1, round(frames.shape[2] * _WIDTH / frames.shape[3]))
    heads = wrapped(title, width - 32, 16)
    block = 30 + 3 * (height + 24) + 12
    canvas = Canvas(width, 20 + 22 * len(heads) + 46 + block * len(pairs))
    for index, line in enumerate(heads):
        canvas.text(16, 24 + 22 * index, line, size=16)
    top = 22 * len(heads) + 34
    _bar(canvas, 16, top, low, high)
    top += 30
    for pair, both in zip(pairs, maps, strict=True):
        views = (pair.first, pair.second)
        about = f"{names[views[0]]} and {names[views[1]]}: {pair.angle:.0f} degrees apart, {pair.shared} tokens shared"
        canvas.text(16, top + 14, about, bold=True)
        y = top + 30
        for side in (0, 1):
            x = 16 + side * (_WIDTH + _GAP)
            canvas.paste(scores_over_frame(frames[views[side]], both[side], framing, low, high), x, y)
        y += height + 24
        _lines(canvas, frames, mutual_matches(units, pair, grid), pair, framing, grid, y, height)
        y += height + 24
        for side in (0, 1):
            x = 16 + side * (_WIDTH + _GAP)
            everything = np.ones(grid, dtype=bool)
            canvas.paste(over_frame(frames[views[side]], rgb[views[side]], everything, framing), x, y)
        canvas.text(16, y - 10, "features: first three principal components of all views", FAINT, 12)
        top += block
    return canvas.picture()


def shown_pairs(pairs: Sequence[SharedViews]) -> list[SharedViews]:
    """Two pairs worth a look: of those that share most a close one and one that is further apart."""
    by_shared = sorted(pairs, key=lambda pair: -pair.shared)
    close = next((pair for pair in by_shared if pair.angle < 30), None)
    wide = next((pair for pair in by_shared if pair.angle >= 30), None)
    return [pair for pair in (close, wide) if pair is not None]


def _lines(
    canvas: Canvas,
    frames: Tensor,
    matches: TokenMatches,
    pair: SharedViews,
    framing: Framing,
    grid: tuple[int, int],
    y: float,
    height: int,
) -> None:
    for side, view in enumerate((pair.first, pair.second)):
        shown = np.zeros(grid, dtype=bool)
        nothing = np.zeros((*grid, 3), np.uint8)
        canvas.paste(over_frame(frames[view], nothing, shown, framing), 16 + side * (_WIDTH + _GAP), y)
    scale = _WIDTH / framing.frame[1]
    centres = framing.token_centres(grid) * scale
    right = matches.error <= 1
    for index in reversed(range(min(_MATCHES, len(matches.first)))):
        (x1, y1), (x2, y2) = centres[matches.first[index]].tolist(), centres[matches.second[index]].tolist()
        ink = RIGHT if bool(right[index]) else WRONG
        start, end = (16 + x1, y + y1), (16 + _WIDTH + _GAP + x2, y + y2)
        canvas.line([start, end], ink, 1.2)
        for place in (start, end):
            canvas.dot(*place, ink, 2.5)
    count = min(_MATCHES, len(matches.first))
    text = f"the {count} most similar of {len(matches.first)} mutual nearest neighbours; in all "
    text += f"{int(right.sum())} right within one token (blue), {int((~right).sum())} wrong (orange)"
    canvas.text(16, y - 10, text, FAINT, 12)


def _bar(canvas: Canvas, x: float, y: float, low: float, high: float) -> None:
    ramp = heat_colours(np.tile(np.linspace(0, 1, 200), (12, 1)))
    canvas.text(x, y, "cosine with the true partner (centred):", FAINT, 12)
    start = x + 230
    canvas.text(start, y, f"{low:.2f}", INK, 12)
    canvas.paste(Image.fromarray(ramp), start + 36, y - 6)
    canvas.text(start + 244, y, f"{high:.2f}", INK, 12)


def _picture(frame: Tensor) -> Image.Image:
    pixels: Any = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels)
