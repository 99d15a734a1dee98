"""ScanQA, SQA3D and Scan2Cap as tasks of lmms-eval: what is written, asked and scored; and the real command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support import lmms_eval_task
from support.harnesses import interpreter
from test_lmms_eval_plugin import lmms_eval

from vega3d_plugin.contracts.errors import RowError, UnknownNameError
from vega3d_plugin.evaluation import lmms_tasks
from vega3d_plugin.evaluation.metrics import score


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"value": question, "from": "human"}, {"value": answer, "from": "gpt"}]


def rows(root: Path) -> dict[str, Path]:
    """Rows as ``vega3d data`` writes them, with the frames of a scene as a video."""
    (root / "frames").mkdir()
    for number in range(3):
        Image.new("RGB", (56, 56), (40 * number, 90, 30)).save(root / "frames" / f"{number}.png")
    video = {"video": [f"frames/{number}.png" for number in range(3)]}
    made: dict[str, list[dict[str, Any]]] = {
        "scanqa": [
            {
                "id": f"scanqa_{n}_0", **video, "conversations": turns(f"<image> {asked} Answer simply.", "brown"),
                "metadata": {"dataset": "scanQA", "question_type": "unknow", "answers": ["brown", "dark brown"]},
            }
            for n, asked in enumerate(["What color is it?", "Where is it?"])
        ],
        "sqa3d": [
            {
                "id": n, **video, "conversations": turns("<image> I sit. What is left of me?", "chair"),
                "metadata": {"dataset": "sqa3d", "question_type": "what"},
            }
            for n in range(2)
        ],
        "scan2cap": [
            {
                "id": n, **video, "conversations": turns("<image> An object located at <coord> , describe it.", "A."),
                "box_input": [1.0, -2.5, 0.25, 1, 1, 1], "annotations": ["this is a brown chair", "a chair"],
                "metadata": {"dataset": "scan2cap", "question_type": "unique"},
            }
            for n in range(2)
        ],
    }  # fmt: skip
    for name, lines in made.items():
        (root / f"{name}_rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: root / f"{name}_rows.jsonl" for name in made}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    assert lmms_tasks.write_tasks(rows(tmp_path), tmp_path / "tasks") == [
        "vega3d_scanqa",
        "vega3d_sqa3d",
        "vega3d_scan2cap",
    ]
    return tmp_path / "tasks"


def docs(tasks: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tasks / f"{name}.jsonl").read_text().splitlines()]


class _Functions(yaml.SafeLoader):
    """Reads ``!function`` as lmms-eval does: by the module that it names."""


def _function(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")  # type: ignore[arg-type]
    return getattr(sys.modules[module], name)


_Functions.add_constructor("!function", _function)


@pytest.mark.parametrize("name", lmms_tasks.TASKS)
def test_a_task_asks_and_scores(tasks: Path, name: str) -> None:
    config = yaml.load((tasks / f"vega3d_{name}.yaml").read_text(), _Functions)
    assert config["dataset_kwargs"]["data_files"]["test"] == str(tasks / f"{name}.jsonl")
    found = docs(tasks, name)
    (message,) = config["doc_to_messages"](found[0])
    assert message["role"] == "user"
    video, text = message["content"]
    assert video["type"] == "video"
    assert [Path(frame).name for frame in video["url"]] == ["0.png", "1.png", "2.png"]
    assert text["text"] == config["doc_to_text"](found[0])
    assert ("(1.00, -2.50, 0.25)" in text["text"]) is (name == "scan2cap")
    results = [config["process_results"](doc, ["brown chair"]) for doc in found]
    assert {metric["metric"] for metric in config["metric_list"]} == set(results[0])
    for metric in config["metric_list"]:
        protocol, measure = lmms_tasks.TASKS[name].measures[metric["metric"]]
        items = [result[metric["metric"]] for result in results]
        whole = score(name, items, as_=protocol, resamples=0)
        assert metric["aggregation"](items) == next(f.value for f in whole.figures if f.measure == measure)
        assert metric["metric"].endswith(f"_as_{protocol}")


def test_right_answers_score_in_full(tasks: Path) -> None:
    items = [lmms_tasks.process_scanqa(doc, ["dark brown"])["em_as_vega3d"] for doc in docs(tasks, "scanqa")]
    assert lmms_tasks.scanqa_em_as_vega3d(items) == 1.0  # type: ignore[attr-defined]
    wrong = [lmms_tasks.process_scanqa(doc, ["green"])["em_as_vega3d"] for doc in docs(tasks, "scanqa")]
    assert lmms_tasks.scanqa_em_as_vega3d([items[0], wrong[1]]) == 0.5  # type: ignore[attr-defined]


def test_rows_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": 1, "question": "Where?"}\n')
    with pytest.raises(RowError, match=r"x\.jsonl, row 1: no `conversations`"):
        lmms_tasks.write_tasks({"scanqa": tmp_path / "x.jsonl"}, tmp_path / "tasks")
    with pytest.raises(UnknownNameError, match="Did you mean 'scanqa'"):
        lmms_tasks.write_tasks({"scanqaa": tmp_path / "x.jsonl"}, tmp_path / "tasks")


def test_the_command_that_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lmms_tasks.main([f"scanqa={rows(tmp_path)['scanqa']}", str(tmp_path / "t")]) == 0
    assert "--tasks vega3d_scanqa" in capsys.readouterr().out
    assert lmms_tasks.main(["scanqa=none.jsonl", str(tmp_path / "t")]) == 1
    assert lmms_tasks.main([]) == 2
    done = subprocess.run([sys.executable, "-m", "vega3d_plugin.lmms_eval_plugin"], capture_output=True, timeout=120)
    assert b"usage" in done.stdout


def printed_value(printed: str, task: str, metric: str) -> float:
    """Of lmms-eval's table, where a task's name stands in its first row alone."""
    current = ""
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) < 7:
            continue
        current = cells[0] or current
        if current == task and metric in cells:
            return float(next(cell for cell in cells[cells.index(metric) + 1 :] if re.fullmatch(r"-?[\d.]+", cell)))
    raise AssertionError(f"{task} {metric} is not in:\n{printed}")


if interpreter("lmms-eval") is not None:

    @pytest.mark.slow
    def test_the_real_command(tmp_path: Path) -> None:
        """lmms-eval finds the tasks, asks a tiny host in batches, and prints what ``vega3d score`` says."""
        lmms_eval_task.write_host_and_branch(tmp_path)
        lmms_tasks.write_tasks(rows(tmp_path), tmp_path / "tasks")
        printed = lmms_eval(tmp_path, tmp_path, "vega3d_scanqa,vega3d_sqa3d,vega3d_scan2cap", batch_size=2)
        told: dict[tuple[str, str], tuple[float, float]] = {}
        for name, task in lmms_tasks.TASKS.items():
            (samples,) = (tmp_path / "out").rglob(f"*_samples_vega3d_{name}.jsonl")
            for metric, (protocol, measure) in task.measures.items():
                found = score(name, samples, as_=protocol, resamples=0)
                value = next(f.value for f in found.figures if f.measure == measure)
                told[name, metric] = (value, printed_value(printed, f"vega3d_{name}", metric))
        assert all(there == pytest.approx(here, abs=1e-3) for here, there in told.values()), told
