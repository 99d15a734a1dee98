"""Stable Diffusion as a latent world simulator (paper, comparison of generators; released ``SD21OnlineEncoder``), on
diffusers' own classes.

VAE-encode every frame, add the noise of the diffusion schedule at one timestep, run the UNet once with an empty
prompt, take what enters its mid block. An image model: frames never see each other, so there is one context.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PromptError
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.pickles import load_pickle
from ...storage.reading import JsonObject
from ...storage.weights import DIFFUSERS, read_json
from ..catalogue.stable_diffusion import StableDiffusionOptions
from ..diffusion.flow_matching import NoiseLevel
from ..diffusion.unet import Stage, UNetPrior, check_channels, load_unet, stage
from ..encoders.image_vae import load_vae, vae_stride
from ..frozen.components import expect, locate_parts, read_config
from ..frozen.prior import Reload
from ..prompts import SAVED_NAME
from ..prompts.by_pipeline import pipeline_prompt, prompt_tensor

#: The file that the released code exports the empty prompt to.
RELEASED_PROMPT = "empty_prompt_embeds.pt"
_RELEASED_NAMES = ("prompt_embeds", "empty_prompt_embeds", "embeds")
_TEXT_PATTERNS = ["model_index.json", "text_encoder/*.json", "text_encoder/model.safetensors", "tokenizer/*"]
_SCHEDULERS = {
    "DDIMScheduler", "PNDMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
}  # fmt: skip


class StableDiffusionPrior(UNetPrior):
    """Features of a Stable Diffusion UNet.

    Args:
        unet: diffusers' ``UNet2DConditionModel``, which ends with ``until`` (:func:`~.unet.load_unet`).
        vae: diffusers' ``AutoencoderKL``; only its encoder is used.
        prompt: embedding of the empty prompt, ``[1, n, cross_attention_dim]``, all tokens.
        scheduler: diffusers' ``DDIMScheduler``.
        until: the tapped stage.
        settings: resolved settings; ``size`` must be divisible by the VAE's stride of 8, for a tap in the up blocks
            by 64.
        reload: rebuilds this prior from its settings; None pickles the weights.

    Raises:
        PriorError: a size that does not fit.
    """

    family = "stable-diffusion"

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        prompt: Tensor,
        scheduler: Any,
        until: Stage,
        settings: PriorSettings,
        reload: Reload | None = None,
    ) -> None:
        self.vae_stride = vae_stride(vae.config)
        self.scheduler = scheduler
        super().__init__(
            {"unet": unet, "vae": vae},
            settings,
            feature_dim=until.channels,
            # Of the latents: every halving behind them rounds up.
            stride=self.vae_stride * until.divisor,
            tensors={"prompt_embeds": prompt},
            reload=reload,
        )
        if StableDiffusionOptions.parse(settings.options).tiling:
            self.vae.enable_tiling()

    @property
    def alpha(self) -> float:
        """The share of the picture in the noisy latents' variance (``alphas_cumprod``)."""
        return float(self.scheduler.alphas_cumprod[int(self.noise_level().tau)])

    def more_identity(self) -> dict[str, Any]:
        """Also the noise schedule, and the scale of the latents."""
        more = {"alpha": round(self.alpha, 6), "scaling_factor": float(self.vae.config.scaling_factor)}
        return {**super().more_identity(), **more}

    def noise_level(self) -> NoiseLevel:
        """The timestep of the scheduler's list that is nearest to the one asked for, and the noise's weight."""
        # The list of DDIM ends one behind the last timestep that was trained, and begins at `steps_offset`.
        timesteps = self.scheduler.timesteps[self.scheduler.timesteps < len(self.scheduler.alphas_cumprod)]
        tau = int(timesteps[int(torch.argmin((timesteps - self.settings.timestep).abs()))])
        return NoiseLevel(tau, float((1 - self.scheduler.alphas_cumprod[tau]) ** 0.5))

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """``sqrt(alpha) * latents + sqrt(1 - alpha) * noise``."""
        noisy: Tensor = self.scheduler.add_noise(latents, noise, self._timesteps(latents))
        return noisy

    def frame_latents(self, pixels: Tensor) -> Tensor:
        """``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, z, h, w]`` (the mode)."""
        latents: Tensor = self.vae.encode(pixels).latent_dist.mode() * self.vae.config.scaling_factor
        return latents

    def transform(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """``[B, T, z, h, w]`` to ``[B, T, C, h', w']``; every frame on its own."""
        sample = noisy.flatten(0, 1).to(self.dtype)
        prompt = self.tensors["prompt_embeds"].to(self.device, self.dtype).expand(sample.shape[0], -1, -1)
        maps: Tensor = self.unet(sample, self._timesteps(sample), encoder_hidden_states=prompt).sample
        clips: Tensor = maps.unflatten(0, tuple(noisy.shape[:2]))
        return clips

    def _timesteps(self, batch: Tensor) -> Tensor:
        return torch.full((batch.shape[0],), int(self.noise_level().tau), dtype=torch.long, device=batch.device)


def load(settings: PriorSettings) -> Prior:
    """Build the prior from ``settings.pretrained``, a folder in diffusers' layout or a hub id.

    Raises:
        CheckpointError: the folder is missing, incomplete, or holds another architecture.
        PromptError: no embedding of the empty prompt, and no text encoder to compute it.
        PriorError: a tap out of range, or a size that does not fit.
    """
    folder, is_local = _locate(settings)
    config = _unet_config(folder)
    until = stage(config, settings)
    vae = load_vae(folder / "vae")
    latents = int(vae.config.latent_channels)
    check_channels(config, latents, latents, folder / "unet" / "config.json")
    unet = load_unet(folder / "unet", "UNet2DConditionModel", config, until)
    prompt = _prompt_embeds(folder, is_local, settings, config.integer("cross_attention_dim"))
    settings = settings.model_copy(update={"tap": until.tap})
    return StableDiffusionPrior(unet, vae, prompt, load_scheduler(folder), until, settings, reload=load)


def load_prompt(settings: PriorSettings) -> dict[str, Tensor]:
    """The empty prompt's embedding ``prompt_embeds [1, 77, cross_attention_dim]``, and nothing else loaded."""
    folder, is_local = _locate(settings)
    width = _unet_config(folder).integer("cross_attention_dim")
    return {"prompt_embeds": _prompt_embeds(folder, is_local, settings, width)}


def load_scheduler(folder: Path) -> Any:
    """diffusers' ``DDIMScheduler`` with the checkpoint's noise schedule and all training timesteps in its list.

    The published configuration names another scheduler of the same schedule (``PNDMScheduler`` for SD 2.1).
    """
    from diffusers import DDIMScheduler

    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    expect(config.get("_class_name"), _SCHEDULERS, file)
    # Its own settings alone: it would warn about those of the other class.
    known = set(inspect.signature(DDIMScheduler.__init__).parameters) - {"self"}
    scheduler = DDIMScheduler(**{key: value for key, value in config.items() if key in known})
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler


def _locate(settings: PriorSettings) -> tuple[Path, bool]:
    more = ["scheduler/scheduler_config.json", SAVED_NAME, RELEASED_PROMPT]
    return locate_parts(settings, {"unet": DIFFUSERS, "vae": DIFFUSERS}, more)


def _unet_config(folder: Path) -> JsonObject:
    config = read_config(folder / "unet", "UNet2DConditionModel")
    file = folder / "unet" / "config.json"
    if config.get("addition_embed_type") or config.get("encoder_hid_dim_type") or config.get("class_embed_type"):
        raise CheckpointError(
            f"{file} wants more than text (addition_embed_type={config.get('addition_embed_type')!r}): it is Stable "
            "Diffusion XL or an image variation model. This prior reads Stable Diffusion 1 and 2."
        )
    if not isinstance(config.get("cross_attention_dim"), int) or not config.get("block_out_channels"):
        raise CheckpointError(f"{file} lacks cross_attention_dim or block_out_channels.")
    return config


# The prompt


def _prompt_embeds(folder: Path, is_local: bool, settings: PriorSettings, width: int) -> Tensor:
    if (folder / RELEASED_PROMPT).is_file() and not (folder / SAVED_NAME).is_file():
        tensors = {"prompt_embeds": _read_released(folder / RELEASED_PROMPT)}
    else:
        tensors = pipeline_prompt(folder, settings, is_local, "StableDiffusionPipeline", _encode, _TEXT_PATTERNS)
    return prompt_tensor(tensors, "prompt_embeds", width)


def _encode(pipeline: Any) -> dict[str, Tensor]:
    embeds, _ = pipeline.encode_prompt("", torch.device("cpu"), 1, False)
    return {"prompt_embeds": embeds}


def _read_released(file: Path) -> Tensor:
    try:
        found = load_pickle(file, PromptError)
    except PromptError as error:
        raise PromptError(f"{file} cannot be read as an empty prompt: {error} Delete it.") from error
    if isinstance(found, dict):
        found = next((found[name] for name in _RELEASED_NAMES if isinstance(found.get(name), Tensor)), found)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise PromptError(
            f"{file} holds no embedding: expected a floating tensor [1, 77, width], or one named "
            f"{' or '.join(_RELEASED_NAMES)}. Export it again, or delete it."
        )
    return found.float()[:1] if found.ndim == 3 else found.float()
