"""Bad input: counted, named, refused, or left out on request, and then said in the first line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vega3d_plugin.contracts.errors import UnknownNameError, Vega3dError
from vega3d_plugin.evaluation.metrics import ScoreError, reading, score
from vega3d_plugin.evaluation.metrics.benchmarks.multi3drefer import MAX_BOXES
from vega3d_plugin.evaluation.metrics.reading import read_rows
from vega3d_plugin.evaluation.metrics.rows import MAX_CHARACTERS

QUESTIONS = [
    {"id": number, "question_type": "route_planning", "ground_truth": letter} for number, letter in enumerate("ABCD")
] + [{"id": 4, "question_type": "object_counting", "ground_truth": "3"}]
ANSWERS = [{"id": row["id"], "prediction": row["ground_truth"]} for row in QUESTIONS]


def lines(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def run(rows: list[dict[str, Any]], **options: Any) -> Any:
    return score("vsibench", rows, QUESTIONS, **{"as_": "official", "resamples": 0, **options})


def refused(rows: list[dict[str, Any]], **options: Any) -> str:
    with pytest.raises(ScoreError) as caught:
        run(rows, **options)
    return str(caught.value)


# How much was scored.


def test_a_whole_file_says_so() -> None:
    found = run(ANSWERS)
    assert found.coverage.complete
    assert found.headline.startswith("all 5 questions; the public test split has 5,130. VSI-Bench as official:")


def test_missing_answers_are_refused() -> None:
    message = refused(ANSWERS[:3])
    assert "2 questions without an answer:\n    3 (references[3])\n    4 (references[4])" in message
    assert "--leave-out missing" in message
    assert "--count-missing" in message


def test_less_than_all_questions_is_said_first() -> None:
    found = run(ANSWERS[:3], leave_out=["missing"])
    assert found.headline.startswith("INCOMPLETE: 3 of 5 questions (2 missing). ")
    assert found.table().startswith("INCOMPLETE: 3 of 5 questions")
    assert found.to_dict()["headline"].startswith("INCOMPLETE")
    assert not found.coverage.complete
    assert found.figure("accuracy", "route_planning").value == 100


def test_missing_answers_can_count_as_wrong() -> None:
    found = run(ANSWERS[:3], count_missing=True)
    assert found.headline.startswith("all 5 questions, 2 of them unanswered and counted as wrong")
    assert found.figure("accuracy", "route_planning").value == 75
    assert found.figure("MRA", "object_counting").value == 0
    assert not found.coverage.complete


def test_without_references_nobody_knows() -> None:
    found = score(
        "vsibench", [{**q, **a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)], as_="official", resamples=0
    )
    assert found.headline.startswith("5 questions, those of the predictions (no references)")
    assert not found.coverage.complete


def test_answers_to_other_questions() -> None:
    other = {"id": "elsewhere", "prediction": "A"}
    message = refused([*ANSWERS, other])
    assert "1 answer to questions that the references do not have:\n    elsewhere (predictions[5])" in message
    found = run([*ANSWERS, other], leave_out=["unknown"])
    assert found.headline.startswith("all 5 questions")
    assert found.notes[-1] == "left out as unknown: 1 (first: elsewhere (predictions[5]))"


def test_two_answers_to_a_question() -> None:
    again = {"id": "0", "prediction": "D"}
    message = refused([*ANSWERS, again])
    assert "0 (predictions[5], before: predictions[0])" in message
    found = run([*ANSWERS, again], leave_out=["duplicate"])
    assert found.coverage.scored == 5
    assert found.figure("accuracy", "route_planning").value == 75


def test_another_version_of_the_benchmark() -> None:
    rows = [{**answer, **question} for answer, question in zip(ANSWERS, QUESTIONS, strict=True)]
    assert run(rows).coverage.complete
    rows[1]["ground_truth"] = "D"
    message = refused(rows)
    assert "another version of the benchmark's file:\n    1 (predictions[1], against references[1])" in message
    found = run(rows, leave_out=["mismatch", "missing"])
    assert found.headline.startswith("INCOMPLETE: 4 of 5 questions (1 missing, 1 mismatch)")


def test_another_type_is_another_version_too() -> None:
    rows = [{**answer, **question} for answer, question in zip(ANSWERS, QUESTIONS, strict=True)]
    rows[0]["question_type"] = "object_rel_distance"
    assert "another version" in refused(rows)


def test_true_answers_of_released_rows_are_looked_for_in_the_references() -> None:
    references = [{"id": "q_0", "metadata": {"answers": ["by the door", "next to door"]}}]
    row = {"sample_id": "q_3", "pred_response": "by the door", "gt_response": "next to door"}
    assert score("scanqa", [row], references, resamples=0).coverage.complete
    with pytest.raises(ScoreError, match="another version"):
        score("scanqa", [{**row, "gt_response": "window"}], references, resamples=0)


def test_everything_is_told_at_once() -> None:
    message = refused([*ANSWERS[:3], ANSWERS[0], {"id": "x", "prediction": "A"}, {"id": 3}, {"id": 4, "prediction": 3}])
    for told in (
        "2 questions without",
        "1 answer to a question",
        "1 answer to questions",
        "2 rows that cannot be used",
    ):
        assert told in message
    assert "leave_out=['duplicate', 'missing', 'unknown', 'unusable']" in message


def test_a_long_list_is_cut() -> None:
    message = refused([ANSWERS[0], *({"id": f"x{n}", "prediction": "A"} for n in range(9))], leave_out=["missing"])
    assert "9 answers" in message
    assert message.count("predictions[") == 3
    assert "and 6 more" in message


def test_unknown_kinds_to_leave_out() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'missing'"):
        run(ANSWERS, leave_out=["mising"])


def test_references_have_to_be_whole() -> None:
    twice = [*QUESTIONS, QUESTIONS[0]]
    with pytest.raises(ScoreError, match=r"references\[5\]: question 0 stands in the references twice"):
        score("vsibench", ANSWERS, twice)
    with pytest.raises(ScoreError, match=r"1 rows of the references cannot be used as VSI-Bench, protocol vega3d"):
        score("vsibench", ANSWERS, [*QUESTIONS, {"id": 9, "question_type": "route_planning"}])


def test_nothing_that_could_be_scored() -> None:
    with pytest.raises(ScoreError, match=r"No question of VSI-Bench has an answer.*5 questions without an answer"):
        run([{"id": "x", "prediction": "A"}], leave_out=["unknown", "missing"])
    with pytest.raises(ScoreError, match="There are no predictions: the list is empty"):
        score("vsibench", [])


def test_a_row_that_says_only_its_own_answer_is_not_its_own_reference() -> None:
    row = {"id": 0, "task": "position_matching", "answer": "A"}
    with pytest.raises(ScoreError, match="no key 'ground_truth' or 'gt_answer'"):
        score("sparbench", [row], resamples=0)
    found = score("sparbench", [row], [{**row, "answer": "B"}], resamples=0)
    assert found.figure("accuracy", "position_matching").value == 0


# What stands in a row.


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prediction": None}, "no key 'pred_response' or 'prediction'"),
        ({"prediction": 3}, "key 'prediction' is 3; a text is expected"),
        ({"prediction": ["A", "B"]}, "key 'prediction' is ['A', 'B']; a text is expected"),
        ({"prediction": "x" * (MAX_CHARACTERS + 1)}, "key 'prediction' has 20,001 characters"),
        ({"prediction": "\ud800"}, "half a character"),
        ({"id": 1.5}, "key 'id' is 1.5; the id of a question is a text or a whole number"),
        ({"id": True}, "key 'id' is True"),
        ({"id": None}, "no key 'sample_id' or 'question_id'"),
        ({"question_type": "object_countin"}, "Did you mean 'object_counting'"),
        ({"question_type": 7}, "key 'question_type' is 7; a text is expected"),
        ({"ground_truth": "many"}, "key 'ground_truth' is 'many'; a number is expected"),
        ({"ground_truth": float("nan")}, "key 'ground_truth' is nan; a finite number is expected"),
        ({"ground_truth": "inf"}, "a finite number is expected"),
        ({"ground_truth": 10**400}, "a finite number is expected"),
        ({"ground_truth": 0}, "key 'ground_truth' is 0; a number above 0 is expected"),
    ],
)
def test_unusable_rows(change: dict[str, Any], told: str) -> None:
    row = {"id": 0, "question_type": "object_counting", "ground_truth": "3", "prediction": "3"}
    with pytest.raises(ScoreError) as caught:
        score("vsibench", [row | change], resamples=0)
    assert f"predictions[0]: {told}" in str(caught.value) or told in str(caught.value)
    assert "predictions[0]: " in str(caught.value)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ([0, 0, 0, 1, 1], "has 5 numbers; a box has six"),
        ([0, 0, 0, 1, 1, float("inf")], "key 'pred_response[5]' is inf; a finite number"),
        ([0, 0, 0, 1, 1, "1"], "key 'pred_response[5]' is '1'; a number is expected"),
        ([0, 0, 0, 1, 1, True], "key 'pred_response[5]' is True"),
        ([0, 0, 0, 1, 1, -1], "a size below 0"),
        ([1e7, 0, 0, 1, 1, 1], "more than 1,000,000 metres"),
        ("a box", "a list of numbers is expected"),
    ],
)
def test_unusable_boxes(box: Any, told: str) -> None:
    row = {"id": 0, "question_type": "unique", "gt_response": [0, 0, 0, 1, 1, 1], "pred_response": box}
    with pytest.raises(ScoreError) as caught:
        score("scanrefer", [row], resamples=0)
    assert told in str(caught.value)


def test_too_many_boxes() -> None:
    row = {"id": 0, "question_type": "mt", "gt_response": [], "pred_response": [[0, 0, 0, 1, 1, 1]] * (MAX_BOXES + 1)}
    with pytest.raises(ScoreError, match="has 501 boxes"):
        score("multi3drefer", [row], resamples=0)


def test_nan_as_a_score_of_a_proposal() -> None:
    row = {
        "id": 0,
        "question_type": "mt",
        "gt_response": [],
        "objects": [[0, 0, 0, 1, 1, 1]],
        "scores": [float("nan"), 1],
    }
    with pytest.raises(ScoreError, match=r"key 'scores\[0\]' is nan"):
        score("multi3drefer", [row], resamples=0)


# Files.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"id": 0, "prediction": "A"', r"line 2: no JSON, or cut off: .* at character \d+"),
        ("[1, 2]", "line 2: a list in place of an object"),
        ('{"id": 0, "id": 1}', "line 2: key 'id' stands there twice"),
        ('{"id": NaN}', "line 2: NaN is no number"),
        ('{"id": -Infinity}', "line 2: -Infinity is no number"),
        ("[" * 100_000, "line 2: not a row: nested too deep"),
        ('{"id": ' + "9" * 5000 + "}", "line 2: no usable JSON"),
    ],
)
def test_lines_that_are_no_rows(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(f"{lines(ANSWERS[0])}{text}\n\n{lines(*ANSWERS[1:])}")
    with pytest.raises(ScoreError, match=told):
        score("vsibench", file, QUESTIONS)
    found = score("vsibench", file, QUESTIONS, "official", leave_out=["unusable"], resamples=0)
    assert found.headline.startswith("all 5 questions")
    assert str(file) in found.notes[-1]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(lines(ANSWERS[0]).encode() + b'{"id": "\xff"}\n')
    rows, bad = read_rows(file)
    assert len(rows) == 1
    assert bad == [f"{file}, line 2: not UTF-8: byte 0xff at place 8."]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.jsonl", None, "cannot be read: No such file"),
        ("rows.csv", "", "its name must end in .json or .jsonl"),
        ("rows.jsonl", "", "is empty: there are no rows in it"),
        ("rows.json", "", "is empty"),
        ("rows.json", "[]", "is empty"),
        ("rows.json", "3", "holds a int"),
        ("rows.json", '{"a": 1}', "Expected is a list of rows"),
        ("rows.json", "[1", "no JSON, or cut off"),
        ("rows.json", "[" * 100_000, "nested too deep"),
    ],
)
def test_files_that_are_no_rows(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(ScoreError, match=told) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)


def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE", 100)
    file = tmp_path / "answers.jsonl"
    file.write_text("x" * 1000 + "\n" + lines({"id": 1}) + "y" * 100 + "\n" + lines({"id": 2}))
    rows, bad = read_rows(file)
    assert [row.values["id"] for row in rows] == [1, 2]
    assert [message.partition(": ")[2] for message in bad] == ["longer than 100 bytes.", "longer than 100 bytes."]
    monkeypatch.setattr(reading, "MAX_FILE", 10)
    (tmp_path / "rows.json").write_text(json.dumps(QUESTIONS))
    with pytest.raises(ScoreError, match="at most 10 are read"):
        read_rows(tmp_path / "rows.json")


def test_forms_of_json_files(tmp_path: Path) -> None:
    forms: list[Any] = [QUESTIONS, {"questions": QUESTIONS, "licence": {}}, {"annotations": QUESTIONS}]
    for form in forms:
        (tmp_path / "rows.json").write_text("\ufeff" + json.dumps(form))
        assert [row.values for row in read_rows(tmp_path / "rows.json")[0]] == QUESTIONS
    (tmp_path / "rows.json").write_text(json.dumps({"scene|1|chair": ["sos a chair eos"]}))
    (row,), _ = read_rows(tmp_path / "rows.json")
    assert row.values == {"id": "scene|1|chair", "annotations": ["sos a chair eos"]}


MUTATIONS: list[Callable[[bytes], bytes]] = [
    lambda text: text[: len(text) // 2],
    lambda text: text[::-1],
    lambda text: text.replace(b'"', b"'"),
    lambda text: text.replace(b":", b"\x00"),
    lambda text: bytes(byte ^ 0x80 for byte in text),
    lambda text: text.replace(b"{", b"{" * 500),
    lambda text: text.replace(b"route_planning", b"route"),
    lambda text: text.replace(b'"A"', b"1e999"),
    lambda text: text.replace(b'"A"', b"null"),
    lambda text: text.replace(b'"A"', b"{}"),
    lambda text: text.replace(b'"3"', b"[[[]]]"),
    lambda text: b"\xef\xbb\xbf" + text,
    lambda text: text.replace(b"\n", b"\r"),
    lambda text: text.replace(b"\n", b""),
]


def attempt(file: Path) -> float | str | None:
    try:
        return score("vsibench", file, as_="official", resamples=0).figure("mean of tasks", "overall").value
    except Vega3dError as error:
        return str(error)


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("place", range(len(MUTATIONS)))
def test_any_bytes_end_in_a_score_or_in_an_error_that_names_the_file(tmp_path: Path, place: int, suffix: str) -> None:
    rows = [{**question, **answer} for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    text = lines(*rows) if suffix == ".jsonl" else json.dumps(rows)
    file = tmp_path / f"answers{suffix}"
    file.write_bytes(MUTATIONS[place](text.encode()))
    outcome = attempt(file)
    assert outcome == 100 or str(file) in str(outcome)


def test_scanqas_ids_are_known_in_both_forms() -> None:
    released = {"id": "scanqa_val-scene0001_00-2_0", "metadata": {"answers": ["yes"]}}
    own = {"question_id": "val-scene0001_00-2", "answers": ["yes"]}
    said = [
        {"sample_id": "scanqa_val-scene0001_00-2_1", "prediction": "yes"},
        {"question_id": "val-scene0001_00-2", "prediction": "yes"},
    ]
    for row in said:
        for reference in (released, own):
            assert score("scanqa", [row], [reference], resamples=0).coverage.complete
    with pytest.raises(ScoreError, match="1 answer to questions that the references do not have"):
        score("scanqa", [{"question_id": "val-scene0001_00-3", "prediction": "yes"}], [own], leave_out=["missing"])
