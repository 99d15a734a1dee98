"""METEOR and the Penn Treebank tokeniser: through Java and pycocoevalcap, or not at all."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from support.java_tools import TOOLS, needs_java, not_run
from test_metrics_goldens import EXACT, info, scanqa

from vega3d_plugin.evaluation.metrics import score
from vega3d_plugin.evaluation.metrics.captions.captions import CaptionMetrics
from vega3d_plugin.evaluation.metrics.captions.java import METEOR, NOT_COMPUTED, TOKENISER, JavaTools
from vega3d_plugin.evaluation.metrics.captions.meteor import MeteorEstimator
from vega3d_plugin.evaluation.metrics.errors import ScoreError


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JavaTools, "find", classmethod(lambda cls: None))


def program(folder: Path, script: str) -> JavaTools:
    """A Java that does what the script says, and the two files it would be given."""
    for jar in (METEOR, TOKENISER):
        (folder / jar).parent.mkdir(parents=True, exist_ok=True)
        (folder / jar).touch()
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    return JavaTools(str(java), folder)


@pytest.mark.usefixtures("without")
def test_meteor_has_no_stand_in() -> None:
    found = score("scanqa", *scanqa(), resamples=0)
    figure = found.figure("METEOR")
    assert figure.value is None
    assert figure.why == NOT_COMPUTED == "not computed: needs Java and pycocoevalcap"
    assert NOT_COMPUTED in found.table()
    assert found.figure("CIDEr").value is not None
    assert "METEOR" not in found.items[0].values


@pytest.mark.usefixtures("without")
def test_nor_has_the_tokeniser() -> None:
    found = score("scanqa", *scanqa(), "official", resamples=0)
    assert {figure.measure for figure in found.figures if figure.value is not None} == {"EM"}
    assert {figure.why for figure in found.figures if figure.value is None} == {NOT_COMPUTED}


@pytest.mark.usefixtures("without")
def test_a_run_without_java_says_so_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.java_tools.TOOLS", None)
    assert not_run()[0].startswith("NOT RUN: tests of METEOR")


def test_a_java_that_fails_is_told(tmp_path: Path) -> None:
    tools = program(tmp_path, "echo 'Error: no heap' >&2; exit 1")
    metrics = CaptionMetrics.of(["a chair"], [["a chair"]], tools)
    why = metrics.estimators["METEOR"]
    assert isinstance(why, str)
    assert why.startswith("not computed: Java failed in METEOR")
    assert "no heap" in why
    assert "METEOR" not in metrics.values
    with pytest.raises(ScoreError, match=r"Java failed in the tokeniser.*no heap"):
        tools.tokenise(["a chair"])


def test_a_meteor_that_says_something_else_is_told(tmp_path: Path) -> None:
    tools = program(tmp_path, "while read line; do echo hello; done")
    try:
        with pytest.raises(ScoreError, match="it said 'hello' to 'a chair'"):
            tools.meteor().statistics("a chair", ["a chair"])
    finally:
        tools.meteor().close()


def test_a_tokeniser_that_loses_lines_is_told(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="1 lines came back for 2 texts"):
        program(tmp_path, "echo one").tokenise(["one", "two"])
    with pytest.raises(ScoreError, match="Java failed in the tokeniser"):
        program(tmp_path, "printf 'one\\ntwo'").tokenise(["one"])


@needs_java
def test_tokens_of_the_penn_treebank() -> None:
    golden = info("ptb_tokens")["rows"]
    assert TOOLS is not None
    assert TOOLS.tokenise([row["text"] for row in golden]) == [row["tokens"] for row in golden]
    # One at a time too, and the empty text last.
    assert TOOLS.tokenise([golden[0]["text"], ""]) == [golden[0]["tokens"], ""]
    assert TOOLS.tokenise([]) == []


@needs_java
def test_line_ends_within_texts_do_not_shift_the_others() -> None:
    ends = ("\n", "\r", "\x0b", "\x0c", "\u2028", "\x85")
    assert TOOLS is not None
    assert TOOLS.tokenise([*(f"a{end}chair" for end in ends), "a bed"]) == [*(["a chair"] * len(ends)), "a bed"]


@needs_java
def test_scanqas_own_scorer() -> None:
    golden = info("metric_scanqa_official")
    given = [
        {"question_id": f"q{place}", "prediction": row["pred"], "answers": row["answers"]}
        for place, row in enumerate(golden["rows"])
    ]
    found = score("scanqa", given, as_="official", resamples=0)
    scores = golden["scores"]
    for measure, expected in (("CIDEr", scores["cider"]), ("ROUGE-L", scores["rouge_l"]), ("METEOR", scores["meteor"])):
        assert found.figure(measure).value == pytest.approx(100 * expected, **EXACT), measure
    for order, expected in enumerate(scores["bleu"], 1):
        assert found.figure(f"BLEU-{order}").value == pytest.approx(100 * expected, **EXACT)


@needs_java
def test_meteor_of_the_released_scripts() -> None:
    golden = info("metric_scan2cap")
    found = score("scan2cap", golden["rows"], resamples=0)
    assert found.figure("METEOR").value == pytest.approx(golden["printed"]["METEOR"], **EXACT)
    answers = score("scanqa", *scanqa(), resamples=0)
    expected = info("metric_scanqa")["printed"]["METEOR"]
    assert answers.figure("METEOR").value == pytest.approx(expected, **EXACT)


@needs_java
def test_sums_of_what_meteor_counts_score_as_the_texts_do() -> None:
    golden = info("metric_scan2cap")["prepared"]
    assert TOOLS is not None
    found = MeteorEstimator(TOOLS, golden["pred"], golden["gt"])
    assert found.exact
    counts = np.random.default_rng(0).integers(0, 4, size=(5, len(golden["pred"]))).astype(float)
    by_sums = found.estimate(counts)
    found.exact = False
    np.testing.assert_allclose(by_sums, found.estimate(counts), atol=1e-9)
    assert np.isnan(found.estimate(np.zeros((1, len(golden["pred"])))))


@needs_java
def test_odd_texts_keep_meteor_in_step() -> None:
    assert TOOLS is not None
    odd = ["", " ", "a\nchair", "||| a chair |||", "\u6905\u5b50", "x" * 5000]
    alone = [MeteorEstimator(TOOLS, ["a chair"], [["a chair"]]).values[0]] * 2
    found = MeteorEstimator(
        TOOLS, ["a chair", *odd, "a chair"], [["a chair"], *([["a |||\nchair", ""]] * len(odd)), ["a chair"]]
    )
    assert [found.values[0], found.values[-1]] == alone
    assert found.values[3] == pytest.approx(alone[0])


@needs_java
def test_a_meteor_that_was_killed_is_started_again() -> None:
    assert TOOLS is not None
    before = MeteorEstimator(TOOLS, ["a red chair"], [["a chair"]])
    TOOLS.meteor().program.kill()
    TOOLS.meteor().program.wait()
    assert before.estimate(np.ones((1, 1)))[0] == pytest.approx(before.values[0])
