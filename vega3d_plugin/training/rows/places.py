"""Which frames of a video a row shows."""

from __future__ import annotations

import numpy as np

from ...contracts.clips import uniform_indices
from ...recipes.blocks import DataSettings


def frame_places(total: int, fps: float | None, settings: DataSettings) -> list[int]:
    """Places of the chosen frames, each once.

    With ``sampling: fps`` there are ``round(total / fps * settings.fps)`` of them, at least ``min_frames`` and at most
    ``frames``; never more than the video has.

    Args:
        total: frames of the video, 1 at least.
        fps: of the video; None: it has no time, so it is spread over ``settings.frames``.
        settings: sampling.

    Returns:
        Indices from 0, both ends included. Between them the nearest frame; with ``preset: released`` the one before
        (``np.linspace(..., dtype=int)``).
    """
    count = min(total, settings.frames)
    if settings.sampling == "fps" and fps and settings.fps:
        # 1/3 a second is no exact number: 4.5 frames must not become 4.4999.
        wanted = round(round(total / fps * settings.fps, 9))
        count = min(count, max(settings.min_frames, wanted))
    return spread(total, count, settings)


def spread(total: int, count: int, settings: DataSettings) -> list[int]:
    """``count`` places over ``total`` frames, rounded as the settings say."""
    if settings.preset == "released":
        return [int(i) for i in np.linspace(0, total - 1, count, dtype=int)]
    return uniform_indices(total, count)
