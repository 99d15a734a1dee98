"""Features that are kept in memory, in a store's place: for one process, and for as long as it wants them."""

from __future__ import annotations

from torch import Tensor


class FeatureMemory:
    """Keeps every feature map that it is given, by its clip's key, as a store does on disk."""

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}

    def get(self, key: str) -> Tensor | None:
        """The features of a clip; None where they are not known."""
        return self.features.get(key)

    def put(self, key: str, features: Tensor) -> None:
        """Keep the features of a clip."""
        self.features[key] = features

    def clear(self) -> None:
        """Forget all."""
        self.features.clear()
