"""Clips side by side as a video: what the prior sees in each, and how well their tokens find each other.

No geometry is needed, so it also serves the cameras of a robot. After the released ``wan_triview_video.py``, whose
consistency this is (:func:`~.adjacent.token_consistency`); new are the centred one, which no shared offset can raise,
and that of frames of different times, which shows what agrees without showing the same moment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..demo.pictures import feature_rgb, heat_colours
from ..errors import AnalysisError
from ..priors.base import Prior
from ..priors.framing import Framing
from ..scenes.scene import Scene
from ..scenes.views import uniform
from .adjacent import check_finite, token_consistency
from .charts import COLOURS, FAINT, INK, RULE, Canvas
from .overlays import over_frame
from .twin import name_of

Pixels = NDArray[np.uint8]
_FRAME = 380  # width of a frame in the picture; what over_frame makes
_GAP, _PAD = 10, 16
_CURVE = 96  # height of the curves


@dataclass(frozen=True)
class Agreement:
    """How well the tokens of two clips find each other, at each time.

    Attributes:
        clips: indices of the two.
        raw: the released consistency ``[T]``.
        centred: the same after each clip's mean token was taken off ``[T]``.
        other_time: the centred one with the second clip half its length later ``[T]``; a control.
    """

    clips: tuple[int, int]
    raw: tuple[float, ...]
    centred: tuple[float, ...]
    other_time: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Clips, their features and how these agree.

    Attributes:
        names: of the clips.
        prior: what it is called.
        frames: ``[T, 3, H, W]`` in [0, 1] of each clip; sizes may differ.
        features: ``[T, C, h, w]`` of each clip.
        framings: which part of its frames the prior sees.
        agreements: of each two clips.
    """

    names: tuple[str, ...]
    prior: str
    frames: tuple[Tensor, ...]
    features: tuple[Tensor, ...]
    framings: tuple[Framing, ...]
    agreements: tuple[Agreement, ...]

    def table(self) -> str:
        """Mean agreement of each two clips, as plain text."""
        from .tables import aligned

        rows = [["", "consistency", "centred", "centred, another time"]]
        for each in self.agreements:
            one, two = (self.names[k] for k in each.clips)
            values = (each.raw, each.centred, each.other_time)
            rows.append([f"{one} and {two}", *(f"{sum(v) / len(v):.3f}" for v in values)])
        note = "What another time reaches too is no agreement about what the clips show."
        return "\n".join([f"{self.prior}, {len(self.frames[0])} frames of each clip", "", *aligned(rows), "", note])

    def pictures(self) -> Pixels:
        """One picture for each time, uint8 ``[T, H, W, 3]`` with an even height and width."""
        colours = _common_colours(self.features)
        strengths = [_strengths(self.features, clip) for clip in range(len(self.names))]
        return np.stack([self._picture(time, colours, strengths) for time in range(len(self.frames[0]))])

    def _picture(self, time: int, colours: Sequence[Pixels], strengths: Sequence[NDArray[np.float64]]) -> Pixels:
        clips = range(len(self.names))
        heights = [max(1, round(_FRAME * frames.shape[2] / frames.shape[3])) for frames in self.frames]
        row = max(heights) + 24
        width = 2 * _PAD + len(self.names) * (_FRAME + _GAP)
        canvas = Canvas(width + width % 2, 40 + 3 * row + _CURVE + 70)
        for clip in clips:
            x = _PAD + clip * (_FRAME + _GAP)
            frame, framing = self.frames[clip][time], self.framings[clip]
            canvas.text(x, 22, f"{self.names[clip]}, frame {time + 1} of {len(self.frames[clip])}", size=14)
            shown = np.ones(strengths[clip].shape[1:], dtype=bool)
            strength = heat_colours(np.clip(strengths[clip][time], 0, 1))
            canvas.paste(_whole(frame), x, 40)
            canvas.paste(over_frame(frame, colours[clip][time], shown, framing), x, 40 + row)
            canvas.paste(over_frame(frame, strength, shown, framing), x, 40 + 2 * row)
        for index, text in enumerate(
            (
                "features: first three principal components of all clips",
                "match strength: highest centred cosine in the other clips, 0 to 1",
            )
        ):
            canvas.text(_PAD, 28 + (index + 1) * row, text, FAINT, 12)
        self._curves(canvas, time, 40 + 3 * row + 8, width)
        picture = np.asarray(canvas.picture())
        return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]

    def _curves(self, canvas: Canvas, time: int, top: float, width: float) -> None:
        left, right, bottom = _PAD + 30, width - 260, top + _CURVE
        values = [v for each in self.agreements for v in (*each.centred, *each.other_time)]
        low, high = min(values), max(max(values), min(values) + 1e-6)
        count = len(self.frames[0])

        def at(step: int, value: float) -> tuple[float, float]:
            x = left + (right - left) * (step / max(1, count - 1))
            return x, bottom - (value - low) / (high - low) * _CURVE

        for value in (low, high):
            canvas.text(left - 6, at(0, value)[1], f"{value:.2f}", FAINT, 11, "rm")
            canvas.line([at(0, value), at(count - 1, value)], RULE)
        for index, each in enumerate(self.agreements):
            ink = COLOURS[index % len(COLOURS)]
            canvas.line([at(k, v) for k, v in enumerate(each.other_time)], RULE, 2)
            canvas.line([at(k, v) for k, v in enumerate(each.centred)], ink, 2)
            one, two = (self.names[k] for k in each.clips)
            canvas.text(right + 14, top + 6 + 18 * index, f"{one} and {two}: {each.centred[time]:.3f}", ink, 12)
        canvas.text(right + 14, top + 6 + 18 * len(self.agreements), "grey: the other clip at another time", FAINT, 12)
        x = at(time, low)[0]
        canvas.line([(x, top), (x, bottom)], INK)
        canvas.text(left, bottom + 18, f"{self.prior}: centred consistency of tokens, over time", FAINT, 12)


