"""The host of a checkpoint by itself: loads without unknown weights, and with its branch back says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import lmms_eval_task
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from typer.testing import CliRunner

import vega3d
from vega3d_plugin.checkpoints.host_export import export_host, find_host_of
from vega3d_plugin.checkpoints.trainer_folder import find_trained, with_adapter
from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import SavedBranchError
from vega3d_qwen_vl.tiny import tiny_model


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as :func:`support.lmms_eval_task.build` makes them."""
    return lmms_eval_task.build(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def batch(root: Path) -> Any:
    processor = AutoProcessor.from_pretrained(root / "host")
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Where?<|im_end|>\n<|im_start|>assistant\n"
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (84, 112, 3), dtype=np.uint8))
    return processor(text=[text], images=[picture], return_tensors="pt")


@torch.no_grad()
def logits(model: Any, batch: Any) -> torch.Tensor:
    out: torch.Tensor = model.eval()(**batch).logits
    return out


def load(folder: Path) -> Any:
    """In plain transformers, with nothing missing and nothing unknown."""
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


def test_a_whole_patched_host_loses_its_branch_and_gets_it_back(root: Path, batch: Any, tmp_path: Path) -> None:
    found = export_host(find_host_of(root / "full"), tmp_path / "served")
    assert (found.adapter, found.left_out > 0) == (None, True)
    original = vega3d.load_pretrained(load_patched(root / "full"), root / "full")
    model = load(tmp_path / "served")
    alone = logits(model, batch)
    vega3d.load_pretrained(model, root / "full")
    assert torch.equal(logits(model, batch), logits(original, batch))
    assert not torch.equal(alone, logits(original, batch))
    # What is beside the weights makes it a host for every program.
    assert AutoProcessor.from_pretrained(tmp_path / "served").image_processor is not None
    assert not vega3d.is_patched(load(tmp_path / "served"))


def load_patched(folder: Path) -> Any:
    """The host's own weights in a checkpoint of the patched host."""
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert any(".vega3d." in name for name in info["unexpected_keys"])
    return model


def test_an_adapter_is_merged(root: Path, batch: Any, tmp_path: Path) -> None:
    out = tmp_path / "served"
    done = CliRunner().invoke(
        app, ["export", "host", str(root / "adapter"), str(out), "--host", str(root / "host"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["adapter"] == str(root / "adapter")
    tuned = with_adapter(vega3d.load_pretrained(load(root / "host"), root / "adapter"), str(root / "adapter"))
    merged = vega3d.load_pretrained(load(out), root / "adapter")
    apart = vega3d.load_pretrained(load(root / "host"), root / "adapter")
    wanted, found, without = (logits(model, batch) for model in (tuned, merged, apart))
    assert not torch.allclose(wanted, without, atol=1e-3)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    # The same model with its adapter merged by PEFT: to the last bit.
    assert torch.equal(found, logits(tuned.merge_and_unload(), batch))
    # An adapter does not count twice.
    assert find_trained(out, root / "adapter").adapter is None
    assert find_trained(root / "host", root / "adapter").adapter == str(root / "adapter")
    with pytest.raises(SavedBranchError, match=r"have the adapter .* in them already"):
        find_trained(out, root / "adapter", adapter=root / "adapter")


def test_weights_keep_their_dtype(root: Path, tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoProcessor.from_pretrained(root / "host").save_pretrained(tmp_path / "half")
    out = export_host(find_host_of(root / "plain", tmp_path / "half"), tmp_path / "served")
    assert out.branch is None
    merged = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "served", torch_dtype="auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    changed = [
        name
        for (name, a), b in zip(merged.named_parameters(), model.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed
    assert all("q_proj" in name for name in changed)


@pytest.fixture
def nowhere(root: Path, tmp_path: Path) -> Path:
    """An adapter that names no host that is there."""
    folder = tmp_path / "adapter"
    shutil.copytree(root / "adapter", folder)
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, "base_model_name_or_path": None}))
    return folder


def test_what_cannot_be_written_is_told(root: Path, nowhere: Path, tmp_path: Path) -> None:
    with pytest.raises(SavedBranchError, match=r"does not say which one it was trained on\. Pass host=MODEL"):
        find_host_of(nowhere)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine").touch()
    with pytest.raises(SavedBranchError, match="holds something already"):
        export_host(find_host_of(root / "full"), tmp_path / "served")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
