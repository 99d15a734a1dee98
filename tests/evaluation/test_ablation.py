"""The arithmetic of ``vega3d ablate``: the interval, and what it allows to say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vega3d_plugin.evaluation.ablation import Ablation, Difference, Score, differences
from vega3d_plugin.evaluation.comparison.measures import same_answer
from vega3d_plugin.evaluation.verdicts import compared


def bootstrap(
    values: np.ndarray, groups: np.ndarray, *, seed: int, resamples: int
) -> tuple[float | None, float | None]:
    return compared(values[None], np.zeros_like(values)[None], groups, seed=seed, resamples=resamples)[1:3]


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        values = rng.normal(0.3, 1.0, size=60)
        low, high = bootstrap(values, np.arange(60), seed=trial, resamples=400)
        hits += low <= 0.3 <= high
    assert 180 <= hits <= 199


def test_one_seed_one_interval() -> None:
    values = np.random.default_rng(0).normal(size=30)
    one = bootstrap(values, np.arange(30), seed=1, resamples=1000)
    assert one == bootstrap(values, np.arange(30), seed=1, resamples=1000)
    assert one != bootstrap(values, np.arange(30), seed=2, resamples=1000)
    assert one[0] < values.mean() < one[1]


def test_answers_of_one_row_are_drawn_together() -> None:
    """Copies of an answer in its row are no more evidence than the answer alone."""
    values = np.random.default_rng(0).normal(size=20)
    alone = bootstrap(values, np.arange(20), seed=0, resamples=2000)
    copied = bootstrap(np.repeat(values, 5), np.repeat(np.arange(20), 5), seed=0, resamples=2000)
    assert copied == pytest.approx(alone)
    as_if_independent = bootstrap(np.repeat(values, 5), np.arange(100), seed=0, resamples=2000)
    assert as_if_independent[1] - as_if_independent[0] < 0.6 * (alone[1] - alone[0])


def test_one_row_has_no_interval() -> None:
    assert bootstrap(np.array([1.0, 2.0]), np.array([0, 0]), seed=0, resamples=100) == (None, None)


def scored(nll: list[tuple[float, float]], exact: list[tuple[bool, bool]] | None = None) -> Ablation:
    """Answers with ``(patched, control)`` values; every control the same."""
    found = Ablation({})
    for index, (patched, control) in enumerate(nll):
        said = (None, None) if exact is None else exact[index]
        other = Score(control, 1, "", said[1])
        scores = {"patched": Score(patched, 1, "", said[0]), "base": other, "off": other, "zeroed": other}
        found.answers.append({"row": str(index), "scores": scores})
    return found


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (-1.0, 0.1, "patched is better"),
        (1.0, 0.1, "patched is worse"),
        (0.0, 1.0, "no difference shown: the interval contains 0"),
        (0.0, 0.0, "the same on every answer"),
    ],
)
def test_lower_likelihood_loss_is_better(shift: float, spread: float, verdict: str) -> None:
    noise = np.random.default_rng(0).normal(0, spread, size=40)
    noise -= noise.mean()
    found = scored([(2.0 + shift + float(n), 2.0) for n in noise])
    told = differences(found, seed=0, resamples=500)
    assert [d.control for d in told] == ["base", "off", "zeroed"]
    assert all(d.verdict.startswith(verdict) for d in told)
    assert told[0].mean == pytest.approx(shift, abs=1e-9)


def test_higher_exact_match_is_better() -> None:
    found = scored([(1.0, 1.0)] * 20, [(index < 15, index < 2) for index in range(20)])
    told = {(d.control, d.measure): d for d in differences(found, seed=0, resamples=500)}
    assert told["base", "exact"].mean == pytest.approx(0.65)
    assert told["base", "exact"].verdict.startswith("patched is better")
    assert told["base", "nll"].verdict == "the same on every answer"
    worse = Difference("base", "exact", -0.2, -0.3, -0.1)
    assert worse.verdict.startswith("patched is worse")


def test_exact_but_for_case_space_and_full_stop() -> None:
    assert same_answer(" The sofa. ", "the sofa")
    assert not same_answer("the sofa and", "the sofa")
    assert not same_answer("3.5", "35")


def test_no_verdict_on_numbers_that_are_none() -> None:
    for values in ((float("nan"), -1.0, 1.0), (1.0, float("nan"), float("nan")), (float("inf"), 0.5, float("inf"))):
        assert Difference("base", "nll", *values).verdict.startswith("no verdict")


def test_answers_about_one_picture_are_one_piece_of_evidence() -> None:
    found = scored([(1.0 + 0.01 * place, 2.0) for place in range(40)])
    for place, answer in enumerate(found.answers):
        answer["pictures"] = f"video {place % 5}"
    told = differences(found, seed=0, resamples=200)
    assert {d.verdict for d in told} == {"no verdict: fewer than 6 pictures or rows have no interval"}


def test_nan_is_null_in_a_file() -> None:
    found = scored([(float("nan"), 2.0)] * 8)
    found.differences = differences(found, seed=0, resamples=200)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["means"]["patched"]["nll"] is None
    assert values["differences"][0]["verdict"].startswith("no verdict")