def side_by_side(prior: Prior, clips: Sequence[Scene], frames: int = 32, device: str = "cpu") -> SideBySide:
    """Compare two or three clips of one length in time, frame by frame.

    Args:
        prior: in its context.
        clips: scenes without need of geometry; frames of one clip have one size.
        frames: taken of each clip, spread evenly, so that the k-th of one goes with the k-th of the other.
        device: where the prior runs.

    Raises:
        AnalysisError: not two or three clips, fewer than two frames, or features that are not finite.
        SceneError: frames of different sizes in one clip.
    """
    if not 2 <= len(clips) <= 3:
        raise AnalysisError(f"Two or three clips can be compared side by side, got {len(clips)}.")
    count = min(frames, *(len(clip) for clip in clips))
    if count < 2:
        short = min(clips, key=len)
        raise AnalysisError(f"A comparison over time needs two frames at least; {short.name!r} has {len(short)}.")
    shown, features = [], []
    for clip in clips:
        taken = clip.select(uniform(len(clip), count)).frames()
        maps = prior(taken.to(device)).cpu()
        check_finite(maps, f"prior {name_of(prior)!r} on clip {clip.name!r}")
        shown.append(taken)
        features.append(_steps(prior, maps, count))
    alike = [clip.name for clip in clips]
    names = tuple(f"{n} ({k + 1})" if alike.count(n) > 1 else n for k, n in enumerate(alike))
    return SideBySide(
        names,
        name_of(prior),
        tuple(shown),
        tuple(features),
        tuple(prior.framing((each.shape[2], each.shape[3])) for each in shown),
        tuple(_agreement(features[i], features[j], (i, j)) for i, j in combinations(range(len(clips)), 2)),
    )


def _steps(prior: Prior, maps: Tensor, count: int) -> Tensor:
    """A map for each frame: in context ``video`` frames of one step share one."""
    if maps.shape[0] == count:
        return maps.float()
    spans = prior.spans(count, maps.shape[0]) or [(i / len(maps), (i + 1) / len(maps)) for i in range(len(maps))]
    places = [next(k for k, (_, end) in enumerate(spans) if (i + 0.5) / count < end) for i in range(count)]
    return maps[torch.tensor(places)].float()


def _agreement(one: Tensor, two: Tensor, clips: tuple[int, int]) -> Agreement:
    count = len(one)
    first, second = (maps - maps.mean(dim=(0, 2, 3), keepdim=True) for maps in (one, two))
    later = [(time + math.ceil(count / 2)) % count for time in range(count)]
    return Agreement(
        clips,
        tuple(token_consistency(one[t], two[t]) for t in range(count)),
        tuple(token_consistency(first[t], second[t]) for t in range(count)),
        tuple(token_consistency(first[t], second[later[t]]) for t in range(count)),
    )


def _strengths(features: Sequence[Tensor], clip: int) -> NDArray[np.float64]:
    """Each token's highest centred cosine with the tokens of any other clip at the same time ``[T, h, w]``."""
    units = [
        F.normalize((maps - maps.mean(dim=(0, 2, 3), keepdim=True)).flatten(2).transpose(1, 2), dim=-1)
        for maps in features
    ]
    best = [
        torch.stack([(units[clip][t] @ units[k][t].T).max(dim=1).values for k in range(len(units)) if k != clip])
        for t in range(len(units[clip]))
    ]
    made: NDArray[np.float64] = torch.stack([each.max(dim=0).values for each in best]).double().numpy()
    return made.reshape(len(best), *features[clip].shape[2:])


def _common_colours(features: Sequence[Tensor]) -> list[Pixels]:
    """Principal components of all clips together, so that a colour means the same in each; ``[T, h, w, 3]`` each."""
    channels = features[0].shape[1]
    rows = torch.cat([maps.permute(0, 2, 3, 1).reshape(-1, channels) for maps in features])
    rgb = feature_rgb(rows.T[None, :, :, None].numpy())[0, :, 0]
    made, start = [], 0
    for maps in features:
        shape = (maps.shape[0], maps.shape[2], maps.shape[3])
        made.append(rgb[start : start + math.prod(shape)].reshape(*shape, 3))
        start += math.prod(shape)
    return made


def _whole(frame: Tensor) -> Image.Image:
    pixels: Any = (frame.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    height = max(1, round(_FRAME * pixels.shape[0] / pixels.shape[1]))
    return Image.fromarray(pixels).resize((_FRAME, height), Image.Resampling.LANCZOS)
