"""The built-in priors, registered through the same hook as anybody's. Nothing heavy is imported until one is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..hookspecs import hookimpl
from .base import Prior, PriorSpec

if TYPE_CHECKING:
    from ..config import PriorSettings

ALL_CONTEXTS = ("frame", "views", "video")


@hookimpl
def vega3d_register_priors(register: Callable[[PriorSpec], None]) -> None:
    """Register Wan 2.1 text-to-video in both sizes, and its toy twin."""
    register(
        PriorSpec(
            "wan2.1-t2v-1.3b",
            _load_wan,
            "Wan 2.1 text-to-video, 1.3B, 30 blocks: the paper's generator",
            source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            feature_dim=1536,
            contexts=ALL_CONTEXTS,
            defaults={"tap": 20, "size": (480, 832)},
        )
    )
    register(
        PriorSpec(
            "wan2.1-t2v-14b",
            _load_wan,
            "Wan 2.1 text-to-video, 14B, 40 blocks; the tap keeps the 1.3B's relative depth",
            source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
            feature_dim=5120,
            contexts=ALL_CONTEXTS,
            defaults={"tap": 27, "size": (480, 832)},
        )
    )
    register(
        PriorSpec(
            "tiny-wan",
            _load_tiny_wan,
            "the same classes at toy size with RANDOM weights: knows nothing, for demos and tests",
            feature_dim=96,
            contexts=ALL_CONTEXTS,
            defaults={"tap": 2, "size": (96, 160)},
        )
    )


def _load_wan(settings: PriorSettings) -> Prior:
    from .wan_checkpoint import load_wan

    return load_wan(settings)


def _load_tiny_wan(settings: PriorSettings) -> Prior:
    from .tiny_wan import load_tiny_wan

    return load_tiny_wan(settings)
