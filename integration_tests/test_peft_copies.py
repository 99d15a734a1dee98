"""PEFT copies a module around the branch: what runs is what trains, switches and is saved, or it is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import hosts
import peft.utils.other
import pytest
import torch
from hosts import Host, logits, patch, train
from peft import LoraConfig, PeftModel, get_peft_model
from rows import generic, transformers_llava
from torch import Tensor, nn

import vega3d
from vega3d_plugin.hosts.nested_copies import CopiedBranchError

ROWS = [
    *transformers_llava.ROWS,
    *generic.ROWS,
    *(row for row in hosts.HOSTS if row.name in ("qwen2_5_vl", "qwen3_vl")),
]


#: Kernels round by where in memory a tensor lies: 1e-7 was seen.
ROUNDING = 1e-6


@pytest.fixture(params=ROWS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    return request.param


def build(host: Host) -> nn.Module:
    return patch(host.build(), **host.options)


def load(model: nn.Module, host: Host, folder: Path) -> nn.Module:
    return vega3d.load_pretrained(model, folder, processor=host.options.get("processor"))


def config(*saved: str, **options: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=list(saved) or None, **options)


def around(host: Host) -> str:
    """The module around the branch that PEFT is told to copy: the last one on the way to it, or Qwen's tower."""
    path = vega3d.get_handle(build(host)).seam.path.split(".")
    return "visual" if "visual" in path else path[-1]


def moved(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Train; the branch's parameters, in one vector, before and after."""

    def flat() -> Tensor:
        return torch.cat([p.detach().flatten().clone() for p in vega3d.get_handle(model).parameters()])

    before = flat()
    train(model, batch, steps=2)
    return before, flat()


@pytest.mark.parametrize("order", ["patch first", "peft first"])
def test_it_trains_switches_saves_and_loads(host: Host, order: str, tmp_path: Path) -> None:
    batch, name = host.batch(), around(host)
    if order == "patch first":
        model = get_peft_model(build(host), config(name))
    else:
        model = patch(get_peft_model(host.build(), config(name)), **host.options)
    assert model.peft_config["default"].modules_to_save == [name]
    before, after = moved(model, batch)
    assert not torch.equal(before, after)
    trained = logits(model, batch)
    with vega3d.disabled(model):
        off = logits(model, batch)
    with vega3d.zeroed(model):
        zeroed = logits(model, batch)
    for other in (off, zeroed):
        assert (other - trained).abs().max() > 100 * ROUNDING
    with vega3d.record_gates(model) as gates:
        logits(model, batch)
    assert len(gates) == len(host.grids)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(build(host), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again, batch), trained, rtol=0, atol=ROUNDING)
    bare = PeftModel.from_pretrained(host.build(), tmp_path / "adapter").eval()
    bare = load(bare, host, tmp_path / "adapter")
    torch.testing.assert_close(logits(bare, batch), trained, rtol=0, atol=ROUNDING)
    vega3d.save_pretrained(model, tmp_path / "branch")
    own = load(host.build(), host, tmp_path / "branch")
    saved = torch.cat([p.detach().flatten() for p in vega3d.get_handle(own).parameters()])
    assert torch.equal(saved, after)


def test_naming_the_branch_too_is_refused_at_once(host: Host) -> None:
    if deep(host):
        # PEFT's own rule leaves a branch deeper inside alone; it then trains as with the module's name alone.
        model = get_peft_model(build(host), config(around(host), "vega3d"))
        before, after = moved(model, host.batch())
        assert not torch.equal(before, after)
        return
    with pytest.raises(CopiedBranchError, match="Leave 'vega3d' out of modules_to_save"):
        get_peft_model(build(host), config(around(host), "vega3d"))


def deep(host: Host) -> bool:
    """Whether the branch lies one module below the one that PEFT is told to copy, and this PEFT looks so far up."""
    path = vega3d.get_handle(build(host)).seam.path
    return path.split(".")[-2:-1] == [around(host)] and hasattr(peft.utils.other, "_get_submodules_with_grandparent")


