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
from pydantic import Field
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PromptError
from ...contracts.priors import Prior, PriorSpec
from ...contracts.settings import Float, PriorSettings, Settings
from ...storage.weights import Tensors, read_json
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.prior import ALL_CONTEXTS
from ..diffusion.video_transformer import VideoTransformerPrior, load_encoder, number_of, per_channel
from ..fast import Reduction
from ..fast.linears import CONVOLVED_LINEARS
from ..fast.single_frame_vae import SINGLE_FRAME_VAE, SINGLE_PASS_NORMS
from ..frozen.components import load_component, locate, read_config, until
from ..frozen.prior import Reload, resolved_tap
from ..prompts.by_pipeline import pipeline_prompt, prompt_tensor

EMBEDS = "prompt_embeds"
TEXT_LENGTH = 512

WEIGHT_PATTERNS = ["transformer/*", "vae/*", "scheduler/*", "empty_prompt.safetensors"]
TEXT_PATTERNS = ["text_encoder/*", "tokenizer/*", "model_index.json"]


class Cosmos2Options(Settings):
    """Settings of Cosmos-Predict2 alone.

    Attributes:
        fps: frames per second that the positions in time are made for (pipeline: 16); matters where steps see each
            other.
    """

    fps: Float = Field(default=16.0, gt=0)


class Cosmos1Options(Settings):
    """Settings of Cosmos-Predict1 alone.

    Attributes:
        fps: frames per second that the positions in time are made for (pipeline: 30); matters where steps see each
            other.
    """

    fps: Float = Field(default=30.0, gt=0)


