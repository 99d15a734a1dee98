"""A read-out result, with its table, its sentences and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..charts import save
from .pictures import readout_picture
from .records import ReadoutScores
from .tables import readout_findings, readout_table

if TYPE_CHECKING:
    from PIL.Image import Image


class ReadoutResult(ReadoutScores):
    """What :func:`vega3d.analysis.readout` found.

    Attributes:
        kind, format: of the file.
        options: of the training, and how views and scenes were chosen.
        figures: what each figure is.
        higher: figures of which more is better.
        library: version that wrote it.
        priors: each prior in each context.
        notes: what was left out.
    """

    def table(self) -> str:
        """Every figure of every prior with its controls below it, as plain text."""

        return readout_table(self)

    def findings(self) -> list[str]:
        """What may be said of it, one sentence each."""

        return readout_findings(self)

    def plot(self, path: str | Path | None = None) -> Image:
        """The main figures beside their controls, and predicted beside true depth; written to ``path`` (PNG) if given.

        Raises:
            AnalysisError: a picture in the result cannot be read.
        """

        picture = readout_picture(self)
        return picture if path is None else save(picture, path)
