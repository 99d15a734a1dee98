"""Wan 2.1 text-to-video as a latent world simulator (paper, section on feature extraction; released
``WanT2VOnlineEncoder``), on diffusers' own classes.

VAE-encode the frames, add flow-matching noise at one timestep, run the transformer once with an empty prompt, take
the output of one block. What differs from the released code: the noise is seeded and drawn per frame, the blocks
after the tap and the VAE's decoder are never loaded, and a clip may be seen as a whole (contexts ``views`` and
``video``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..alignment import Span
from ..clips import check_frames
from ..config import PriorSettings
from ..errors import PriorError
from .base import Prior
from .fingerprint import fingerprint
from .flow_matching import add_noise, draw_noise, noise_level
from .frames import resize_crop, resize_stretch

TEXT_LENGTH = 512
VAE_STRIDE = 4


class WanPrior(Prior):
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

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module,
        context: Tensor,
        settings: PriorSettings,
        reload: Callable[[PriorSettings], Prior] | None = None,
    ) -> None:
        self.transformer = transformer.eval().requires_grad_(False)
        self.vae = vae.eval().requires_grad_(False)
        self.context = context
        self.settings: PriorSettings = settings
        self._reload = reload
        config: Any = transformer.config
        self.patch_size: tuple[int, int, int] = tuple(config.patch_size)
        self.feature_dim = config.num_attention_heads * config.attention_head_dim
        self.size = _checked_size(settings, self.stride)
        self._dtype: torch.dtype | None = None

    @property
    def stride(self) -> int:
        """Pixels per feature, in height and width."""
        ratio: Any = getattr(self.vae, "spatial_compression_ratio", 8)
        return int(ratio) * self.patch_size[1]

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Weights up to the tap, VAE encoder, prompt, and the settings that change a feature."""
        keys = ("timestep", "shift", "tap", "size", "resize", "context", "seed")
        values = {key: self.settings.to_dict()[key] for key in keys}
        config: Any = self.vae.config
        values["latents"] = [round(value, 2) for value in (*config.latents_mean, *config.latents_std)]
        modules = {"transformer": self.transformer, "vae": self.vae}
        return fingerprint(modules, {"context": self.context}, {"family": "wan", **values})

    def __call__(self, frames: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Extract features; see :class:`Prior`.

        Args:
            frames: ``[T, 3, H, W]`` in [0, 1].
            noise: use this noise ``[latent frames, z, h, w]`` in place of the seeded one; for comparisons.

        Returns:
            ``[T', C, h, w]``, float32 or the compute dtype; ``T' = T`` for contexts ``frame`` and ``views``,
            ``1 + ceil((T - 1) / 4)`` for ``video``.
        """
        frames = check_frames(frames, f"Prior {self.settings.name!r}")
        # Features may be kept and used in training later, so they must not be inference tensors.
        device = torch.device(self.settings.device) if self.settings.device else frames.device
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            self._prepare(device)
            latents = self.encode(frames)
            return self.features(latents, noise)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames ``[T, 3, H, W]`` in [0, 1] to normalised latents ``[T', z, h, w]``, float32 (the VAE's mean)."""
        resize = resize_crop if self.settings.resize == "crop" else resize_stretch
        device, dtype = self._where()
        if self.settings.context == "video":
            # The causal VAE takes 1 + 4k frames and would drop the rest.
            missing = -(frames.shape[0] - 1) % VAE_STRIDE
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
            pixels = resize(frames.to(device).float(), self.size) * 2 - 1
            return self._vae(pixels.to(dtype).transpose(0, 1)[None])[0].transpose(0, 1)
        latents = []
        for chunk in frames.split(self.settings.chunk_frames):
            pixels = resize(chunk.to(device).float(), self.size) * 2 - 1
            latents.append(self._vae(pixels.to(dtype)[:, :, None])[:, :, 0])
        return torch.cat(latents)

    def features(self, latents: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents ``[T', z, h, w]`` to the tapped block's output ``[T', C, h / 2, w / 2]``."""
        level = noise_level(self.settings.timestep, self.settings.shift)
        if noise is None:
            noise = draw_noise(tuple(latents.shape[1:]), self.settings.seed, range(latents.shape[0]))
        elif noise.shape != latents.shape:
            raise PriorError(f"Noise must have the latents' shape {list(latents.shape)}, got {list(noise.shape)}.")
        noisy = add_noise(latents, noise.to(latents), level.sigma)
        if self.settings.context == "frame":
            parts = [self._transform(part[:, :, None], level.tau) for part in noisy.split(self.settings.chunk_frames)]
            return torch.cat(parts)[:, 0]
        return self._transform(noisy.transpose(0, 1)[None], level.tau)[0]

    def spans(self, frames: int, steps: int) -> Sequence[Span] | None:
        """Context ``video``: step 0 covers the first frame, each further step four frames."""
        if self.settings.context != "video":
            return None
        edges = [0, *(min(1 + VAE_STRIDE * i, frames) for i in range(steps))]
        return [(first / frames, last / frames) for first, last in pairwise(edges)]

    def _transform(self, noisy: Tensor, tau: int) -> Tensor:
        """``[B, z, T, h, w]`` to ``[B, T, C, h / 2, w / 2]``."""
        batch, _, steps, height, width = noisy.shape
        _, dtype = self._where()
        padded = torch.zeros(TEXT_LENGTH, self.context.shape[1], dtype=dtype, device=noisy.device)
        # The released code pads with zeros BEFORE the text embedding and masks nothing; leaving it out is wrong.
        padded[: self.context.shape[0]] = self.context.to(padded)
        kept: list[Tensor] = []
        tap: Any = self.transformer.blocks[-1]  # type: ignore[index]
        hook = tap.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            self.transformer(
                hidden_states=noisy.to(dtype),
                timestep=torch.full((batch,), tau, dtype=torch.long, device=noisy.device),
                encoder_hidden_states=padded.expand(batch, -1, -1),
                return_dict=False,
            )
        finally:
            hook.remove()
        _, p_h, p_w = self.patch_size
        grid = (steps // self.patch_size[0], height // p_h, width // p_w)
        tokens: Tensor = kept[0].unflatten(1, grid)
        return tokens.movedim(-1, 2)

    def _vae(self, pixels: Tensor) -> Tensor:
        """``[B, 3, T, H, W]`` in [-1, 1] to normalised latents ``[B, z, T', h, w]``, float32."""
        config: Any = self.vae.config
        encode: Any = self.vae.encode
        mean: Tensor = encode(pixels).latent_dist.mode().float()
        shape = (1, -1, 1, 1, 1)
        offset = mean.new_tensor(config.latents_mean).view(shape)
        scale = mean.new_tensor(config.latents_std).view(shape)
        return (mean - offset) / scale

    def _prepare(self, device: torch.device) -> None:
        """Move to the device, and choose the compute dtype, once."""
        if self._dtype is None or self._where()[0] != device:
            name = self.settings.dtype or ("bfloat16" if device.type == "cuda" else "float32")
            self._dtype = getattr(torch, name)
            if self._dtype == torch.float16:
                _ = self.fingerprint  # of the weights before they are rounded in another way than it rounds them
            for model in (self.transformer, self.vae):
                # Cast first: in float32 the weights might not fit where they are going.
                cast(model, self._dtype)
                model.to(device)

    def _where(self) -> tuple[torch.device, torch.dtype]:
        parameter = self.transformer.patch_embedding.weight  # type: ignore[union-attr]
        return parameter.device, parameter.dtype  # type: ignore[return-value]

    def __reduce__(self) -> Any:
        if self._reload is None:
            return super().__reduce__()
        return _unpickle, (self._reload, self.settings, self.fingerprint)

    def __repr__(self) -> str:
        s = self.settings
        blocks: Any = self.transformer.blocks
        return (
            f"WanPrior({s.name!r}, tap={len(blocks) - 1}, timestep={s.timestep}, size={self.size}, "
            f"context={s.context!r}, feature_dim={self.feature_dim})"
        )


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters, but not those that diffusers keeps in float32, nor the buffers of the position embedding."""
    keep: Sequence[str] = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, parameter in model.named_parameters():
        target = torch.float32 if dtype != torch.float32 and set(name.split(".")) & set(keep) else dtype
        parameter.data = parameter.data.to(target)


def _checked_size(settings: PriorSettings, stride: int) -> tuple[int, int]:
    if settings.size is None:
        raise PriorError(f"Prior {settings.name!r} needs a size (height, width).")
    height, width = settings.size
    if height % stride or width % stride:
        nearest = tuple(max(stride, math.floor(side / stride + 0.5) * stride) for side in (height, width))
        raise PriorError(
            f"Prior {settings.name!r} needs a size divisible by {stride} (VAE stride times patch size), "
            f"got {height}x{width}. The nearest is {nearest[0]}x{nearest[1]}."
        )
    return height, width


def _unpickle(reload: Callable[[PriorSettings], Prior], settings: PriorSettings, expected: str) -> Prior:
    with torch.inference_mode(False):
        prior = reload(settings)
    if prior.fingerprint != expected:
        raise PriorError(
            f"The pickled model used a prior {settings.name!r} with fingerprint {expected}, but "
            f"{settings.pretrained!r} now gives {prior.fingerprint}: its weights have changed."
        )
    return prior


def resolved_tap(tap: int | None, blocks: int, name: str) -> int:
    """The tap as a 0-based index. Raises :class:`PriorError` outside ``[-blocks, blocks)``."""
    index = blocks - 1 if tap is None else tap + blocks if tap < 0 else tap
    if not 0 <= index < blocks:
        raise PriorError(
            f"Prior {name!r} has {blocks} blocks, so the tap is in [{-blocks}, {blocks - 1}], got {tap}. "
            f"Mid-depth blocks do best: try tap={round(blocks * 2 / 3)}."
        )
    return index
