"""What vision encoders share: pixels in, the tokens of one layer out; no noise, no timestep, no VAE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.clips import PixelStatistics
from ...contracts.errors import PriorError
from ...contracts.priors import Span
from ...contracts.settings import PriorSettings
from ..frozen.prior import FrozenPrior
from ..frozen.taps import asked, inputs_of
from ..frozen.windows import average, windows

#: Of ImageNet, which most encoders were trained with.
IMAGENET = PixelStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class EncoderPrior(FrozenPrior):
    """Features of a vision encoder.

    Contexts: ``frame``: each frame alone. ``views``: each frame is a step of its own, and the encoder sees all steps
    of a window at once. ``video``: a step is ``frames_per_step`` frames that follow each other; the last frame fills up
    the last step.
    """

    #: Class names of the blocks that ``compile`` is applied to.
    block_classes: ClassVar[tuple[str, ...]] = ()
    #: Frames that the encoder makes one step of.
    frames_per_step: int = 1
    #: With which the encoder wants its pixels normalised; None: pixels in [0, 1].
    statistics: PixelStatistics | None = IMAGENET

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels ``[B, steps, frames, 3, H, W]`` to the tap's maps ``[B, steps, C, h, w]``.

        ``frames`` is 1 (contexts ``frame`` and ``views``) or ``frames_per_step`` (``video``). What is in one row of
        the batch is attended jointly.
        """

    def extract(self, frames: Tensor) -> Tensor:
        """Checked frames ``[T, 3, H, W]`` to features ``[T', C, h, w]``, inside a :meth:`session`."""
        steps = self._steps(frames)
        return self._each(steps) if self.settings.context == "frame" else self._jointly(steps)

    def spans(self, frames: int, steps: int) -> Sequence[Span] | None:
        """Context ``video``: a step covers ``frames_per_step`` frames, the last one what is left."""
        if self.settings.context != "video":
            return None
        edges = [min(self.frames_per_step * i, frames) / frames for i in range(steps + 1)]
        return list(pairwise(edges))

    def more_identity(self) -> dict[str, Any]:
        """Windows matter only where frames see each other; the statistics, where they are not the usual ones."""
        more = super().more_identity()
        if self.settings.context != "frame":
            more |= {"window": self.settings.window, "overlap": self.settings.overlap}
        if self.statistics not in (None, IMAGENET):
            more |= {"mean": list(self.statistics.mean), "std": list(self.statistics.std)}
        return more

    def repeated_parts(self) -> list[nn.Module]:
        """The blocks that ``compile`` is applied to."""
        return [m for model in self.models.values() for m in model.modules() if type(m).__name__ in self.block_classes]

    def _steps(self, frames: Tensor) -> Tensor:
        """``[T, 3, H, W]`` to ``[T', frames, 3, H, W]``."""
        if self.settings.context != "video":
            return frames[:, None]
        missing = -frames.shape[0] % self.frames_per_step
        if missing:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        steps: Tensor = frames.unflatten(0, (-1, self.frames_per_step))
        return steps

    def _prepared(self, steps: Tensor) -> Tensor:
        """Steps ``[n, frames, 3, H, W]`` in [0, 1], any size, to what the encoder takes."""
        pixels = self.pixels(steps.flatten(0, 1))
        if self.statistics is not None:
            pixels = self.statistics.normalise(pixels)
        out: Tensor = pixels.to(self.dtype).unflatten(0, steps.shape[:2])
        return out

    def _alone(self, steps: Tensor) -> Tensor:
        return self.encode(self._prepared(steps)[:, None])[:, 0]

    def _together(self, steps: Tensor) -> Tensor:
        return self.encode(self._prepared(steps)[None])[0]

    def _each(self, steps: Tensor) -> Tensor:
        count, size = steps.shape[0], self.chunk((self.size[0] // self.stride) * (self.size[1] // self.stride))
        parts = []
        for start in range(0, count, size):
            rows = range(start, min(start + size, count))
            parts.append(self.part("features", rows, partial(self._alone, steps[start : start + size])))
            self.report("encoder", min(start + size, count), count)
        return torch.cat(parts)

    def _jointly(self, steps: Tensor) -> Tensor:
        count = steps.shape[0]
        places = windows(count, self.settings.window or count, self.settings.overlap if self.settings.window else 0)
        parts = []
        for place in places:
            parts.append(self.part("features", place, partial(self._together, steps[place.start : place.stop])))
            self.report("encoder", place.stop, count)
        return average(parts, places)


def normed_taps(prior: EncoderPrior, layers: Sequence[nn.Module], norm: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """Tokens ``[B, L, C]`` behind the last layer, or of the taps that are asked for, joined along the channels.

    Args:
        prior: who may be asked.
        layers: one after the other.
        norm: what is applied behind any tap; ``run`` does so itself behind the last.
        run: runs all layers, and gives the tokens behind the last.
    """
    taps = asked(prior, own=len(layers) - 1)
    inner = [tap for tap in taps if tap < len(layers) - 1]
    with inputs_of([layers[tap + 1] for tap in inner]) as kept:
        last = run()
    by_tap = {tap: norm(tokens) for tap, tokens in zip(inner, kept, strict=True)}
    tokens = [by_tap.get(tap, last) for tap in taps]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=-1)


def as_maps(tokens: Tensor, steps: int, size: tuple[int, int]) -> Tensor:
    """Tokens ``[B, steps * h * w, C]`` in raster order (step, row, column) to ``[B, steps, C, h, w]``."""
    maps: Tensor = tokens.unflatten(1, (steps, *size))
    return maps.movedim(-1, 2)


def from_transformers(settings: PriorSettings, since: str, *names: str) -> list[Any]:
    """Classes of transformers by name.

    Args:
        settings: of the prior that needs them, for the message.
        since: the version of transformers that has them first.
        names: of the classes.

    Raises:
        PriorError: the installed transformers lacks one; the message says which version has it.
    """
    import transformers

    missing = [name for name in names if not hasattr(transformers, name)]
    if missing:
        raise PriorError(
            f"Prior {settings.name!r} needs transformers with {missing[0]} ({since} or later), found "
            f"{transformers.__version__}. Upgrade it: pip install -U transformers."
        )
    return [getattr(transformers, name) for name in names]
