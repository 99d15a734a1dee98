"""Priors: the contract in ``base``, then one file per family."""

from ..contracts.priors import Prior, PriorSpec
from .load import list_priors, load_prior

__all__ = ["Prior", "PriorSpec", "list_priors", "load_prior"]
