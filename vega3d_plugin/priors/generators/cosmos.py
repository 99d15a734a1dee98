"""Cosmos-Predict (NVIDIA, arXiv 2501.03575) as priors, on diffusers' ``CosmosTransformer3DModel``.

Both generations are diffusion models with preconditioned inputs (EDM); what the transformer sees can be written with
our share of noise ``s`` and unit-variance latents ``z0``:

- Predict2 (``Cosmos2VideoToWorldPipeline``): with its ``sigma`` the pipeline takes ``t = sigma / (sigma + 1)``, gives
  the transformer ``(1 - t) * (z0 + sigma * noise)`` and the timestep ``t``, between 0 and 1. That is
  ``(1 - t) * z0 + t * noise``: the straight path itself, with ``t = s``.
- Predict1 (``CosmosTextToWorldPipeline``, ``EDMEulerScheduler``): latents have the deviation ``sigma_data`` (0.5), the
  input is ``(sigma_data * z0 + sigma * noise) / sqrt(sigma^2 + sigma_data^2)``, the timestep ``log(sigma) / 4``. Noise
  and data stand in the same proportion as on the straight path when ``sigma = sigma_data * s / (1 - s)``; the input is
  then ``((1 - s) * z0 + s * noise) / sqrt((1 - s)^2 + s^2)``.

Video2World checkpoints have one more input channel, which marks the steps that are given and not to be generated: it is
zero here, and every step is noisy. The padding mask, one more channel of all checkpoints, is zero as in the pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PromptError
from ...contracts.settings import PriorSettings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors, read_json
from ..diffusion.families import DiffusersFamily
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.video_transformer import VideoTransformerPrior, number_of, per_channel
from ..fast import Reduction
from ..fast.linears import CONVOLVED_LINEARS
from ..fast.single_frame_vae import SINGLE_FRAME_VAE, SINGLE_PASS_NORMS
from ..frozen.components import read_config
from ..frozen.prior import Reload
from ..prompts.by_pipeline import prompt_tensor

EMBEDS = "prompt_embeds"
TEXT_LENGTH = 512


class CosmosPrior(VideoTransformerPrior):
    """What both generations share.

    Args:
        transformer: diffusers' ``CosmosTransformer3DModel`` whose LAST block is the tap, built to be given its masks as
            channels: ``concat_padding_mask`` off, and one more of ``in_channels`` for it.
        vae: of which only the encoder is used.
        prompt: ``prompt_embeds [1, n, text_dim]``, without its padding.
        settings: resolved settings; ``size`` must be divisible by 16.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    #: In the VAE's configuration: pixels and frames per latent, and what they are where it does not say.
    strides: ClassVar[tuple[tuple[str, int], tuple[str, int]]]

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensors,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
        vae_stride, time_stride = (int(getattr(vae.config, *stride) or stride[1]) for stride in self.strides)
        super().__init__(
            transformer,
            vae,
            prompt,
            settings,
            feature_dim=config.num_attention_heads * config.attention_head_dim,
            patch_size=config.patch_size[1],
            vae_stride=vae_stride,
            time_stride=time_stride,
            reload=reload,
        )

    def more_identity(self) -> dict[str, Any]:
        """Also the statistics of the latents."""
        config = self.vae.config
        values = (*(config.latents_mean or ()), *(config.latents_std or ()))
        return {**super().more_identity(), "latents": [round(value, 2) for value in values]}

    def run(self, noisy: Tensor, **inputs: Tensor) -> None:
        """``[B, z, T, h, w]`` through all blocks that are there."""
        batch, channels, *shape = noisy.shape
        masks = noisy.new_zeros(batch, self.transformer.config.in_channels - channels, *shape)
        self.transformer(
            hidden_states=torch.cat([noisy, masks], dim=1),
            timestep=torch.full((batch,), self.noise_level().tau, device=noisy.device),
            encoder_hidden_states=self._padded_prompt().expand(batch, -1, -1),
            fps=self.settings.options["fps"],
            return_dict=False,
        )

    def _padded_prompt(self) -> Tensor:
        # The pipelines pad with zeros and mask nothing.
        embeds = self.prompt(EMBEDS, 1)
        return torch.cat([embeds, embeds.new_zeros(1, TEXT_LENGTH - embeds.shape[1], embeds.shape[2])], dim=1)


