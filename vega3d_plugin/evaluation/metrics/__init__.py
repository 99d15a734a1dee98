"""Scores of the benchmarks: whose scorer, over which questions, with which interval. Imports no torch."""

from .benchmarks.scanrefer import KEPT_CLASSES, OFFICIAL_CLASSES, read_label_ids, unique_or_multiple
from .comparing import Comparison, Difference, compare
from .errors import ScoreError
from .matching import Coverage
from .results import Figure, ItemScore, Score
from .scoring import get_benchmark, list_benchmarks, score

__all__ = [
    "KEPT_CLASSES",
    "OFFICIAL_CLASSES",
    "Comparison",
    "Coverage",
    "Difference",
    "Figure",
    "ItemScore",
    "Score",
    "ScoreError",
    "compare",
    "get_benchmark",
    "list_benchmarks",
    "read_label_ids",
    "score",
    "unique_or_multiple",
]
