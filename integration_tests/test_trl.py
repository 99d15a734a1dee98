"""The script of docs/trl.md, run as it stands there; only its names of models, rows and folder are other ones."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import hosts
import pytest
import torch
import vega3d_recipes
from transformers import AutoProcessor

import vega3d
from vega3d_plugin.contracts.errors import Vega3dWarning
from vega3d_plugin.training.data import read_data
from vega3d_qwen_vl import tiny

PAGE = Path(__file__).parents[1] / "docs" / "trl.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_script_is_short() -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(BLOCKS) == 2
    assert len(lines) < 30


NEEDS_TRL = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")


def for_the_test(folder: Path) -> tuple[str, Path, Path]:
    """The page's script with a tiny model and rows of its own, the model's folder, and the rows."""
    base = folder / "base"
    tiny.tiny_model().to(torch.bfloat16).save_pretrained(base)
    tiny.tiny_processor().save_pretrained(base)
    rows = Path(vega3d_recipes.__file__).parent / "smoke_data" / "rows.json"
    values = f"MODEL, PRIOR = {str(base)!r}, 'tiny-wan'\nROWS, FOLDER = {str(rows)!r}, 'out'"
    script, count = re.subn(r"^MODEL, PRIOR = .*\nROWS, FOLDER = .*$", values, BLOCKS[0], flags=re.MULTILINE)
    assert count == 1
    return script, base, rows


@NEEDS_TRL
def test_without_the_cast_it_is_told_that_steps_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    cast = re.compile(r"^for parameter in trainer\.model\.parameters.*?(?=^trainer\.train)", re.MULTILINE | re.DOTALL)
    script, count = cast.subn("", for_the_test(tmp_path)[0])
    assert count == 1
    short = script.replace("learning_rate=1e-4", "learning_rate=1e-5, max_steps=1").partition("trainer.save_model")[0]
    warnings.simplefilter("ignore", FutureWarning)
    with pytest.warns(Vega3dWarning, match="trains in bfloat16 without float32 copies"):
        exec(compile(short, str(PAGE), "exec"), {})


@NEEDS_TRL
def test_the_script_trains_and_its_folder_gives_the_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # transformers 4.50 writes the script's precision here; put back, so that later runs do not have it.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    script, base, rows = for_the_test(tmp_path)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exec(compile(script, str(PAGE), "exec"), names)
        trained, state = names["trainer"].model.eval(), names["trainer"].state
        assert state.global_step >= 3
        exec(compile(BLOCKS[1], str(PAGE), "exec"), names)
    data = read_data(AutoProcessor.from_pretrained(base), rows, frames=8)
    batch = data.collator([data[i] for i in range(len(data))])
    assert {"pixel_values", "pixel_values_videos"} < set(batch)
    loaded = names["model"].eval()
    parameters = dict(loaded.named_parameters())
    learned = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert learned == {name for name in parameters if "lora_" in name or ".vega3d.modules_to_save." in name}
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
    # Loaded into a host in half precision, the branch is rounded to it.
    for name, parameter in trained.named_parameters():
        parameter.data = parameter.data.to(parameters[name].dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = hosts.logits(trained, batch).float()
        assert torch.equal(hosts.logits(loaded, batch).float(), expected)
        assert not torch.equal(hosts.logits(tiny.tiny_model().to(torch.bfloat16), batch).float(), expected)
        with vega3d.zeroed(loaded):
            assert not torch.equal(hosts.logits(loaded, batch).float(), expected)
