"""Families of generators: what all models of a family share, and a row for each model with what differs.

A row is data: where the weights come from, how wide and deep the model is, its tap, frame size and window. How weights
become a prior is in the family's own module, which is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...contracts.later import Later
from ...contracts.settings import NoOptions, Settings
from ...contracts.specs import ALL_CONTEXTS, PriorSpec

_PRIORS = __package__.rpartition(".")[0]


def later(place: str) -> Later:
    """What is in a module of ``priors``: ``generators.mochi:MochiPrior``."""
    return Later(f"{_PRIORS}.{place}")


@dataclass(frozen=True)
class Rows:
    """What all models of a family share.

    Attributes:
        place: of its :class:`~vega3d_plugin.priors.diffusion.families.Family`, in ``priors``.
        options: settings of this family alone.
        presets: settings by the name of a preset.
        licence: of the weights, one line.
        taps: what the numbers of the taps count.
    """

    place: str
    options: type[Settings] = NoOptions
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    licence: str = "Apache 2.0"
    taps: str = "blocks of the transformer"

    def row(
        self,
        name: str,
        summary: str,
        *,
        source: str,
        width: int,
        blocks: int,
        tap: int,
        size: tuple[int, int],
        window: int,
        parameters: float,
        overlap: int = 4,
        **more: Any,
    ) -> PriorSpec:
        """A model of this family.

        Args:
            name: what users write.
            summary: one line for ``vega3d ls priors``.
            source: hub id of the weights.
            width: channels of a feature.
            blocks: of the transformer.
            tap: the default one; two thirds of the depth is the paper's place in Wan.
            size: default height and width in pixels.
            window: latent steps that the model was trained on at once.
            parameters: of what is loaded with the default tap, in billions.
            overlap: latent steps that neighbouring windows share.
            **more: ``licence`` and ``taps`` where they differ; all else are defaults of settings.
        """
        licence, taps = more.pop("licence", self.licence), more.pop("taps", f"0 to {blocks - 1}: {self.taps}")
        return PriorSpec(
            name,
            later(f"{self.place}.load"),
            summary,
            source=source,
            feature_dim=width,
            contexts=ALL_CONTEXTS,
            defaults={"tap": tap, "size": size, "window": window, "overlap": overlap, **more},
            presets=self.presets,
            options=self.options,
            prompt=later(f"{self.place}.prompt"),
            licence=licence,
            taps=taps,
            parameters=parameters,
            kind=later(f"{self.place}.prior"),
        )