LLAVA = hosts.named("llava")


def test_merged_unloaded_and_unpatched() -> None:
    batch = LLAVA.batch()
    model = get_peft_model(build(LLAVA), config("multi_modal_projector"))
    train(model, batch, steps=2)
    expected = logits(model, batch)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, rtol=1e-3, atol=1e-4)
    with vega3d.zeroed(merged):
        assert not torch.equal(logits(merged, batch), expected)
    # No longer inside a copy, it may be named by itself.
    model = get_peft_model(merged, config("vega3d"))
    before, after = moved(model, batch)
    assert not torch.equal(before, after)


def test_unpatched_where_peft_came_first() -> None:
    batch = LLAVA.batch()
    model = get_peft_model(LLAVA.build(), config("multi_modal_projector")).eval()
    before, keys = logits(model, batch), list(model.state_dict())
    patch(model)
    assert torch.equal(logits(model, batch), before)
    train(model, batch, steps=1)
    vega3d.unpatch(model)
    assert list(model.state_dict()) == keys
    assert not vega3d.is_patched(model)


def test_two_adapters_have_a_branch_each() -> None:
    batch = LLAVA.batch()
    model = get_peft_model(build(LLAVA), config("multi_modal_projector"))
    train(model, batch, steps=2)
    first = logits(model, batch)
    model.add_adapter("second", config("multi_modal_projector"))
    model.set_adapter("second")
    assert vega3d.get_handle(model).branch is not None
    train(model, batch, steps=1)
    second = logits(model, batch)
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)
    with vega3d.disabled(model):
        assert not torch.equal(logits(model, batch), first)
    model.set_adapter("second")
    assert torch.equal(logits(model, batch), second)
    with model.disable_adapter():
        twin = vega3d.get_handle(model).branch
    assert twin is not vega3d.get_handle(model).branch


def test_an_adapter_around_the_branch_of_another_is_refused() -> None:
    model = get_peft_model(build(LLAVA), config("vega3d"))
    with pytest.raises(CopiedBranchError, match=r"'default'.* by itself"):
        model.add_adapter("second", config("multi_modal_projector"))


def test_copies_of_the_whole_model_are_their_own() -> None:
    model = get_peft_model(build(LLAVA), config("multi_modal_projector"))
    twin = copy.deepcopy(model)
    train(twin, LLAVA.batch(), steps=1)
    assert not torch.equal(logits(twin, LLAVA.batch()), logits(model.eval(), LLAVA.batch()))


def test_the_base_of_a_peft_model_is_patched_for_its_adapter(tmp_path: Path) -> None:
    """``patch`` is given the model inside the ``PeftModel``."""
    batch = LLAVA.batch()
    model = get_peft_model(LLAVA.build(), config())
    patch(model.get_base_model())
    train(model, batch, steps=2)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(build(LLAVA), tmp_path).eval(), batch), expected)


def native(model: Any, adapter: LoraConfig) -> Any:
    """``model.add_adapter`` of transformers, without a ``PeftModel``."""
    try:
        model.add_adapter(adapter)
    except (ImportError, ValueError) as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"the installed transformers refuses the installed PEFT: {error}")
    return model


@pytest.mark.parametrize("order", ["patch first", "adapter first"])
def test_an_adapter_of_transformers_own(order: str, tmp_path: Path) -> None:
    batch = LLAVA.batch()
    if order == "patch first":
        model = native(build(LLAVA), config("vega3d"))
    else:
        model = patch(native(LLAVA.build(), config()))
    train(model, batch, steps=2)
    expected = logits(model, batch)
    model.save_pretrained(tmp_path)
    again = vega3d.load_pretrained(LLAVA.build(), tmp_path)
    again.load_adapter(str(tmp_path))
    assert torch.equal(logits(again.eval(), batch), expected)
