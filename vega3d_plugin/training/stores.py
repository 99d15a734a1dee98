"""The feature store that a recipe names."""

from __future__ import annotations

from pathlib import Path

from ..features.store import FeatureStore
from ..recipes.blocks import StoreSettings
from ..recipes.schema import RecipeSettings


def feature_store(recipe: RecipeSettings, given: str | Path | None = None) -> FeatureStore | None:
    """The store of a recipe; None where it names none.

    Args:
        recipe: its block ``store`` says the form, and the place unless another is given.
        given: folder or URL.

    Raises:
        StoreError: it cannot be opened.
    """
    said = recipe.store or StoreSettings(url=".")
    if recipe.prior is None or (given is None and recipe.store is None):
        return None
    return FeatureStore(said.url if given is None else given, form=said.form, cache_bytes=said.cache_gb * 10**9)
