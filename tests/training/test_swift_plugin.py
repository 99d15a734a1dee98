"""The plugin file for ms-swift: run as ms-swift runs it, over a stand-in of its registry, and over the real one."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.harnesses import interpreter
from vega3d_plugin.swift_plugin import attach

import vega3d
from vega3d_plugin import swift_plugin
from vega3d_plugin.checkpoints.reading import read_saved
from vega3d_plugin.contracts.errors import HostError, SettingsError
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

PRIOR = {"VEGA3D_PRIOR": "tiny-wan"}


class Loader:
    """The part of ms-swift's ModelLoader that matters: ``load`` gives a model, or None, and a processor."""

    def __init__(self, model: Any = None) -> None:
        self.model = model
        self.model_info = types.SimpleNamespace(model_dir="/nowhere")

    def load(self) -> tuple[Any, Any]:
        return self.model, tiny_processor()


@dataclass
class Meta:
    loader: Any = Loader
    is_multimodal: bool = True
    is_reward: bool = False


def run_as_swift_does(path: str) -> None:
    """ms-swift 4.6: the file is executed under a name made of its path's hash."""
    spec = importlib.util.spec_from_file_location("_swift_external_0123", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def plugin_file() -> str:
    """What a user passes to ``--external_plugins``."""
    told = subprocess.run([sys.executable, "-m", "vega3d_plugin.swift_plugin"], capture_output=True, text=True)
    return told.stdout.strip()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Meta]:
    """A stand-in of ``swift.model.model_meta``."""
    registry = {"qwen2_5_vl": Meta(), "qwen2": Meta(is_multimodal=False), "reward_vl": Meta(is_reward=True)}
    modules = {"swift": {}, "swift.model": {}, "swift.model.model_meta": {"MODEL_MAPPING": registry}}
    for name, values in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return registry


def test_every_model_that_sees_is_loaded_with_the_branch(
    registry: dict[str, Meta], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEGA3D_PRIOR", "tiny-wan")
    path = plugin_file()
    run_as_swift_does(path)
    # Worker processes import it again.
    run_as_swift_does(path)
    assert registry["qwen2"].loader is registry["reward_vl"].loader is Loader
    loader = registry["qwen2_5_vl"].loader
    assert loader.__mro__[1] is Loader
    model, processor = loader(tiny_model()).load()
    assert vega3d.get_handle(model).settings.prior.name == "tiny-wan"
    assert processor is not None
    assert loader(None).load()[0] is None


def test_importing_it_from_here_changes_nothing(registry: dict[str, Meta]) -> None:
    importlib.reload(swift_plugin)
    assert registry["qwen2_5_vl"].loader is Loader


def test_its_folder_hides_no_other_module() -> None:
    """ms-swift puts the folder of a plugin file first on the path, for its worker processes too."""
    file = Path(plugin_file())
    assert file.is_file()
    assert {other.name for other in file.parent.iterdir() if other.name != "__pycache__"} == {"__init__.py", file.name}
    assert importlib.util.find_spec(file.stem) is None


def test_settings_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "branch.yaml"
    file.write_text("prior: {name: tiny-wan, tap: 0}\nfusion: {name: add}\nprojector: {name: avg, hidden_dim: 8}\n")
    model = attach(tiny_model(), None, None, {"VEGA3D_CONFIG": str(file), "VEGA3D_STORE": str(tmp_path / "store")})
    handle = vega3d.get_handle(model)
    assert (handle.settings.fusion.name, handle.settings.prior.tap) == ("add", 0)
    assert handle.branch.store is not None
    assert attach(model, None, None, {}) is model


def test_a_saved_branch_and_a_folder_that_holds_one(tmp_path: Path) -> None:
    model = attach(tiny_model(), None, None, PRIOR)
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.5)
    vega3d.save_pretrained(model, tmp_path / "branch")
    model.save_pretrained(tmp_path / "full")
    for folder, environ in (
        (None, {"VEGA3D_BRANCH": str(tmp_path / "branch")}),
        (tmp_path / "full", {}),
        # A prior named for the first training must not undo what a later one loads.
        (tmp_path / "full", PRIOR),
    ):
        loaded = vega3d.get_handle(attach(tiny_model(), None, folder, environ))
        assert loaded.branch.fuser.residual_scale.item() == 0.5
    with pytest.raises(SettingsError, match="unset VEGA3D_CONFIG and VEGA3D_PRIOR"):
        attach(tiny_model(), None, None, {"VEGA3D_BRANCH": str(tmp_path / "branch"), **PRIOR})


