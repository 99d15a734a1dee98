"""What can go wrong before and during a training run."""

from __future__ import annotations

from ..errors import Vega3dError
from ..warnings import Vega3dWarning


class RowError(Vega3dError, ValueError):
    """A row of the data cannot be used; the message says which one and why."""


class BadRowsError(Vega3dError, ValueError):
    """Some rows of the data cannot be used; the message lists them."""


class TrainError(Vega3dError):
    """A run cannot be started or go on: the recipe, the model, the output folder or a checkpoint does not fit."""


class BadRowWarning(Vega3dWarning):
    """A row turned out bad only when its pictures were read; another took its place."""
