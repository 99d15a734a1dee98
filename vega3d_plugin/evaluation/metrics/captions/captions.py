"""All caption metrics of a set of answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..benchmark import Quantity
from ..bootstrap import Bools, Floats
from ..errors import ScoreError
from ..estimators import Estimator, Mean
from .bleu import Bleu, bleu, bleu_counts
from .cider import Cider
from .java import NOT_COMPUTED, JavaTools
from .meteor import MeteorEstimator
from .rouge import rouge_l

#: Every caption metric, in the order of the tables.
MEASURES = ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L")


@dataclass(frozen=True)
class CaptionMetrics:
    """Metrics of ``N`` prepared texts.

    Attributes:
        estimators: by name; a text in place of one says why it is not computed.
        values: by name, of each text ``[N]``.
        unit: of both, ``percent`` or ``fraction``.
    """

    estimators: dict[str, Estimator | str]
    values: dict[str, Floats]
    unit: str

    @classmethod
    def of(
        cls,
        candidates: Sequence[str],
        references: Sequence[Sequence[str]],
        tools: JavaTools | None,
        *,
        unit: str = "percent",
        measures: Sequence[str] = MEASURES,
    ) -> CaptionMetrics:
        """Compute them.

        Args:
            candidates: what the model said, prepared as the protocol wants it.
            references: what people said, at least one text each, prepared too.
            tools: for METEOR; None: it is not computed.
            unit: ``percent`` or ``fraction``.
            measures: names of :data:`MEASURES`.
        """
        scale = 100.0 if unit == "percent" else 1.0
        counts = bleu_counts(candidates, references)
        cider = Cider(candidates, references, scale)
        rouge = np.array([rouge_l(*pair) for pair in zip(candidates, references, strict=True)])
        estimators: dict[str, Estimator | str] = {"CIDEr": cider, "ROUGE-L": Mean(rouge, scale)}
        values = {"CIDEr": cider.scores(np.ones(len(candidates), dtype=bool)), "ROUGE-L": rouge * scale}
        for order in range(1, 5):
            estimators[f"BLEU-{order}"] = Bleu(counts, order, scale)
            values[f"BLEU-{order}"] = bleu(counts)[:, order - 1] * scale
        if "METEOR" in measures:
            try:
                estimators["METEOR"] = MeteorEstimator(tools, candidates, references, scale) if tools else NOT_COMPUTED
            except ScoreError as error:
                estimators["METEOR"] = f"not computed: {error}"
            if isinstance(estimators["METEOR"], MeteorEstimator):
                values["METEOR"] = estimators["METEOR"].values
        return cls(
            {name: estimators[name] for name in measures},
            {name: values[name] for name in measures if name in values},
            unit,
        )

    @classmethod
    def missing(cls, why: str = NOT_COMPUTED) -> CaptionMetrics:
        """None of them, and why."""
        return cls(dict.fromkeys(MEASURES, why), {}, "percent")

    def quantities(self, kind: str, members: Bools) -> list[Quantity]:
        """The figures over some of the questions."""
        return [
            Quantity(kind, name, None, members, self.unit, why=found)
            if isinstance(found, str)
            else Quantity(kind, name, found, members, self.unit)
            for name, found in self.estimators.items()
        ]

    def of_item(self, place: int) -> dict[str, float]:
        """The values of one text."""
        return {name: float(values[place]) for name, values in self.values.items()}
