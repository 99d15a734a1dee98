"""What a difference allows to say, and the interval it is said from."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from vega3d_plugin.evaluation.comparison.measures import group_of, values_of
from vega3d_plugin.evaluation.verdicts import MEASURES, Effect, compared, gain, share, verdict


@pytest.mark.parametrize(
    ("measure", "mean", "low", "high", "said"),
    [
        ("nll", -0.0001, -0.0002, -0.00005, "no difference shown: below 0.0100, too small to matter"),
        ("exact", 0.001, 0.0005, 0.002, "no difference shown: below 0.5 pt, too small to matter"),
        ("nll", -0.5, -0.7, 0.1, "no difference shown: the interval contains 0"),
        ("nll", -0.5, -0.7, -0.3, "A is better: the interval does not contain 0"),
        ("nll", 0.5, 0.3, 0.7, "A is worse: the interval does not contain 0"),
        ("MRA", 0.5, 0.3, 0.7, "A is better: the interval does not contain 0"),
        ("relative error", 0.5, 0.3, 0.7, "A is worse: the interval does not contain 0"),
        ("exact", 0.0, 0.0, 0.0, "the same on every answer"),
        ("exact", 0.5, None, None, "no verdict: fewer than 6 pictures or rows have no interval"),
        ("nll", math.nan, math.nan, math.nan, "no verdict: some scores are NaN or infinite"),
        ("nll", -math.inf, -math.inf, -1.0, "no verdict: some scores are NaN or infinite"),
    ],
)
def test_no_more_than_the_interval_allows(measure: str, mean: float, low: float, high: float, said: str) -> None:
    assert verdict(MEASURES[measure], mean, low, high, "A") == said


def test_the_interval_covers_rows_and_seeds() -> None:
    """Runs that differ by their seeds: the interval of pooled rows alone would be far too narrow."""
    rng = np.random.default_rng(0)
    hits = {"rows and seeds": 0, "rows": 0}
    for trial in range(150):
        first, second = (rng.normal(0, 0.5, (5, 1)) + rng.normal(0, 1, (5, 200)) for _ in range(2))
        _, low, high, _ = compared(first, second, np.arange(200), seed=trial, resamples=300)
        hits["rows and seeds"] += low <= 0 <= high
        pooled = [side.mean(axis=0)[None] for side in (first, second)]
        _, low, high, _ = compared(*pooled, np.arange(200), seed=trial, resamples=300)
        hits["rows"] += low <= 0 <= high
    # With five seeds a side, percentiles lack what Student's t has; 126 of 150 is 84%.
    assert hits["rows and seeds"] >= 126
    assert hits["rows"] < 60


def test_a_control_of_the_same_runs_keeps_their_spread_out() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0, 3, (4, 1)) + rng.normal(0, 0.1, (4, 100))
    second = first - 1 + rng.normal(0, 0.1, (4, 100))
    apart = compared(first, second, np.arange(100), resamples=500)
    paired = compared(first, second, np.arange(100), same_runs=True, resamples=500)
    assert apart[0] == paired[0] == pytest.approx(1, abs=0.05)
    assert apart[1] < 0 < paired[1]
    assert paired[2] - paired[1] < 0.1 * (apart[2] - apart[1])


def test_the_size_of_an_effect() -> None:
    first = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert compared(first, first * 0, np.arange(4), resamples=100)[3] == pytest.approx(
        2.5 / np.std([1, 2, 3, 4], ddof=1)
    )
    assert compared(first, first - 1, np.arange(4), resamples=100)[3] is None


def test_five_pictures_are_too_few() -> None:
    values = np.ones((1, 60)) + np.arange(60) / 1000
    assert compared(values, values * 0, np.arange(60) % 5, resamples=100)[1:3] == (None, None)
    assert compared(values, values * 0, np.arange(60) % 6, resamples=100)[1] > 0


def test_plain_json_even_without_finite_values() -> None:
    effect = Effect("a", "b", "all", "nll", (math.nan, 1.0), math.nan, math.nan, math.nan, None, 3, 3, (1, 1))
    found = json.loads(json.dumps(effect.to_dict(), allow_nan=False))
    assert found["difference"] is None
    assert found["verdict"].startswith("no verdict")


@pytest.mark.parametrize(
    ("row", "values"),
    [
        ({"prediction": "B.", "ground_truth": "B"}, {"exact": 1, "choice": 1}),
        ({"prediction": "(b) left", "ground_truth": "B"}, {"exact": 0, "choice": 1}),
        ({"prediction": "A", "ground_truth": "(B)"}, {"exact": 0, "choice": 0}),
        ({"prediction": "about 5 m", "ground_truth": "4"}, {"exact": 0, "MRA": 0.6, "relative error": 0.25}),
        ({"prediction": "many", "ground_truth": 4}, {"exact": 0, "MRA": 0}),
        ({"prediction": "A chair", "metadata": {"answers": ["seat", "a chair."]}}, {"exact": 1}),
        ({"prediction": "x", "gt_response": "the sofa", "nll": 2.5}, {"exact": 0, "nll": 2.5}),
        ({"prediction": "x"}, {}),
    ],
)
def test_what_an_answer_scores(row: dict, values: dict) -> None:
    assert values_of(row) == pytest.approx(values)


def test_a_likelihood_that_is_none_stays_visible() -> None:
    assert math.isnan(values_of({"prediction": "x", "nll": None})["nll"])


def test_questions_about_one_picture_are_one_group() -> None:
    assert group_of({"sample_id": "a", "image": "x.png"}) == group_of({"sample_id": "b", "image": "x.png"})
    assert group_of({"sample_id": "a#1"}) == group_of({"sample_id": "a#2"}) != group_of({"sample_id": "b"})


def test_shares_and_gains_have_intervals_over_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 5)
    first, second = rng.integers(0, 2, (2, 1, 100)).astype(float)
    even = gain(first, second, groups)
    assert even.low is not None
    assert even.low < 0 < even.high
    assert even.better is None
    assert even.verdict("A").startswith("no difference shown")
    everything, nothing = np.ones((1, 100)), np.zeros((1, 100))
    assert gain(everything, nothing, groups).better is True
    assert gain(nothing, everything, groups).better is False
    half = share(first, groups)
    assert half.low < half.value == first.mean() < half.high
    # Neighbours in a group are alike, so whole groups are drawn.
    blocks = np.repeat(rng.integers(0, 2, 20), 5).astype(float)[None]
    over_rows, over_groups = share(blocks, np.arange(100)), share(blocks, groups)
    assert over_groups.high - over_groups.low > 1.7 * (over_rows.high - over_rows.low)
    # Five groups have no interval, and so no verdict.
    few = gain(everything[:, :25], nothing[:, :25], groups[:25])
    assert (few.low, few.better) == (None, None)
    assert few.points == "+100.0 points"
