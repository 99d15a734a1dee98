"""ScanQA, SQA3D and Scan2Cap (its text) as tasks of lmms-eval, which has none of them; scored by our metrics.

lmms-eval 0.7 finds tasks of others by ``--include_path`` alone: a folder of YAML files, which :func:`write_tasks` makes
of rows that ``vega3d data`` wrote. The files name functions of this module, which imports nothing of lmms-eval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contracts.errors import RowError, UnknownNameError, Vega3dError
from ..recipes.blocks import DataSettings
from ..storage.writing import write_text
from ..training.rows.conversation import Medium, Turn, read_conversation
from ..training.rows.files import Rows
from .metrics import score

#: Key of a task's rows: the folder that relative paths start from.
ROOT = "vega3d_root"


@dataclass(frozen=True)
class Task:
    """Attributes: ``measures``: name in lmms-eval, with protocol and measure of ``vega3d score``; ``tokens``: of an
    answer at most.
    """

    measures: Mapping[str, tuple[str, str]]
    tokens: int


_CAPTIONS = {
    f"{name}_as_vega3d": ("vega3d", measure)
    for name, measure in (("cider", "CIDEr"), ("bleu4", "BLEU-4"), ("rouge", "ROUGE-L"))
}
#: METEOR needs Java; ``vega3d score`` takes the logged answers (``--log_samples``) and computes it where there is any.
TASKS = {
    "scanqa": Task({"em_as_vega3d": ("vega3d", "EM"), **_CAPTIONS}, 64),
    "sqa3d": Task({"em_as_vega3d": ("vega3d", "EM"), "em_refined_as_leo": ("leo", "EM-R")}, 16),
    "scan2cap": Task(_CAPTIONS, 128),
}

_YAML = """\
task: vega3d_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function {module}.visuals
doc_to_text: !function {module}.text
doc_to_messages: !function {module}.messages
doc_to_target: !function {module}.target
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
  do_sample: false
process_results: !function {module}.process_{name}
metric_list:
{metrics}"""
_METRIC = """\
  - metric: {metric}
    aggregation: !function {module}.{name}_{metric}
    higher_is_better: true
"""


def write_tasks(rows: Mapping[str, str | Path], folder: str | Path) -> list[str]:
    """Write a folder for ``--include_path``.

    Args:
        rows: benchmark (``scanqa``, ``sqa3d``, ``scan2cap``) to its file of rows.
        folder: is made.

    Returns:
        The names of the tasks.

    Raises:
        UnknownNameError: another benchmark.
        TrainError, RowError: a file that cannot be read, or a row without what the task needs.
    """
    folder = Path(folder).expanduser().resolve()
    for name in rows:
        if name not in TASKS:
            raise UnknownNameError("task", name, TASKS)
    for name, file in rows.items():
        given = Rows([file])
        lines = [_line(name, given, number) for number in range(len(given))]
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        task = TASKS[name]
        metrics = "".join(_METRIC.format(metric=m, module=__name__, name=name) for m in task.measures)
        text = _YAML.format(
            name=name, rows=json.dumps(str(folder / f"{name}.jsonl")), module=__name__, tokens=task.tokens,
            metrics=metrics,
        )  # fmt: skip
        write_text(folder / f"vega3d_{name}.yaml", text)
    return [f"vega3d_{name}" for name in rows]


def messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The question as lmms-eval hands it to a model that takes chats."""
    return [{"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in _asked(doc)]


def visuals(doc: Mapping[str, Any]) -> list[Any]:
    """The pictures and videos, for models that take them apart from the text."""
    media = (part for turn in _asked(doc) for part in turn.parts if isinstance(part, Medium))
    return [medium.source if isinstance(medium.source, list) else str(medium.source) for medium in media]


def text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The text of the question."""
    return "\n".join(turn.text for turn in _asked(doc))


def target(doc: Mapping[str, Any]) -> str:
    """The first true answer."""
    return str(doc["conversations"][-1]["value"])


def _asked(doc: Mapping[str, Any]) -> Sequence[Turn]:
    row = {key: value for key, value in doc.items() if value is not None and key != ROOT}
    # Frames are chosen by the model's arguments; a scene's views are chosen here.
    conversation = read_conversation(row, DataSettings.parse({"files": ("-",), "frames": 32}), Path(doc[ROOT]))
    return conversation.turns[:-1]


def _part(part: str | Medium) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": part.kind, "url": part.source if isinstance(part.source, list) else str(part.source)}


def _line(name: str, rows: Rows, number: int) -> dict[str, Any]:
    """A row as the task keeps it: with its folder, and with coordinates in words."""
    row = dict(rows[number])
    where = rows.name(number)
    if not isinstance(row.get("conversations"), list):
        raise RowError(f"{where}: no `conversations`; a task takes rows that `vega3d data {name}` wrote")
    if name == "scan2cap":
        box = row.get("box_input")
        if not isinstance(box, list) or len(box) < 3:
            raise RowError(f"{where}: `box_input` is {box!r:.40}; a proposal for the object is needed (--proposals)")
        place = "(" + ", ".join(f"{value:.2f}" for value in box[:3]) + ")"
        row["conversations"] = [
            {**turn, "value": str(turn.get("value", "")).replace("<coord>", place)} for turn in row["conversations"]
        ]
    kept = ("id", "conversations", "image", "images", "video", "videos", "scene", "metadata", "annotations")
    return {**{key: row[key] for key in kept if key in row}, ROOT: str(rows.file_of(number).parent.resolve())}


def _process(name: str) -> Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]:
    def process(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        row = {key: value for key, value in doc.items() if value is not None and key != ROOT}
        return {metric: {**row, "prediction": str(results[0])} for metric in TASKS[name].measures}

    return process


def _figure(name: str, metric: str) -> Callable[[Sequence[Mapping[str, Any]]], float]:
    def aggregate(rows: Sequence[Mapping[str, Any]]) -> float:
        protocol, measure = TASKS[name].measures[metric]
        found = score(name, list(rows), as_=protocol, resamples=0)
        value = next(f.value for f in found.figures if f.type == "all" and f.measure == measure)
        return float("nan") if value is None else float(value)

    return aggregate


process_scanqa, process_sqa3d, process_scan2cap = (_process(name) for name in ("scanqa", "sqa3d", "scan2cap"))
# lmms-eval finds a function by its name in this module.
globals().update(
    {f"{name}_{metric}": _figure(name, metric) for name, task in TASKS.items() for metric in task.measures}
)


def main(arguments: Sequence[str]) -> int:
    """``python -m vega3d_plugin.lmms_eval_plugin BENCHMARK=ROWS ... FOLDER``: write tasks, print how to run them."""
    *given, folder = arguments or [""]
    pairs = [text.partition("=") for text in given]
    if not pairs or not folder or any(not equals for _, equals, _ in pairs):
        print(
            f"usage: python -m vega3d_plugin.lmms_eval_plugin BENCHMARK=ROWS ... FOLDER, BENCHMARK: {', '.join(TASKS)}"
        )
        return 2
    try:
        names = write_tasks({name: file for name, _, file in pairs}, folder)
    except Vega3dError as error:
        print(f"Error: {error}")
        return 1
    print(f"lmms-eval --model vega3d --include_path {folder} --tasks {','.join(names)} --log_samples ...")
    return 0
