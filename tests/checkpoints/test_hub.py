"""A trained model by hub id finds its branch as the same folder does, and no more is fetched than that takes."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from rows.qwen_vl import qwen_batch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vega3d
from vega3d_plugin.checkpoints.reading import read_saved
from vega3d_plugin.checkpoints.trainer_folder import find_trained
from vega3d_plugin.contracts.errors import SavedBranchError
from vega3d_plugin.storage.record import MARK
from vega3d_qwen_vl.tiny import tiny_model

ID = "me/trained"


class Hub:
    """What ``snapshot_download`` does, of repositories that are folders here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[list[str]] = []

    def repository(self, name: str = ID) -> Path:
        place = self.folder / "repositories" / name
        place.mkdir(parents=True, exist_ok=True)
        return place

    def fetched(self, name: str = ID) -> list[str]:
        return sorted(path.name for path in (self.folder / "cache" / name).iterdir())

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], **_: Any) -> str:
        source, target = self.folder / "repositories" / repo_id, self.folder / "cache" / repo_id
        if not source.is_dir():
            raise OSError("404")
        self.asked.append(allow_patterns)
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, target / path.name)
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def trained() -> nn.Module:
    torch.manual_seed(3)
    return vega3d.patch(tiny_model(), "tiny-wan", init="released", projector={"name": "mlp", "hidden_dim": 8})


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    out: Tensor = model.eval()(**qwen_batch("qwen2_5_vl")).logits
    return out


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_pickled_shards(folder: Path) -> None:
    files = sorted(folder.glob("model-*.safetensors"))
    places = {}
    for file in files:
        name = f"pytorch_{file.stem}.bin"
        tensors = load_file(file)
        torch.save(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("layout", ["whole", "sharded", "pickle", "pickled shards"])
def test_a_whole_model(hub: Hub, layout: str) -> None:
    model, folder = trained(), hub.repository()
    model.save_pretrained(folder, max_shard_size="200KB" if "shard" in layout else "1GB")
    if layout == "pickle":
        as_pickle(folder)
    if layout == "pickled shards":
        as_pickled_shards(folder)
    here, there = read_saved(folder), read_saved(ID)
    assert there.record == here.record
    assert all(torch.equal(there.tensors[name], tensor) for name, tensor in here.tensors.items())
    assert torch.equal(logits(vega3d.load_pretrained(tiny_model(), ID)), logits(model_with(here, model)))
    files = [path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    assert ("shard" in layout) == (len(files) > 3)
    if "shard" in layout:
        # Those that hold something of the branch, and no others.
        index = next(folder.glob("*.index.json"))
        held = {file for name, file in json.loads(index.read_text())["weight_map"].items() if MARK in name}
        assert held < set(files)
        assert {name for name in hub.fetched() if name in files} == held


def model_with(saved: Any, model: nn.Module) -> nn.Module:
    """The base with the branch alone: what a whole model's other weights are is the host's matter."""
    fresh = trained()
    vega3d.get_handle(fresh).branch.load_state_dict(vega3d.get_handle(model).branch.state_dict())
    return fresh


def test_a_branchs_own_files_and_nothing_beside_them(hub: Hub) -> None:
    model = trained()
    model.save_pretrained(hub.repository())
    vega3d.save_pretrained(model, hub.repository())
    assert read_saved(ID).tensors
    assert "vega3d.safetensors" in hub.fetched()
    assert "model.safetensors" not in hub.fetched()


def test_a_model_without_a_branch_is_told_without_fetching_its_shards(hub: Hub) -> None:
    tiny_model().save_pretrained(hub.repository(), max_shard_size="200KB")
    with pytest.raises(SavedBranchError, match="holds no branch"):
        read_saved(ID)
    assert not [name for name in hub.fetched() if name.endswith(".safetensors")]
    save_file({"a": torch.zeros(1)}, hub.repository("me/other") / "model.safetensors")
    with pytest.raises(SavedBranchError, match=r"holds no branch.*in model\.safetensors"):
        read_saved("me/other")
    with pytest.raises(SavedBranchError, match="could not be downloaded from the hub"):
        read_saved("me/nothing")


def test_what_is_evaluated_of_a_hub_id(hub: Hub) -> None:
    """A fully trained model, with its branch in its own weights: host, branch and processor are that id's."""
    trained().save_pretrained(hub.repository(), max_shard_size="200KB")
    (hub.repository() / "preprocessor_config.json").write_text("{}")
    for found in (find_trained(ID), find_trained("base/model", ID)):
        # Only a part of it has been fetched, so the host is loaded by its id.
        assert found.host == ID
        assert found.branch is not None
        assert found.adapter is None
        assert Path(found.processor).is_dir()
        assert read_saved(found.branch).tensors
    tiny_model().save_pretrained(hub.repository("me/bare"), max_shard_size="200KB")
    with pytest.raises(SavedBranchError, match=r"me/bare holds no branch\. Name a saved branch"):
        find_trained("me/bare")
    with pytest.raises(SavedBranchError, match=r"me/nothing holds no branch that can be read \(.*404"):
        find_trained("me/nothing")
    assert find_trained("me/bare", "none").branch is None
