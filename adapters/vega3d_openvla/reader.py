"""Reads clips and tokens at the OpenVLA seam: a call of ``projector``, whose pixels are noted on the way to it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vega3d_plugin.contracts.clips import Clip, TokenGrid
from vega3d_plugin.contracts.errors import AlignmentError, HostError, SeamMissedWarning
from vega3d_plugin.contracts.seams import ImageSamples, SeamCall, SeamInput
from vega3d_plugin.hosts.views import arranged

from .about import OPENVLA
from .pixels import Stacking

#: The method of OpenVLA-OFT that encodes images; its ``predict_action`` calls it without passing the forward.
PROCESS = "_process_vision_features"
#: Versions with which OpenVLA itself was seen to work.


@dataclass(frozen=True)
class Notes:
    """The pixels of one call.

    Attributes:
        pixels: ``[B, images * channels, H, W]``, normalised.
        images: per sample.
        acting: one observation without labels: a policy that acts.
    """

    pixels: Tensor
    images: int
    acting: bool


@dataclass(frozen=True)
class OpenVLAReader:
    """See :class:`vega3d_plugin.contracts.seams.SeamReader`.

    Attributes:
        stacking: of the pixels' channels.
        grid: rows and columns of tokens per image.
    """

    stacking: Stacking
    grid: tuple[int, int]

    def note(self, call: SeamCall) -> Notes | None:
        """The pixels of a call of the model or of :data:`PROCESS`; None for words alone and for steps of decoding."""
        pixels = _pixels(call)
        if pixels is None or (not call.method and _decodes(_named(call))):
            return None
        images = images_per_sample(call.module)
        expected = images * self.stacking.channels
        if pixels.ndim != 4 or pixels.shape[1] != expected:
            raise HostError(
                f"Host 'openvla': the model is set to {images} image(s) of {self.stacking.channels} channels, so "
                f"pixel_values must be [B, {expected}, H, W]; found {list(pixels.shape)}."
                f"{self._advice(pixels, call.module)}"
            )
        return Notes(pixels, images, self._acts(call, pixels))

    def read(self, call: SeamCall) -> SeamInput:
        """Tokens ``[B * images * h * w, D]`` and clips of one call of ``projector``."""
        notes: Notes | None = call.notes
        if notes is None:
            raise HostError(
                "Host 'openvla': the projector was called, but its pixels did not pass the model's forward"
                f" or {PROCESS!r}, so the branch cannot see them. Call the model itself; with PEFT, leave `task_type` "
                "of the LoraConfig unset, as OpenVLA's scripts do: the PeftModel of a task calls around the model's "
                "hooks."
            )
        (h, w), batch = self.grid, notes.pixels.shape[0]
        expected = [batch, notes.images * h * w]
        if call.output.ndim != 3 or list(call.output.shape[:2]) != expected:
            raise AlignmentError(
                f"Host 'openvla': the projector gave tokens {list(call.output.shape)} for pixel_values "
                f"{list(notes.pixels.shape)}; with {notes.images} image(s) of {h}x{w} tokens it should be "
                f"[{expected[0]}, {expected[1]}, D]."
            )
        pictures = self.stacking.pictures(notes.pixels, notes.images)
        grid = TokenGrid(1, h, w)
        clips = [[Clip(image[None], grid, "image")] for sample in pictures for image in sample]
        joined = arranged(clips, [row for row in range(batch) for _ in range(notes.images)], call.as_scenes)
        return SeamInput(call.output.flatten(0, 1), joined, acting=notes.acting)

    def write(self, output: Tensor, tokens: Tensor) -> Tensor:
        """All tokens, in the shape that the host gave them."""
        return tokens.reshape(output.shape)

    def visual_input(self, kwargs: Mapping[str, Any]) -> str | None:
        """``pixel_values`` when given with a prompt; `generate` repeats them at each step, which the host ignores."""
        return "pixel_values" if kwargs.get("pixel_values") is not None and not _one_token(kwargs) else None

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """None: every sample has the same number of images, which the notes have."""
        return None

    def _acts(self, call: SeamCall, pixels: Tensor) -> bool:
        if pixels.shape[0] > 1:
            return False
        if not call.method:
            return _named(call).get("labels") is None
        # OFT's forward, which is given labels, calls the method too.
        outer: Notes | None = call.notes
        return outer.acting if outer is not None and outer.pixels is pixels else True

    def _advice(self, pixels: Tensor, model: Any) -> str:
        if pixels.ndim != 4 or pixels.shape[1] % self.stacking.channels:
            return " Use the model's own processor."
        given = pixels.shape[1] // self.stacking.channels
        if not hasattr(model.vision_backbone, "set_num_images_in_input"):
            return f" That is {given} images; OpenVLA takes one, OpenVLA-OFT takes several."
        wanted = images_per_sample(model)
        return (
            f" That is {given} image(s): call model.vision_backbone.set_num_images_in_input({given}), or give {wanted}."
        )


def images_per_sample(model: Any) -> int:
    """How many images the vision backbone is set to; OpenVLA, before OFT, takes one."""
    setting = getattr(model.vision_backbone, "get_num_images_in_input", None)
    return int(setting()) if callable(setting) else 1


def _named(call: SeamCall) -> dict[str, Any]:
    """The arguments of the model's forward by name. All of OpenVLA's versions begin with these four."""
    names = ("input_ids", "attention_mask", "pixel_values", "labels")
    return {**dict(zip(names, call.args, strict=False)), **call.kwargs}


def _pixels(call: SeamCall) -> Tensor | None:
    if not call.method:
        return _named(call).get("pixel_values")
    return call.args[0] if call.args else call.kwargs.get("pixel_values")


def _one_token(kwargs: Mapping[str, Any]) -> bool:
    """The host takes a prompt of one token for a step of decoding, and looks at no pixels then."""
    ids = kwargs.get("input_ids")
    return ids is not None and ids.shape[1] == 1


def _decodes(kwargs: Mapping[str, Any]) -> bool:
    """True for a step of decoding. Warns when nothing was decoded before: then the host never sees the image."""
    if not _one_token(kwargs):
        return False
    length = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
    if callable(length) and int(length()) == 0:
        warnings.warn(
            "Host 'openvla' was given pixel_values, one token and an empty cache: it takes that for a step of decoding "
            "and ignores the image, patched or not. `generate` of this transformers calls it so. OpenVLA was written "
            f"for transformers 4.40.1 and was tested with {OPENVLA.seen_with}; with others, pass "
            "use_cache=False.",
            SeamMissedWarning,
            stacklevel=4,
        )
    return True
