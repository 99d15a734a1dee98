"""Approximations on request: what they give, that they are told apart, and that none is passed over without a word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.errors import PriorError
from vega3d_plugin.priors.frozen.int8 import Int8Linear
from vega3d_plugin.priors.frozen.interpolation import interpolated, seen_frames

pytestmark = pytest.mark.filterwarnings("ignore::vega3d_plugin.priors.wan.tiny.RandomWeightsWarning")


@pytest.fixture(scope="module")
def clip() -> Tensor:
    return torch.rand(6, 3, 96, 160, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("count", "every", "seen"), [(1, 3, [0]), (6, 1, [0, 1, 2, 3, 4, 5]), (6, 2, [0, 2, 4, 5]), (7, 3, [0, 3, 6])]
)
def test_frames_that_are_seen(count: int, every: int, seen: list[int]) -> None:
    assert seen_frames(count, every) == seen
    maps = torch.tensor(seen, dtype=torch.bfloat16).view(-1, 1, 1, 1)
    assert interpolated(maps, seen).flatten().tolist() == list(range(count))


def test_seen_frames_are_as_they_were_and_the_others_between_them(clip: Tensor) -> None:
    exact, fewer = vega3d.load_prior("tiny-wan"), vega3d.load_prior("tiny-wan", every=3)
    all_maps, maps = exact(clip), fewer(clip)
    assert torch.equal(maps[[0, 3, 5]], all_maps[[0, 3, 5]])
    torch.testing.assert_close(maps[1], all_maps[0] * 2 / 3 + all_maps[3] / 3)
    torch.testing.assert_close(maps[4], all_maps[3] / 2 + all_maps[5] / 2)
    assert len({exact.fingerprint, fewer.fingerprint, vega3d.load_prior("tiny-wan", every=2).fingerprint}) == 3
    with pytest.raises(PriorError, match="leaves out frames before there are latents"):
        fewer.at_taps(clip, [0], latents=torch.zeros(6, 16, 12, 20))  # type: ignore[attr-defined]


@pytest.mark.parametrize("fast", [True, False])
def test_int8_is_near_and_in_place(clip: Tensor, fast: bool) -> None:
    exact, rounded = (vega3d.load_prior("tiny-wan", int8=int8, fast=fast) for int8 in (False, True))
    base, maps = exact(clip), rounded(clip)
    assert 1e-5 < float((maps - base).abs().max() / base.abs().max()) < 2e-2
    assert exact.fingerprint != rounded.fingerprint
    attn = rounded.blocks()[0].attn1  # type: ignore[attr-defined]
    assert isinstance(attn.processor.projection if fast else attn.to_q, Int8Linear)
    rounded._ready = None  # type: ignore[attr-defined]  # as a move to another device does
    assert torch.equal(rounded(clip), maps)


def test_a_linear_layer_in_int8() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    rounded = Int8Linear(linear)
    rounded.round()
    x = torch.randn(2, 70, 96)
    x[0, 0] = 0
    with torch.no_grad():
        torch.testing.assert_close(rounded(x), linear(x), rtol=0, atol=0.05)
        assert torch.equal(rounded(x)[0, 0], linear.bias)
        # Few rows, such as a prompt's, are multiplied as they are.
        assert torch.equal(rounded(x[0, :3]), linear(x[0, :3]))


def test_fewer_frames_than_every_are_told() -> None:
    prior = vega3d.load_prior("tiny-wan", every=8)
    with pytest.warns(vega3d.Vega3dWarning, match="it sees the first and the last alone"):
        prior(torch.rand(4, 3, 32, 48))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tiny-wan", {"every": 2, "context": "views"}, "every=2 leaves frames out .* context 'views'"),
        ("callable", {"every": 2}, "every=2 leaves frames out .* context 'views'"),
        ("callable", {"int8": True}, "has no approximation 'int8'"),
    ],
)
def test_where_there_is_no_approximation(name: str, settings: dict[str, Any], message: str) -> None:
    own = {"function": torch.nn.functional.relu, "feature_dim": 3} if name == "callable" else {}
    with pytest.raises(PriorError, match=message):
        vega3d.load_prior(name, **own, **settings)