class Cosmos2Prior(CosmosPrior):
    """Features of Cosmos-Predict2, whose VAE is Wan 2.1's (``AutoencoderKLWan``)."""

    family = "cosmos-predict2"
    strides = (("scale_factor_spatial", 8), ("scale_factor_temporal", 4))
    reductions: ClassVar[tuple[Reduction, ...]] = (CONVOLVED_LINEARS, SINGLE_FRAME_VAE, SINGLE_PASS_NORMS)

    def noise_level(self) -> NoiseLevel:
        """The timestep is the share of noise itself."""
        sigma = super().noise_level().sigma
        return NoiseLevel(sigma, sigma)

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, T, h, w]``, scaled to mean 0 and variance 1 per channel."""
        config = self.vae.config
        return (mean - per_channel(config.latents_mean, mean)) / per_channel(config.latents_std, mean)


class Cosmos1Prior(CosmosPrior):
    """Features of Cosmos-Predict1, whose VAE is its own (``AutoencoderKLCosmos``).

    Args:
        sigma_data: deviation of the latents that the model was trained with; of its scheduler.
        **rest: as of :class:`CosmosPrior`.
    """

    family = "cosmos-predict1"
    strides = (("spatial_compression_ratio", 8), ("temporal_compression_ratio", 8))

    def __init__(self, *args: Any, sigma_data: float = 0.5, **rest: Any) -> None:
        self.sigma_data = sigma_data
        super().__init__(*args, **rest)

    def more_identity(self) -> dict[str, Any]:
        """Also the deviation of the latents."""
        return {**super().more_identity(), "sigma_data": self.sigma_data}

    def prepare(self, device: torch.device) -> None:
        """Move, cast, put the fast path in place; the VAE stays in float32 on a CPU."""
        super().prepare(device)
        if device.type == "cpu":
            # torch cannot pool over three axes in half precision there.
            self.vae.float()

    def _parameter(self) -> nn.Parameter:
        # One that is in the compute dtype, unlike the VAE's on a CPU and the learned positions.
        weight: nn.Parameter = self.transformer.proj_out.weight
        return weight

    @property
    def pixel_dtype(self) -> torch.dtype:
        """The VAE's own."""
        dtype: torch.dtype = self.vae.dtype
        return dtype

    def noise_level(self) -> NoiseLevel:
        """The timestep is a quarter of the logarithm of EDM's sigma."""
        share = super().noise_level().sigma
        return NoiseLevel(math.log(self.sigma_data * share / (1 - share)) / 4, share)

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """On the straight path, then scaled to variance 1."""
        share = self.noise_level().sigma
        return super().noised(latents, noise) / math.hypot(share, 1 - share)

    def normalised(self, mean: Tensor) -> Tensor:
        """``[B, z, T, h, w]``, scaled to mean 0 and variance 1 per channel and latent step."""
        config = self.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return mean
        return (mean - _per_step(config.latents_mean, mean)) / _per_step(config.latents_std, mean)


def _per_step(values: Any, like: Tensor) -> Tensor:
    table = like.new_tensor(values).view(like.shape[1], -1)
    # There are statistics for as many steps as a clip had in training; beyond, the last ones hold best.
    steps = torch.arange(like.shape[2], device=like.device).clamp(max=table.shape[1] - 1)
    return table[:, steps][None, :, :, None, None]


class _Cosmos(DiffusersFamily):
    """What both generations share."""

    transformer = "CosmosTransformer3DModel"
    weights = ("transformer/*", "vae/*", "scheduler/*", "empty_prompt.safetensors")
    #: In the VAE's configuration: how many channels its latents have.
    channels: ClassVar[str]

    def check(self, config: JsonObject, folder: Path) -> None:
        """Text2World or Video2World; Predict2.5 and Transfer are refused."""
        known = read_config(folder / "vae", self.vae).get(self.channels, 16)
        given = number_of(config, "in_channels", config.file)
        others = config.get("use_crossattn_projection") or config.get("img_context_dim_in")
        if given not in (known, known + 1) or others:
            raise CheckpointError(
                f"{config.file} is of another Cosmos: it has {given} input channels, expected {known} (text) or "
                f"{known + 1} (Video2World), and no crossattn_proj or img_context_proj, as Predict2.5 and Transfer "
                "have them. Use Cosmos-Predict1 or Cosmos-Predict2."
            )

    def cut(self, config: JsonObject, tap: int) -> tuple[Callable[[], Any], Callable[[str], bool]]:
        """The model would resize the padding mask with torchvision and append it; as a channel it needs neither."""
        masks = {"in_channels": config["in_channels"] + 1, "concat_padding_mask": False}
        changed = {**config, **(masks if config.get("concat_padding_mask", True) else {})}
        return super().cut(JsonObject(changed, config.file, config.error), tap)

    def encode(self, pipeline: Any, config: JsonObject) -> Tensors:
        """By T5."""
        embeds, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
        return {EMBEDS: _without_padding(embeds)}

    def prompt_tensors(self, found: Tensors, config: JsonObject) -> Tensors:
        """``prompt_embeds``, without padding."""
        embeds = prompt_tensor(found, EMBEDS, config.integer("text_embed_dim"))
        if embeds.shape[1] > TEXT_LENGTH:
            raise PromptError(
                f"The empty prompt's {EMBEDS} has {embeds.shape[1]} tokens, expected at most {TEXT_LENGTH}."
            )
        return {EMBEDS: _without_padding(embeds)}


class CosmosPredict2(_Cosmos):
    """Cosmos-Predict2 in diffusers' layout."""

    prior = Cosmos2Prior
    vae, channels, pipeline = "AutoencoderKLWan", "z_dim", "Cosmos2VideoToWorldPipeline"


class CosmosPredict1(_Cosmos):
    """Cosmos-Predict1 in diffusers' layout."""

    prior = Cosmos1Prior
    vae, channels, pipeline = "AutoencoderKLCosmos", "latent_channels", "CosmosTextToWorldPipeline"

    def more(self, folder: Path) -> dict[str, Any]:
        """The deviation of the latents, of the scheduler."""
        file = folder / "scheduler" / "scheduler_config.json"
        value = read_json(file).get("sigma_data", 0.5) if file.is_file() else 0.5
        if not isinstance(value, int | float) or value <= 0:
            raise CheckpointError(
                f"{file} gives sigma_data as {value!r}, expected a number above 0 (0.5 as published)."
            )
        return {"sigma_data": float(value)}


def _without_padding(embeds: Tensor) -> Tensor:
    filled = embeds[0].ne(0).any(dim=1).nonzero()
    return embeds[:, : int(filled.max()) + 1 if len(filled) else 1]


PREDICT1, PREDICT2 = CosmosPredict1(), CosmosPredict2()