class CosmosPrior(VideoTransformerPrior):
    """What both generations share.

    Args:
        transformer: diffusers' ``CosmosTransformer3DModel`` whose LAST block is the tap, built to be given its masks as
            channels: ``concat_padding_mask`` off, and one more of ``in_channels`` for it.
        vae: of which only the encoder is used.
        prompt: ``prompt_embeds [1, n, text_dim]``, without its padding.
        settings: resolved settings; ``size`` must be divisible by 16.
        vae_stride, time_stride: of the VAE.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        prompt: Tensors,
        settings: PriorSettings,
        *,
        vae_stride: int,
        time_stride: int,
        reload: Reload | None = None,
    ) -> None:
        config: Any = transformer.config
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


# Loading


def load_predict2(settings: PriorSettings) -> Prior:
    """Build Cosmos-Predict2 from ``settings.pretrained``, a folder or a hub id, in diffusers' layout.

    Video2World and Text2Image checkpoints are told apart by their channels.

    Raises:
        CheckpointError: the folder is missing, half there, or holds another architecture.
        PromptError: no embedding of the empty prompt, and no text encoder to compute it.
        PriorError: a tap outside the blocks, or a size that does not fit.
    """
    from diffusers import AutoencoderKLWan

    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    config, vae_config = _configs(folder, "AutoencoderKLWan", "z_dim")
    transformer, tap = _transformer(folder, config, settings)
    vae = load_encoder(folder / "vae", lambda: AutoencoderKLWan.from_config(vae_config))
    return Cosmos2Prior(
        transformer,
        vae,
        _prompt_of(folder, is_local, settings, config, PIPELINE2),
        settings.model_copy(update={"tap": tap}),
        vae_stride=int(getattr(vae.config, "scale_factor_spatial", 8) or 8),
        time_stride=int(getattr(vae.config, "scale_factor_temporal", 4) or 4),
        reload=load_predict2,
    )


def load_predict1(settings: PriorSettings) -> Prior:
    """Build Cosmos-Predict1; as :func:`load_predict2`."""
    from diffusers import AutoencoderKLCosmos

    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    config, vae_config = _configs(folder, "AutoencoderKLCosmos", "latent_channels")
    transformer, tap = _transformer(folder, config, settings)
    vae = load_encoder(folder / "vae", lambda: AutoencoderKLCosmos.from_config(vae_config))
    return Cosmos1Prior(
        transformer,
        vae,
        _prompt_of(folder, is_local, settings, config, PIPELINE1),
        settings.model_copy(update={"tap": tap}),
        vae_stride=vae.config.spatial_compression_ratio,
        time_stride=vae.config.temporal_compression_ratio,
        sigma_data=_sigma_data(folder),
        reload=load_predict1,
    )


def _configs(folder: Path, vae: str, channels: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = read_config(folder / "transformer", "CosmosTransformer3DModel")
    vae_config = read_config(folder / "vae", vae)
    known = vae_config.get(channels, 16)
    given = number_of(config, "in_channels", folder / "transformer" / "config.json")
    if given not in (known, known + 1) or config.get("use_crossattn_projection") or config.get("img_context_dim_in"):
        raise CheckpointError(
            f"{folder / 'transformer' / 'config.json'} is of another Cosmos: it has {given} input channels, expected "
            f"{known} (text) or {known + 1} (Video2World), and no crossattn_proj or img_context_proj, as Predict2.5 "
            "and Transfer have them. Use Cosmos-Predict1 or Cosmos-Predict2."
        )
    return config, vae_config


def _transformer(folder: Path, config: dict[str, Any], settings: PriorSettings) -> tuple[Any, int]:
    from diffusers import CosmosTransformer3DModel

    tap = resolved_tap(
        settings.tap, number_of(config, "num_layers", folder / "transformer" / "config.json"), settings.name
    )
    # The model would resize the padding mask with torchvision and append it; as a channel of ours it needs neither.
    masks = {"in_channels": config["in_channels"] + 1, "concat_padding_mask": False}
    config = {**config, **(masks if config.get("concat_padding_mask", True) else {}), "num_layers": tap + 1}
    transformer = load_component(
        folder / "transformer",
        lambda: CosmosTransformer3DModel.from_config(config),
        wanted=until("transformer_blocks", tap),
    )
    return transformer, tap


def _sigma_data(folder: Path) -> float:
    file = folder / "scheduler" / "scheduler_config.json"
    value = read_json(file).get("sigma_data", 0.5) if file.is_file() else 0.5
    if not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(f"{file} gives sigma_data as {value!r}, expected a number above 0 (0.5 as published).")
    return float(value)


# Prompt

PIPELINE1, PIPELINE2 = "CosmosTextToWorldPipeline", "Cosmos2VideoToWorldPipeline"


def _prompt_of(folder: Path, is_local: bool, settings: PriorSettings, config: dict[str, Any], pipeline: str) -> Tensors:
    found = pipeline_prompt(folder, settings, is_local, pipeline, _encoded_prompt, TEXT_PATTERNS)
    embeds = prompt_tensor(found, EMBEDS, int(config["text_embed_dim"]))
    if embeds.shape[1] > TEXT_LENGTH:
        raise PromptError(f"The empty prompt's {EMBEDS} has {embeds.shape[1]} tokens, expected at most {TEXT_LENGTH}.")
    return {EMBEDS: _without_padding(embeds)}


def _encoded_prompt(pipe: Any) -> Tensors:
    embeds, _ = pipe.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH)
    return {EMBEDS: _without_padding(embeds)}


def _without_padding(embeds: Tensor) -> Tensor:
    filled = embeds[0].ne(0).any(dim=1).nonzero()
    return embeds[:, : int(filled.max()) + 1 if len(filled) else 1]


def _prompt(pipeline: str) -> Callable[[PriorSettings], Tensors]:
    def prompt(settings: PriorSettings) -> Tensors:
        folder, is_local = locate(settings, WEIGHT_PATTERNS)
        config = read_config(folder / "transformer", "CosmosTransformer3DModel")
        return _prompt_of(folder, is_local, settings, config, pipeline)

    return prompt


LICENCE = "NVIDIA Open Model License"

SPECS = (
    PriorSpec(
        "cosmos-predict2-2b",
        load_predict2,
        "Cosmos-Predict2 Video2World, 2B, 28 blocks, with Wan's VAE; without given frames",
        source="nvidia/Cosmos-Predict2-2B-Video2World",
        feature_dim=2048,
        contexts=ALL_CONTEXTS,
        # Two thirds of the depth, as the paper's tap in Wan. Trained on 93 frames, which are 24 latent steps. Its
        # schedule has no shift.
        defaults={"tap": 19, "size": (704, 1280), "shift": 1.0, "window": 24, "overlap": 4},
        options=Cosmos2Options,
        prompt=_prompt(PIPELINE2),
        licence=LICENCE,
        taps="0 to 27: blocks of the transformer",
        parameters=1.5,
        kind=Cosmos2Prior,
    ),
    PriorSpec(
        "cosmos-predict1-7b",
        load_predict1,
        "Cosmos-Predict1 Text2World, 7B, 28 blocks, latent steps of 8 frames",
        source="nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
        feature_dim=4096,
        contexts=ALL_CONTEXTS,
        # As above; trained on 121 frames, which are 16 latent steps.
        defaults={"tap": 19, "size": (704, 1280), "shift": 1.0, "window": 16, "overlap": 4},
        options=Cosmos1Options,
        prompt=_prompt(PIPELINE1),
        licence=LICENCE,
        taps="0 to 27: blocks of the transformer",
        parameters=5.2,
        kind=Cosmos1Prior,
    ),
)
