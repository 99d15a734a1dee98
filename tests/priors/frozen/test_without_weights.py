"""Models that are built to be filled: without weights, without touching what other threads build."""

from __future__ import annotations

import torch
from support.together import together
from torch import nn

from vega3d_plugin.priors.frozen.without_weights import without_weights


class Part(nn.Module):
    """Layers, a parameter of its own, and buffers that no checkpoint holds."""

    def __init__(self, fills: bool = False) -> None:
        super().__init__()
        self.linear, self.conv, self.norm = nn.Linear(3, 4), nn.Conv3d(2, 2, 3), nn.LayerNorm(4)
        self.token = nn.Parameter(torch.ones(2))
        self.register_buffer("angles", torch.arange(4.0) / 4, persistent=False)
        if fills:
            self.register_buffer("table", torch.empty(3), persistent=False)
            self.table.copy_(torch.arange(3.0))


def test_layers_have_no_weights_and_buffers_have_values() -> None:
    model = without_weights(Part)
    assert all(p.is_meta for layer in (model.linear, model.conv) for p in layer.parameters())
    assert torch.equal(model.angles, torch.arange(4.0) / 4)
    model.load_state_dict(Part().state_dict(), assign=True)
    assert not any(p.is_meta for p in model.parameters())


def test_a_buffer_that_is_filled_later_keeps_its_values() -> None:
    model = without_weights(lambda: Part(fills=True))
    assert torch.equal(model.table, torch.arange(3.0))


def test_what_other_threads_build_has_weights() -> None:
    register, empty = nn.Module.register_parameter, torch.empty

    def loading() -> bool:
        return all(without_weights(Part).linear.weight.is_meta for _ in range(30))

    def building() -> bool:
        return not any(p.is_meta for _ in range(30) for p in Part().parameters())

    assert together(loading, building, loading, building) == [True] * 4
    assert nn.Module.register_parameter is register
    assert torch.empty is empty
