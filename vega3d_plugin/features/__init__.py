"""The feature store: features of a prior on disk and in memory, keyed by content."""

from .store import FeatureStore

__all__ = ["FeatureStore"]
