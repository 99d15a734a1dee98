"""What a comparison of priors found. Its table and its picture are made elsewhere."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from .intervals import Interval
from .records import CorrespondenceScores, Record, Result


class Correlation(Record):
    """How a figure goes with the downstream score. Attributes: ``value`` and the ends of its 95% interval over priors;
    None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Interval:
        """As an interval."""
        value, low, high = (math.nan if v is None else v for v in (self.value, self.low, self.high))
        return Interval(value, low, high)


class ComparisonScores(Result):
    """What :func:`vega3d.analysis.compare` found.

    Attributes:
        kind, format: of the file.
        result: all priors, on the scenes that all of them were judged on.
        labels: what each of its priors is called.
        downstream_name: what the downstream score is; empty where there is none.
        downstream: of each prior, None where it is not known or the prior is not the one that stands for its name.
        pearson, spearman: by figure; empty where fewer than three priors have a downstream score.
        notes: what was left out.
    """

    kind: Literal["comparison"] = "comparison"
    format: Literal[1] = 1
    result: CorrespondenceScores
    labels: tuple[str, ...]
    downstream_name: str = ""
    downstream: tuple[float | None, ...] = ()
    pearson: dict[str, Correlation] = Field(default_factory=dict)
    spearman: dict[str, Correlation] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> ComparisonScores:
        count = len(self.result.priors)
        if len(self.labels) != count or (self.downstream and len(self.downstream) != count):
            raise ValueError("labels or downstream scores are not one for each prior")
        return self
