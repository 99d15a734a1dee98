"""Generators as latent world simulators (paper, section on feature extraction): encode, add noise, transform once.

Families fill in how their VAE encodes, how their scheduler adds noise, and how their denoiser is run up to the tap.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...contracts.clips import check_frames
from ...contracts.errors import FramesError, PriorError, Vega3dWarning
from ...contracts.priors import Span
from ...contracts.settings import PriorSettings
from ..frozen.interpolation import interpolated, seen_frames
from ..frozen.prior import FrozenPrior
from ..frozen.windows import average, windows
from .flow_matching import NoiseLevel, add_noise, draw_noise, noise_level


class DiffusionPrior(FrozenPrior):
    """Features of a denoiser at one noise level.

    Contexts: ``frame``: each frame is a clip of its own. ``views``: each frame is its own latent step, and the denoiser
    sees all steps of a window at once. ``video``: the causal video VAE makes steps of ``time_stride`` frames, the first
    frame alone.
    """

    identity: ClassVar[tuple[str, ...]] = ("timestep", "shift", "tap", "size", "resize", "context", "seed")
    interpolates = True
    #: Frames per latent step of the video VAE, but for the first step.
    time_stride: int = 4

    # What a family fills in

    @abstractmethod
    def frame_latents(self, pixels: Tensor) -> Tensor:
        """Single frames ``[B, 3, H, W]`` in [-1, 1], compute dtype, to normalised latents ``[B, z, h, w]``."""

    def video_latents(self, pixels: Tensor) -> Tensor:
        """A video ``[1 + time_stride * k, 3, H, W]`` in [-1, 1] to normalised latents ``[1 + k, z, h, w]``."""
        raise NotImplementedError

    @abstractmethod
    def transform(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """Noisy latents ``[B, T, z, h, w]`` to the tap's maps ``[B, T, C, h', w']``; ``latents`` are the clean ones."""

    def transform_rows(self, noisy: Tensor, latents: Tensor, rows: Sequence[range]) -> Tensor:
        """As :meth:`transform`, told which steps of the clip each row holds, for what depends on more than latents."""
        return self.transform(noisy, latents)

    def set_timestep(self, timestep: int) -> None:
        """Extract at another noise level from now on. The weights stay, the fingerprint becomes another.

        Raises:
            SettingsError, PriorError: a timestep that it cannot have.
        """
        settings = PriorSettings.parse({**self.settings.to_dict(), "timestep": timestep})
        before, self.settings = self.settings, settings
        try:
            self.noise_level()
        except PriorError:
            self.settings = before
            raise
        # What the fast path keeps of the timestep is made anew.
        self._ready = None
        self._fingerprint = None

    def places(self, count: int) -> list[range]:
        """The windows that ``count`` steps are attended in, where they see each other."""
        return windows(count, self.settings.window or count, self.settings.overlap if self.settings.window else 0)

    def noise_level(self) -> NoiseLevel:
        """The timestep that the denoiser is given, and the share of noise."""
        return noise_level(self.settings.timestep, self.settings.shift)

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Clean latents and noise of one shape to noisy latents; float32."""
        return add_noise(latents, noise, self.noise_level().sigma)

    @property
    def pixel_dtype(self) -> torch.dtype:
        """What pixels are given to the VAE in: the compute dtype, unless it needs them finer."""
        return self.dtype

    @property
    def tokens_per_frame(self) -> int:
        """Tokens that one frame costs the denoiser."""
        return (self.size[0] // self.stride) * (self.size[1] // self.stride)

    #: Frames that a clip needs at least in context ``video``, whose VAE takes no single image.
    least_video_frames: ClassVar[int] = 2

    # What all families share

    def __call__(self, frames: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Extract features; see :class:`Prior`.

        Args:
            frames: ``[T, 3, H, W]`` in [0, 1].
            noise: use this noise ``[latent steps, z, h, w]`` in place of the seeded one; for comparisons.

        Returns:
            ``[T', C, h, w]`` in the compute dtype; ``T' = T`` for contexts ``frame`` and ``views``,
            ``1 + ceil((T - 1) / time_stride)`` for ``video``.

        Raises:
            FramesError: frames of a wrong shape, dtype or range; a single frame in context ``video``.
            PriorError: the device lacks the dtype, or its memory does not suffice; the message says what to change.
        """
        frames = check_frames(frames, f"Prior {self.settings.name!r}")
        with self.session(frames.device):
            return self.extract(frames, noise)

    def extract(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Checked frames ``[T, 3, H, W]`` to features ``[T', C, h, w]``, inside a :meth:`session`."""
        if self.settings.context == "video" and frames.shape[0] < self.least_video_frames:
            raise FramesError(
                f"Prior {self.settings.name!r} got one frame, and context 'video' needs a video. "
                "Use context='frame' or 'views' for images."
            )
        count = frames.shape[0]
        kept = seen_frames(count, self.settings.every)
        if len(kept) == count:
            return self.features(self.encode(frames), noise)
        if self.settings.every >= count:
            warnings.warn(
                f"Prior {self.settings.name!r} has every={self.settings.every}, and a clip has {count} frames: it sees "
                "the first and the last alone. Lower every.",
                Vega3dWarning,
                stacklevel=2,
            )
        latents = self.encode(frames[kept])
        if noise is None:
            # Each with the noise that it has among all frames, so that its features are the same.
            noise = draw_noise(tuple(latents.shape[1:]), self.settings.seed, range(count))[kept]
        else:
            noise = noise[kept]
        return interpolated(self.features(latents, noise), kept)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames ``[T, 3, H, W]`` in [0, 1] to normalised latents ``[T', z, h, w]``, float32 (the VAE's mean)."""
        with self.session(frames.device):
            if self.settings.context == "video":
                return self._encode_video(frames)
            count, latents = frames.shape[0], []
            for start in range(0, count, self._frames_per_encoding()):
                chunk = frames[start : start + self._frames_per_encoding()]
                rows = range(start, start + chunk.shape[0])
                latents.append(self.part("latents", rows, partial(self._frame_latents, chunk)))
                self.report("VAE", start + chunk.shape[0], count)
            return torch.cat(latents)

    def _frame_latents(self, frames: Tensor) -> Tensor:
        return self.frame_latents((self.pixels(frames) * 2 - 1).to(self.pixel_dtype)).float()

    def features(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        """Normalised latents ``[T', z, h, w]`` to the tap's maps ``[T', C, h', w']``."""
        with self.session(latents.device):
            if noise is None:
                noise = draw_noise(tuple(latents.shape[1:]), self.settings.seed, range(latents.shape[0]))
            elif noise.shape != latents.shape:
                raise PriorError(f"Noise must have the latents' shape {list(latents.shape)}, got {list(noise.shape)}.")
            latents = latents.to(self.device)
            noisy = self.noised(latents, noise.to(latents))
            if self.settings.context == "frame":
                return self._each(noisy, latents)
            return self._jointly(noisy, latents)

    def spans(self, frames: int, steps: int) -> Sequence[Span] | None:
        """Context ``video``: step 0 covers the first frame, each further step ``time_stride`` frames."""
        if self.settings.context != "video":
            return None
        edges = [0, *(min(1 + self.time_stride * i, frames) for i in range(steps))]
        return [(first / frames, last / frames) for first, last in pairwise(edges)]

    def more_identity(self) -> dict[str, Any]:
        """Windows matter only where frames see each other."""
        more = super().more_identity()
        if self.settings.context != "frame":
            more |= {"window": self.settings.window, "overlap": self.settings.overlap}
        return more

    def _encode_video(self, frames: Tensor) -> Tensor:
        count = frames.shape[0]
        # The VAE takes 1 + stride * k frames and would drop the rest.
        missing = -(count - 1) % self.time_stride
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        latents = self.part("latents", range(count), partial(self._clip_latents, frames))
        self.report("VAE", count, count)
        return latents

    def _clip_latents(self, frames: Tensor) -> Tensor:
        return self.video_latents((self.pixels(frames) * 2 - 1).to(self.pixel_dtype)).float()

    def _each(self, noisy: Tensor, latents: Tensor) -> Tensor:
        def alone(part: slice, rows: Sequence[range]) -> Tensor:
            return self.transform_rows(noisy[part, None], latents[part, None], rows)[:, 0]

        count, size = noisy.shape[0], self.chunk(self.tokens_per_frame)
        parts = []
        for start in range(0, count, size):
            part = slice(start, start + size)
            rows = [range(i, i + 1) for i in range(start, min(start + size, count))]
            whole = range(start, min(start + size, count))
            parts.append(self.part("features", whole, partial(alone, part, rows)))
            self.report("denoiser", min(start + size, count), count)
        return torch.cat(parts)

    def _jointly(self, noisy: Tensor, latents: Tensor) -> Tensor:
        def together(part: slice, place: range) -> Tensor:
            return self.transform_rows(noisy[None, part], latents[None, part], [place])[0]

        count, places = noisy.shape[0], self.places(noisy.shape[0])
        parts = []
        for place in places:
            part = slice(place.start, place.stop)
            parts.append(self.part("features", place, partial(together, part, place)))
            self.report("denoiser", place.stop, count)
        return average(parts, places)

    def _frames_per_encoding(self) -> int:
        # On a CPU several frames at once only cost memory.
        if self.settings.chunk_frames is None and self.device.type == "cpu":
            return 1
        return self.chunk(self.tokens_per_frame)
