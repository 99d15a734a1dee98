"""Intervals, comparisons, and the figures' form."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from vega3d_plugin.contracts.errors import UnknownNameError
from vega3d_plugin.evaluation.metrics import Difference, Score, ScoreError, compare, score
from vega3d_plugin.evaluation.metrics.bootstrap import Bootstrap, interval
from vega3d_plugin.evaluation.metrics.captions.bleu import Bleu, bleu, bleu_counts
from vega3d_plugin.evaluation.metrics.captions.cider import Cider
from vega3d_plugin.evaluation.metrics.estimators import Mean, MeanOfParts

WORDS = ("a", "the", "red", "green", "chair", "table", "by", "door", "window", "left", "of", "bed")
RNG = np.random.default_rng(5)


def sentence() -> str:
    return " ".join(RNG.choice(WORDS, RNG.integers(1, 9)))


CANDIDATES = [sentence() for _ in range(12)]
REFERENCES = [[sentence() for _ in range(RNG.integers(1, 4))] for _ in range(12)]


def sqa(right: list[int], scenes: list[str] | None = None, kind: str = "what") -> list[dict[str, Any]]:
    scenes = scenes or [f"scene{place}" for place in range(len(right))]
    return [
        {
            "id": place, "gt_response": "yes", "pred_response": "yes" if one else "no", "question_type": kind,
            "scene": scenes[place],
        }
        for place, one in enumerate(right)
    ]  # fmt: skip


def run(rows: list[dict[str, Any]], **options: Any) -> Score:
    return score("sqa3d", rows, **options)


# Estimators.


def test_counting_a_question_twice_is_having_it_twice() -> None:
    counts = RNG.integers(0, 3, size=(4, 12)).astype(float)
    table = bleu_counts(CANDIDATES, REFERENCES)
    for order in range(1, 5):
        found = Bleu(table, order).estimate(counts)
        for row, value in zip(counts, found, strict=True):
            assert value == pytest.approx(bleu(np.repeat(table, row.astype(int), axis=0).sum(axis=0))[order - 1])
    values = RNG.random(12)
    for row, value in zip(counts, Mean(values).estimate(counts), strict=True):
        assert value == pytest.approx(np.repeat(values, row.astype(int)).mean())


def test_a_part_of_the_questions_is_a_corpus_of_its_own() -> None:
    whole = Cider(CANDIDATES, REFERENCES)
    members = np.arange(12) % 3 == 0
    alone = Cider(CANDIDATES[::3], REFERENCES[::3])
    everything = np.ones((1, 4))
    assert whole.estimate(members[None].astype(float))[0] == pytest.approx(alone.estimate(everything)[0])
    table = bleu_counts(CANDIDATES, REFERENCES)
    part = Bleu(table[::3], 2).estimate(everything)
    assert Bleu(table, 2).estimate(members[None].astype(float)) == pytest.approx(part)


def test_cider_of_one_question_is_nothing() -> None:
    assert Cider(["a chair"], [["a chair"]]).estimate(np.ones((1, 1))) == [0]


def test_resamples_keep_ciders_document_frequencies() -> None:
    """Frequencies taken anew would make what is drawn twice look common, and every interval too low."""
    whole = Cider(CANDIDATES, REFERENCES, 100.0)
    members = np.ones(12, dtype=bool)
    point = whole.estimate(np.ones((1, 12)))[0]
    draws = Bootstrap(4000).counts("x", members, None, None)
    means = np.concatenate([whole.over(members).estimate(counts) for counts in draws])
    assert means.mean() == pytest.approx(point, rel=0.02)


def test_parts_weigh_alike() -> None:
    first = np.array([True, False, False])
    parts = MeanOfParts([(Mean(np.array([1.0, 0, 0])), first), (Mean(np.array([1.0, 0, 1])), ~first)])
    assert parts.estimate(np.ones((1, 3)))[0] == pytest.approx(0.75)
    assert np.isnan(parts.estimate(np.array([[1.0, 0, 0]]))[0])


# Draws.


def drawn(bootstrap: Bootstrap, **options: Any) -> Any:
    given = {"name": "x", "members": np.ones(6, dtype=bool), "strata": None, "groups": None, **options}
    return np.concatenate(list(bootstrap.counts(**given)))


def test_as_many_are_drawn_as_there_are() -> None:
    counts = drawn(Bootstrap(50))
    assert counts.shape == (50, 6)
    assert set(counts.sum(axis=1)) == {6}
    assert len({tuple(row) for row in counts}) > 40


def test_draws_depend_on_the_seed_and_on_nothing_else() -> None:
    assert (drawn(Bootstrap(20)) == drawn(Bootstrap(20))).all()
    assert (drawn(Bootstrap(20)) != drawn(Bootstrap(20, seed=1))).any()
    assert (drawn(Bootstrap(20)) != drawn(Bootstrap(20), name="y")).any()


def test_strata_keep_their_sizes() -> None:
    strata = np.array([0, 0, 0, 1, 1, 2])
    counts = drawn(Bootstrap(50), strata=strata)
    for stratum, size in ((0, 3), (1, 2), (2, 1)):
        assert set(counts[:, strata == stratum].sum(axis=1)) == {size}


def test_members_alone_are_drawn() -> None:
    members = np.array([True, False, True, False, True, True])
    counts = drawn(Bootstrap(50), members=members)
    assert not counts[:, ~members].any()
    assert set(counts.sum(axis=1)) == {4}


def test_scenes_are_drawn_whole() -> None:
    groups = np.array([0, 0, 1, 1, 1, 2])
    counts = drawn(Bootstrap(50), groups=groups)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 2] == counts[:, 4]).all()
    assert set(counts[:, [0, 2, 5]].sum(axis=1)) == {3}


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(Bootstrap(50))
    monkeypatch.setattr("vega3d_plugin.evaluation.metrics.bootstrap.CHUNK", 60)
    assert len(list(Bootstrap(50).counts("x", np.ones(6, dtype=bool), None, None))) == 5
    assert (drawn(Bootstrap(50)).sum(axis=0) > 0).all()
    assert whole.shape == drawn(Bootstrap(50)).shape


def test_no_interval_without_a_score_in_every_draw() -> None:
    assert interval(np.array([1.0, np.nan])) == (None, None)
    assert interval(np.zeros(0)) == (None, None)


# Intervals of scores.


def test_an_interval_is_that_of_the_binomial() -> None:
    figure = run(sqa([1] * 60 + [0] * 40), resamples=4000).figure("EM")
    assert figure.value == 60
    # 60 +- 1.96 * sqrt(0.6 * 0.4 / 100)
    assert figure.low == pytest.approx(50.4, abs=1.5)
    assert figure.high == pytest.approx(69.6, abs=1.5)


def test_scenes_make_an_interval_wider() -> None:
    right, scenes = [1] * 50 + [0] * 50, [f"s{place // 10}" for place in range(100)]
    by_question, by_scene = (run(sqa(right, scenes), by=by).figure("EM") for by in ("question", "scene"))
    widths = [(figure.high or 0) - (figure.low or 0) for figure in (by_question, by_scene)]
    assert widths[1] > 2 * widths[0]
    assert "by-scene" in by_scene.signature


def test_scenes_have_to_be_known() -> None:
    rows = [{key: value for key, value in row.items() if key != "scene"} for row in sqa([1, 0])]
    with pytest.raises(ScoreError, match=r"predictions\[0\]: no scene"):
        run(rows, by="scene")
    with pytest.raises(UnknownNameError, match="unit of the bootstrap"):
        run(rows, by="scenes")


def test_one_question_has_no_interval() -> None:
    figure = run(sqa([1])).figure("EM")
    assert (figure.low, figure.high, figure.interval) == (None, None, "-")
    assert run(sqa([1, 0]), resamples=0).figure("EM").interval == "-"


def test_the_same_twice() -> None:
    rows = sqa([1, 0, 1, 1, 0, 0, 1, 0])
    assert run(rows).to_json() == run(rows).to_json()
    # The order of the rows makes no score.
    assert run(rows[::-1]).figure("EM").value == run(rows).figure("EM").value


def test_every_figure_carries_its_protocol() -> None:
    found = run(sqa([1, 0, 1]), as_="leo", seed=3, resamples=100)
    for figure in found.figures:
        for part in ("sqa3d|as:leo", figure.measure, f"type:{figure.type}", "n:3", "100,seed3", "vega3d:"):
            assert part in figure.signature
    signatures = [figure.signature for figure in found.figures]
    assert len(set(signatures)) == len(signatures)
    assert set(signatures).isdisjoint(figure.signature for figure in run(sqa([1, 0, 1])).figures)


def test_json_and_table_hold_everything() -> None:
    found = run(sqa([1, 0, 1]))
    values = json.loads(found.to_json())
    assert values["protocol"]["source"].startswith("H-EmbodVis/VEGA-3D")
    assert len(values["figures"]) == len(found.figures)
    table = found.table()
    for figure in found.figures:
        assert figure.shown in table
        assert figure.interval in table
    assert found.protocol.source in table
    assert [row["EM"] for row in found.per_item()] == [1, 0, 1]
    assert [row["said"] for row in found.per_item()] == ["yes", "no", "yes"]
    with pytest.raises(KeyError, match="there are"):
        found.figure("CIDEr")


def test_an_interval_of_cider_keeps_the_document_frequencies() -> None:
    rows = [{"id": n, "prediction": CANDIDATES[n], "gt_response": REFERENCES[n]} for n in range(12)]
    found = score("scan2cap", rows)
    values = np.array([item.values["CIDEr"] for item in found.items])
    draws = np.concatenate(list(Bootstrap().counts("all/CIDEr", np.ones(12, dtype=bool), None, None)))
    expected = np.percentile(draws @ values / 12, [2.5, 97.5])
    assert [found.figure("CIDEr").low, found.figure("CIDEr").high] == pytest.approx(expected.tolist())


# Comparisons.


def test_pairs_tell_more_than_two_intervals() -> None:
    better = [1] * 55 + [0] * 45
    worse = [1] * 45 + [0] * 55
    first, second = run(sqa(better)), run(sqa(worse))
    assert (first.figure("EM").low or 0) < (second.figure("EM").high or 0)
    (difference, _) = compare(first, second).differences
    assert difference.difference == pytest.approx(10)
    assert (difference.low or 0) > 0
    assert difference.verdict == "higher: the interval does not contain 0"
    assert compare(second, first).differences[0].verdict == "lower: the interval does not contain 0"


def test_a_difference_that_may_be_chance_is_none() -> None:
    found = compare(run(sqa([1, 0, 1, 0, 1, 0])), run(sqa([0, 1, 1, 0, 0, 1]))).differences[0]
    assert found.verdict == "no difference shown: the interval contains 0"


def test_the_same_answers_have_no_difference() -> None:
    found = compare(run(sqa([1, 0, 1])), run(sqa([1, 0, 1]))).differences[0]
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.verdict == "no difference: the same in every resample"


def test_the_order_of_the_answers_makes_no_difference() -> None:
    rows = sqa([1, 0, 1, 1, 0])
    same = compare(run(rows), run(rows[::-1])).differences[0]
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    shuffled = compare(run(rows), run(sqa([0, 0, 1, 1, 0])[::-1])).differences[0]
    assert shuffled.difference == pytest.approx(20)


def test_differences_of_corpus_metrics_are_those_of_the_scores() -> None:
    def captions(texts: list[str]) -> Score:
        rows = zip(texts, REFERENCES, strict=True)
        return score("scan2cap", [{"id": n, "prediction": t, "gt_response": r} for n, (t, r) in enumerate(rows)])

    first, second = captions(CANDIDATES), captions(CANDIDATES[::-1])
    for found in compare(first, second).differences:
        if found.difference is None:
            assert found.measure == "METEOR"
            continue
        values = [one.figure(found.measure).value or 0 for one in (first, second)]
        assert found.difference == pytest.approx(values[0] - values[1])
        assert (found.low or 0) <= found.difference <= (found.high or 0)
    # Differences of CIDEr keep the document frequencies too.
    each = [np.array([item.values["CIDEr"] for item in one.items]) for one in (first, second)]
    draws = np.concatenate(list(Bootstrap().counts("all/CIDEr", np.ones(12, dtype=bool), None, None)))
    expected = np.percentile(draws @ (each[0] - each[1]) / 12, [2.5, 97.5])
    cider = compare(first, second).differences[0]
    assert [cider.low, cider.high] == pytest.approx(expected.tolist())


def test_other_questions_are_not_compared() -> None:
    first, second = run(sqa([1, 0, 1, 1])), run(sqa([0, 0, 1]))
    with pytest.raises(ScoreError, match="3 are in both, 1 only in the first and 0 only in the second"):
        compare(first, second)
    found = compare(first, second, common=True)
    assert found.headline.startswith("PART OF THE QUESTIONS: first minus second over 3 questions")
    assert found.differences[0].first == pytest.approx(200 / 3)
    with pytest.raises(ScoreError, match="have different figures"):
        compare(first, run(sqa([1, 0, 1, 1]), as_="leo"))


def test_cider_over_common_questions_is_that_of_those() -> None:
    def captions(places: list[int]) -> Score:
        rows = [{"id": n, "prediction": CANDIDATES[n], "gt_response": REFERENCES[n]} for n in places]
        return score("scan2cap", rows, resamples=50)

    found = compare(captions(list(range(12))), captions(list(range(8))), common=True)
    cider = next(one for one in found.differences if one.measure == "CIDEr")
    assert cider.difference == pytest.approx(0)
    assert cider.first == pytest.approx(captions(list(range(8))).figure("CIDEr").value)


def test_other_truths_are_not_compared() -> None:
    other = sqa([1, 0, 1])
    other[1]["gt_response"] = "maybe"
    with pytest.raises(ScoreError, match=r"1 questions have another ground truth .*first: 1"):
        compare(run(sqa([1, 0, 1])), run(other))


def test_no_verdict_without_a_finite_score() -> None:
    rows = [{"id": 0, "source": "COCO", "answer": "(A)", "prediction": "A"}]
    found = compare(score("cvbench", rows), score("cvbench", rows)).differences[0]
    assert found.difference is None
    assert found.verdict.startswith("not computed: its formula needs all three sources")
    assert Difference("all", "EM", 1.0, 0.0, 1.0, None, None, 1, "percent").verdict.startswith("no interval")


def test_a_comparison_prints_and_saves() -> None:
    found = compare(run(sqa([1, 0, 1, 1])), run(sqa([0, 0, 1, 0])))
    assert found.differences[0].verdict in found.table()
    assert json.loads(found.to_json())["differences"][0]["verdict"] == found.differences[0].verdict
    assert any("the intervals are not corrected" in note for note in found.notes)
