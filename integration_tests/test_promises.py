"""The promises of the library, for every host."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path

import hosts
import pytest
import torch
from hosts import Host, freeze_host, in_dtype, logits, loss_of, train
from torch import nn

import vega3d
from vega3d_plugin.contracts.errors import SeamMissedWarning
from vega3d_plugin.hosts.hooks import FuseForward, FuseMethod


@pytest.fixture(params=hosts.HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    row: Host = request.param
    reason = row.limits.get(request.function.__name__)
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return row


def patch(host: Host, model: nn.Module | None = None, **settings: object) -> nn.Module:
    return hosts.patch(host.build() if model is None else model, **{**host.options, **settings})


def test_the_adapter_is_found(host: Host) -> None:
    assert vega3d.get_handle(patch(host)).host == host.adapter


def tables(model: nn.Module) -> dict[str, list]:
    """Everything a patch could leave behind in a module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        name: [sorted(module.__dict__), sorted(module._modules), *[list(getattr(module, h)) for h in hooks]]
        for name, module in model.named_modules()
    }


# Promise 1: a fresh patch is invisible, and learns.


def test_a_fresh_patch_leaves_the_logits_bit_identical(host: Host) -> None:
    model, batch = host.build(), host.batch()
    before = logits(model, batch)
    assert torch.equal(logits(patch(host, model), batch), before)


def test_the_first_steps_move_the_logits(host: Host) -> None:
    model, batch = patch(host), host.batch()
    before = logits(model, batch)
    freeze_host(model)
    train(model, batch, steps=2)
    assert not torch.equal(logits(model, batch), before)


# Promise 2: unpatch restores everything.


def test_unpatch_restores_everything(host: Host) -> None:
    model, batch = host.build(), host.batch()
    before, keys, dictionaries = logits(model, batch), list(model.state_dict()), tables(model)
    patch(host, model)
    freeze_host(model)
    train(model, batch, steps=1)
    vega3d.unpatch(model)
    assert torch.equal(logits(model, batch), before)
    assert list(model.state_dict()) == keys
    assert tables(model) == dictionaries
    assert not vega3d.is_patched(model)


# Promise 3: the branch is used.


def test_a_trained_branch_is_used(host: Host) -> None:
    model, batch = host.build(), host.batch()
    base = logits(model, batch)
    patch(host, model)
    freeze_host(model)
    train(model, batch, steps=2, lr=0.1)
    patched = logits(model, batch)
    with vega3d.zeroed(model):
        zeroed = logits(model, batch)
    with vega3d.disabled(model):
        off = logits(model, batch)
    assert not torch.equal(patched, base)
    assert not torch.equal(patched, zeroed)
    assert torch.equal(off, base)
    assert torch.equal(logits(model, batch), patched)


def test_gates_come_clip_by_clip(host: Host) -> None:
    model, batch = patch(host), host.batch()
    with vega3d.record_gates(model) as gates:
        logits(model, batch)
    assert [tuple(gate.shape) for gate in gates] == list(host.grids)
    assert all(0 < float(gate.min()) <= float(gate.max()) < 1 for gate in gates)


def test_images_that_pass_by_the_seam_raise_a_warning(host: Host) -> None:
    model, batch = patch(host), host.batch()
    # A seam that the host passes by: what a host that changed its ways would look like.
    for module in model.modules():
        for key in [k for k, hook in module._forward_hooks.items() if isinstance(hook, FuseForward)]:
            del module._forward_hooks[key]
        for name in [n for n, value in module.__dict__.items() if isinstance(value, FuseMethod)]:
            del module.__dict__[name]
    with pytest.warns(SeamMissedWarning, match=f"{host.visual!r}.*was not called"):
        logits(model, batch)


def test_ordinary_use_raises_no_such_warning(host: Host) -> None:
    model, batch = patch(host), host.batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SeamMissedWarning)
        logits(model, batch)
        logits(model, host.text_batch())
        host.generate(model, batch, max_new_tokens=3)
        logits(model, batch)


# Promise 4: what people do with models.


def test_generate(host: Host) -> None:
    model, batch = host.build(), host.batch()
    plain = host.generate(model, batch, max_new_tokens=4)
    patch(host, model)
    assert torch.equal(host.generate(model, batch, max_new_tokens=4), plain)
    calls = count_prior_calls(model)
    host.generate(model, batch, max_new_tokens=4)
    assert calls["prior"] == len(host.grids)  # once per clip, in prefill alone


def test_generate_with_beams(host: Host) -> None:
    model, batch = host.build(), host.batch()
    plain = host.generate(model, batch, max_new_tokens=3, num_beams=2)
    assert torch.equal(host.generate(patch(host, model), batch, max_new_tokens=3, num_beams=2), plain)


def count_prior_calls(model: nn.Module) -> dict[str, int]:
    branch = vega3d.get_handle(model).branch
    calls = {"prior": 0}

    class Counting(vega3d.Prior):
        feature_dim, fingerprint, settings = branch.prior.feature_dim, "counting", branch.prior.settings

        def __init__(self, prior: vega3d.Prior) -> None:
            self.prior = prior

        def __call__(self, frames: torch.Tensor) -> torch.Tensor:
            calls["prior"] += 1
            return self.prior(frames)

    branch.prior = Counting(branch.prior)
    return calls


