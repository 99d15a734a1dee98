"""The Qwen-VL family: where its seam is, by structure and class name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vega3d_plugin.contracts.clips import PixelStatistics
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.pixel_statistics import processor_statistics
from vega3d_plugin.contracts.seams import Seam, SeamPoint

from .about import FAMILIES, QWEN_VL
from .pixels import Packing
from .reader import IMAGES, VIDEOS, QwenReader


class QwenVLAdapter:
    """Qwen-VL in transformers 4.50 and later; see :class:`vega3d_plugin.contracts.seams.HostAdapter`.

    The seam is the vision tower ``visual``, whose merged tokens replace the placeholders of images and videos. It
    moved from ``visual`` to ``model.visual`` in transformers 4.52.
    """

    name, summary, seen_with = QWEN_VL.name, QWEN_VL.summary, QWEN_VL.seen_with
    classes: Sequence[str] = QWEN_VL.classes

    def matches(self, model: nn.Module) -> bool:
        """True for the family's classes and their subclasses."""
        return _family(model) is not None

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[Seam]:
        """The vision tower; see the protocol."""
        path = _tower_path(model)
        tower: Any = model.get_submodule(path)
        config = tower.config
        packing = Packing(
            patch=_integer(config, "patch_size", path),
            temporal=_integer(config, "temporal_patch_size", path),
            merge=_integer(config, "spatial_merge_size", path),
        )
        statistics, source = self._statistics(model, processor)
        # `model.visual` belongs to the base model `model`; `visual` to the model itself.
        entry = path.rpartition(".")[0]
        return [
            Seam(
                path=path,
                entry=entry,
                hidden_size=_hidden_size(model, tower, path),
                merge=packing.merge,
                statistics=statistics,
                statistics_source=source,
                reader=QwenReader(packing, statistics),
                points=(*_noting(model, entry), SeamPoint(path)),
            )
        ]

    def _statistics(self, model: nn.Module, processor: Any) -> tuple[PixelStatistics, str]:
        if processor is None:
            return FAMILIES[_family(model) or "Qwen2_5_VL"], "family"
        return processor_statistics(processor, self.name), "processor"

    def tiny(self) -> tuple[nn.Module, Any]:
        """A small Qwen2.5-VL with random weights, equal on every call, and its processor."""
        from .tiny import tiny_model, tiny_processor

        return tiny_model(), tiny_processor()


def _noting(model: nn.Module, entry: str) -> list[SeamPoint]:
    """Where the pixels come by before they are cast: the methods that encode them, or the forward that does it."""
    base = type(model.get_submodule(entry))
    methods = [method for method in (IMAGES, VIDEOS) if callable(getattr(base, method, None))]
    return [SeamPoint(entry, method, "note") for method in methods] or [SeamPoint(entry, role="note")]


def _family(model: nn.Module) -> str | None:
    names = {cls.__name__ for cls in type(model).__mro__}
    suffixes = ("ForConditionalGeneration", "Model")
    return next((family for family in FAMILIES if any(f"{family}{suffix}" in names for suffix in suffixes)), None)


def _tower_path(model: nn.Module) -> str:
    candidates = ("model.visual", "visual")
    for path in candidates:
        module: Any = model
        for part in path.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.Module):
            return path
    raise HostError(
        f"Host 'qwen_vl' expects a vision tower at {' or '.join(map(repr, candidates))}, not found on "
        f"{type(model).__name__} ({_version()}), whose children are: "
        f"{', '.join(name for name, _ in model.named_children()) or 'none'}. Run `vega3d doctor` or pass `host=`."
    )


def _integer(config: Any, key: str, path: str) -> int:
    value = getattr(config, key, None)
    if not isinstance(value, int) or value < 1:
        raise HostError(f"Host 'qwen_vl' expects {path}.config.{key} to be a positive integer, found {value!r}.")
    return value


def _hidden_size(model: nn.Module, tower: Any, path: str) -> int:
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = _integer(text, "hidden_size", "text config")
    # Qwen2-VL calls the width of the merged tokens hidden_size; its successors out_hidden_size.
    width = getattr(tower.config, "out_hidden_size", None)
    width = width if width is not None else tower.config.hidden_size
    if width != hidden:
        raise HostError(
            f"Host 'qwen_vl' expects {path} to give tokens of the LLM's hidden size {hidden}, its config says {width}."
        )
    return hidden


def _version() -> str:
    import sys

    module = sys.modules.get("transformers")
    return f"transformers {module.__version__}" if module else "transformers not loaded"
