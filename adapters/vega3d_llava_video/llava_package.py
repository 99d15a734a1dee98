"""The package ``llava`` (LLaVA-NeXT with LLaVA-Video, LLaVA 1.5, Video-3D LLM style forks): where its seam is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vega3d_plugin.contracts.clips import PixelStatistics
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.pixel_statistics import read_statistics
from vega3d_plugin.contracts.seams import Seam, SeamPoint

from .about import LLAVA_PACKAGE
from .llava_reader import ENCODE, PLACEHOLDER, POOL, PREPARE, LlavaReader

#: The mixin that all of the package's causal models have.
MIXIN = "LlavaMetaForCausalLM"


class LlavaPackageAdapter:
    """LLaVA of the package ``llava``; see :class:`vega3d_plugin.contracts.seams.HostAdapter`.

    Images are fused in the result of ``encode_images``, after the projector; videos in that of ``get_2dPool``, after
    the pooling of each frame (27x27 to 14x14 tokens), where the released code fuses them too. Which is which, and the
    pixels, are noted when ``prepare_inputs_labels_for_multimodal`` is called. The branch is a child of the inner model
    (``model``), whose other children are the vision tower and ``mm_projector``.
    """

    name, summary, seen_with = LLAVA_PACKAGE.name, LLAVA_PACKAGE.summary, LLAVA_PACKAGE.seen_with
    classes: Sequence[str] = LLAVA_PACKAGE.classes

    def matches(self, model: nn.Module) -> bool:
        """True for the package's causal models, their subclasses and forks."""
        return any(cls.__name__ == MIXIN for cls in type(model).__mro__)

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[Seam]:
        """The methods that encode images and pool videos; see the protocol."""
        host: Any = model
        for method in (PREPARE, ENCODE, "get_model", "get_vision_tower"):
            if not callable(getattr(type(model), method, None)):
                raise HostError(
                    f"Host {self.name!r} expects the method {method!r}, not found on {type(model).__name__}. Forks "
                    "that renamed it need an adapter of their own (vega3d_plugin/hookspecs.py)."
                )
        inner = host.get_model()
        home = next((name for name, child in model.named_children() if child is inner), None)
        if home is None:
            raise HostError(
                f"Host {self.name!r} expects get_model() to give a child of {type(model).__name__}, found "
                f"{type(inner).__name__}; its children are {', '.join(n for n, _ in model.named_children())}."
            )
        tower = self._tower(host)
        projector = getattr(inner, "mm_projector", None)
        if not isinstance(projector, nn.Module):
            raise HostError(
                f"Host {self.name!r} expects {home}.mm_projector, found {type(projector).__name__}: is this a LLaVA "
                "without vision modules? Load a multimodal checkpoint, or call initialize_vision_modules first."
            )
        statistics, source = self._statistics(tower, processor)
        pools = callable(getattr(type(model), POOL, None))
        has_weights = next(projector.parameters(), None) is not None
        return [
            Seam(
                path=home,
                entry="",
                hidden_size=_hidden_size(host, projector, home),
                merge=1,
                statistics=statistics,
                statistics_source=source,
                reader=LlavaReader(statistics),
                points=(
                    SeamPoint("", PREPARE, "note"),
                    SeamPoint("", ENCODE),
                    *([SeamPoint("", POOL)] if pools else []),
                ),
                like=f"{home}.mm_projector" if has_weights else "",
            )
        ]

    def probe_batch(self, processor: Any, model: nn.Module, picture: Any) -> Mapping[str, Any]:
        """The inputs for one picture ``[H, W, 3]`` uint8; see the protocol."""
        return {**_words(), "images": _pixels(processor, picture[None])}

    def probe_video(self, processor: Any, model: nn.Module, frames: Any) -> Mapping[str, Any] | None:
        """The inputs for a video ``[T, H, W, 3]`` uint8; None where the host pools none. See the protocol."""
        if not callable(getattr(type(model), POOL, None)):
            return None
        return {**_words(), "images": [_pixels(processor, frames)], "modalities": ["video"]}

    def _tower(self, host: Any) -> Any:
        tower = host.get_vision_tower()
        if tower is None:
            raise HostError(
                f"Host {self.name!r}: {type(host).__name__} has no vision tower (config.mm_vision_tower is "
                f"{getattr(host.config, 'mm_vision_tower', None)!r}). Load a multimodal checkpoint."
            )
        if getattr(tower, "is_loaded", True) is False:
            raise HostError(
                f"Host {self.name!r}: the vision tower {getattr(tower, 'vision_tower_name', '')!r} is not loaded yet "
                "(delay_load). Call model.get_vision_tower().load_model() before vega3d.patch(model)."
            )
        return tower

    def _statistics(self, tower: Any, processor: Any) -> tuple[PixelStatistics, str]:
        """Those of the processor that is given, else of the vision tower's own."""
        given = processor is not None
        images = getattr(processor, "image_processor", processor) if given else getattr(tower, "image_processor", None)
        found = read_statistics(images)
        if found is None:
            where = f"processor {type(processor).__name__}" if given else f"the vision tower {type(tower).__name__}"
            raise HostError(
                f"Host {self.name!r}: {where} has no image_mean and image_std. Pass the image processor that makes "
                "the pixels: vega3d.patch(model, processor=image_processor)."
            )
        return found, "processor" if given else "vision tower"


def _words() -> dict[str, torch.Tensor]:
    """A prompt with one placeholder; which words does not matter."""
    return {"input_ids": torch.tensor([[5, PLACEHOLDER, 6, 7, 8, 9]])}


def _pixels(processor: Any, pictures: Any) -> torch.Tensor:
    """``[N, 3, H, W]``: pictures ``[N, H, W, 3]`` uint8 as the image processor makes them."""
    from PIL import Image

    images = getattr(processor, "image_processor", processor)
    given = [Image.fromarray(picture) for picture in pictures]
    return torch.stack([torch.as_tensor(p) for p in images.preprocess(given, return_tensors="pt")["pixel_values"]])


def _hidden_size(host: Any, projector: nn.Module, home: str) -> int:
    hidden = getattr(host.config, "hidden_size", None)
    if not isinstance(hidden, int) or hidden < 1:
        raise HostError(f"Host 'llava_video' expects config.hidden_size to be a positive integer, found {hidden!r}.")
    linears = [module for module in projector.modules() if isinstance(module, nn.Linear)]
    if linears and linears[-1].out_features != hidden:
        raise HostError(
            f"Host 'llava_video' expects {home}.mm_projector to give tokens of the LLM's hidden size {hidden}, its "
            f"last layer gives {linears[-1].out_features}."
        )
    return hidden
