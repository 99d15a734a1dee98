"""Intervals and correlations, on numbers that were published."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vega3d_plugin.analysis.intervals import (
    Interval,
    correlation_interval,
    difference_interval,
    mean_interval,
    pearson,
    ranks,
    spearman,
)
from vega3d_plugin.errors import AnalysisError

# Positions of the points in VEGA-3D's figure of correspondence against its downstream score, read off its pixels.
CORRESPONDENCE = [97.1, 96.9, 79.7, 77.2, 76.1, 72.2, 66.8, 61.8, 23.8, 17.9]
DOWNSTREAM = [89.3, 82.3, 77.2, 88.2, 75.2, 77.6, 63.7, 61.6, 70.5, 52.0]
GENERATIVE = [0, 1, 2, 4, 6, 8, 9]


def test_correlations_of_the_published_figure() -> None:
    x, y = np.array(CORRESPONDENCE), np.array(DOWNSTREAM)
    assert pearson(x, y) == pytest.approx(0.77, abs=0.005)
    assert spearman(x, y) == pytest.approx(0.88, abs=0.005)
    assert pearson(x[GENERATIVE], y[GENERATIVE]) == pytest.approx(0.83, abs=0.005)
    assert spearman(x[GENERATIVE], y[GENERATIVE]) == pytest.approx(0.96, abs=0.005)
    interval = correlation_interval(CORRESPONDENCE, DOWNSTREAM, pearson)
    assert interval.low < 0.77 < interval.high <= 1
    assert interval.units == 10


def test_ranks_share_their_mean() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert math.isnan(pearson(np.ones(4), np.arange(4.0)))


def test_the_interval_of_a_mean_covers_it() -> None:
    """Of 200 samples of 30 values the true mean lies within the interval 95% of the time, give or take."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        interval = mean_interval(rng.normal(2.0, 1.0, 30))
        hits += interval.low <= 2.0 <= interval.high
    assert 180 <= hits <= 200


def test_missing_values_and_few_of_them() -> None:
    assert mean_interval([]) == mean_interval([math.nan]) or math.isnan(mean_interval([]).value)
    one = mean_interval([0.5, math.nan])
    assert (one.value, one.units, one.is_known) == (0.5, 1, False)
    assert str(one) == "0.500"
    assert str(Interval(math.nan)) == "-"
    two = mean_interval([0.2, 0.4, math.nan])
    assert (two.units, two.is_known) == (2, True)
    assert str(two) == "0.300 [0.200, 0.400]"


def test_differences_are_paired() -> None:
    first = np.array([0.1, 0.5, 0.9, 0.4])
    apart = difference_interval(first + 0.05, first)
    assert apart.value == pytest.approx(0.05)
    assert apart.low == pytest.approx(0.05)
    assert apart.high == pytest.approx(0.05)


def test_too_few_for_a_correlation() -> None:
    with pytest.raises(AnalysisError, match="at least three"):
        correlation_interval([1, 2], [1, 2], pearson)
