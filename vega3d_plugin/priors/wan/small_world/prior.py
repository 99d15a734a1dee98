"""A Wan transformer whose latents are pixels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ....contracts.errors import PriorError
from ....contracts.settings import PriorSettings
from ...fast import Reduction
from ...fast.linears import CONVOLVED_LINEARS
from ...fast.modulation import FOLDED_MODULATION
from ...fast.prompt import COLLAPSED_PROMPT, FOLDED_PROMPT_OUTPUT
from ...fast.self_attention import FUSED_QKV
from ...frozen.prior import Reload
from ..prior import WanPrior


class PixelLatents(nn.Module):
    """What stands in the VAE's place where latents are pixels: scales RGB in [-1, 1] to about unit variance."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers.configuration_utils import FrozenDict

        strides = {"scale_factor_spatial": 1, "scale_factor_temporal": 1}
        self.config = FrozenDict(**strides, latents_mean=[0.0] * 3, latents_std=[0.5] * 3)


class SmallWorldPrior(WanPrior):
    """Features of a Wan transformer that was trained on pixels, with an empty prompt of zeros.

    Args:
        transformer: diffusers' ``WanTransformer3DModel`` of 3 channels whose LAST block is the tap.
        settings: resolved settings; ``size`` must be divisible by the patch size.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.

    Raises:
        PriorError: a size that does not fit, or more tokens a side or frames a window than it has positions for.
    """

    family = "small_world"
    # A VAE has nothing to be reduced here.
    reductions: ClassVar[tuple[Reduction, ...]] = (
        CONVOLVED_LINEARS,
        FUSED_QKV,
        COLLAPSED_PROMPT,
        FOLDED_PROMPT_OUTPUT,
        FOLDED_MODULATION,
    )

    def __init__(self, transformer: nn.Module, settings: PriorSettings, reload: Reload | None = None) -> None:
        prompt = torch.zeros(1, int(transformer.config.text_dim))  # type: ignore[union-attr, arg-type]
        super().__init__(transformer, PixelLatents(), prompt, settings, reload=reload)
        self._check_positions()

    def _check_positions(self) -> None:
        most, (height, width) = int(self.transformer.config.rope_max_seq_len), self.size
        if max(height, width) > most * self.stride:
            raise PriorError(
                f"Prior {self.settings.name!r} has positions for {most} tokens a side, so a size of at most "
                f"{most * self.stride} pixels, got {height}x{width}. It was trained on frames of 24x24."
            )
        window = self.settings.window
        if self.settings.context == "views" and (window is None or window > most):
            raise PriorError(
                f"Prior {self.settings.name!r} has positions for {most} frames, so its window is 1 to {most}, "
                f"got {window}. It was trained on clips of up to 4 frames."
            )

    def _encoded(self, video: Tensor) -> Tensor:
        return self.normalised(video.float())
