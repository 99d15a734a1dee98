"""A correspondence result, with its table, its sentences and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .charts import save
from .records import CorrespondenceScores
from .tables import correspondence_chart, correspondence_findings, correspondence_table

if TYPE_CHECKING:
    from PIL.Image import Image


class CorrespondenceResult(CorrespondenceScores):
    """What :func:`vega3d.analysis.correspondence` found.

    Attributes:
        kind, format: of the file.
        protocol: its name.
        options: the protocol's options, and how views were chosen.
        figures: what each figure of the protocol is.
        headline: the figure that an offset shared by all tokens cannot raise.
        library: version that wrote it.
        priors: each prior in each context.
    """

    def table(self) -> str:
        """Every figure of every prior with its controls below it, then the headline by rotation, as plain text."""

        return correspondence_table(self)

    def findings(self) -> list[str]:
        """What may be said of it, one sentence each."""

        return correspondence_findings(self)

    def plot(self, path: str | Path | None = None) -> Image:
        """Every figure with its interval, beside its controls, as a picture; written to ``path`` (PNG) if given."""

        picture = correspondence_chart(self)
        return picture if path is None else save(picture, path)
