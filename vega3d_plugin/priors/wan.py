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

from ..config import NoOptions, PriorSettings
from .base import Prior, PriorSpec
from .diffusion import ALL_CONTEXTS, DiffusionPrior
from .fast import Reduction
from .fast.linears import CONVOLVED_LINEARS
from .fast.modulation import FOLDED_MODULATION
from .fast.prompt import COLLAPSED_PROMPT, FOLDED_PROMPT_OUTPUT
from .fast.self_attention import FUSED_QKV
from .fast.single_frame_vae import SINGLE_FRAME_VAE, SINGLE_PASS_NORMS, SingleFrameConv
from .frozen import Reload

TEXT_LENGTH = 512


class WanPrior(DiffusionPrior):
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
    reductions: ClassVar[tuple[Reduction, ...]] = (
        CONVOLVED_LINEARS,
        SINGLE_FRAME_VAE,
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
        self.patch_size: tuple[int, int, int] = tuple(config.patch_size)
        stride = int(getattr(vae_config, "scale_factor_spatial", 8) or 8) * self.patch_size[1]
        self.time_stride = int(getattr(vae_config, "scale_factor_temporal", 4) or 4)
        super().__init__(
            {"transformer": transformer, "vae": vae},
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            stride=stride,
            tensors={"context": context},
            reload=reload,
        )

    @property
    def transformer(self) -> Any:
        """diffusers' transformer, cut after the tap."""
        return self.models["transformer"]

    @property
    def vae(self) -> Any:
        """diffusers' VAE, without its decoder."""
        return self.models["vae"]

    @property
    def context(self) -> Tensor:
        """Embedding of the prompt, ``[n, text_dim]``, not padded."""
        return self.tensors["context"]

    @context.setter
    def context(self, context: Tensor) -> None:
        self.tensors["context"] = context
        self._ready = None

    def more_identity(self) -> dict[str, Any]:
        """Also the statistics of the latents."""
        config = self.vae.config
        statistics = [round(value, 2) for value in (*config.latents_mean, *config.latents_std)]
        return {**super().more_identity(), "latents": statistics}

    # VAE

    def frame_latents(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to normalised latents ``[B, z, h, w]``."""
        return self._normalised(self._moments(pixels[:, :, None]))[:, :, 0]

    def video_latents(self, pixels: Tensor) -> Tensor:
        """``[1 + 4k, 3, H, W]`` in [-1, 1] to normalised latents ``[1 + k, z, h, w]``."""
        return self._normalised(self.vae.encode(pixels.transpose(0, 1)[None]).latent_dist.mode())[0].transpose(0, 1)

    def _moments(self, pixels: Tensor) -> Tensor:
        vae = self.vae
        if not isinstance(vae.encoder.conv_in, SingleFrameConv) or vae.use_tiling:
            mean: Tensor = vae.encode(pixels).latent_dist.mode()
            return mean
        if vae.config.patch_size is not None:
            from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

            pixels = patchify(pixels, patch_size=vae.config.patch_size)
        # Not by way of `encode`, which copies every activation in case another frame follows.
        moments: Tensor = vae.quant_conv(vae.encoder(pixels))
        return moments.chunk(2, dim=1)[0]

    def _normalised(self, mean: Tensor) -> Tensor:
        config = self.vae.config
        mean = mean.float()
        shape = (1, -1, 1, 1, 1)
        offset = mean.new_tensor(config.latents_mean).view(shape)
        scale = mean.new_tensor(config.latents_std).view(shape)
        return (mean - offset) / scale

    # Transformer

    def transform(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """``[B, T, z, h, w]`` to ``[B, T, C, h / 2, w / 2]``."""
        return self.as_maps(self._tapped(noisy), noisy)

    def as_maps(self, tokens: Tensor, noisy: Tensor) -> Tensor:
        """Tokens ``[B, L, C]`` of noisy latents ``[B, T, z, h, w]`` to ``[B, T, C, h / 2, w / 2]``."""
        _, steps, _, height, width = noisy.shape
        p_t, p_h, p_w = self.patch_size
        grid = (steps // p_t, height // p_h, width // p_w)
        maps: Tensor = tokens.unflatten(1, grid)
        return maps.movedim(-1, 2)

    def _tapped(self, noisy: Tensor, **control: Tensor) -> Tensor:
        """What enters the output norm: the last block's output, with the hint that VACE adds behind it."""
        batch = noisy.shape[0]
        kept: list[Tensor] = []
        hook = self.transformer.norm_out.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
        try:
            self.transformer(
                hidden_states=noisy.transpose(1, 2).to(self.dtype),
                timestep=torch.full((batch,), self.noise_level().tau, dtype=torch.long, device=noisy.device),
                encoder_hidden_states=self._prompt().expand(batch, -1, -1),
                return_dict=False,
                **control,
            )
        finally:
            hook.remove()
        return kept[0].to(self.dtype)

    def _prompt(self) -> Tensor:
        context = self.context.to(self.device, self.dtype)
        if type(self.transformer.blocks[0].attn2.processor).__name__ == "PromptAttention":
            return context[:1]  # embedded once already; nobody looks at it
        # The released code pads with zeros BEFORE the text embedding and masks nothing; leaving it out is wrong.
        padded = torch.zeros(TEXT_LENGTH, context.shape[1], dtype=context.dtype, device=context.device)
        padded[: context.shape[0]] = context
        return padded

    # What the reductions ask for

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


def _load(settings: PriorSettings) -> Prior:
    from .wan_checkpoint import load_wan

    return load_wan(settings)


def _prompt(settings: PriorSettings) -> dict[str, Tensor]:
    from .wan_checkpoint import load_prompt

    return load_prompt(settings)


# Trained on 81 frames, which are 21 latent steps.
WINDOW = {"window": 21, "overlap": 4}

SPECS = (
    PriorSpec(
        "wan2.1-t2v-1.3b",
        _load,
        "Wan 2.1 text-to-video, 1.3B, 30 blocks: the paper's generator",
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        feature_dim=1536,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 20, "size": (480, 832), **WINDOW},
        presets={"released": {"tap": -1}},
        options=NoOptions,
        prompt=_prompt,
        licence="Apache 2.0",
    ),
    PriorSpec(
        "wan2.1-t2v-14b",
        _load,
        "Wan 2.1 text-to-video, 14B, 40 blocks; the tap keeps the 1.3B's relative depth",
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        feature_dim=5120,
        contexts=ALL_CONTEXTS,
        defaults={"tap": 27, "size": (480, 832), **WINDOW},
        presets={"released": {"tap": -1}},
        options=NoOptions,
        prompt=_prompt,
        licence="Apache 2.0",
    ),
)
