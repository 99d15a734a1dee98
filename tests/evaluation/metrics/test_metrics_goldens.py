"""The reference vectors, all but those that need Java: what the released code computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import goldens

from vega3d_plugin.evaluation.metrics import Score, score, unique_or_multiple
from vega3d_plugin.evaluation.metrics.benchmarks.multi3drefer import f1_scores
from vega3d_plugin.evaluation.metrics.benchmarks.scan2cap import Caption, prepare
from vega3d_plugin.evaluation.metrics.captions.answers import clean_answer, match, question_type
from vega3d_plugin.evaluation.metrics.captions.captions import CaptionMetrics
from vega3d_plugin.evaluation.metrics.numbers import CONFIDENCES, mean_relative_accuracy

EXACT = {"rel": 1e-9, "abs": 1e-9}


def info(name: str) -> dict[str, Any]:
    return goldens.load(f"space/{name}").info


def rows(name: str) -> list[dict[str, Any]]:
    return [{"id": place, **row} for place, row in enumerate(info(name)["rows"])]


def values(found: Score, key: str) -> list[Any]:
    return [item.values[key] for item in found.items]


def scanqa() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions as the released script writes them, references as it reads them."""
    golden = info("metric_scanqa")
    pairs = list(zip(golden["sample_ids"], golden["rows"], strict=True))
    predictions = [
        {"sample_id": name, "pred_response": row["pred"], "gt_response": row["answers"][0]} for name, row in pairs
    ]
    references = [
        {"id": f"{name.rpartition('_')[0]}_0", "metadata": {"answers": row["answers"]}} for name, row in pairs
    ]
    return predictions, references


@pytest.mark.parametrize(("protocol", "scale"), [("vega3d", 1), ("official", 0.01)])
def test_scanrefer(protocol: str, scale: float) -> None:
    golden = info("metric_scanrefer")
    found = score("scanrefer", golden["rows"], as_=protocol, resamples=0)
    assert values(found, "iou") == pytest.approx(golden["iou"], **EXACT)
    assert len(golden["printed"]) == len(found.figures)
    for name, expected in golden["printed"].items():
        kind, measure = name.split(" iou@")
        assert found.figure(f"Acc@{measure}", kind).value == pytest.approx(expected * scale, **EXACT), name


def test_scanrefer_unique() -> None:
    golden = info("scanrefer_unique")
    assert unique_or_multiple(golden["rows"], golden["label_mapping"], golden["valid"]) == golden["eval_type"]


def test_multi3drefer() -> None:
    golden = info("metric_multi3drefer")
    found = score("multi3drefer", golden["rows"], resamples=0)
    assert values(found, "chosen") == golden["chosen"]
    scores = list(zip(values(found, "F1@0.25"), values(found, "F1@0.5"), strict=True))
    np.testing.assert_allclose(scores, golden["f1_25_50"], atol=1e-9)
    for name, expected in golden["printed"].items():
        kind, _, threshold = name.partition(" IoU")
        measure = f"F1@{int(threshold) / 100:g}"
        assert found.figure(measure, kind).value == pytest.approx(expected, **EXACT), name


def test_multi3drefer_pairs() -> None:
    for pair in info("metric_multi3drefer")["pairs"]:
        assert f1_scores(pair["pred"], pair["gt"]) == pytest.approx(pair["f1_25_50"], **EXACT)


def test_scan2cap() -> None:
    golden = info("metric_scan2cap")
    found = score("scan2cap", golden["rows"], resamples=0)
    assert values(found, "scored_as") == golden["prepared"]["pred"]
    printed = golden["printed"]
    for measure, name in (("CIDEr", "CIDER"), ("BLEU-4", "BLEU"), ("ROUGE-L", "Rouge")):
        assert found.figure(measure).value == pytest.approx(printed[name], **EXACT), measure
    for measure, name in (("CIDEr", "cider"), ("BLEU-4", "bleu4"), ("ROUGE-L", "rouge_l")):
        expected = [100 * value for value in golden["per_item"][name]]
        assert values(found, measure) == pytest.approx(expected, **EXACT), measure


def test_bleu_of_prepared_captions() -> None:
    golden = info("metric_scan2cap")
    prepared = [[prepare(Caption(text), "vega3d") for text in row["gt_response"]] for row in golden["rows"]]
    assert prepared == golden["prepared"]["gt"]
    metrics = CaptionMetrics.of(golden["prepared"]["pred"], prepared, None, unit="fraction")
    everything = np.ones((1, len(prepared)))
    estimators = [metrics.estimators[f"BLEU-{order}"] for order in range(1, 5)]
    found = [estimator.estimate(everything)[0] for estimator in estimators if not isinstance(estimator, str)]
    assert found == pytest.approx(golden["bleu_1_to_4"], **EXACT)
    assert metrics.values["BLEU-1"] == pytest.approx(golden["per_item"]["bleu1"], **EXACT)


def test_the_gate_of_scan2cap() -> None:
    for place, row in enumerate(info("metric_scan2cap_gate")["rows"]):
        given = {"id": place, "pred_response": row["pred"], "iou": row["iou"], "gt_response": ["a chair", "one chair"]}
        found = score("scan2cap", [given], resamples=0)
        assert found.items[0].values["scored_as"] == prepare(Caption(row["used"]), "vega3d")


