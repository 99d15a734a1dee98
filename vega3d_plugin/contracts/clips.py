"""What the branch is given: the frames the host saw, and how the host cut them into tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import AlignmentError, FramesError

if TYPE_CHECKING:
    from torch import Tensor

# Half-precision pixels are rounded by up to 2**-7 of their normalised value; anything beyond this is a wrong range.
RANGE_TOLERANCE = 0.02
# What float32 rounds away of a picture of 8 bits, far below half a grey level.
ROUNDING = 1e-5


@dataclass(frozen=True)
class TokenGrid:
    """How a host cut one clip into visual tokens: ``t`` rows in time, ``h`` x ``w`` in space, raster order."""

    t: int
    h: int
    w: int

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w) < 1:
            raise AlignmentError(f"A token grid needs t, h, w >= 1, got ({self.t}, {self.h}, {self.w}).")

    @property
    def tokens(self) -> int:
        """Number of tokens of the clip."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation per channel, with which a host normalised pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, mean: float | Iterable[float], std: float | Iterable[float]) -> PixelStatistics:
        """From what processors and configs hold: lists, tuples or arrays of three, or one number for all channels.

        Raises:
            ValueError: neither three numbers nor one.
        """
        return cls(_three(mean), _three(std))

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"mean ({mean}), std ({std})"

    def normalise(self, frames: Tensor) -> Tensor:
        """``[..., 3, H, W]`` in [0, 1] to the host's normalised pixels."""
        return (frames - self._column(self.mean, frames)) / self._column(self.std, frames)

    def unnormalise(self, pixels: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, in float32. No range is guessed and nothing is clamped.

        Pictures of 8 bits come back to the last bit, so that a clip is the same whatever dtype the host was given it
        in; other values come back as float32 has them. Half precision rounds by up to half a grey level, so the nearest
        level is taken. Where a deviation is above 0.25, as blue's in CLIP's statistics, neighbouring levels above two
        deviations fall together in bfloat16; hosts that are given float32 pixels and cast them are asked for those.

        The released code guesses the range from the minimum and maximum instead (``common.py::to_unit_range``).
        """
        import torch

        pixels, half = pixels.detach(), pixels.dtype.itemsize <= 2
        frames = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        levels = torch.empty_like(frames)
        std, mean = self._column(self.std, frames), self._column(self.mean, frames)
        whole = frames.new_ones((), dtype=torch.bool)
        # On a CPU frame by frame: each stays in the processor's cache from the first step to the last.
        apart = pixels.device.type == "cpu" and pixels.ndim == 4
        parts = (pixels, frames, levels) if apart else ([pixels], [frames], [levels])
        for some, frame, level in zip(*parts, strict=True):
            torch.mul(some.float(), std, out=frame).add_(mean)
            torch.mul(frame, 255, out=level).round_().div_(255)
            if not half:
                whole &= (frame - level).abs_().lt(ROUNDING).all()
        return levels if half or bool(whole) else frames

    @staticmethod
    def _column(values: tuple[float, float, float], like: Tensor) -> Tensor:
        import torch

        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _three(values: float | Iterable[float]) -> tuple[float, float, float]:
    found = tuple(map(float, (values,) if isinstance(values, int | float) else values))
    first, second, third = found * 3 if len(found) == 1 else found
    return first, second, third


@dataclass(eq=False)
class SceneViews:
    """The views of one scene, where their sizes differ: what a prior sees at once.

    Attributes:
        frames: of each view, ``[3, H, W]`` in [0, 1].
        seen: all views at one size, as the prior sees them, once they were brought to it.
        features: of all views, once they are computed: one call of the host makes these views, and asks for each.
    """

    frames: tuple[Tensor, ...]
    seen: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames of one video, the views of one scene, or one image, as the host saw them.

    Attributes:
        frames: ``[T, 3, H, W]`` in [0, 1], float.
        grid: the host's token grid for these frames; ``grid.t`` may differ from ``T``.
        kind: ``image`` (one frame), ``video`` (frames in time) or ``scene`` (several images of one place).
        past: how many of the frames, at the beginning, the host has no tokens of: the prior sees them all the same,
            and ``grid`` is that of the others.
        scene: the views among which this one, ``frames[0]``, is number ``place``; None where the frames are all.
        place: see ``scene``.
        sample: the row of the batch that the clip belongs to, where the reader was told.
        tile: it is one of several tiles that the host cut an image into, the whole image among them.
    """

    frames: Tensor
    grid: TokenGrid
    kind: Literal["image", "video", "scene"] = "video"
    past: int = 0
    scene: SceneViews | None = None
    place: int = 0
    sample: int | None = None
    tile: bool = False

    @property
    def key(self) -> str:
        """Content key, see :func:`clip_key`."""
        return clip_key(self.frames)


def clip_key(frames: Tensor) -> str:
    """Content key of a clip: 32 hex digits, the name of its features in a store and for the prior ``external``.

    A hash of the frames rounded to 8 bits, so that it does not depend on the host's dtype. It does depend on their
    size: the frames must be those that the host sees, after its processor has resized them.

    Args:
        frames: ``[T, 3, H, W]`` in [0, 1].
    """
    import torch

    digest = hashlib.sha256(repr(tuple(frames.shape)).encode())
    whole = frames.detach()
    # On a CPU frame by frame, in place: a frame stays in the processor's cache from the first step to the hash.
    for some in whole if whole.device.type == "cpu" else whole[None]:
        levels = (some.float() * 255).clamp_(0, 255).round_().to(torch.uint8)
        digest.update(levels.cpu().contiguous().numpy())
    return digest.hexdigest()[:32]


def check_frames(frames: Tensor, where: str) -> Tensor:
    """Return ``frames`` clamped to [0, 1] when they are a valid clip.

    Args:
        frames: expected ``[T, 3, H, W]``, floating point, finite, in [0, 1] up to the rounding of bfloat16.
        where: who asks, for the message.

    Raises:
        FramesError: wrong type, shape, dtype, NaN or infinity, or value range.
    """
    import torch

    if not isinstance(frames, torch.Tensor):
        raise FramesError(f"{where} expects a tensor [T, 3, H, W] in [0, 1], got {type(frames).__name__}.")
    if frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape) < 1:
        hint = " It looks channels-last: use frames.permute(0, 3, 1, 2)." if frames.shape[-1:] == (3,) else ""
        raise FramesError(f"{where} expects frames [T, 3, H, W] with T >= 1, got {list(frames.shape)}.{hint}")
    if not frames.is_floating_point():
        hint = "Divide uint8 frames by 255." if frames.dtype == torch.uint8 else "Convert them to float32."
        raise FramesError(f"{where} expects floating-point frames in [0, 1], got {frames.dtype}. {hint}")
    low, high = (float(v) for v in torch.aminmax(frames.detach().float()))
    if not (low == low and high == high and abs(low) != float("inf") and abs(high) != float("inf")):
        raise FramesError(f"{where} got NaN or infinity in frames of shape {list(frames.shape)}.")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise FramesError(
            f"{where} expects frames in [0, 1], found [{low:.3f}, {high:.3f}]. Un-normalise them first; for a patched "
            "host this means that the pixel statistics are wrong: pass `processor=` to vega3d.patch, or run "
            "`vega3d doctor MODEL`."
        )
    return frames.clamp(0, 1)


def uniform_indices(total: int, count: int) -> list[int]:
    """``count`` frame indices spread evenly over ``total`` frames, both ends included, repeated if ``count > total``.

    The rounding is half to even, as in the released code (``common.py::temporal_resample``).
    """
    if total < 1 or count < 1:
        raise FramesError(f"Need at least one frame to sample from and one to sample, got {total} and {count}.")
    if count == total:
        return list(range(total))
    import torch

    return [int(i) for i in torch.linspace(0, total - 1, count).round().long().clamp(0, total - 1)]
