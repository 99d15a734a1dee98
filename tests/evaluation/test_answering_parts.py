"""The file of answers while it grows: whatever kills it, no answer is lost, doubled or taken for another run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.kills import every_kill

from vega3d_plugin.evaluation.answering.parts import AnswersError, Parts, read_run, run_file
from vega3d_plugin.evaluation.answering.run import share

SETTINGS = {"control": "on", "model": {"branch": "abc"}}


def answer(out: Path, total: int = 5, shard: tuple[int, int] = (0, 1), only: int | None = None) -> int:
    """Answer what is missing of a share, one line at a time, and merge."""
    parts = Parts(out, SETTINGS, {"recipe": "r"}, total)
    if parts.complete:
        return 0
    parts.open(*shard)
    done = parts.done()
    for number in [number for number in share(total, *shard) if number not in done][:only]:
        parts.write([{"number": number, "row": {"sample_id": str(number), "prediction": f"said {number}"}}])
    left = parts.merge() if only is None else -1
    parts.close()
    return left


def ids(out: Path) -> list[str]:
    return [json.loads(line)["sample_id"] for line in out.read_text().splitlines()]


@pytest.mark.once
def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    for moment in every_kill(lambda: answer(shutil_path(tmp_path) / "a.jsonl", total=2)):
        out = tmp_path / "run" / "a.jsonl"
        assert not out.exists() or ids(out) == ["0", "1"], moment
        assert answer(out, total=2) == 0
        assert ids(out) == ["0", "1"], moment
        assert read_run(out)["answers"] == 2
        assert sorted(path.name for path in out.parent.iterdir()) == ["a.jsonl", "a.run.json"], moment
        shutil.rmtree(out.parent)


def shutil_path(root: Path) -> Path:
    (root / "run").mkdir(exist_ok=True)
    return root / "run"


def test_a_line_that_was_cut_off_is_answered_again(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    answer(out, only=2)
    part = tmp_path / "a.jsonl.parts" / "0-of-1" / "answers.jsonl"
    data = part.read_bytes()
    part.write_bytes(data[:-9])
    assert answer(out) == 0
    assert ids(out) == list("01234")


def test_processes_share_and_the_last_one_writes(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    assert answer(out, shard=(1, 2)) == 2
    assert not out.exists()
    # Another number of processes goes on with what is there.
    assert answer(out, shard=(0, 1)) == 0
    assert ids(out) == list("01234")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["run"] for row in rows} == {read_run(out)["run"]}


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_told_with_both_values(tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "a.jsonl"
    answer(out, only=None if finished else 1)
    with pytest.raises(AnswersError, match=r"(?s)another run:\n  model\.branch: 'abc' there, 'xyz' here"):
        Parts(out, {**SETTINGS, "model": {"branch": "xyz"}}, {}, 5)


def test_a_file_of_others_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("mine\n")
    with pytest.raises(AnswersError, match=r"no a\.run\.json beside it"):
        answer(out)
    assert out.read_text() == "mine\n"


def test_one_process_a_part(tmp_path: Path) -> None:
    first, second = (Parts(tmp_path / "a.jsonl", SETTINGS, {}, 5) for _ in range(2))
    first.open(0, 1)
    with pytest.raises(AnswersError, match="another process writes answers of the same questions"):
        second.open(0, 1)
    first.close()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    answer(out, only=2)
    part = tmp_path / "a.jsonl.parts" / "0-of-1" / "answers.jsonl"
    part.write_bytes(b"{\n" + part.read_bytes())
    with pytest.raises(AnswersError, match=r"answers\.jsonl, line 1 is damaged"):
        answer(out)


def test_the_file_beside_it(tmp_path: Path) -> None:
    assert run_file(tmp_path / "a.jsonl").name == "a.run.json"
    assert read_run(tmp_path / "a.jsonl") is None
