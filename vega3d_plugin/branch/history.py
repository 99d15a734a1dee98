"""Earlier observations of a policy, so that the prior sees time. Ours; the paper's policy sees one observation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..contracts.clips import Clip


class History:
    """The last observations, camera by camera.

    Args:
        length: observations per clip, the current one included; 1 keeps none.
    """

    def __init__(self, length: int = 1) -> None:
        self.length = length
        self._past: list[deque[Clip]] = []

    def extend(self, clips: Sequence[Clip], *, keep: bool) -> Sequence[Clip]:
        """Put the earlier frames of each clip's camera before it.

        Args:
            clips: one observation: of each camera a clip, in a fixed order.
            keep: False leaves the clips as they are and remembers nothing: in training and validation, observations
                are drawn at random.

        Returns:
            The clips, with up to ``(length - 1)`` observations before each. Observations of other cameras, or of
            another size, begin a new history.
        """
        if self.length == 1 or not keep:
            return clips
        if [c.frames.shape for c in clips] != [past[-1].frames.shape for past in self._past]:
            self._past = [deque(maxlen=self.length) for _ in clips]
        longer = []
        for clip, past in zip(clips, self._past, strict=True):
            past.append(clip)
            frames = torch.cat([earlier.frames for earlier in past])
            longer.append(replace(clip, frames=frames, past=frames.shape[0] - clip.frames.shape[0]))
        return longer

    def reset(self) -> None:
        """Forget all observations: an episode starts."""
        self._past = []
