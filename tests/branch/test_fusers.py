"""Fusers: an exact start, gradients that move it, released shapes and names, and errors that help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vega3d
from vega3d_plugin.branch.fusers.gated import GatedFuser
from vega3d_plugin.contracts.errors import FusionError, UnknownNameError
from vega3d_plugin.contracts.fusers import Fuser
from vega3d_plugin.contracts.shares import measured_shares

D = 16
ALL = [
    "add", "concat", "context_gated", "cross_attention", "gated", "instruction_token_gated", "only", "token_gated",
    "token_gated_residual", "weighted",
]  # fmt: skip
OWN_IDENTITY = ["cross_attention", "token_gated_residual", "weighted"]
NO_IDENTITY = ["concat", "context_gated", "gated", "instruction_token_gated", "only", "token_gated"]
GATED = ["context_gated", "gated", "token_gated", "token_gated_residual"]
CONTEXTUAL = ["context_gated", "instruction_token_gated"]


def build(name: str, init: str = "released", **options: object) -> Fuser:
    torch.manual_seed(0)
    return vega3d.build_fuser(name, D, init=init, **options)


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    semantic, generative = torch.randn(2, *shape, D, generator=generator)
    return (3 * semantic + 1).to(dtype), (5 * generative).to(dtype)


def test_the_released_methods_are_all_there() -> None:
    assert set(ALL) <= set(vega3d.list_fusers())


@pytest.mark.parametrize("name", OWN_IDENTITY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("train", [False, True])
def test_identity_is_exact(name: str, dtype: torch.dtype, train: bool) -> None:
    fuser = build(name, "identity").to(dtype).train(train)
    semantic, generative = tokens(3, 4, 4, dtype=dtype)
    assert torch.equal(fuser(semantic, generative), semantic)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_identity_of_a_deep_stack_is_exact(train: bool, layers: int) -> None:
    fuser = build("cross_attention", "identity", num_layers=layers, num_heads=4, dropout=0.5).train(train)
    semantic, generative = tokens(2, 9)
    assert torch.equal(fuser(semantic, generative), semantic)


def test_add_is_identity_for_features_of_zero() -> None:
    fuser = build("add", "identity")
    semantic, generative = tokens(2, 9)
    assert fuser.identity == "zero_generative"
    assert torch.equal(fuser(semantic, torch.zeros_like(generative)), semantic)
    assert not torch.equal(fuser(semantic, generative), semantic)


@pytest.mark.parametrize("name", [n for n in ALL if n != "only"])
def test_the_released_start_is_no_identity(name: str) -> None:
    semantic, generative = tokens(2, 9)
    assert not torch.allclose(build(name).eval()(semantic, generative), semantic, atol=1e-3)


@pytest.mark.parametrize("name", OWN_IDENTITY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_step_leaves_identity(name: str, dtype: torch.dtype) -> None:
    fuser = build(name, "identity", dropout=0.0).to(dtype)
    semantic, generative = tokens(2, 9, dtype=dtype)
    before = fuser(semantic, generative)
    (before.float() - 1).square().mean().backward()
    torch.optim.SGD(fuser.parameters(), lr=0.01).step()
    after = fuser(semantic, generative)
    assert not torch.equal(after, before)
    assert (after.float() - 1).square().mean() < (before.float() - 1).square().mean()


@pytest.mark.parametrize("name", NO_IDENTITY)
def test_who_cannot_start_as_identity_says_who_can(name: str) -> None:
    with pytest.raises(FusionError) as caught:
        build(name, "identity")
    message = str(caught.value)
    assert repr(name) in message
    assert message.split("one of: ")[1].rstrip(".").split(", ") == sorted(["add", *OWN_IDENTITY])


def test_an_unknown_name_comes_with_near_misses() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown fuser 'tokengated'\. Did you mean 'token_gated'"):
        build("tokengated")
    with pytest.raises(KeyError):
        build("tokengated")


def test_an_unknown_option_comes_with_near_misses() -> None:
    with pytest.raises(FusionError, match=r"no option 'residual_scal'\. Did you mean 'residual_scale'"):
        build("token_gated_residual", residual_scal=0.1)
    with pytest.raises(FusionError, match=r"no option 'a', 'b'.*Options: none"):
        build("add", a=1, b=2)


def test_an_option_of_another_method_is_refused() -> None:
    with pytest.raises(FusionError, match="'token_gated' has no option 'residual_scale'"):
        build("token_gated", residual_scale=0.1)


@pytest.mark.parametrize("name", ALL)
def test_the_released_configuration_is_taken_by_every_method(name: str) -> None:
    build(name, num_heads=4, num_layers=2, dropout=0.0)


def test_options_reach_the_method() -> None:
    assert build("token_gated_residual", residual_scale=0.5).residual_scale.item() == 0.5
    fuser = build("cross_attention", num_heads=2, num_layers=3, dropout=0.25)
    assert len(fuser.cross_attn_blocks.blocks) == 3
    assert fuser.cross_attn_blocks.num_heads == 2
    assert fuser.cross_attn_blocks.dropout == 0.25


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(FusionError, match="Unknown init 'zero'"):
        build("add", "zero")


@pytest.mark.parametrize("name", ALL)
def test_no_hidden_size_is_refused(name: str) -> None:
    with pytest.raises(FusionError, match="hidden_size >= 1, got 0"):
        vega3d.build_fuser(name, 0)


@pytest.mark.parametrize("options", [{"num_heads": 3}, {"num_heads": 0}])
def test_heads_that_do_not_divide_the_hidden_size_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(FusionError, match=rf"hidden_size={D}, num_heads={options['num_heads']}"):
        build("cross_attention", **options)
    with pytest.raises(FusionError, match="hidden_size=6"):
        vega3d.build_fuser("cross_attention", 6, num_heads=2)


@pytest.mark.parametrize("name", ALL)
def test_no_parameter_is_a_scalar_without_dimension(name: str) -> None:
    assert all(parameter.ndim > 0 for parameter in build(name).parameters())


@pytest.mark.parametrize(
    ("name", "scalars"),
    [
        ("weighted", {"weight_2d", "weight_gen"}),
        ("token_gated_residual", {"residual_scale"}),
        ("context_gated", {"gate_bias", "context_scale"}),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_released_scalars_without_dimension_load(name: str, scalars: set[str], assign: bool) -> None:
    fuser = build(name)
    state = {key: value.clone() for key, value in fuser.state_dict().items()}
    assert {key for key, value in state.items() if value.shape == (1,)} >= scalars
    released = {**state, **{key: torch.tensor(0.25 * i) for i, key in enumerate(sorted(scalars), 3)}}
    # Inside a parent, as a branch is, the prefix must be right too.
    nn.ModuleDict({"fuser": fuser}).load_state_dict({f"fuser.{k}": v for k, v in released.items()}, assign=assign)
    for i, key in enumerate(sorted(scalars), 3):
        assert fuser.get_parameter(key).shape == (1,)
        assert fuser.get_parameter(key).item() == 0.25 * i
    assert all(released[key].shape == () for key in scalars)


def test_the_other_branchs_name_of_a_weight_loads() -> None:
    fuser = build("weighted")
    fuser.load_state_dict({"weight_2d": torch.tensor(1.0), "weight_3d": torch.tensor(3.0)})
    assert fuser.weight_gen.item() == 3.0
    semantic, generative = tokens(2, 3)
    torch.testing.assert_close(fuser(semantic, generative), (semantic + 3 * generative) / 4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flat_batched_and_grid_tokens_give_the_same(name: str, dtype: torch.dtype) -> None:
    fuser = build(name).eval().to(dtype)
    semantic, generative = tokens(3, 4, 4, dtype=dtype)
    fused = fuser(semantic, generative)
    assert fused.shape == semantic.shape
    assert fused.dtype == dtype
    for shape in [(3, 16, D), (3, 1, 4, 4, D)]:
        torch.testing.assert_close(fuser(semantic.reshape(shape), generative.reshape(shape)), fused.reshape(shape))
    one = fuser(semantic[1].reshape(16, D), generative[1].reshape(16, D))
    assert one.shape == (16, D)
    torch.testing.assert_close(one, fused[1].reshape(16, D))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("semantic", "generative"), [((2, 9, D), (2, 8, D)), ((2, 9, D), (9, D)), ((2, 9, D + 1), (2, 9, D + 1))]
)
def test_shapes_that_differ_are_refused(name: str, semantic: tuple[int, ...], generative: tuple[int, ...]) -> None:
    with pytest.raises(FusionError) as caught:
        build(name)(torch.zeros(semantic), torch.zeros(generative))
    for part in (repr(name), str(list(semantic)), str(list(generative)), f"[..., {D}]"):
        # The second name of a method is its own class all the same.
        assert part.replace("instruction_token_gated", "context_gated") in str(caught.value)


def test_cross_attention_keeps_frames_apart() -> None:
    fuser = build("cross_attention").eval()
    semantic, generative = tokens(2, 4, 6)
    other = generative.clone()
    other[1] = other[1].flip(0)
    before, after = fuser(semantic, generative), fuser(semantic, other)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-3)


def test_cross_attention_needs_the_grid_of_tokens_that_are_no_square() -> None:
    fuser = build("cross_attention")
    semantic, generative = tokens(2, 24)
    with pytest.raises(FusionError, match=r"24, 16\], which is no square\. Pass \[B, h, w, D\]"):
        fuser(semantic, generative)
    fuser(semantic.reshape(2, 4, 6, D), generative.reshape(2, 4, 6, D))


def test_cross_attention_tells_rows_from_columns() -> None:
    fuser = build("cross_attention").eval()
    semantic, generative = tokens(1, 24)
    wide, tall = (fuser(semantic.reshape(1, h, w, D), generative.reshape(1, h, w, D)) for h, w in ((4, 6), (6, 4)))
    assert not torch.allclose(wide.flatten(1, 2), tall.flatten(1, 2), atol=1e-3)


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_contexts_of_one_and_of_many(name: str) -> None:
    fuser = build(name)
    semantic, generative = tokens(3, 4, 4)
    contexts = 4 * torch.randn(3, D)
    fused = fuser(semantic, generative, context=contexts)
    assert not torch.allclose(fused, fuser(semantic, generative), atol=1e-3)
    for i in range(3):
        alone = fuser(semantic[i : i + 1], generative[i : i + 1], context=contexts[i])
        torch.testing.assert_close(alone[0], fused[i])
    flat = fuser(semantic, generative, context=contexts[0])
    torch.testing.assert_close(flat[0], fused[0])
    assert torch.equal(flat, fuser(semantic, generative, context=contexts[:1]))
    # The released code takes the first row when the numbers differ.
    assert torch.equal(flat, fuser(semantic, generative, context=contexts[:2]))


@pytest.mark.parametrize("shape", [(D + 1,), (3, D - 1), (1, 3, D), ()])
def test_a_context_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    semantic, generative = tokens(3, 4, 4)
    with pytest.raises(FusionError, match=rf"context \[{D}\] or \[B, {D}\]"):
        build("context_gated")(semantic, generative, context=torch.zeros(shape))


@pytest.mark.parametrize("name", [n for n in ALL if n not in CONTEXTUAL])
def test_the_other_methods_ignore_the_instruction(name: str) -> None:
    fuser = build(name).eval()
    semantic, generative = tokens(3, 4, 4)
    assert torch.equal(fuser(semantic, generative, context=torch.randn(D)), fuser(semantic, generative))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("with_context", [False, True])
def test_exactly_the_idle_parameters_get_no_gradient(name: str, with_context: bool) -> None:
    fuser = build(name)
    semantic, generative = tokens(3, 4, 4)
    context = torch.randn(D) if with_context else None
    generative.requires_grad_()
    fuser(semantic, generative, context=context).square().sum().backward()
    idle = {id(parameter) for parameter in fuser.idle_parameters(context)}
    untouched = {id(parameter) for parameter in fuser.parameters() if parameter.grad is None}
    assert untouched == idle
    assert bool(idle) == (name in CONTEXTUAL and not with_context)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_are_recorded_between_zero_and_one(name: str, dtype: torch.dtype) -> None:
    fuser = build(name).to(dtype)
    assert isinstance(fuser, GatedFuser)
    semantic, generative = tokens(3, 4, 5, dtype=dtype)
    silent = fuser(semantic, generative)
    with measured_shares() as found:
        recorded = fuser(semantic, generative)
    assert torch.equal(recorded, silent)
    (gate,) = [shares.gate for shares in found]
    assert gate is not None
    assert gate.shape == (3, 4, 5)
    assert gate.dtype == torch.float32
    assert not gate.requires_grad
    assert bool(((gate > 0) & (gate < 1)).all())
    assert gate.std() > 0.01


def test_the_gate_is_the_weight_of_the_semantic_token() -> None:
    fuser = build("token_gated_residual", residual_scale=1.0)
    semantic, generative = tokens(3, 4, 5)
    with measured_shares() as found:
        fused = fuser(semantic, generative)
    assert found[0].gate is not None
    gate = found[0].gate[..., None]
    torch.testing.assert_close(fused, gate * semantic + (1 - gate) * generative)


def test_a_method_without_mix_says_so() -> None:
    class Empty(Fuser):
        name = "empty"

    with pytest.raises(FusionError, match=r"Empty does not implement mix\(\)"):
        Empty(D)(torch.zeros(1, D), torch.zeros(1, D))
