"""What a toy is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vega3d
from vega3d_plugin.priors.frozen.prior import FrozenPrior


@dataclass(frozen=True)
class Toy:
    """A prior at toy size.

    Attributes:
        prior: its registered name.
        write: writes its checkpoint into an empty folder, with the classes' own ``save_pretrained``.
        settings: what else ``load_prior`` needs at this size (``size``, ``tap``, ...).
        map_size: height and width of its feature map with these settings.
        blocks: how many taps there are; None for a prior without a choice.
        id: for parametrised tests.
        contexts: those to test; by default all that the prior has.
        whole_frames: features of a frame in context ``frame`` do not depend on the other frames.
    """

    prior: str
    write: Callable[[Path], None]
    settings: Mapping[str, Any]
    map_size: tuple[int, int]
    blocks: int | None = None
    id: str = ""
    contexts: tuple[str, ...] = ()
    whole_frames: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def load(self, folder: Path, **settings: Any) -> FrozenPrior:
        """The prior from a folder that :attr:`write` filled."""
        prior = vega3d.load_prior(self.prior, pretrained=folder, **{**self.settings, **settings})
        assert isinstance(prior, FrozenPrior)
        return prior
