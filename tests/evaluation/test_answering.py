"""``vega3d answer`` on a tiny host: batches, controls, bad rows, resuming, and what ``vega3d score`` makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import lmms_eval_task
from typer.testing import CliRunner

from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import BadRowsError, SettingsError
from vega3d_plugin.evaluation.answering.parts import AnswersError, described_run, read_run
from vega3d_plugin.evaluation.answering.run import Answered, answer
from vega3d_plugin.evaluation.harness_host import EvaluatedHost, HostArguments
from vega3d_plugin.evaluation.metrics import score
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.training.rows.encoding import Encoder

TYPES = ("object_counting", "object_rel_distance")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answering")
    lmms_eval_task.write_host_and_branch(root)
    rng = np.random.default_rng(1)
    rows = []
    for number in range(6):
        # Sizes differ, so that prompts do too.
        Image.fromarray(rng.integers(0, 255, (56 + 28 * (number % 3), 84, 3), dtype=np.uint8)).save(
            root / f"{number}.png"
        )
        question = "How many? " + "Look well. " * (number % 4)
        rows.append(
            {
                "id": number, "image": f"{number}.png", "question_type": TYPES[number % 2],
                "ground_truth": "4" if number % 2 == 0 else "A",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": "4" if number % 2 == 0 else "A"},
                ],
            }
        )  # fmt: skip
    write(root / "rows.jsonl", rows)
    return root


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(root: Path, **more: Any) -> HostArguments:
    given = {"pretrained": str(root / "host"), "branch": str(root / "branch"), "device": "cpu", "max_new_tokens": 5}
    return HostArguments.parse({**given, **more})


def said(out: Path) -> list[str]:
    return [json.loads(line)["prediction"] for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def load() -> Callable[[HostArguments, DataSettings], EvaluatedHost]:
    """One loaded host for all tests; the control ``twin`` changes it, and has its own."""
    loaded: dict[Any, Any] = {}

    def load(arguments: HostArguments, data: DataSettings) -> EvaluatedHost:
        host = loaded.setdefault(arguments.branch, None) or EvaluatedHost(arguments, data)
        loaded[arguments.branch] = host
        host.arguments, host.encoder = arguments, Encoder(host.processor, data)
        return host

    return load


Run = Callable[..., tuple[Answered, Path]]


@pytest.fixture
def run(root: Path, tmp_path: Path, load: Any) -> Run:
    def run(name: str = "a", rows: str = "rows.jsonl", host: dict[str, Any] | None = None, **more: Any) -> Any:
        out = tmp_path / f"{name}.jsonl"
        loading = {} if more.get("control") == "twin" else {"host": load}
        return answer(arguments(root, **(host or {})), [root / rows], out, **loading, **more), out

    return run


def test_batches_answer_as_single_questions(run: Run) -> None:
    _, single = run("single")
    found, batched = run("batched", batch_size=4)
    assert (found.questions, found.missing) == (6, 0)
    assert said(batched) == said(single)
    assert len(set(said(single))) > 1


def test_every_control_is_another_model(run: Run, root: Path) -> None:
    nll = {}
    for control in ("on", "off", "zeroed", "shuffled", "twin"):
        _, out = run(control, control=control, likelihood=True, batch_size=3)
        nll[control] = [json.loads(line)["nll"] for line in out.read_text().splitlines()]
        assert read_run(out)["settings"]["control"] == control
    assert len({tuple(values) for values in nll.values()}) == len(nll)
    _, base = run("base", host={"branch": "none"}, likelihood=True)
    assert [json.loads(line)["nll"] for line in base.read_text().splitlines()] == nll["off"]


def test_shuffled_gives_each_question_the_features_of_the_next(run: Run, root: Path) -> None:
    """With equal pictures everywhere but in one row, only this row and the one before it change."""
    rows = [json.loads(line) for line in (root / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["image"] = f"same{row['id']}.png"
        shutil.copy(root / ("1.png" if row["id"] == 3 else "0.png"), root / row["image"])
    write(root / "same.jsonl", rows)
    plain, other = (
        run(control, rows="same.jsonl", control=control, likelihood=True)[1] for control in ("on", "shuffled")
    )
    pairs = zip(plain.read_text().splitlines(), other.read_text().splitlines(), strict=True)
    changed = [json.loads(a)["nll"] != pytest.approx(json.loads(b)["nll"], abs=1e-5) for a, b in pairs]
    assert changed == [False, False, True, True, False, False]


def test_no_question_is_answered_twice(run: Run, root: Path) -> None:
    _, whole = run("whole")

    def stopping(total: int, found: int) -> Callable[[int], None]:
        left = [2]

        def tick(count: int) -> None:
            left[0] -= count
            if not left[0]:
                raise KeyboardInterrupt

        return tick

    with pytest.raises(KeyboardInterrupt):
        run("a", start=stopping)
    with pytest.raises(AnswersError, match=r"protocol\.max_new_tokens: 5 there, 3 here"):
        run("a", host={"max_new_tokens": 3})
    counted: list[int] = []
    found, out = run("a", start=lambda total, done: counted.append)
    assert (found.found, sum(counted)) == (2, 4)
    assert said(out) == said(whole)
    found, _ = run("a")
    assert found.share == 0


def test_shards_are_merged_by_the_last(run: Run) -> None:
    _, whole = run("whole")
    first, out = run("a", shard=(1, 2))
    assert (first.share, first.missing) == (3, 3)
    assert not out.exists()
    second, out = run("a", shard=(0, 2))
    assert second.missing == 0
    assert said(out) == said(whole)


def test_score_reads_it(run: Run) -> None:
    _, out = run()
    found = score("vsibench", out, leave_out=())
    assert "6" in found.headline
    record = read_run(out)
    assert record["settings"]["model"]["branch"]["prior"] == "tiny-wan"
    assert record["settings"]["protocol"]["generation"] == "greedy"
    assert record["about"]["versions"]["torch"]
    assert {json.loads(line)["run"] for line in out.read_text().splitlines()} == {record["run"]}


def test_a_score_says_which_model_and_control_gave_the_answers(run: Run, tmp_path: Path) -> None:
    _, out = run()
    _, off = run("off", control="off")
    mark = read_run(out)["settings"]["model"]["branch"]["fingerprint"]
    shown = CliRunner().invoke(app, ["score", "vsibench", str(out), "--compare", str(off)])
    assert shown.exit_code == 0, shown.output
    assert f"a.jsonl: control on, host host, branch {mark} tiny-wan" in shown.output
    assert "off.jsonl: control off, " in shown.output
    values = json.loads(CliRunner().invoke(app, ["score", "vsibench", str(out), "--json", "-"]).stdout)
    assert values["answers"]["control"] == "on"
    # The record of another run beside these rows would tell a wrong control.
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(out.read_bytes())
    shutil.copy(off.with_suffix(".run.json"), mixed.with_suffix(".run.json"))
    with pytest.raises(AnswersError, match="not of one run"):
        described_run(mixed)
    # Nor does the record of all rows describe a part of them.
    mixed.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:-1]))
    shutil.copy(out.with_suffix(".run.json"), mixed.with_suffix(".run.json"))
    with pytest.raises(AnswersError, match="its run wrote"):
        described_run(mixed)
    mixed.write_bytes(out.read_bytes())
    mixed.with_suffix(".run.json").unlink()
    assert "is not recorded" in CliRunner().invoke(app, ["score", "vsibench", str(mixed)]).output


def test_bad_rows_are_named_or_left_out(run: Run, root: Path) -> None:
    rows = [json.loads(line) for line in (root / "rows.jsonl").read_text().splitlines()][:2]
    (root / "broken.png").write_bytes(b"no picture")
    bad = [{**rows[0], "id": 7, "image": "broken.png"}, {**rows[0], "id": 8, "image": "none.png"}, rows[1]]
    write(root / "bad.jsonl", [*rows, *bad])
    with pytest.raises(BadRowsError, match=r"(?s)2 of 5 rows.*row 4: .*none\.png.*row 5: its id 1 is that of"):
        run(rows="bad.jsonl")
    found, out = run(rows="bad.jsonl", data={"skip_bad_rows": True}, batch_size=3)
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [0, 1]
    told = read_run(out)["about"]["left_out"]
    assert len(told) == 3
    assert "broken.png" in told[-1]
    assert len(found.left_out) == 2


def test_several_answers_and_none(run: Run, root: Path) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image", "path": "0.png"}, {"type": "text", "text": "Is it red?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "And blue?"},
    ]
    write(root / "turns.jsonl", [{"id": "t", "messages": turns}, {"messages": turns[:1]}])
    _, out = run(rows="turns.jsonl", likelihood=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == ["t#1", "t#2", "turns.jsonl#2"]
    assert [row.get("ground_truth") for row in rows] == ["yes", None, None]
    assert ["nll" in row for row in rows] == [True, False, False]


def test_a_control_without_a_branch(run: Run) -> None:
    with pytest.raises(SettingsError, match="control `zeroed` needs a branch"):
        run(host={"branch": "none"}, control="zeroed")


def test_the_command(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    given = ["answer", str(root / "host"), "--branch", str(root / "branch"), "--data", str(root / "rows.jsonl")]
    given += ["--out", str(out), "--max-new-tokens", "4", "--limit", "2", "--device", "cpu"]
    first = CliRunner().invoke(app, [*given, "--shard", "2/2"])
    assert first.exit_code == 0, first.output
    assert "1 of 2 questions wait for the other processes" in first.output
    second = CliRunner().invoke(app, [*given, "--shard", "1/2"])
    assert "vega3d score BENCHMARK" in second.output
    assert len(said(out)) == 2
    assert "already there" in CliRunner().invoke(app, given).output
    assert CliRunner().invoke(app, [*given, "--shard", "3/2"]).exit_code == 2
