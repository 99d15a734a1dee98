"""Wan 2.1 VACE as a latent world simulator (released ``WanVaceOnlineEncoder``), on diffusers' own classes.

VACE is Wan with a control branch: it is given the frames themselves as "reactive" latents, everything masked as to be
generated, and may be given the first frame as a reference that stands before the video.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.errors import PriorError
from ...contracts.settings import PriorSettings
from ..catalogue.vace import VaceOptions
from ..diffusion.flow_matching import draw_noise
from ..fast import Reduction
from .checkpoint import Variant
from .prior import WanPrior
from .vace_padding import released_padding

# The mask has one channel for each pixel that a latent covers.
MASK_CHANNELS = 64


class WanVacePrior(WanPrior):
    """Features of a Wan VACE transformer, the hint behind the tapped block included.

    Args: as of :class:`~vega3d_plugin.priors.wan.prior.WanPrior`, with diffusers' ``WanVACETransformer3DModel``.
    """

    family = "wan-vace"
    reductions: tuple[Reduction, ...] = WanPrior.reductions  # type: ignore[misc]

    def __init__(self, transformer: nn.Module, vae: nn.Module, context: Tensor, settings: PriorSettings, **more: Any):
        super().__init__(transformer, vae, context, settings, **more)
        self.vace = VaceOptions.parse(settings.options)
        if self.vace.reference == "released" and settings.context != "frame":
            raise PriorError(
                f"Prior {settings.name!r}: reference='released' is the released code's way with single frames, and has "
                f"no meaning in context {settings.context!r}. Use context='frame', or reference='first'."
            )
        #: Latents of a grey frame, which is what is left of a frame where all is to be generated.
        self._grey: Tensor | None = None
        #: Latents of the clip's first frame, while a clip is worked on.
        self._first: Tensor | None = None

    def prepare(self, device: torch.device) -> None:
        """Also forget what was computed elsewhere or in another dtype."""
        if self._ready is None or self._ready != (device, self.dtype_on(device)):
            self._grey = None
        super().prepare(device)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens that one frame costs the denoiser, its reference included."""
        return super().tokens_per_frame * (1 if self.vace.reference == "none" else 2)

    def features(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        """Normalised latents ``[T', z, h, w]`` to the tap's maps ``[T', C, h', w']``; the first is the reference."""
        self._first = latents[0]
        try:
            return super().features(latents, noise)
        finally:
            self._first = None

    def transform(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """``[B, T, z, h, w]`` to ``[B, T, C, h / 2, w / 2]``."""
        grey = self.grey(latents)
        # What is to stay as it is (nothing), what is to be generated (the frames), and the mask that says so.
        mask = latents.new_ones(*latents.shape[:2], MASK_CHANNELS, *latents.shape[-2:])
        control = torch.cat([grey.expand_as(latents), latents, mask], dim=2)
        reference = self.vace.reference
        if reference == "none":
            return self.as_maps(self._controlled(noisy, control), noisy)
        assert self._first is not None
        first = self._first.to(latents).expand(latents.shape[0], 1, *latents.shape[2:])
        blank = first.new_zeros(first.shape[0], 1, control.shape[2] - first.shape[2], *first.shape[-2:])
        control = torch.cat([torch.cat([first, blank], dim=2), control], dim=1)
        # A frame of its own index, so that no frame of the clip shares the reference's noise.
        drawn = draw_noise(tuple(first.shape[2:]), self.settings.seed, range(-1, 0)).to(first)
        both = torch.cat([self.noised(first, drawn.expand_as(first)), noisy], dim=1)
        if reference == "first":
            return self.as_maps(self._controlled(both, control), both)[:, 1:]
        with released_padding(self, frames=1):
            return self.as_maps(self._controlled(both.roll(-1, dims=1), control), both)[:, 1:]

    def grey(self, latents: Tensor) -> Tensor:
        """Latents ``[1, 1, z, h, w]`` of a frame of zeros, computed once."""
        if self._grey is None or self._grey.shape[-2:] != latents.shape[-2:]:
            ratio = self.stride // self.patch_size
            height, width = (side * ratio for side in latents.shape[-2:])
            pixels = torch.zeros(1, 3, height, width, dtype=self.dtype, device=self.device)
            self._grey = self.frame_latents(pixels)[:, None]
        return self._grey.to(latents)

    def _controlled(self, noisy: Tensor, control: Tensor) -> Tensor:
        scale = torch.full((len(self.transformer.config.vace_layers),), self.vace.context_scale)
        return self.tapped(
            noisy,
            control_hidden_states=control.transpose(1, 2).to(self.dtype),
            control_hidden_states_scale=scale.to(self.device, self.dtype),
        )


VACE = Variant(
    transformer="WanVACETransformer3DModel",
    original=("VaceWanModel", "vace"),
    prior=WanVacePrior,
    meaning="VACE weights",
)
