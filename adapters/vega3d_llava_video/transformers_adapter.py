"""LLaVA in transformers: where its seam is, by structure and class name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from vega3d_plugin.contracts.clips import PixelStatistics
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.pixel_statistics import CLIP, HALF, processor_statistics
from vega3d_plugin.contracts.seams import Seam, SeamPoint
from vega3d_transformers.reader import IMAGES, VIDEOS

from .about import FAMILIES, LLAVA_TRANSFORMERS
from .transformers_reader import POOL, TransformersLlavaReader

PROJECTOR = "multi_modal_projector"
#: Statistics that models with a vision tower of that kind were trained with.
TOWERS = {"clip": CLIP, "pixtral": CLIP, "siglip": HALF}


class TransformersLlavaAdapter:
    """LLaVA in transformers 4.50 and later; see :class:`vega3d_plugin.contracts.seams.HostAdapter`.

    The seam is the projector, whose output are the tokens of each picture, tile or frame; for the videos of
    LLaVA-OneVision it is the pooling that follows. Newline tokens come later. The methods that call the projector moved
    to the base model ``model`` in transformers 4.52.
    """

    name, summary, seen_with = LLAVA_TRANSFORMERS.name, LLAVA_TRANSFORMERS.summary, LLAVA_TRANSFORMERS.seen_with
    classes: Sequence[str] = LLAVA_TRANSFORMERS.classes

    def matches(self, model: nn.Module) -> bool:
        """True for the family's classes and their subclasses."""
        names = {cls.__name__ for cls in type(model).__mro__}
        suffixes = ("ForConditionalGeneration", "Model")
        return any(f"{family}{suffix}" in names for family in FAMILIES for suffix in suffixes)

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[Seam]:
        """The projector; see the protocol."""
        base, prefix = self._base(model)
        projector = f"{prefix}{PROJECTOR}"
        pools = callable(getattr(type(base), POOL, None))
        entry = prefix.rstrip(".")
        vision: Any = getattr(getattr(base, "config", None), "vision_config", None)
        tower = str(getattr(vision, "model_type", ""))
        statistics, source = self._statistics(tower, processor)
        reader = TransformersLlavaReader(
            self.name,
            statistics,
            projector,
            cell=int(vision.patch_size) if tower == "pixtral" else 0,
            pools=pools,
        )
        videos = callable(getattr(type(base), VIDEOS, None))
        return [
            Seam(
                path=projector,
                entry=entry,
                hidden_size=self._hidden_size(model, base.get_submodule(PROJECTOR), projector),
                merge=1,
                statistics=statistics,
                statistics_source=source,
                reader=reader,
                points=(
                    SeamPoint(entry, IMAGES, "note"),
                    *([SeamPoint(entry, VIDEOS, "note")] if videos else []),
                    SeamPoint(projector),
                    *([SeamPoint(entry, POOL)] if pools else []),
                ),
            )
        ]

    def tiny(self) -> tuple[nn.Module, Any]:
        """A small LLaVA-OneVision with random weights, equal on every call, and its processor."""
        from .tiny_transformers import tiny_model, tiny_processor

        return tiny_model(), tiny_processor()

    def _base(self, model: nn.Module) -> tuple[nn.Module, str]:
        """The module that encodes images, and the prefix of its children's paths."""
        for prefix in ("model.", ""):
            base = getattr(model, "model", None) if prefix else model
            if isinstance(getattr(base, PROJECTOR, None), nn.Module) and callable(getattr(type(base), IMAGES, None)):
                return base, prefix  # type: ignore[return-value]
        raise HostError(
            f"Host {self.name!r} expects a module {PROJECTOR!r} and a method {IMAGES!r} on the model or on its child "
            f"'model', not found on {type(model).__name__}, whose children are: "
            f"{', '.join(name for name, _ in model.named_children()) or 'none'}. Run `vega3d doctor` or pass `host=`."
        )

    def _statistics(self, tower: str, processor: Any) -> tuple[PixelStatistics, str]:
        if processor is not None:
            return processor_statistics(processor, self.name), "processor"
        known = next((values for kind, values in TOWERS.items() if tower.startswith(kind)), None)
        if known is None:
            raise HostError(
                f"Host {self.name!r}: it is not known with which statistics a vision tower {tower!r} was trained. Pass "
                "the model's processor: vega3d.patch(model, processor=processor)."
            )
        return known, "family"

    def _hidden_size(self, model: nn.Module, projector: nn.Module, path: str) -> int:
        config: Any = model.config
        hidden = config.get_text_config().hidden_size
        linears = [module for module in projector.modules() if isinstance(module, nn.Linear)]
        if linears and linears[-1].out_features != hidden:
            raise HostError(
                f"Host {self.name!r} expects {path} to give tokens of the LLM's hidden size {hidden}, its last layer "
                f"gives {linears[-1].out_features}."
            )
        return int(hidden)
