"""A training loop of one's own: the branch at its own learning rate. What trainers save is in test_nothing_lost.py."""

from __future__ import annotations

import hosts
import torch
from hosts import patch

import vega3d

QWEN = hosts.named("qwen2_5_vl")


def test_parameter_groups_train_the_branch_at_its_own_rate() -> None:
    model = patch(QWEN.build(), init="released")
    handle = vega3d.get_handle(model)
    branch = {id(p) for p in handle.parameters()}
    rest = [p for p in model.parameters() if id(p) not in branch]
    optimiser = torch.optim.SGD([*handle.parameter_groups(lr=0.1), {"params": rest, "lr": 0.0}])
    before = [p.detach().clone() for p in rest]
    moved = [p.detach().clone() for p in handle.parameters()]
    batch = QWEN.batch()
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, rest, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(moved, handle.parameters(), strict=True))
