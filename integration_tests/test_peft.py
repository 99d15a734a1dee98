"""PEFT in both orders: nothing is silently frozen, lost or wrapped."""

from __future__ import annotations

import copy
from pathlib import Path

import hosts
import pytest
import torch
from hosts import Host, logits, patch, train
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import vega3d
from vega3d_plugin.branch.branch import GenerativeBranch

# PEFT works on the language model alike in all families; a row for each kind of seam keeps the time down, and all run
# the other promises.
CHOSEN = ("qwen2_5_vl", "qwen3_vl", "llava_double", "llava_next", "llava_onevision", "openvla_double", "openvla")
ROWS = [host for host in hosts.HOSTS if host.name in CHOSEN]
TARGETS: dict[str, object] = {
    "language model": r".*(language_model|model)\.layers\..*\.(q|k|v|o)_proj",
    "all-linear": "all-linear",
    "bare q_proj": ["q_proj"],
    # PEFT shortens long lists to endings such as these; in Qwen-VL they mean the vision tower's merger.mlp.0 and .2.
    "endings": ["q_proj", "mlp.0", "mlp.2", "out_proj"],
}


@pytest.fixture(params=ROWS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    return request.param


def config(targets: object = ("q_proj",), **options: object) -> LoraConfig:
    targets = list(targets) if isinstance(targets, tuple) else targets
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options)


def lora_modules(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith("lora_A")]


def branch_parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(vega3d.get_handle(model).parameters())


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("order", ["patch first", "peft first"])
def test_lora_leaves_branch_and_prior_alone(host: Host, targets: object, order: str) -> None:
    batch = host.batch()
    plain = host.build()
    before = logits(plain, batch)
    if order == "patch first":
        model = get_peft_model(patch(plain), config(targets, modules_to_save=["vega3d"]))
    else:
        model = patch(get_peft_model(plain, config(targets)))
    assert model.peft_config["default"].modules_to_save == ["vega3d"]
    assert lora_modules(model)
    assert not [name for name in lora_modules(model) if "vega3d" in name]
    assert not [n for n, p in model.named_parameters() if "transformer" in n]
    assert all(p.requires_grad for p in branch_parameters(model))
    assert torch.equal(logits(model.eval(), batch), before)
    train(model, batch, steps=2)
    assert not torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("order", ["patch first", "peft first"])
def test_the_adapters_folder_and_the_base_rebuild_the_model(host: Host, tmp_path: Path, order: str) -> None:
    batch = host.batch()
    if order == "patch first":
        model = get_peft_model(patch(host.build()), config(modules_to_save=["vega3d"]))
    else:
        model = patch(get_peft_model(host.build(), config()))
    train(model, batch, steps=2)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    # The two lines of the README.
    again = vega3d.load_pretrained(host.build(), tmp_path)
    again = PeftModel.from_pretrained(again, tmp_path)
    assert torch.equal(logits(again.eval(), batch), expected)


def test_without_modules_to_save_training_raises(host: Host) -> None:
    model = get_peft_model(patch(host.build()), config())
    with pytest.raises(vega3d.errors.FrozenBranchError, match="modules_to_save"):
        train(model, host.batch())
    vega3d.get_handle(model).freeze()
    train(model, host.batch(), steps=1)


def test_merge_and_unload_keeps_the_trained_branch(host: Host) -> None:
    batch = host.batch()
    model = get_peft_model(patch(host.build()), config(modules_to_save=["vega3d"]))
    train(model, batch, steps=2)
    expected = logits(model, batch)
    merged = model.merge_and_unload()
    assert isinstance(vega3d.get_handle(merged).branch, GenerativeBranch)
    with_branch = logits(merged, batch)
    torch.testing.assert_close(with_branch, expected, rtol=1e-3, atol=1e-4)
    with vega3d.zeroed(merged):
        assert not torch.equal(logits(merged, batch), with_branch)
    vega3d.unpatch(merged)
    assert not any("vega3d" in key for key in merged.state_dict())


def test_disabled_adapters_use_the_branch_as_it_was(host: Host) -> None:
    batch = host.batch()
    plain = host.build()
    before = logits(plain, batch)
    model = get_peft_model(patch(plain), config(modules_to_save=["vega3d"]))
    train(model, batch, steps=2)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), before)


def test_unpatch_inside_a_peft_model(host: Host, tmp_path: Path) -> None:
    batch = host.batch()
    model = get_peft_model(host.build(), config())
    before, keys = logits(model.eval(), batch), list(model.state_dict())
    saved = copy.deepcopy(model.peft_config["default"].to_dict())
    patch(model)
    assert vega3d.is_patched(model)
    vega3d.unpatch(model)
    assert torch.equal(logits(model, batch), before)
    assert list(model.state_dict()) == keys
    assert model.peft_config["default"].to_dict() == saved
    model.save_pretrained(tmp_path)


def test_gates_and_copies_under_peft(host: Host) -> None:
    model = get_peft_model(patch(host.build()), config(modules_to_save=["vega3d"])).eval()
    with vega3d.record_gates(model) as gates:
        logits(model, host.batch())
    assert len(gates) == len(host.grids)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, host.batch()), logits(model, host.batch()))


def test_an_adapter_on_a_base_that_was_never_patched(host: Host, tmp_path: Path) -> None:
    """The one loss that cannot be prevented from here is at least put right: our loader still finds the branch."""
    batch = host.batch()
    model = get_peft_model(patch(host.build()), config(modules_to_save=["vega3d"]))
    train(model, batch, steps=2)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    bare = PeftModel.from_pretrained(host.build(), tmp_path).eval()
    assert not vega3d.is_patched(bare)
    assert torch.equal(logits(vega3d.load_pretrained(bare, tmp_path), batch), expected)
