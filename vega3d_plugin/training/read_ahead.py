"""Features read ahead: the process that decodes a row has the store's files at hand before the model asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..features.extraction.shard import Journal
from ..features.store import FeatureStore
from ..recipes.blocks import StoreSettings
from ..recipes.schema import RecipeSettings
from .rows.conversation import Medium
from .unit_keys import common_key, media_key


class ReadAhead:
    """Fetches the entries of rows, where extraction has noted which these are. Picklable; for data loader workers.

    Args:
        recipe: its settings, as extraction had them.
        store: where features are.
    """

    def __init__(self, recipe: RecipeSettings, store: FeatureStore) -> None:
        said = (recipe.store or StoreSettings(url=".")).model_copy(update={"form": str(store.form)})
        self.store, self._common = store, common_key(recipe, said)
        self._journal: Journal | None = None

    def __call__(self, media: Sequence[Medium]) -> int:
        """Have the entries of these media on this machine, and near; returns how many there are."""
        if not media:
            return 0
        if self._journal is None:
            self._journal = Journal(self.store)
        names = self._journal.names(media_key(self._common, media)) or ()
        return sum(map(self.store.fetch, names))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_journal": None}
