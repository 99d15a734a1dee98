"""The feature store: features of a prior on disk and in memory, keyed by content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .store import FeatureStore


def __getattr__(name: str) -> Any:
    """The store is imported when it is first used: whoever looks at the names of forms needs no torch."""
    if name != "FeatureStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .store import FeatureStore

    globals()[name] = FeatureStore
    return FeatureStore


__all__ = ["FeatureStore"]
