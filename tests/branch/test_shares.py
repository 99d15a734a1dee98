"""Effective shares of every fuser, each against a computation of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vega3d
from vega3d_plugin.branch.learned_scalars import saved_share
from vega3d_plugin.contracts.fusers import Fuser
from vega3d_plugin.contracts.settings import FusionSettings
from vega3d_plugin.contracts.shares import Shares, measured_shares, relative_change

D = 16
OWN_IDENTITY = ["cross_attention", "token_gated_residual", "weighted"]


def build(name: str, init: str = "released", **options: Any) -> Any:
    torch.manual_seed(0)
    fuser = vega3d.build_fuser(name, D, init=init, **options).eval()
    if init == "released":
        with torch.no_grad():
            for parameter in fuser.parameters():
                # LayerNorms with a bias, gates away from one half.
                parameter += 0.3 * torch.randn_like(parameter)
    return fuser


def tokens(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    semantic, generative = torch.randn(2, 3, 4, 4, D, generator=torch.Generator().manual_seed(1))
    return (3 * semantic + 1).to(dtype), (5 * generative).to(dtype)


def measured(fuser: Fuser, semantic: Tensor, generative: Tensor) -> tuple[Tensor, Shares]:
    with measured_shares() as found:
        fused = fuser(semantic, generative)
    (shares,) = found
    return fused, shares


def solved(fused: Tensor, host: Tensor, generative: Tensor) -> Tensor:
    """The weight ``w`` of ``(1 - w) * host + w * generative``, by least squares over a token's channels."""
    step = generative - host
    return ((fused - host) * step).sum(dim=-1) / step.square().sum(dim=-1)


@torch.no_grad()
def by_hand(name: str, fuser: Any, semantic: Tensor, generative: Tensor, fused: Tensor) -> Tensor:
    """The share of the generative token, found without what the fuser tells."""
    if name in ("token_gated_residual", "weighted", "only"):
        return solved(fused, semantic, generative)
    normed = [
        F.layer_norm(x, (D,), norm.weight, norm.bias)
        for x, norm in ((semantic, getattr(fuser, "norm1", None)), (generative, getattr(fuser, "norm2", None)))
        if norm is not None
    ]
    if name in ("token_gated", "context_gated", "instruction_token_gated"):
        return solved(fused, *normed)
    if name == "gated":
        return ((fused - normed[0]) / (normed[1] - normed[0])).mean(dim=-1)
    if name == "add":
        return generative.norm(dim=-1) / (generative.norm(dim=-1) + semantic.norm(dim=-1))
    if name == "concat":
        # The linear in its two halves; LayerNorm gives its bias for a token of zeros.
        ours, theirs = fuser.projection.weight.split(D, dim=1)
        part = F.linear(normed[1] - fuser.norm2.bias, theirs)
        rest = F.linear(normed[0], ours, fuser.projection.bias) + F.linear(fuser.norm2.bias, theirs)
    else:
        assert name == "cross_attention"
        rest = fuser(semantic, torch.zeros_like(generative))
        part = fuser(semantic, generative) - rest
    return part.norm(dim=-1) / (part.norm(dim=-1) + rest.norm(dim=-1))


@pytest.mark.parametrize("name", vega3d.list_fusers())
def test_the_share_is_what_another_computation_finds(name: str) -> None:
    fuser = build(name)
    semantic, generative = tokens()
    fused, shares = measured(fuser, semantic, generative)
    assert torch.equal(fused, fuser(semantic, generative))
    assert shares.generative is not None
    assert shares.generative.shape == shares.change.shape == semantic.shape[:-1]
    expected = by_hand(name, fuser, semantic, generative, fused)
    torch.testing.assert_close(shares.generative, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shares.host, 1 - expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shares.change, (fused - semantic).norm(dim=-1) / semantic.norm(dim=-1))
    exact = name not in ("add", "concat", "cross_attention")
    assert shares.measure == ("weights" if exact else "contributions")
    assert not shares.generative.requires_grad
    assert not shares.change.requires_grad
    assert shares.scale == (pytest.approx(fuser.residual_scale.item()) if name == "token_gated_residual" else None)
    if name != "only" and name != "weighted":
        assert shares.generative.std() > 1e-3, "the tokens differ"


@pytest.mark.parametrize("name", OWN_IDENTITY)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_identity_is_the_host_alone(name: str, train: bool, dtype: torch.dtype) -> None:
    fuser = build(name, "identity").to(dtype).train(train)
    _, shares = measured(fuser, *tokens(dtype))
    assert bool((shares.host == 1).all())
    assert bool((shares.change == 0).all())
    if name == "token_gated_residual":
        assert shares.scale == 0
        assert shares.gate is not None
        assert bool((shares.gate - 0.5).abs().min() < 0.3), "the raw gate says something else"


def test_add_is_the_host_alone_for_features_of_zero() -> None:
    semantic, generative = tokens()
    _, shares = measured(build("add"), semantic, torch.zeros_like(generative))
    assert bool((shares.host == 1).all())
    assert bool((shares.change == 0).all())


@pytest.mark.parametrize("scale", [-0.5, 0.2, 1.0, 1.7])
def test_a_scale_beyond_its_range_is_still_a_share(scale: float) -> None:
    """``a`` may learn to be negative: the share is by size, and lies within the limits that are told without tokens."""
    fuser = build("token_gated_residual", residual_scale=scale)
    with torch.no_grad():
        fuser.residual_scale.fill_(scale)
    semantic, generative = tokens()
    fused, shares = measured(fuser, semantic, generative)
    assert shares.generative is not None
    weight = solved(fused, semantic, generative)
    torch.testing.assert_close(shares.generative, weight.abs() / (weight.abs() + (1 - weight).abs()))
    low, high = fuser.share_limits()
    assert low <= float(shares.generative.min())
    assert float(shares.generative.max()) <= high <= 1


