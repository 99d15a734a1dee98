"""Saving beyond the folder: the hub (its calls stubbed: there is no network in tests), the card, interrupted writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import hosts
import huggingface_hub
import pytest
import torch
from hosts import logits, patch

import vega3d
from vega3d_plugin.contracts import errors

QWEN = hosts.named("qwen2_5_vl")


def test_what_is_written_down(tmp_path: Path) -> None:
    model = patch(QWEN.build(), context="views", seed=7)
    vega3d.save_pretrained(model, tmp_path)
    record = json.loads((tmp_path / "vega3d_config.json").read_text())
    assert record["library_version"] == vega3d.__version__
    assert record["host"] == {"name": "qwen_vl", "hidden_size": 64, "merge": 2}
    prior = record["prior"]
    assert (prior["name"], prior["feature_dim"], len(prior["fingerprint"])) == ("tiny-wan", 96, 32)
    assert {"source", "revision"} <= set(prior)
    assert vega3d.BranchSettings.parse(record["settings"]) == vega3d.get_handle(model).settings
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vega3d-plugin")
    assert "tiny-wan" in card
    assert "2603.19235" in card


def test_push_and_load_by_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"
    calls: list[Any] = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append((repo_id, options))
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str]) -> None:
            for name in allow_patterns:
                (hub / repo_id).mkdir(parents=True, exist_ok=True)
                shutil.copy(folder_path / name, hub / repo_id / name)

    def download(
        repo_id: str, revision: str | None = None, token: str | None = None, allow_patterns: Any = None
    ) -> str:
        if not (hub / repo_id).is_dir():
            raise OSError("401")
        return str(hub / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = patch(QWEN.build(), init="released")
    vega3d.save_pretrained(model, tmp_path / "out", push_to_hub=True, repo_id="me/branch", private=True, token="secret")
    assert calls == ["secret", ("me/branch", {"private": True, "exist_ok": True})]
    again = vega3d.load_pretrained(QWEN.build(), "me/branch")
    assert torch.equal(logits(again, QWEN.batch()), logits(model, QWEN.batch()))
    with pytest.raises(errors.SavedBranchError, match="could not be downloaded from the hub"):
        vega3d.load_pretrained(QWEN.build(), "me/nothing")


def test_an_interrupted_save_leaves_the_old_files_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    model = patch(QWEN.build(), init="released")
    vega3d.save_pretrained(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(tensors: Any, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vega3d.save_pretrained(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_users_own_readme_is_kept(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    vega3d.save_pretrained(patch(QWEN.build()), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_loading_into_a_model_that_is_patched_the_same_way(tmp_path: Path) -> None:
    model = patch(QWEN.build(), init="released")
    vega3d.save_pretrained(model, tmp_path)
    expected = logits(model, QWEN.batch())
    again = patch(QWEN.build(), init="released")
    with torch.no_grad():
        vega3d.get_handle(again).branch.fuser.residual_scale.fill_(0.9)
    vega3d.load_pretrained(again, tmp_path)
    assert torch.equal(logits(again, QWEN.batch()), expected)


def test_a_failed_load_leaves_a_patched_model_as_it_was(tmp_path: Path) -> None:
    vega3d.save_pretrained(patch(QWEN.build(), init="released", fusion="add"), tmp_path)
    model = patch(QWEN.build(), init="released")
    expected = logits(model, QWEN.batch())
    with pytest.raises(errors.PatchError, match="other settings"):
        vega3d.load_pretrained(model, tmp_path)
    assert torch.equal(logits(model, QWEN.batch()), expected)


def test_compile_after_patching() -> None:
    model = patch(QWEN.build(), init="released")
    expected = logits(model, QWEN.batch())
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled, QWEN.batch()), expected)
    with torch.no_grad():
        vega3d.get_handle(compiled).branch.fuser.residual_scale.fill_(1.0)
    assert not torch.equal(logits(compiled, QWEN.batch()), expected)
