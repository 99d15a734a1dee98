"""What the library wrote before 0.1.0 still loads, bit for bit; ``written_before/write.py`` wrote it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vega3d
from vega3d_plugin.checkpoints.reading import read_saved
from vega3d_qwen_vl.tiny import tiny_model

FOLDER = Path(__file__).parents[1] / "written_before"


def expected(kind: str) -> dict[str, Tensor]:
    tensors = load_file(FOLDER / "expected.safetensors")
    found = {name.removeprefix(f"{kind}."): t for name, t in tensors.items() if name.startswith(f"{kind}.")}
    assert found
    return found


class Plain(vega3d.Prior):
    """Of the name and fingerprint of the prior that filled the store; it is never to be asked."""

    feature_dim, fingerprint = 4, "plain"

    def __call__(self, frames: Tensor) -> Tensor:
        raise AssertionError("the store has these features")


@pytest.mark.parametrize("kind", ["branch", "adapter", "full"])
def test_a_branch_loads_bit_for_bit(kind: str) -> None:
    wanted = expected(kind)
    saved = read_saved(FOLDER / kind).tensors
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in wanted.items())
    # Random weights from a seed are not the same in every version of torch.
    model = vega3d.load_pretrained(tiny_model(hidden_size=16), FOLDER / kind, allow_prior="tiny-wan")
    loaded = vega3d.get_handle(model).branch.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())
    assert vega3d.get_handle(model).settings.prior.tap == 1


def test_a_branch_is_saved_over_and_its_card_follows(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "branch", tmp_path / "branch"))
    model = vega3d.load_pretrained(tiny_model(hidden_size=16), folder, allow_prior="tiny-wan")
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(0.75)
    vega3d.save_pretrained(model, folder)
    assert read_saved(folder).tensors["fuser.residual_scale"].item() == 0.75
    # The card was that version's own and nobody had changed it.
    old, new = ((place / "README.md").read_text() for place in (FOLDER / "branch", folder))
    fingerprint = vega3d.get_handle(model).prior.fingerprint
    assert old != new
    assert f"fingerprint `{fingerprint}`" in new


def test_a_store_is_read_and_goes_on(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "store", tmp_path / "store"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    store = vega3d.FeatureStore(folder)
    store.bind(Plain())
    wanted = expected("store")
    assert len(wanted) == 2
    for key, tensor in wanted.items():
        assert torch.equal(store.get(key), tensor)
        assert torch.equal(store.get(f"{key}-bfloat16"), tensor.to(torch.bfloat16))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    store.put("ab" * 16, tensor)
    again = vega3d.FeatureStore(folder)
    again.bind(Plain())
    assert torch.equal(again.get("ab" * 16), tensor)