def test_a_host_that_is_not_supported_is_not_skipped() -> None:
    with pytest.raises(HostError, match="No host adapter matches"):
        attach(torch.nn.Linear(2, 2), None, None, PRIOR)


IDS = """
from swift.template.templates import qwen

# The real vocabulary's ids are constants there.
for kind in vars(qwen).values():
    if isinstance(kind, type) and hasattr(kind, "image_token_id"):
        kind.image_token_id, kind.video_token_id = {image}, {video}
"""
ROW = {
    "messages": [{"role": "user", "content": "<image>Is it red?"}, {"role": "assistant", "content": "Yes"}],
    "images": ["a.png"],
}


def swift(cwd: Path, command: str, *arguments: str, **variables: str) -> str:
    """Run a command of the real ms-swift with the plugin; returns all that it prints."""
    line = [
        str(interpreter("ms-swift")), "-m", f"swift.cli.{command}", *arguments, "--torch_dtype", "float32",
        "--external_plugins", plugin_file(), "ids.py",
    ]  # fmt: skip
    given = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MODELSCOPE_CACHE": str(cwd / "cache"), **variables}
    run = subprocess.run(line, cwd=cwd, env={**os.environ, **given}, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


if interpreter("ms-swift") is not None:

    @pytest.mark.slow
    def test_the_real_ms_swift(tmp_path: Path) -> None:
        """Train an adapter with the branch, merge both, and load what came out with the branch that was trained."""
        host = tiny_model()
        host.save_pretrained(tmp_path / "host")
        tiny_processor().save_pretrained(tmp_path / "host")
        Image.new("RGB", (96, 64), "red").save(tmp_path / "a.png")
        (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
        (tmp_path / "ids.py").write_text(IDS.format(image=host.config.image_token_id, video=host.config.video_token_id))
        kind = ["--model_type", "qwen2_5_vl", "--template", "qwen2_5_vl"]
        printed = swift(
            tmp_path, "sft", "--model", "host", *kind, "--dataset", "rows.jsonl", "--tuner_type", "lora",
            "--target_modules", "q_proj", "--modules_to_save", "vega3d", "--max_steps", "2", "--save_steps", "2",
            "--learning_rate", "1e-2", "--output_dir", "out", "--add_version", "false", "--report_to", "none",
            "--use_cpu", "true", "--bf16", "false", "--dataset_num_proc", "1", **PRIOR,
        )  # fmt: skip
        assert "vega3d: Handle(host='qwen_vl'" in printed
        trained = read_saved(tmp_path / "out" / "checkpoint-2").tensors
        assert trained["fuser.residual_scale"].item() != 0
        adapters = ["--adapters", "out/checkpoint-2"]
        swift(
            tmp_path, "export", *adapters, "--merge_lora", "true", "--output_dir", "merged",
            VEGA3D_BRANCH="out/checkpoint-2",
        )  # fmt: skip
        merged = read_saved(tmp_path / "merged").tensors
        assert all(torch.equal(merged[name], tensor) for name, tensor in trained.items())
        answer = ["--val_dataset", "rows.jsonl", "--max_new_tokens", "4", "--temperature", "0"]
        swift(tmp_path, "infer", *adapters, *answer, "--result_path", "a.jsonl", VEGA3D_BRANCH="out/checkpoint-2")
        swift(tmp_path, "infer", "--model", "merged", *kind, *answer, "--result_path", "b.jsonl")
        said = [json.loads((tmp_path / name).read_text())["response"] for name in ("a.jsonl", "b.jsonl")]
        assert said[0] == said[1] != ""