def test_gradient_checkpointing(host: Host) -> None:
    model, batch = patch(host, init="released"), host.batch()
    freeze_host(model)
    plain = copy.deepcopy(model)
    model.gradient_checkpointing_enable()
    if not getattr(model, "is_gradient_checkpointing", True):
        pytest.fail("gradient checkpointing was not enabled")
    gradients = []
    for m in (plain, model):
        m.train()
        loss_of(m, batch).backward()
        gradients.append([p.grad for p in vega3d.get_handle(m).parameters()])
    assert all(g is not None for grads in gradients for g in grads)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_copy_uses_its_own_branch_and_shares_the_prior(host: Host) -> None:
    model, batch = patch(host, init="released"), host.batch()
    twin = copy.deepcopy(model)
    before = logits(model, batch)
    assert torch.equal(logits(twin, batch), before)
    with torch.no_grad():
        vega3d.get_handle(twin).branch.fuser.residual_scale.fill_(1.0)
    assert torch.equal(logits(model, batch), before)
    assert not torch.equal(logits(twin, batch), before)
    assert vega3d.get_handle(twin).prior is vega3d.get_handle(model).prior
    vega3d.unpatch(twin)
    assert torch.equal(logits(model, batch), before)


def test_pickle_and_torch_save(host: Host) -> None:
    model, batch = patch(host, init="released"), host.batch()
    before = logits(model, batch)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), batch), before)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(logits(torch.load(file, weights_only=False), batch), before)


def test_the_hosts_own_checkpoint_only_gains_keys(host: Host, tmp_path: Path) -> None:
    model, batch = host.build(), host.batch()
    before = logits(model, batch)
    model.save_pretrained(tmp_path / "plain")
    patch(host, model, init="released")
    trained = logits(model, batch)
    model.save_pretrained(tmp_path / "patched")
    plain, patched = (keys_of(tmp_path / name) for name in ("plain", "patched"))
    assert plain < patched
    assert all(".vega3d." in key for key in patched - plain)
    again = host.load(type(model), tmp_path / "patched")
    assert torch.equal(logits(again, batch), before)
    # Such a checkpoint is enough by itself: it holds the branch with its settings.
    vega3d.load_pretrained(again, tmp_path / "patched", **host.options)
    assert torch.equal(logits(again, batch), trained)


def keys_of(folder: Path) -> set[str]:
    from safetensors import safe_open

    keys: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as handle:
            keys |= set(handle.keys())
    return keys


def test_half_precision(host: Host) -> None:
    model, batch = host.build().bfloat16(), in_dtype(host.batch(), torch.bfloat16)
    before = logits(model, batch)
    patch(host, model)
    handle = vega3d.get_handle(model)
    assert {p.dtype for p in handle.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model, batch), before)
    freeze_host(model)
    # A step or two may drown in the rounding of a bfloat16 loss.
    losses = train(model, batch, steps=5)
    assert losses[-1] < losses[0]


def test_a_branch_in_half_precision_starts_as_the_host_in_float32(host: Host) -> None:
    model, batch = host.build(), host.batch()
    before = logits(model, batch)
    patch(host, model)
    vega3d.get_handle(model).branch.bfloat16()
    assert torch.equal(logits(model, batch), before)


def test_autocast(host: Host) -> None:
    model, batch = host.build(), host.batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = logits(model, batch)
        assert torch.equal(logits(patch(host, model), batch), before)
    freeze_host(model)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model, batch)
    loss.backward()
    assert all(p.grad is not None for p in vega3d.get_handle(model).parameters())


def test_a_batch_without_images_touches_every_parameter(host: Host) -> None:
    model, batch = patch(host), host.text_batch()
    freeze_host(model)
    model.train()
    plain = float(loss_of(vega3d.unpatch(copy.deepcopy(model)), batch).detach())
    loss = loss_of(model, batch)
    assert float(loss.detach()) == plain
    loss.backward()
    grads = [p.grad for p in vega3d.get_handle(model).parameters()]
    assert all(g is not None and not bool(g.any()) for g in grads)


def test_a_forward_that_broke_off_does_not_count_for_the_next(host: Host) -> None:
    model, text = patch(host), host.text_batch()
    freeze_host(model)
    model.train()

    def give_up(module: nn.Module, args: tuple) -> None:
        raise RuntimeError("out of memory")

    # The images have passed the seam by then, and the host's forward has not ended.
    last = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")][-1]
    broken = last.register_forward_pre_hook(give_up)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**host.batch())
    broken.remove()
    assert vega3d.get_handle(model).branch.fired
    loss_of(model, text).backward()
    assert all(p.grad is not None for p in vega3d.get_handle(model).parameters())


# Promise 5: saving.


def test_save_and_load_into_a_fresh_base(host: Host, tmp_path: Path) -> None:
    model, batch = patch(host), host.batch()
    freeze_host(model)
    train(model, batch, steps=2)
    expected = logits(model, batch)
    vega3d.save_pretrained(model, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "vega3d.safetensors", "vega3d_config.json"}
    fresh = vega3d.load_pretrained(host.build(), tmp_path, **host.options)
    assert torch.equal(logits(fresh, batch), expected)
    assert vega3d.get_handle(fresh).settings == vega3d.get_handle(model).settings
