"""The card of a checkpoint: its lines, run as they stand, load what was trained, in the order that loses nothing."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.checkpoints.checkpoint_card import CheckpointParts, checkpoint_card
from vega3d_plugin.cli.app import app
from vega3d_plugin.training.data import read_data
from vega3d_plugin.training.job import make_job
from vega3d_plugin.training.next_commands import next_commands
from vega3d_qwen_vl import tiny as qwen

pytestmark = pytest.mark.once
DATA = Path(__file__).parents[2] / "recipes/smoke_data/rows.json"
RUN = [
    f"data.eval_files={DATA}",
    "train.max_steps=1",
    "train.report_rows=0",
    "train.learning_rate=0.05",
    "train.warmup_ratio=0.0",
]
FULL = ["lora=null", "tune={language: full}"]
BASELINE = ["prior=null", f"data.eval_files={DATA}"]


def code_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(code)


@pytest.mark.parametrize("overrides", [[], FULL, BASELINE], ids=["lora", "full", "baseline"])
def test_its_lines_load_what_was_trained(overrides: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    qwen.tiny_model().save_pretrained(tmp_path / "host")
    qwen.tiny_processor().save_pretrained(tmp_path / "host")
    output = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = make_job("qwen_vl/smoke", [*RUN, f"host.model={tmp_path}/host", *overrides, f"train.output_dir={output}"])
        checkpoint = job.run()
        card = (checkpoint / "README.md").read_text()
        found: dict[str, Any] = {}
        exec(code_of(card), found)
    trained = job.prepared.model.eval()
    data = read_data(qwen.tiny_processor(), DATA, frames=4)
    batch = data.collator([data[0]])
    with torch.no_grad():
        loaded = found["model"].eval()(**batch).logits
        assert torch.equal(loaded, trained(**batch).logits)
        assert not torch.equal(loaded, qwen.tiny_model().eval()(**batch).logits)
    assert isinstance(found["model"], PeftModel) == (overrides is not FULL)
    assert vega3d.is_patched(found["model"]) == (overrides is not BASELINE)
    assert ("1. the branch" in card) == (overrides is not BASELINE)
    assert ("first the branch, then the adapter" in card) == (overrides == [])
    assert "More Information Needed" not in card
    if overrides is BASELINE:
        commands = next_commands(output, checkpoint, job.recipe.to_dict())
        assert [line.split()[:2] for line in commands] == [["vega3d", "report"], ["vega3d", "answer"]]
        for line in commands:
            told = CliRunner().invoke(app, shlex.split(line)[1:])
            assert told.exit_code == 0, told.output

        answers = (output / "answers.jsonl").read_text().splitlines()
        assert sum("prediction" in json.loads(line) for line in answers) == len(data)


def test_what_it_tells() -> None:
    manifest = {
        "recipe": "mine`.yaml",
        "revisions": {"host": {"model": "Qwen/Qwen2.5-VL-3B-Instruct"}, "prior": {"name": "wan2.1-t2v-1.3b"}},
        "versions": {"vega3d-plugin": "0.1.0"},
    }
    parts = CheckpointParts("Qwen2_5_VLForConditionalGeneration", adapter=True, branch=True)
    card = checkpoint_card(manifest, parts, Path("out/checkpoint-7"), 7, 1.23456)
    assert "base_model: Qwen/Qwen2.5-VL-3B-Instruct" in card
    assert "| validation loss | 1.2346 |" in card
    assert code_of(card).splitlines()[-2:] == [
        "vega3d.load_pretrained(model, 'out/checkpoint-7', processor=processor)  # 1. the branch",
        "model = peft.PeftModel.from_pretrained(model, 'out/checkpoint-7')  # 2. the adapter",
    ]
    assert "mine`" not in card, "text of others is no markup"
    small = checkpoint_card(manifest, CheckpointParts("X", adapter=True, branch=True, tiny=True), Path("c"), 1, None)
    assert "the adapter's own small model" in small
    assert "| validation loss | not measured |" in small
