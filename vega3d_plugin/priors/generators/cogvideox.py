"""CogVideoX text-to-video (Yang et al., 2024) on diffusers' own classes: ``CogVideoXTransformer3DModel``, the encoder
of ``AutoencoderKLCogVideoX`` and the noise schedule of ``CogVideoXDDIMScheduler``.

A transformer in which text and video tokens attend to each other as one sequence; the features are the video tokens
after the tap. CogVideoX 1.5 puts two latent steps into one token. As in its training, what has one step too few is
preceded by a copy of its first step; so a single frame is two equal steps, each with noise of its own.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PriorError
from ...contracts.settings import PriorSettings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors, read_json
from ..diffusion.families import DiffusersFamily, diffusers_class
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.video_transformer import VideoTransformerPrior
from ..frozen.components import expect
from ..frozen.prior import Reload
from ..prompts.by_pipeline import prompt_tensor

PROMPT = "prompt_embeds"
# Both have the same levels of noise; they differ in how they step from one to the next.
SCHEDULERS = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"}


class CogVideoXPrior(VideoTransformerPrior):
    """Features of a CogVideoX transformer.

    Args:
        transformer: diffusers' ``CogVideoXTransformer3DModel`` whose LAST block is the tap.
        vae: diffusers' ``AutoencoderKLCogVideoX``; only its encoder is used.
        prompt: ``prompt_embeds [1, tokens, text_dim]``, padding included.
        settings: resolved settings; ``shift`` does not matter: the schedule has its own.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
        alphas: the schedule's cumulative product of alphas, ``[timesteps]``.

    Raises:
        PriorError: a size that does not fit, or that is beyond the positions that the model has.
    """

    family = "cogvideox"
    identity: ClassVar[tuple[str, ...]] = ("timestep", "tap", "size", "resize", "context", "seed")

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensors,
        settings: PriorSettings,
        reload: Reload | None = None,
        *,
        alphas: Tensor,
    ) -> None:
        config: Any = transformer.config
        vae_config: Any = vae.config
        self.alphas = alphas
        #: Latent steps in one token.
        self.depth = int(config.patch_size_t or 1)
        vae_stride = 2 ** (len(vae_config.block_out_channels) - 1)
        super().__init__(
            transformer,
            vae,
            prompt,
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=config.patch_size,
            vae_stride=vae_stride,
            time_stride=int(vae_config.temporal_compression_ratio) * self.depth,
            reload=reload,
        )
        limit = (config.sample_height * vae_stride, config.sample_width * vae_stride)
        if config.patch_size_t is not None and (self.size[0] > limit[0] or self.size[1] > limit[1]):
            raise PriorError(
                f"Prior {settings.name!r} has positions for {limit[0]}x{limit[1]} pixels at most, got "
                f"{self.size[0]}x{self.size[1]}. Use a smaller size."
            )

    def more_identity(self) -> dict[str, Any]:
        """Also the share of noise, which the schedule gives, and the scale of the latents."""
        scale = round(float(self.vae.config.scaling_factor), 4)
        return {**super().more_identity(), "sigma": round(self.noise_level().sigma, 5), "scale": scale}

    # Noise

    def noise_level(self) -> NoiseLevel:
        """The timestep, and the share of noise ``sqrt(1 - alpha)`` that the schedule has there."""
        tau = min(self.settings.timestep, self.alphas.shape[0] - 1)
        return NoiseLevel(tau, math.sqrt(1 - float(self.alphas[tau])))

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """``sqrt(alpha) * latents + sqrt(1 - alpha) * noise``."""
        sigma = self.noise_level().sigma
        return latents * math.sqrt(1 - sigma**2) + noise * sigma

    # VAE

    def frame_latents(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to latents ``[B, depth * z, h, w]``: equal ones for all steps of a token."""
        # One by one: of a large batch diffusers' convolutions cut the time axis, which one frame is too short for.
        latents = torch.cat([self._encoded(frame[:, :, None]) for frame in pixels.split(1)])[:, :, 0]
        return latents.repeat(1, self.depth, 1, 1)

    def video_latents(self, pixels: Tensor) -> Tensor:
        """``[1 + time_stride * k, 3, H, W]`` in [-1, 1] to latents ``[1 + k, depth * z, h, w]``."""
        latents = self._encoded(pixels.transpose(0, 1)[None])[0].transpose(0, 1)
        latents = torch.cat([latents[:1]] * (self.depth - 1) + [latents])
        tokens: Tensor = latents.unflatten(0, (-1, self.depth)).flatten(1, 2)
        return tokens

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, t, h, w]``, scaled."""
        # `invert_scale_latents` is of the image that image-to-video models are given, not of the video.
        return mean * float(self.vae.config.scaling_factor)

    # Transformer

    @property
    def output_norm(self) -> nn.Module:
        """Between the last block and this norm there is nothing, and the text's tokens are gone."""
        norm: nn.Module = self.transformer.norm_final
        return norm

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, depth * z, T, h, w]`` through all blocks that are there."""
        batch, height, width = noisy.shape[0], *noisy.shape[-2:]
        steps = noisy.transpose(1, 2).unflatten(2, (self.depth, -1)).flatten(1, 2)
        self.transformer(
            hidden_states=steps,
            encoder_hidden_states=self.prompt(PROMPT, batch),
            timestep=torch.full((batch,), self.noise_level().tau, dtype=torch.long, device=noisy.device),
            image_rotary_emb=self._rotary(steps.shape[1], height, width, noisy.device),
            return_dict=False,
        )

    def _rotary(self, steps: int, height: int, width: int, device: torch.device) -> Any:
        if not self.transformer.config.use_rotary_positional_embeddings:
            return None
        from diffusers import CogVideoXPipeline

        # The pipeline's own rule for sizes other than the trained one; it looks at nothing else of a pipeline.
        pipeline: Any = SimpleNamespace(transformer=self.transformer, vae_scale_factor_spatial=1)
        return CogVideoXPipeline._prepare_rotary_positional_embeddings(pipeline, height, width, steps, device)


class CogVideoX(DiffusersFamily):
    """CogVideoX in diffusers' layout."""

    prior = CogVideoXPrior
    transformer, vae, pipeline = "CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX", "CogVideoXPipeline"
    weights = ("transformer/*", "vae/*", "scheduler/*", "empty_prompt.safetensors")

    def check(self, config: JsonObject, folder: Path) -> None:
        """Refuse image-to-video weights."""
        if config.get("ofs_embed_dim") or config.get("in_channels", 16) != config.get("out_channels", 16):
            raise CheckpointError(
                f"{config.file} is of an image-to-video CogVideoX; this prior needs text-to-video weights."
            )

    def more(self, folder: Path) -> dict[str, Any]:
        """The schedule of noise."""
        file = folder / "scheduler" / "scheduler_config.json"
        config = read_json(file)
        expect(config.get("_class_name"), SCHEDULERS, file)
        alphas: Tensor = diffusers_class("CogVideoXDDIMScheduler").from_config(config).alphas_cumprod
        return {"alphas": alphas.double()}

    def encode(self, pipeline: Any, config: JsonObject) -> Tensors:
        """By T5, padded."""
        length = _text_length(config)
        embeds, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=length)
        return {PROMPT: embeds}

    def prompt_tensors(self, found: Tensors, config: JsonObject) -> Tensors:
        """``prompt_embeds``, padding included."""
        width = config.integer("text_embed_dim", 4096)
        return {PROMPT: prompt_tensor(found, PROMPT, width, lengths={_text_length(config)})}


def _text_length(config: JsonObject) -> int:
    return config.integer("max_text_seq_length", 226)


FAMILY = CogVideoX()
