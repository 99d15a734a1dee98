"""``vega3d compare``: sides, seeds, controls, and what is told of figures that say less than they seem to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import lmms_eval_task
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.checkpoints.trainer_folder import find_trained
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import BadRowsError, SavedBranchError, SettingsError, Vega3dError
from vega3d_plugin.evaluation.comparison.run import compare
from vega3d_plugin.evaluation.comparison.sides import read_sides
from vega3d_plugin.evaluation.harness_host import limit_pixels
from vega3d_qwen_vl.tiny import tiny_processor


def answers(path: Path, said: dict[str, str], **more: list[Any]) -> str:
    """A file of answers to questions whose right answer is 4."""
    rows = []
    for number, (key, text) in enumerate(said.items()):
        row = {"sample_id": key, "image": f"{key}.png", "ground_truth": "4", "prediction": text}
        row["question_type"] = "count" if number < 15 else "size"
        rows.append({**row, **{name: values[number] for name, values in more.items()}})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_files_of_answers(tmp_path: Path) -> None:
    names = [f"q{i}" for i in range(20)]
    right, wrong = dict.fromkeys(names, "4"), dict.fromkeys(names, "5")
    good = [answers(tmp_path / f"good{i}.jsonl", {**right, f"q{i}": "9"}) for i in range(2)]
    bad = answers(tmp_path / "bad.jsonl", {**wrong, "more": "4"})
    found = compare(read_sides([f"with={','.join(good)}", f"without={bad}"]), resamples=500)
    told = {(e.type, e.measure): e for e in found.effects}
    assert set(told) == {(t, m) for t in ("all", "count", "size") for m in ("exact", "MRA", "relative error")}
    assert told["count", "exact"].questions == 15
    assert told["all", "exact"].difference == pytest.approx(0.95)
    assert told["all", "exact"].seeds == (2, 1)
    assert told["all", "exact"].verdict == "with is better: the interval does not contain 0"
    assert any(n.startswith("PART OF THE QUESTIONS: without run 1 answers 1") and "(more)" in n for n in found.notes)
    assert any("no spread of seeds" in n for n in found.notes)
    assert any("no .run.json" in n for n in found.notes)


def test_tiny_differences_and_nan_are_no_wins(tmp_path: Path) -> None:
    said = {f"q{i}": "4" for i in range(20)}
    one = answers(tmp_path / "one.jsonl", said, nll=[1.0] * 20)
    two = answers(tmp_path / "two.jsonl", said, nll=[1.0001] * 20)
    none = answers(tmp_path / "none.jsonl", said, nll=[1.0] * 19 + [None])
    found = compare(read_sides([one, two, none]), resamples=200)
    told = {(e.first, e.second): e.verdict for e in found.effects if e.measure == "nll" and e.type == "all"}
    assert told["one", "two"] == "no difference shown: below 0.0100, too small to matter"
    assert told["one", "none"] == told["two", "none"] == "no verdict: some scores are NaN or infinite"
    json.dumps(found.to_dict(), allow_nan=False)


def test_answers_to_other_questions(tmp_path: Path) -> None:
    one, two = (answers(tmp_path / f"{n}.jsonl", {f"{n}{i}": "4" for i in range(3)}) for n in "ab")
    with pytest.raises(BadRowsError, match="answers to different questions"):
        compare(read_sides([one, two]))
    with pytest.raises(SettingsError, match="Two sides are called 'a'"):
        read_sides([f"a={one}", f"a={two}"])


def test_answers_under_other_names_count_as_answers(tmp_path: Path) -> None:
    said = {f"q{i}": "4" for i in range(20)}
    ours = answers(tmp_path / "ours.jsonl", said)
    for name in ("pred_response", "answer", "response"):
        theirs = tmp_path / f"{name}.jsonl"
        theirs.write_text("".join(json.dumps({"sample_id": key, name: text}) + "\n" for key, text in said.items()))
        found = compare(read_sides([ours, str(theirs)]), resamples=200)
        assert {e.verdict for e in found.effects} == {"the same on every answer"}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"prediction": [None] * 20}, "20 of 20 lines cannot be used as answers"),
        ({"prediction": ["4"] * 19 + [["4"]]}, "1 of 20 lines cannot be used.*'prediction' is \\['4'\\]; a text"),
        ({"nll": ["abc"] * 20}, "key 'nll' is 'abc'; a number is expected"),
        ({"nll": [True] * 20}, "key 'nll' is True; a number is expected"),
        ({"ground_truth": ["5"] * 20}, "20 of 20 questions do not have the same expected answer"),
    ],
)
def test_lines_that_are_no_answers_get_no_verdict(tmp_path: Path, more: dict[str, list[Any]], problem: str) -> None:
    said = {f"q{i}": "4" for i in range(20)}
    good, bad = answers(tmp_path / "good.jsonl", said), answers(tmp_path / "bad.jsonl", said, **more)
    with pytest.raises(Vega3dError, match=f"(?s){problem}"):
        compare(read_sides([good, bad]))


def test_nothing_to_compare_and_questions_alike_by_name_only(tmp_path: Path) -> None:
    said = {f"q{i}": "4" for i in range(20)}
    one = answers(tmp_path / "one.jsonl", said, ground_truth=[None] * 20)
    two = answers(tmp_path / "two.jsonl", said, ground_truth=[None] * 20)
    with pytest.raises(BadRowsError, match="No side says what the right answers are"):
        compare(read_sides([one, two]))
    one = answers(tmp_path / "one.jsonl", said, question=["How many?"] * 20)
    two = answers(tmp_path / "two.jsonl", said, question=["How far?"] * 20)
    notes = compare(read_sides([one, two]), resamples=200).notes
    assert any(note.startswith("20 questions have another text in two run 1 than in one run 1") for note in notes)
    with pytest.raises(SettingsError, match="one run is not two seeds"):
        read_sides([f"with={one},{tmp_path}/../{tmp_path.name}/one.jsonl", two])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a branch, and the rows of :mod:`support.lmms_eval_task`, on which the first was trained."""
    root = lmms_eval_task.build(tmp_path_factory.mktemp("compare"))
    rows = [
        {
            "id": n, "image": f"{name}.png", "question_type": "kind", "conversations": [
                {"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "A"},
            ],
        }
        for n, (name, text) in enumerate([("a", "Which?"), ("b", "Which one?"), ("a", "Or?"), ("b", "And this?")])
    ]  # fmt: skip
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "trained.jsonl").write_text("".join(json.dumps({**row, "id": 9}) + "\n" for row in rows[:3]))
    shutil.copytree(root / "branch", root / "seed2")
    file = {"path": str(root / "trained.jsonl"), "rows": 3, "bytes": 1}
    run = {"recipe": "r", "settings": {"host": {"model": str(root / "host")}, "data": {}}, "data": {"files": [file]}}
    for name in ("branch", "seed2"):
        (root / name / "vega3d_run.json").write_text(json.dumps(run))
    return root