@pytest.mark.parametrize("name", vega3d.list_fusers())
def test_measuring_leaves_no_trace(name: str) -> None:
    """The same tokens, gradients and random numbers with and without it, dropout too."""

    def run(measure: bool) -> list[Tensor]:
        fuser, (semantic, generative) = build(name).train(), tokens()
        torch.manual_seed(3)
        fused = measured(fuser, semantic, generative)[0] if measure else fuser(semantic, generative)
        fused.square().sum().backward() if fused.requires_grad else None
        grads = [p.grad for p in fuser.parameters() if p.grad is not None]
        assert fuser.training
        assert all(part.training for part in fuser.modules())
        return [fused.detach(), *grads, torch.rand(1)]

    assert all(torch.equal(a, b) for a, b in zip(run(True), run(False), strict=True))


def test_dropout_is_no_contribution() -> None:
    semantic, generative = tokens()
    fuser = build("cross_attention", dropout=0.5)
    _, still = measured(fuser.eval(), semantic, generative)
    _, training = measured(fuser.train(), semantic, generative)
    assert torch.equal(still.generative, training.generative)
    assert not torch.equal(still.change, training.change), "the change is that of this very call"


def test_a_token_of_zeros() -> None:
    host = torch.zeros(3, D)
    fused = torch.stack([torch.zeros(D), torch.ones(D), torch.ones(D)])
    host[2] = 2
    torch.testing.assert_close(relative_change(host, fused), torch.tensor([0.0, 1.0, 0.5]))


# Of others


class Louder(Fuser):
    name = "louder"

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.volume = nn.Parameter(torch.full((1,), 0.25))

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        return semantic + self.volume * generative


def test_a_third_partys_fuser_has_shares_without_saying_a_word() -> None:
    semantic, generative = tokens()
    _, shares = measured(Louder(D), semantic, generative)
    expected = 0.25 * generative.norm(dim=-1)
    torch.testing.assert_close(shares.generative, expected / (expected + semantic.norm(dim=-1)))
    assert shares.measure == "contributions"


def test_a_fuser_made_of_another_has_shares_of_its_own() -> None:
    class Twice(Fuser):
        name = "twice"

        def __init__(self, hidden_size: int) -> None:
            super().__init__(hidden_size)
            self.inner = vega3d.build_fuser("only", hidden_size)

        def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
            half: Tensor = self.inner(semantic, generative, context=context)
            self.tell_weight(torch.full_like(half[..., :1], 0.25))
            return 0.75 * semantic + 0.25 * half

    _, shares = measured(Twice(D), *tokens())
    assert bool((shares.generative == 0.25).all())


def test_a_gated_fuser_with_another_mean_is_not_taken_for_its_gate() -> None:
    class Squared(type(build("token_gated"))):  # type: ignore[misc]
        name = "squared"

        def combine(self, gate: Tensor, raw: Any, normed: Any) -> Tensor:
            return raw[0] + gate**2 * raw[1]

    semantic, generative = tokens()
    fuser = Squared(D)
    fused, shares = measured(fuser, semantic, generative)
    rest = fuser(semantic, torch.zeros_like(generative))
    part = (fused - rest).norm(dim=-1)
    torch.testing.assert_close(shares.generative, part / (part + rest.norm(dim=-1)))
    assert shares.gate is not None


def test_a_share_that_cannot_be_found_says_so() -> None:
    class Divides(Fuser):
        name = "divides"

        def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
            if not bool(generative.any()):
                raise ZeroDivisionError("nothing there")
            return semantic / generative

    _, shares = measured(Divides(D), *tokens())
    assert (shares.measure, shares.generative, shares.host) == ("undefined", None, None)
    assert str(shares).startswith("share not defined: 'divides' fails for generative tokens of zero (ZeroDivisionError")


# In words


def test_in_one_line() -> None:
    fuser = build("token_gated_residual", "identity")
    with torch.no_grad():
        fuser.residual_scale.fill_(0.01)
        fuser.gate_projection.parameter("0.weight").zero_()
        fuser.gate_projection.parameter("0.bias").zero_()
    _, shares = measured(fuser, *tokens())
    assert str(shares).startswith("host 0.995, generative 0.005 (a = 0.01), relative change 0.0")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("token_gated_residual", {}, "0: the branch changes nothing yet"),
        ("token_gated_residual", {"fuser.residual_scale": torch.tensor([0.0098])}, "0 to 0.0098 of a token"),
        ("token_gated_residual", {"fuser.residual_scale": torch.tensor([float("nan")])}, "training has diverged"),
        ("weighted", {"fuser.weight_gen": torch.tensor([1.0])}, "0.5 of every token"),
        ("cross_attention", {}, "depends on the tokens"),
        ("nobodys", {}, "not installed"),
    ],
)
def test_what_a_saved_branch_allows(name: str, change: dict[str, Tensor], words: str) -> None:
    known = name in vega3d.list_fusers()
    state = build(name, "identity").state_dict() if known else {}
    tensors = {f"fuser.{key}": value for key, value in state.items()} | change
    fusion = FusionSettings(name=name) if known else None
    assert words in saved_share(tensors, fusion, D)
