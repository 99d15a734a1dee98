"""LTX-Video text-to-video (HaCohen et al., 2024) on diffusers' own classes: ``LTXVideoTransformer3DModel`` and the
encoder of ``AutoencoderKLLTXVideo``.

Its VAE makes one token of 32x32 pixels and, within a video, 8 frames, so it is cheap and its maps are coarse.
Rectified flow: timestep ``t`` of the schedule is a share of ``t / 1000`` of noise, and the transformer is given ``t``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError
from ...contracts.settings import PriorSettings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors
from ..catalogue.ltx_video import LTXVideoOptions
from ..diffusion.families import DiffusersFamily
from ..diffusion.flow_matching import TRAIN_TIMESTEPS, NoiseLevel
from ..diffusion.video_transformer import VideoTransformerPrior, per_channel, prompt_mask
from ..frozen.prior import Reload
from ..prompts.by_pipeline import prompt_tensor

PROMPT, MASK = "prompt_embeds", "prompt_attention_mask"


class LTXVideoPrior(VideoTransformerPrior):
    """Features of an LTX-Video transformer.

    Args:
        transformer: diffusers' ``LTXVideoTransformer3DModel`` whose LAST block is the tap.
        vae: diffusers' ``AutoencoderKLLTXVideo``; only its encoder is used.
        prompt: ``prompt_embeds [1, tokens, text_dim]``, padding included, and ``prompt_attention_mask [1, tokens]``.
        settings: resolved settings; ``shift`` does not matter: a timestep is a share of noise.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.

    Raises:
        PriorError: a size that does not fit.
    """

    family = "ltx-video"
    identity: ClassVar[tuple[str, ...]] = ("timestep", "tap", "size", "resize", "context", "seed")

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensors,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
        parts: Any = vae
        self.frame_rate = LTXVideoOptions.parse(settings.options).frame_rate
        super().__init__(
            transformer,
            vae,
            # The latents' statistics are no parameters, but features depend on them.
            {**prompt, "mean": parts.latents_mean, "std": parts.latents_std},
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=1,
            vae_stride=int(parts.spatial_compression_ratio),
            time_stride=int(parts.temporal_compression_ratio),
            reload=reload,
        )

    # Noise

    def noise_level(self) -> NoiseLevel:
        """The timestep, and a thousandth of it as the share of noise."""
        return NoiseLevel(self.settings.timestep, self.settings.timestep / TRAIN_TIMESTEPS)

    # VAE

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, T, h, w]`` to zero mean and unit variance, scaled."""
        offset, scale = (per_channel(self.tensors[key].tolist(), mean) for key in ("mean", "std"))
        latents: Tensor = (mean - offset) * float(self.vae.config.scaling_factor) / scale
        return latents

    # Transformer

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, z, T, h, w]`` through all blocks that are there."""
        batch, _, steps, height, width = noisy.shape
        self.transformer(
            # One token per latent, in raster order.
            hidden_states=noisy.movedim(1, -1).flatten(1, 3),
            encoder_hidden_states=self.prompt(PROMPT, batch),
            encoder_attention_mask=self.prompt(MASK, batch),
            timestep=torch.full((batch,), float(self.noise_level().tau), device=noisy.device),
            num_frames=steps,
            height=height,
            width=width,
            # Positions in seconds and pixels.
            rope_interpolation_scale=(self.time_stride / self.frame_rate, self.stride, self.stride),
            return_dict=False,
        )


class LTXVideo(DiffusersFamily):
    """LTX-Video in diffusers' layout."""

    prior = LTXVideoPrior
    transformer, vae, pipeline = "LTXVideoTransformer3DModel", "AutoencoderKLLTXVideo", "LTXPipeline"

    def check(self, config: JsonObject, folder: Path) -> None:
        """Refuse patches of several latents."""
        if config.get("patch_size", 1) != 1 or config.get("patch_size_t", 1) != 1:
            raise CheckpointError(
                f"{config.file} has patches of several latents; this prior knows one token per latent."
            )

    def encode(self, pipeline: Any, config: JsonObject) -> Tensors:
        """By T5."""
        embeds, mask, *_ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
        return {PROMPT: embeds, MASK: mask}

    def prompt_tensors(self, found: Tensors, config: JsonObject) -> Tensors:
        """``prompt_embeds`` and ``prompt_attention_mask``, padding included."""
        embeds = prompt_tensor(found, PROMPT, config.integer("caption_channels", 4096))
        return {PROMPT: embeds, MASK: prompt_mask(found, MASK, embeds.shape[1], needs_text=True)}


FAMILY = LTXVideo()
