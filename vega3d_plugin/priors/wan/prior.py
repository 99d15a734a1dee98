"""Wan text-to-video as a latent world simulator (paper, section on feature extraction; released
``WanT2VOnlineEncoder``), on diffusers' own classes. Wan 2.1 and 2.2 are one architecture; their VAEs differ.

VAE-encode the frames, add flow-matching noise at one timestep, run the transformer once with an empty prompt, take
the output of one block. What differs from the released code: the noise is seeded and drawn per frame, the blocks
after the tap and the VAE's decoder are never loaded, and a clip may be seen as a whole (contexts ``views`` and
``video``).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.priors import turn
from ...contracts.settings import PriorSettings
from ..diffusion.video_transformer import VideoTransformerPrior, per_channel
from ..fast import Reduction
from ..fast.linears import CONVOLVED_LINEARS
from ..fast.modulation import FOLDED_MODULATION
from ..fast.prompt import COLLAPSED_PROMPT, FOLDED_PROMPT_OUTPUT
from ..fast.self_attention import FUSED_QKV
from ..fast.single_frame_vae import SINGLE_FRAME_VAE, SINGLE_PASS_NORMS, SingleFrameConv
from ..fast.video_vae import JOINED_CHUNKS, joined_chunks
from ..fast.winograd import WINOGRAD_VAE
from ..frozen.prior import Reload

TEXT_LENGTH = 512


class WanPrior(VideoTransformerPrior):
    """Features of a Wan transformer.

    Args:
        transformer: diffusers' ``WanTransformer3DModel`` whose LAST block is the tap.
        vae: diffusers' ``AutoencoderKLWan``; only its encoder is used.
        context: embedding of the empty prompt, ``[n, text_dim]``, not padded.
        settings: resolved settings; ``size`` must be divisible by the VAE's stride times the patch size.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.

    Raises:
        PriorError: a size that does not fit.
    """

    family = "wan"
    multiplies_in_int8 = True
    #: Whether the VAE takes a video in longer chunks than diffusers does.
    joins_chunks = False
    reductions: ClassVar[tuple[Reduction, ...]] = (
        CONVOLVED_LINEARS,
        SINGLE_FRAME_VAE,
        JOINED_CHUNKS,
        WINOGRAD_VAE,
        SINGLE_PASS_NORMS,
        FUSED_QKV,
        COLLAPSED_PROMPT,
        FOLDED_PROMPT_OUTPUT,
        FOLDED_MODULATION,
    )

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        context: Tensor,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
        vae_config: Any = vae.config
        super().__init__(
            transformer,
            vae,
            {"context": context},
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=config.patch_size[1],
            vae_stride=vae_config.get("scale_factor_spatial") or 8,
            time_stride=vae_config.get("scale_factor_temporal") or 4,
            reload=reload,
        )

    @property
    def context(self) -> Tensor:
        """Embedding of the prompt, ``[n, text_dim]``, not padded."""
        return self.tensors["context"]

    @context.setter
    def context(self, context: Tensor) -> None:
        with turn(self):
            self.tensors["context"] = context
            self._ready = None

    def more_identity(self) -> dict[str, Any]:
        """Also the statistics of the latents."""
        config = self.vae.config
        statistics = [round(value, 2) for value in (*config.latents_mean, *config.latents_std)]
        return {**super().more_identity(), "latents": statistics}

    # VAE

    def _encoded(self, video: Tensor) -> Tensor:
        vae = self.vae
        is_reduced = isinstance(vae.encoder.conv_in, SingleFrameConv) if video.shape[2] == 1 else self.joins_chunks
        if not is_reduced or vae.use_tiling:
            return super()._encoded(video)
        if vae.config.patch_size is not None:
            from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

            video = patchify(video, patch_size=vae.config.patch_size)
        # Not by way of `encode`, which copies every activation in case another frame follows.
        encoded = vae.encoder(video) if video.shape[2] == 1 else joined_chunks(vae.encoder, video, self.time_stride)
        moments: Tensor = vae.quant_conv(encoded)
        return self.normalised(moments.chunk(2, dim=1)[0].float())

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, T, h, w]`` to zero mean and unit variance."""
        config = self.vae.config
        return (mean - per_channel(config.latents_mean, mean)) / per_channel(config.latents_std, mean)

    # Transformer

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, z, T, h, w]`` through all blocks that are there; VACE's hints are added behind them."""
        batch = noisy.shape[0]
        self.transformer(
            hidden_states=noisy,
            timestep=torch.full((batch,), self.noise_level().tau, dtype=torch.long, device=noisy.device),
            encoder_hidden_states=self._prompt().expand(batch, -1, -1),
            return_dict=False,
            **inputs,
        )

    def _prompt(self) -> Tensor:
        context = self.context.to(self.device, self.dtype)
        if type(self.transformer.blocks[0].attn2.processor).__name__ == "PromptAttention":
            return context[:1]  # embedded once already; nobody looks at it
        # The released code pads with zeros BEFORE the text embedding and masks nothing; leaving it out is wrong.
        padded = torch.zeros(TEXT_LENGTH, context.shape[1], dtype=context.dtype, device=context.device)
        padded[: context.shape[0]] = context
        return padded

    # What the reductions ask for

    def tapped_blocks(self) -> list[nn.Module]:
        """The transformer's own blocks; those of VACE's control branch lie beside them."""
        return list(self.transformer.blocks)

    def repeated_parts(self) -> list[nn.Module]:
        """All transformer blocks."""
        return self.blocks()

    def blocks(self) -> list[Any]:
        """All transformer blocks, VACE's included."""
        return [*self.transformer.blocks, *getattr(self.transformer, "vace_blocks", ())]

    def timestep_projection(self) -> Tensor:
        """The modulation ``[6, dim]`` that the timestep brings to every block."""
        tau = torch.tensor([self.noise_level().tau], dtype=torch.long, device=self.device)
        _, projection, _, _ = self.transformer.condition_embedder(tau, self._padding(1)[None], None)
        rows: Tensor = projection[0].unflatten(0, (6, -1))
        return rows

    def collapsed_prompt(self) -> tuple[Tensor, Tensor]:
        """The prompt's embedded tokens and one of padding ``[n + 1, dim]``, and the logarithm of their counts."""
        context = self.context.to(self.device, self.dtype)
        padding = TEXT_LENGTH - context.shape[0]
        rows = torch.cat([context, self._padding(min(1, padding))])
        bias = torch.zeros(rows.shape[0], device=self.device, dtype=torch.float32)
        if padding:
            bias[-1] = math.log(padding)
        embedded: Tensor = self.transformer.condition_embedder.text_embedder(rows)
        return embedded, bias

    def _padding(self, count: int) -> Tensor:
        return torch.zeros(count, self.context.shape[1], dtype=self.dtype, device=self.device)
