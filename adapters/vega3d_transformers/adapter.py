"""Other vision-language models of transformers: by name only, and measured before they are patched."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from vega3d_plugin.branch.handle import get_handle, is_patched
from vega3d_plugin.contracts.errors import HostError, MetaModelError
from vega3d_plugin.contracts.pixel_statistics import processor_statistics
from vega3d_plugin.contracts.seams import Seam, SeamPoint
from vega3d_plugin.plugins import plugin_manager

from .about import TRANSFORMERS
from .measuring import SeamRefusedError, measure
from .packed import PackedReader
from .reader import IMAGES, VIDEOS, ProjectorReader

#: Arguments of methods that take patches cut out of pictures beforehand, in another way than Qwen-VL's.
PACKED = ("spatial_shapes", "position_ids")


class TransformersAdapter:
    """Models with ``get_image_features`` and one token grid per picture; see the protocol.

    Never found by itself: ``vega3d.patch(model, host="transformers", processor=processor)``. What no class name tells
    is measured: which module makes the tokens, their grid, and that they are in raster order.
    """

    name, summary, seen_with = TRANSFORMERS.name, TRANSFORMERS.summary, TRANSFORMERS.seen_with
    classes: Sequence[str] = TRANSFORMERS.classes

    def matches(self, model: nn.Module) -> bool:
        """False: this adapter must be named."""
        return False

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[Seam]:
        """The module that projects visual features, found by running the model; see the protocol.

        Raises:
            HostError: another adapter knows this model, a processor is missing, or the seam does not fit; the message
                has the reason.
        """
        if is_patched(model):
            # Measured already; running it again would run the branch.
            return [get_handle(model).seam]
        known = plugin_manager().hook.vega3d_match_host(model=model)
        if known is not None:
            raise HostError(
                f"Host {self.name!r}: {type(model).__name__} has an adapter of its own, {known!r}, which knows more of "
                "it. Leave out `host=`."
            )
        path = self._holder(model)
        base = model.get_submodule(path)
        for method in (IMAGES, VIDEOS):
            self._refuse_packed(base, method)
        if processor is None:
            raise HostError(
                f"Host {self.name!r} measures a model before it is patched, for which it needs the model's processor: "
                "vega3d.patch(model, host='transformers', processor=AutoProcessor.from_pretrained(...))."
            )
        if any(parameter.is_meta for parameter in base.parameters()):
            raise MetaModelError(
                f"{type(base).__name__} has parameters on the meta device, so it cannot be measured. Load the weights "
                "first; with device_map, keep it off disk and CPU offload."
            )
        statistics = processor_statistics(processor, self.name)
        hidden = self._hidden_size(base)
        try:
            found = measure(base, processor, statistics, hidden)
        except SeamRefusedError as error:
            raise SeamRefusedError(f"Host {self.name!r} cannot patch {type(model).__name__}: {error}") from error
        projector = f"{path}.{found.projector}" if path else found.projector
        reader: ProjectorReader
        if found.packing is not None:
            reader = PackedReader(self.name, statistics, projector, packing=found.packing)
        else:
            layout = None if found.cell else found.layout
            reader = ProjectorReader(self.name, statistics, projector, layout, found.cell)
        videos = callable(getattr(type(base), VIDEOS, None))
        return [
            Seam(
                path=projector,
                entry=self._entry(model, path),
                hidden_size=hidden,
                merge=1,
                statistics=statistics,
                statistics_source="processor",
                reader=reader,
                points=(
                    SeamPoint(path, IMAGES, "note"),
                    *([SeamPoint(path, VIDEOS, "note")] if videos else []),
                    SeamPoint(projector),
                ),
            )
        ]

    def _holder(self, model: nn.Module) -> str:
        """Path of the innermost module with the method; the outer ones pass on to it."""
        found = [name for name, module in model.named_modules() if callable(getattr(type(module), IMAGES, None))]
        if not found:
            raise HostError(
                f"Host {self.name!r} expects a method {IMAGES!r}, not found on {type(model).__name__} nor on any "
                "module in it."
            )
        return str(max(found, key=lambda name: name.count(".") + bool(name)))

    def _entry(self, model: nn.Module, path: str) -> str:
        """Path of the module whose forward receives the pixels: a policy calls the method of a model inside it."""
        parts = path.split(".") if path else []
        outer = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        policies = [name for name in outer if not callable(getattr(type(model.get_submodule(name)), IMAGES, None))]
        return policies[-1] if policies else path

    def _refuse_packed(self, base: nn.Module, method: str) -> None:
        function = getattr(type(base), method, None)
        if function is None:
            return
        packed = [name for name in inspect.signature(function).parameters if name.endswith(PACKED)]
        if packed:
            raise SeamRefusedError(
                f"Host {self.name!r} cannot patch {type(base).__name__}: {method!r} takes packed patches "
                f"({packed[0]}), not pictures nor Qwen-VL's rows of them. How they are packed differs by family, so it "
                "needs an adapter of its own, as 'qwen_vl' is one (vega3d_plugin/hookspecs.py)."
            )

    def _hidden_size(self, base: Any) -> int:
        text = base.config.get_text_config()
        hidden = getattr(text, "hidden_size", None)
        if not isinstance(hidden, int) or hidden < 1:
            raise HostError(f"Host {self.name!r} expects the text config's hidden_size, found {hidden!r}.")
        return hidden
