"""The area between which a processor resizes images, for processors that have such bounds (Qwen-VL)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..contracts.errors import Vega3dError

_EDGES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}


def set_pixel_area(
    processor: Any, smallest: int | None, largest: int | None, error: type[Vega3dError], prefix: str = ""
) -> None:
    """Set the bounds that are given, under all the names that versions of transformers look at.

    As arguments of ``from_pretrained`` they have no effect in transformers 4.50.

    Args:
        processor: of the host; changed.
        smallest, largest: area in pixels; None: the processor's own.
        error: what is raised.
        prefix: of the settings' names in messages: ``host.``.

    Raises:
        error: the processor has no such bounds, or the smallest is above the largest, its own ones included.
    """
    wanted = {k: v for k, v in (("min_pixels", smallest), ("max_pixels", largest)) if v is not None}
    if not wanted:
        return
    images = processor.image_processor
    size = getattr(images, "size", None)
    own = {name: getattr(images, name, None) or _edge(size, edge) for name, edge in _EDGES.items()}
    if None in own.values():
        raise error(
            f"{', '.join(prefix + name for name in wanted)}: {type(images).__name__} has no area between which it "
            f"resizes (its size is {size}). Leave them out."
        )
    bounds = {**own, **wanted}
    if bounds["min_pixels"] > bounds["max_pixels"]:
        said = [
            f"{prefix}{name} {value:,}" + ("" if name in wanted else " (the processor's own)")
            for name, value in bounds.items()
        ]
        raise error(f"{said[0]} is above {said[1]}: pictures would be enlarged and shrunk at random. Set both.")
    for name, value in wanted.items():
        if getattr(images, name, None) is not None:
            setattr(images, name, value)
    if size is not None and _edge(size, "longest_edge") is not None:
        images.size = type(size)(**{edge: bounds[name] for name, edge in _EDGES.items()})


def _edge(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