def test_the_command(root: Path, tmp_path: Path) -> None:
    """Models with and without a branch, two seeds, all controls; killed after the answers, it asks no model again."""
    given = ["compare", f"with={root / 'branch'},{root / 'seed2'}", "base=none", "--data", str(root / "rows.jsonl")]
    given += ["--out", str(tmp_path), "--max-new-tokens", "2", "--device", "cpu", "--resamples", "200"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert "was trained on 3 of these 4 rows" in done.output.replace("\n", " ")
    found = json.loads((tmp_path / "comparison.json").read_text())
    pairs = {(e["first"], e["second"]) for e in found["effects"]}
    assert pairs == {("with", "base"), *(("with", f"with:{c}") for c in ("off", "zeroed", "shuffled", "twin"))}
    by = {(e["second"], e["type"], e["measure"]): e for e in found["effects"]}
    # The branch off is the host alone; the same seeds stand against each other.
    assert by["with:off", "all", "nll"]["difference"] == by["base", "all", "nll"]["difference"]
    assert by["with:shuffled", "all", "nll"]["seeds"] == [2, 2]
    assert {m for _, _, m in by} == {"exact", "choice", "nll"}
    assert "greedy, at most 2 tokens" in found["protocol"]
    assert "<html" in (tmp_path / "report.html").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").iterdir()}
    assert len(stamps) == 2 * (2 * 5 + 1)
    assert CliRunner().invoke(app, given).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").iterdir()} == stamps


def test_small_host_and_the_host_alone_see_what_training_saw(root: Path, tmp_path: Path) -> None:
    """``host.model: tiny`` is built again; ``none`` takes frames and pixel limits of the runs beside it."""
    run = {"settings": {"host": {"model": "tiny", "adapter": "qwen_vl", "max_pixels": 3136}, "data": {"frames": 2}}}
    mine = shutil.copytree(root / "branch", tmp_path / "mine")
    processor = tiny_processor()
    limit_pixels(processor, None, 3136)
    processor.save_pretrained(mine)
    (mine / "vega3d_run.json").write_text(json.dumps(run))
    rows, common = [root / "rows.jsonl"], {"device": "cpu", "max_new_tokens": 2}
    found = compare(
        read_sides([f"with={mine}", "base=none"], **common), rows, tmp_path, controls=["off"], limit=2, resamples=200
    )
    by = {(e.first, e.second, e.type, e.measure): e for e in found.effects}
    assert by["with", "base", "all", "nll"].difference == by["with", "with:off", "all", "nll"].difference
    assert not [note for note in found.notes if "differs between the sides" in note]
    record = json.loads((tmp_path / "answers" / "base-1-on.run.json").read_text())
    assert (record["settings"]["data"]["frames"], record["settings"]["model"]["max_pixels"]) == (2, 3136)
    given = ["ablate", "tiny", "--branch", str(mine), "--data", str(rows[0]), "--limit", "1", "--no-generate", "--json"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output


def test_other_pixel_limits_are_told(root: Path, tmp_path: Path) -> None:
    run = json.loads((root / "branch" / "vega3d_run.json").read_text())
    other = shutil.copytree(root / "branch", tmp_path / "other")
    run["settings"]["host"]["max_pixels"] = 3136
    (other / "vega3d_run.json").write_text(json.dumps(run))
    sides = read_sides([f"one={root / 'branch'}", f"two={other}"], device="cpu", max_new_tokens=1)
    found = compare(sides, [root / "rows.jsonl"], tmp_path, controls=[], limit=1, resamples=200)
    assert any(n.startswith("pictures.max_pixels differs between the sides") for n in found.notes)


def test_a_lora_without_a_branch_is_a_side(root: Path) -> None:
    (side,) = read_sides([f"plain={root / 'plain'}"], str(root / "host"))
    assert not side.branch
    assert (side.runs[0].arguments.branch, side.runs[0].arguments.adapter) == ("none", str(root / "plain"))
    (side,) = read_sides([f"full={root / 'full'}"])
    assert side.branch
    assert side.runs[0].arguments.pretrained == str(root / "full")
    with pytest.raises(SettingsError, match="--model MODEL"):
        read_sides(["base=none"])
    with pytest.raises(SavedBranchError, match="nothing to compare"):
        read_sides([str(root / "tasks")], str(root / "host"))


def test_branch_and_adapter_of_two_runs(root: Path, tmp_path: Path) -> None:
    """Both are shown; parts of one run may lie in two folders."""
    other = vega3d.load_pretrained(_tiny(), root / "branch")
    with torch.no_grad():
        vega3d.get_handle(other).branch.fuser.residual_scale.fill_(1.0)
    vega3d.save_pretrained(other, tmp_path / "other")
    with pytest.raises(SavedBranchError, match=r"(?s)different runs.*branch: .*other.*adapter: .*adapter"):
        find_trained(root / "host", tmp_path / "other", adapter=root / "adapter")
    with pytest.warns(vega3d.Vega3dWarning, match=r"plain was trained without a branch"):
        find_trained(root / "host", root / "branch", adapter=root / "plain")
    assert find_trained(root / "host", root / "branch", adapter=root / "adapter").adapter == str(root / "adapter")
    (root / "plain" / "vega3d_run.json").write_text(json.dumps({"recipe": "other", "settings": {}}))
    with pytest.raises(SavedBranchError, match=r"(?s)branch: .*recipe: 'r'.*adapter: .*recipe: 'other'"):
        find_trained(root / "host", root / "branch", adapter=root / "plain")
    (root / "plain" / "vega3d_run.json").unlink()
    assert find_trained(root / "host", root / "adapter", adapter="none").adapter is None


def _tiny() -> Any:
    from vega3d_qwen_vl.tiny import tiny_model

    return tiny_model()
