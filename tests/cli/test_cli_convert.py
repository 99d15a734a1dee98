"""``vega3d convert``: a released checkpoint in, a folder that loads out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.released import LLAVA, TOWER, llava_tensors, qwen_tensors, write
from typer.testing import CliRunner, Result

from vega3d_plugin.checkpoints.reading import read_saved
from vega3d_plugin.cli import output
from vega3d_plugin.cli.app import app


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.out, "width", 200)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


def test_a_released_checkpoint(tmp_path: Path) -> None:
    source = write(tmp_path / "source", {**qwen_tensors(), "lm_head.weight": torch.zeros(2, 16)}, TOWER)
    result = run(source, "--out", tmp_path / "out", "--pretrained", "some/wan")
    assert result.exit_code == 0, result.output
    for part in ("qwen_vl, hidden size 16", "wan2.1-t2v-1.3b", "token_gated_residual", "mlp, width 8", "1 weights of"):
        assert part in result.output
    saved = read_saved(tmp_path / "out")
    assert (saved.record["prior"]["source"], saved.record["prior"]["fingerprint"]) == ("some/wan", None)
    assert saved.record["settings"]["prior"]["tap"] == -1
    assert torch.equal(saved.tensors["projector.mlp.0.weight"], qwen_tensors()["generative_merger.mlp.0.weight"])
    assert saved.tensors["fuser.residual_scale"].shape == (1,)
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "out")])
    assert "residual_scale" in shown.output


def test_json_names_what_was_assumed(tmp_path: Path) -> None:
    source = write(tmp_path / "source", llava_tensors(), None, "mm_projector.bin") / "mm_projector.bin"
    result = run(source, "--out", tmp_path / "out", "--json")
    told = json.loads(result.output)
    assert told["host"] == "llava_video"
    assert told["settings"]["prior"]["size"] == [720, 1280]
    assert "wan2.1-t2v-1.3b" in told["assumed"][0]


def test_a_prior_that_is_not_known(tmp_path: Path) -> None:
    source = write(tmp_path / "source", llava_tensors(), {**LLAVA, "generative_feature_source": "offline"})
    result = run(source, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "pass prior=" in str(result.exception)
    assert not (tmp_path / "out").exists()
    assert run(source, "--out", tmp_path / "out", "--prior", "external").exit_code == 0
    assert read_saved(tmp_path / "out").record["prior"]["name"] == "external"


def test_for_llava_in_transformers(tmp_path: Path) -> None:
    source = write(tmp_path / "source", llava_tensors(), LLAVA)
    result = run(source, "--out", tmp_path / "out", "--host", "llava_transformers")
    assert "llava_transformers, hidden size 16" in result.output
    assert read_saved(tmp_path / "out").record["host"]["name"] == "llava_transformers"
    wrong = run(source, "--out", tmp_path / "other", "--host", "qwen_vl")
    assert wrong.exit_code == 1
    assert "'qwen_vl'" in str(wrong.exception)
    assert "llava_video" in str(wrong.exception)
    assert not (tmp_path / "other").exists()


def test_a_branch_that_is_there_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "source", qwen_tensors(), TOWER)
    assert run(source, "--out", tmp_path / "out").exit_code == 0
    before = (tmp_path / "out" / "vega3d.safetensors").read_bytes()
    other = write(tmp_path / "other", qwen_tensors("concat"), TOWER)
    again = run(other, "--out", tmp_path / "out")
    assert again.exit_code == 1
    assert "Pass --force" in str(again.exception)
    assert (tmp_path / "out" / "vega3d.safetensors").read_bytes() == before
    assert run(other, "--out", tmp_path / "out", "--force").exit_code == 0
    assert read_saved(tmp_path / "out").record["settings"]["fusion"]["name"] == "concat"


def test_a_checkpoint_of_this_library_is_named_as_one(tmp_path: Path) -> None:
    source = write(tmp_path / "source", qwen_tensors(), TOWER)
    assert run(source, "--out", tmp_path / "out").exit_code == 0
    tensors = {f"model.visual.vega3d.{name}": tensor for name, tensor in read_saved(tmp_path / "out").tensors.items()}
    (tmp_path / "run").mkdir()
    save_file(tensors, tmp_path / "run" / "adapter_model.safetensors")
    again = run(tmp_path / "run", "--out", tmp_path / "other")
    assert "It is a branch of this library: use vega3d.load_pretrained." in str(again.exception)