def test_scanqa_as_released() -> None:
    golden = info("metric_scanqa")
    found = score("scanqa", *scanqa(), resamples=0)
    printed = golden["printed"]
    assert found.coverage.scored == printed["count"]
    assert found.figure("EM").value == pytest.approx(printed["EM"], **EXACT)
    assert found.figure("CIDEr").value == pytest.approx(printed["CIDER"], **EXACT)
    assert found.figure("ROUGE-L").value == pytest.approx(printed["Rouge"], **EXACT)
    for order, expected in enumerate(printed["BLEU"], 1):
        assert found.figure(f"BLEU-{order}").value == pytest.approx(expected, **EXACT)
    assert values(found, "EM") == golden["em"]
    for measure, name in (("CIDEr", "cider"), ("ROUGE-L", "rouge_l"), ("BLEU-1", "bleu1")):
        expected = [100 * value for value in golden["per_item"][name]]
        assert values(found, measure) == pytest.approx(expected, **EXACT), measure


def test_scanqa_officially_after_its_tokeniser() -> None:
    golden = info("metric_scanqa_official")
    metrics = CaptionMetrics.of(golden["tokens"]["pred"], golden["tokens"]["answers"], None, unit="fraction")
    everything = np.ones((1, len(golden["rows"])))
    scores = golden["scores"]
    expected = {"CIDEr": scores["cider"], "ROUGE-L": scores["rouge_l"]}
    expected |= {f"BLEU-{order}": value for order, value in enumerate(scores["bleu"], 1)}
    for name, value in expected.items():
        estimator = metrics.estimators[name]
        assert not isinstance(estimator, str)
        assert estimator.estimate(everything)[0] == pytest.approx(value, **EXACT), name


def test_the_exact_match_of_scanqas_own_scorer() -> None:
    golden = info("metric_scanqa_official")
    given = [
        {"question_id": f"q{place}", "answer_top10": [row["pred"]], "answers": row["answers"]}
        for place, row in enumerate(golden["rows"])
    ]
    assert values(score("scanqa", given, as_="official", resamples=0), "EM") == golden["em"]


def test_sqa3d() -> None:
    golden = info("metric_sqa3d")
    given = rows("metric_sqa3d")
    found = score("sqa3d", given, resamples=0)
    assert values(found, "cleaned") == [row["pred"] for row in golden["cleaned"]]
    assert values(found, "EM") == golden["em"]
    assert len(golden["printed"]) == len(found.figures)
    for kind, expected in golden["printed"].items():
        assert found.figure("EM", kind).value == pytest.approx(expected, **EXACT), kind
    leo = score("sqa3d", given, as_="leo", resamples=0)
    assert values(leo, "EM-R") == golden["em_refined"]
    assert leo.figure("EM-R").value == pytest.approx(np.mean(golden["em_refined"]), **EXACT)


def test_answers_are_cleaned_as_released() -> None:
    golden = info("metric_sqa3d")
    for row in golden["clean"]:
        assert clean_answer(row["text"]) == row["cleaned"], row
    assert [clean_answer(row["gt_response"]) for row in golden["rows"]] == [row["gt"] for row in golden["cleaned"]]


def test_the_first_answer_that_matches_decides() -> None:
    for row in info("metric_sqa3d")["several_answers"]:
        found = match(clean_answer(row["pred"]), [clean_answer(answer) for answer in row["answers"]])
        assert list(map(int, found)) == row["em_emr"], row


def test_question_types_of_sqa3d() -> None:
    for row in info("metric_sqa3d")["question_types"]:
        assert question_type(row["question"]) == row["type"], row


@pytest.mark.parametrize(
    ("protocol", "each", "all_", "scale"),
    [
        ("vega3d", "score", "subscores", 100),
        ("official", "score", "subscores", 100),
        ("lmms-eval", "score_newest_lmms_eval", "subscores_newest_lmms_eval", 1),
    ],
)
def test_vsibench(protocol: str, each: str, all_: str, scale: float) -> None:
    golden = info("metric_vsibench")
    found = score("vsibench", rows("metric_vsibench"), as_=protocol, resamples=0)
    assert values(found, "score") == pytest.approx([row[each] for row in golden["rows"]], **EXACT)
    assert len(found.figures) == len(golden[all_])
    for name, expected in golden[all_].items():
        task = name.removesuffix("_accuracy").removesuffix("_MRA:.5:.95:.05")
        (figure,) = [figure for figure in found.figures if figure.type == task]
        assert figure.value == pytest.approx(scale * expected, **EXACT), task


def test_vsibenchs_percentage() -> None:
    found = score("vsibench", rows("metric_vsibench"), resamples=0)
    expected = info("metric_vsibench")["overall_percent"]
    assert found.figure("mean of tasks", "overall").value == pytest.approx(expected, **EXACT)


def test_the_thresholds_of_relative_accuracy() -> None:
    golden = info("metric_vsibench")
    assert CONFIDENCES.tolist() == golden["thresholds"]
    assert (1 - CONFIDENCES).tolist() == golden["one_minus"]
    for row in golden["mra"]:
        assert mean_relative_accuracy(row["pred"], row["target"]) == pytest.approx(row["mra"], **EXACT), row
