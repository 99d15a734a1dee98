"""``vega3d score``: tables, files, comparisons, and errors for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vega3d_plugin.cli import output
from vega3d_plugin.cli.app import app
from vega3d_plugin.evaluation.metrics import ScoreError, get_benchmark, list_benchmarks
from vega3d_plugin.evaluation.metrics.captions.java import JavaTools

TASKS = {
    "object_counting": "2", "object_abs_distance": "1.5", "object_size_estimation": "100", "room_size_estimation": "20",
    "object_rel_distance": "A", "object_rel_direction_easy": "A", "object_rel_direction_medium": "B",
    "object_rel_direction_hard": "C", "route_planning": "D", "obj_appearance_order": "A",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output.out, "width", 80)
    monkeypatch.setenv("NO_COLOR", "1")


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(file)


@pytest.fixture
def answers(tmp_path: Path) -> dict[str, str]:
    """Files of right answers, of wrong ones, of the questions, and of too few answers."""
    asked = [
        {"id": f"{task}{place}", "question_type": task, "ground_truth": truth}
        for task, truth in TASKS.items()
        for place in range(3)
    ]
    right = [{"id": row["id"], "prediction": row["ground_truth"]} for row in asked]
    wrong = [{"id": row["id"], "prediction": "none"} for row in asked]
    files = {"asked": asked, "right": right, "wrong": wrong, "few": right[:-1]}
    return {name: write(tmp_path / f"{name}.jsonl", rows) for name, rows in files.items()}


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["score", *args])


def done(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(*args: str) -> str:
    result = run(*args)
    assert result.exit_code == 1
    assert isinstance(result.exception, ScoreError | KeyError)
    return str(result.exception)


def test_a_table_by_type(answers: dict[str, str]) -> None:
    shown = done("vsibench", answers["right"], "--references", answers["asked"])
    first, *rest = shown.splitlines()
    assert first.startswith("all 30 questions; the public test split has 5,130. VSI-Bench as vega3d:")
    assert max(len(line) for line in rest if not line.startswith("Signature")) <= 80
    rows = {line.split()[0]: line.split() for line in rest if line.strip()}
    assert rows["object_rel_direction"] == ["object_rel_direction", "accuracy", "100.00", "100.00", "to", "100.00", "9"]
    assert rows["object_counting"][1:3] == ["MRA", "100.00"]
    assert "H-EmbodVis/VEGA-3D" in shown
    assert "vsibench|as:vega3d|mean of tasks|type:overall" in shown


def test_too_few_answers_are_refused_or_said_in_the_first_line(answers: dict[str, str]) -> None:
    given = ("vsibench", answers["few"], "--references", answers["asked"])
    assert "1 question without an answer:\n    obj_appearance_order2" in failed(*given)
    first = done(*given, "--leave-out", "missing").splitlines()[0]
    assert first.startswith("INCOMPLETE: 29 of 30 questions (1 missing). ")
    assert "1 of them unanswered and counted as wrong" in done(*given, "--count-missing").splitlines()[0]


def test_a_comparison(answers: dict[str, str]) -> None:
    given = ("vsibench", answers["right"], "--references", answers["asked"])
    shown = done(*given, "--compare", answers["wrong"], "--compare", answers["right"])
    compared = [line.split() for line in shown.splitlines() if line.startswith("overall") and "+" in line]
    assert [line[1] for line in compared] == ["+100.00", "+0.00"]
    assert compared[0][-1] == "higher"
    assert compared[1][-2:] == ["no", "difference"]
    assert "higher, lower: the interval excludes 0; no difference shown: it contains 0" in shown
    # The file itself stands where a sentence begins.
    assert f"{answers['wrong']}: all 30 questions" in shown


def test_a_comparison_over_the_questions_in_both(answers: dict[str, str]) -> None:
    given = ("vsibench", answers["right"], "--references", answers["asked"], "--compare", answers["few"])
    assert "without an answer" in failed(*given)
    assert "PART OF THE QUESTIONS: first minus second over 29 questions" in done(*given, "--leave-out", "missing")


def test_files(answers: dict[str, str], tmp_path: Path) -> None:
    items, report = tmp_path / "out" / "items.jsonl", tmp_path / "out" / "score.json"
    given = ("vsibench", answers["right"], "--references", answers["asked"], "--compare", answers["wrong"])
    shown = done(*given, "--per-item", str(items), "--json", str(report))
    assert f"Question by question: {items}" in shown
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    first = {"id": "object_counting0", "type": "object_counting", "said": "2", "truth": 2.0}
    assert rows[0] == {**first, "understood": 2.0, "score": 1.0}
    assert len(rows) == 30
    values = json.loads(report.read_text())
    assert values["figures"][0]["value"] == 100
    assert values["comparisons"][0]["file"] == answers["wrong"]
    assert values["comparisons"][0]["differences"][0]["difference"] == 100
    assert json.loads(done(*given, "--json", "-")) == values


def test_files_that_cannot_be_written_are_told_before_the_work(answers: dict[str, str], tmp_path: Path) -> None:
    result = run("vsibench", answers["right"], "--per-item", str(tmp_path / "items.csv"))
    assert result.exit_code == 2
    assert "must end in .jsonl" in result.stderr
    assert run("vsibench", answers["right"], "--json", str(tmp_path / "x.txt")).exit_code == 2


def test_protocols_and_seeds(answers: dict[str, str]) -> None:
    given = ("vsibench", answers["right"], "--references", answers["asked"], "--as", "lmms-eval")
    shown = done(*given, "--seed", "4", "--resamples", "50")
    assert "VSI-Bench as lmms-eval: mean of tasks 1.0000 [1.0000 to 1.0000]" in shown
    assert "50,seed4" in shown
    assert done(*given, "--resamples", "0").splitlines()[0].endswith("mean of tasks 1.0000")
    assert "Unknown protocol of VSI-Bench 'leo'" in failed("vsibench", answers["right"], "--as", "leo")


def test_what_is_not_computed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JavaTools, "find", classmethod(lambda cls: None))
    file = write(tmp_path / "answers.jsonl", [{"id": 0, "prediction": "a chair", "gt_response": ["a chair"]}])
    result = run("scan2cap", file)
    assert "not computed" in result.stdout
    assert "METEOR: not computed: needs Java and pycocoevalcap." in result.stderr


def test_a_mistyped_benchmark(answers: dict[str, str]) -> None:
    assert "Unknown benchmark 'scanqua'. Did you mean 'scanqa'" in failed("scanqua", answers["right"])


def test_brackets_in_ids_are_brackets(tmp_path: Path) -> None:
    rows = [{"id": "[red]a[/red]", "prediction": "A", "question_type": "route_planning", "ground_truth": "A"}]
    file = write(tmp_path / "answers.jsonl", [*rows, *rows])
    assert "[red]a[/red] (" in run("vsibench", file, "--leave-out", "duplicate").stderr


def test_the_list_names_every_benchmark_and_protocol() -> None:
    shown = done("--list")
    for name in list_benchmarks():
        assert f"\n{name} " in shown
        for protocol in get_benchmark(name).protocols:
            assert f" {protocol.name} " in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_help_fits() -> None:
    assert max(len(line) for line in done("--help").splitlines()) <= 80
