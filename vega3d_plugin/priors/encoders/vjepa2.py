"""V-JEPA 2 (arXiv 2506.09985; released ``VJEPAOnlineEncoder``), on transformers' own classes.

A video transformer that was trained to predict its own features, and no generator. The encoder turns tubelets of two
frames into tokens and attends across the whole clip; the predictor is never built nor read. What differs from the
released code: an odd number of frames is filled up with the last one (there a frame in the middle is doubled), and
clips longer than what the model was trained on are seen in windows (there frames are left out).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.errors import SettingsError
from ...contracts.framing import Framing
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.weights import TRANSFORMERS
from ..frozen.components import load_component, locate, read_config, until
from ..frozen.prior import Reload, resolved_tap
from ..frozen.resizing import resize_framed
from .encoder import EncoderPrior, as_maps, from_transformers, normed_taps

#: Before the names in a checkpoint that was tuned for classification.
TUNED = "vjepa2."


class Vjepa2Prior(EncoderPrior):
    """Features of a V-JEPA 2 encoder, normalised by its last norm.

    In contexts ``frame`` and ``views`` a frame is repeated to fill its tubelet, as the released code does with a
    single image.

    Args:
        encoder: the encoder of transformers' ``VJEPA2Model`` whose LAST layer is the tap, built for ``crop_size`` the
            larger side of the size.
        settings: resolved settings; ``size`` must be divisible by the patch size (16).
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    family = "vjepa2"
    block_classes: ClassVar[tuple[str, ...]] = ("VJEPA2Layer",)

    def __init__(self, encoder: nn.Module, settings: PriorSettings, reload: Reload | None = None) -> None:
        config: Any = encoder.config
        self.frames_per_step = int(config.tubelet_size)
        super().__init__(
            {"encoder": encoder},
            settings,
            feature_dim=config.hidden_size,
            stride=int(config.patch_size),
            reload=reload,
        )
        self.map_size = (self.size[0] // self.stride, self.size[1] // self.stride)
        if self.map_size[0] != self.map_size[1]:
            for layer in self.encoder.layer:
                layer.attention.register_forward_pre_hook(self._place, with_kwargs=True)

    def taps(self) -> range:
        """The encoder's layers that are there."""
        return range(len(self.encoder.layer))

    @property
    def encoder(self) -> Any:
        """transformers' encoder, cut after the tap."""
        return self.models["encoder"]

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames ``[T, 3, H, W]`` in [0, 1], any size, to the prior's size, float32, on its device."""
        return resize_framed(frames.to(self.device).float(), self.framing((frames.shape[-2], frames.shape[-1])))

    def framing(self, frame: tuple[int, int]) -> Framing:
        """Of a larger frame than what is cut out of it, where ``short_side`` says so."""
        short_side = self.settings.options.get("short_side")
        return super().framing(frame) if short_side is None else Framing.crop(frame, self.size, short_side)

    def encode(self, pixels: Tensor) -> Tensor:
        """``[B, steps, frames, 3, H, W]`` to ``[B, steps, C, H / 16, W / 16]``."""
        steps = pixels.shape[1]
        pixels = pixels.expand(-1, -1, self.frames_per_step, -1, -1, -1)
        layers, norm = self.encoder.layer, self.encoder.layernorm
        tokens = normed_taps(self, layers, norm, lambda: self.encoder(pixels.flatten(1, 2)).last_hidden_state)
        return as_maps(tokens, steps, self.map_size)

    def _place(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        # Without this, transformers takes every map for a square one. Positions count along rows of the larger side.
        height, width = self.map_size
        grid = max(self.map_size)
        token = torch.arange(args[0].shape[1], device=args[0].device)
        step, rest = token // (height * width), token % (height * width)
        places = (step * grid + rest // width) * grid + rest % width
        return args, {**kwargs, "position_mask": places[None]}


def load_vjepa2(settings: PriorSettings) -> Prior:
    """A V-JEPA 2 encoder from a folder or hub id in transformers' layout.

    Reads ``config.json`` and ``model*.safetensors``, of ``VJEPA2Model`` or of ``VJEPA2ForVideoClassification`` (whose
    head is then left out).

    Raises:
        PriorError: transformers is too old, or a tap or size that does not fit.
        CheckpointError: files missing or of another architecture.
    """
    config_class, model_class = from_transformers(settings, "4.53", "VJEPA2Config", "VJEPA2Model")
    short_side = settings.options.get("short_side")
    if short_side is not None and settings.resize != "crop":
        raise SettingsError(
            f"Prior {settings.name!r}: options.short_side is {short_side}, which needs resize 'crop', "
            f"got {settings.resize!r}. Leave one of them out."
        )
    folder, _ = locate(settings, ["config.json", "model*.safetensors*"])
    config = config_class.from_dict(read_config(folder, "vjepa2", key="model_type"))
    tap = resolved_tap(settings.tap, config.num_hidden_layers, settings.name, generates=False)
    config.num_hidden_layers = tap + 1
    if settings.size is not None:
        config.crop_size = max(settings.size)
    before_tap = until("encoder.layer", tap)

    def wanted(key: str) -> bool:
        key = key.removeprefix(TUNED)
        return key.startswith("encoder.") and before_tap(key)

    encoder = load_component(
        folder,
        lambda: model_class(config).encoder,
        stem=TRANSFORMERS,
        wanted=wanted,
        rename=lambda tensors: {k.removeprefix(TUNED).removeprefix("encoder."): v for k, v in tensors.items()},
    )
    return Vjepa2Prior(encoder, settings.model_copy(update={"tap": tap}), reload=load_vjepa2)
