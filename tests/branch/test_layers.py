"""Linears with dotted parameter names: an ordinary module to every tool but a search for linears."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vega3d
from vega3d_plugin.branch.layers import MLP, Linear, Linears

# What PEFT looks for by class, and last parts of a module's name by which scripts pick a host's linears.
SEARCHED_CLASSES = (nn.Linear, nn.Bilinear, nn.Embedding, nn.MultiheadAttention, nn.modules.conv._ConvNd)
SEARCHED = {"0", "1", "2", "3", "out_proj", "proj", "fc1", "fc2", "qkv", "q_proj", "k_proj", "v_proj", "o_proj"}
NAMES = ["0.weight", "0.bias", "inner.out_proj.weight", "inner.out_proj.bias"]  # one level of dots, and two
FUSERS = [
    "add", "concat", "context_gated", "cross_attention", "gated", "only", "token_gated", "token_gated_residual",
    "weighted",
]  # fmt: skip
PROJECTORS = ["mlp", "avg", "mlp2x_gelu"]


class Pair(Linears):
    def __init__(self) -> None:
        super().__init__({"0": (4, 6), "inner.out_proj": (6, 2)})
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear("inner.out_proj", F.gelu(self.linear("0", x)))


class SmallBranch(nn.Module):
    """A projector and a fuser, as the branch has them."""

    def __init__(self, projector: str = "mlp", fuser: str = "cross_attention") -> None:
        super().__init__()
        self.projector = vega3d.build_projector(projector, 6, 8, hidden_dim=10)
        self.fuser = vega3d.build_fuser(fuser, 8, num_heads=2, dropout=0.0)

    def forward(self, semantic: Tensor, features: Tensor) -> Tensor:
        return self.fuser(semantic, self.projector(features))


def inputs(merge: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 4, 8), torch.randn(2, 3 * merge, 4 * merge, 6)


def parts() -> Iterator[tuple[str, nn.Module]]:
    for name in vega3d.list_fusers():
        yield f"fuser {name}", vega3d.build_fuser(name, 8, num_heads=2, num_layers=2)
    for name in PROJECTORS:
        yield f"projector {name}", vega3d.build_projector(name, 6, 8)


def test_names_have_dots() -> None:
    pair = Pair()
    assert [name for name, _ in pair.named_parameters()] == [*NAMES, "scale"]
    assert list(pair.state_dict()) == [*NAMES, "scale"]
    assert list(nn.ModuleDict({"a": pair}).state_dict()) == [f"a.{name}" for name in [*NAMES, "scale"]]


def test_it_computes_and_starts_like_torchs_own_linear() -> None:
    torch.manual_seed(3)
    ours = Linears({"0": (4, 6)})
    torch.manual_seed(3)
    theirs = nn.Linear(4, 6)
    torch.manual_seed(3)
    plain = Linear(4, 6)
    x = torch.randn(5, 4)
    assert torch.equal(ours.linear("0", x), theirs(x))
    assert torch.equal(plain(x), theirs(x))
    assert not isinstance(plain, nn.Linear)


def test_mlp_is_the_released_sequence() -> None:
    mlp = MLP((4, 6, 2))
    theirs = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))
    theirs.load_state_dict(mlp.state_dict())
    x = torch.randn(50, 4)
    torch.testing.assert_close(mlp(x), theirs(x))


def test_zeroed_output_still_learns() -> None:
    mlp = MLP((4, 6, 2))
    mlp.zero_output()
    out = mlp(torch.randn(5, 4))
    assert torch.equal(out, torch.zeros(5, 2))
    out.sum().backward()
    assert mlp.get_parameter("2.weight").grad.abs().sum() > 0


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_apart(how: str) -> None:
    pair = Pair()
    if how == "torch.save":
        buffer = io.BytesIO()
        torch.save(pair, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    else:
        twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    x = torch.randn(5, 4)
    before = pair(x)
    assert torch.equal(twin(x), before)
    assert list(twin.state_dict()) == list(pair.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
        getattr(twin, "0").weight.add_(1)
    assert torch.equal(pair(x), before)
    assert not torch.allclose(twin(x), before)


@pytest.mark.parametrize("assign", [False, True])
def test_strict_loading(assign: bool) -> None:
    source, target = Pair(), Pair()
    target.load_state_dict(source.state_dict(), assign=assign)
    x = torch.randn(5, 4)
    assert torch.equal(target(x), source(x))
    assert all(isinstance(parameter, nn.Parameter) for parameter in target.parameters())


def test_assigned_tensors_are_taken_over() -> None:
    target = nn.ModuleDict({"a": Pair()})
    state = {key: torch.randn_like(value) for key, value in target.state_dict().items()}
    target.load_state_dict(state, assign=True)
    for name, parameter in target.named_parameters():
        assert parameter.data_ptr() == state[name].data_ptr(), name


def test_loading_on_meta_and_assigning() -> None:
    with torch.device("meta"):
        target = Pair()
    source = Pair()
    target.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(5, 4)
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("nested", [False, True])
def test_missing_and_unexpected_keys_are_the_true_ones(nested: bool) -> None:
    model: nn.Module = nn.ModuleDict({"a": Pair()}) if nested else Pair()
    prefix = "a." if nested else ""
    state = model.state_dict()
    del state[f"{prefix}0.bias"]
    wrong = [f"{prefix}{name}" for name in ("0.gain", "5.weight", "out_proj.weight", "inner.weight", "offset")]
    state |= {key: torch.zeros(1) for key in wrong}
    found = model.load_state_dict(state, strict=False)
    assert found.missing_keys == [f"{prefix}0.bias"]
    assert sorted(found.unexpected_keys) == sorted(wrong)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*0\.bias.*Unexpected key|Unexpected key.*Missing key"):
        model.load_state_dict(state)


def test_a_wrong_shape_is_reported() -> None:
    pair = Pair()
    with pytest.raises(RuntimeError, match=r"size mismatch for inner\.out_proj\.weight"):
        pair.load_state_dict({**pair.state_dict(), "inner.out_proj.weight": torch.zeros(3, 3)})


def test_tools_that_walk_a_parameters_path_find_it() -> None:
    model = nn.ModuleDict({"a": Pair()})
    for name, parameter in model.named_parameters():
        assert model.get_parameter(name) is parameter
        found = model
        for part in name.split("."):
            found = getattr(found, part)
        assert found is parameter, name
    layer = model.get_submodule("a.0")
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert hasattr(model["a"], "0")
    assert not hasattr(model["a"], "2")
    with pytest.raises(AttributeError):
        _ = model["a"].missing
    with pytest.raises(AttributeError):
        model.get_parameter("a.0.gain")


def test_writing_through_a_path_reaches_the_layer() -> None:
    pair = Pair()
    layer = pair.get_submodule("0")
    new = nn.Parameter(torch.zeros(6, 4))
    layer.weight = new
    assert pair.get_parameter("0.weight") is new
    layer._parameters["bias"] = nn.Parameter(torch.ones(6))
    assert torch.equal(pair.linear("0", torch.randn(5, 4)), torch.ones(5, 6))
    other = pair.get_submodule("inner.out_proj")
    other.load_state_dict({"weight": torch.zeros(2, 6), "bias": torch.full((2,), 7.0)})
    assert torch.equal(pair(torch.randn(5, 4)), torch.full((5, 2), 7.0))
    assert [name for name, _ in pair.named_parameters()] == [*NAMES, "scale"]


def test_accelerate_sets_tensors_by_path() -> None:
    from accelerate.utils import set_module_tensor_to_device

    pair = Pair()
    set_module_tensor_to_device(pair, "0.weight", "cpu", value=torch.full((6, 4), 2.0))
    assert torch.equal(pair.get_parameter("0.weight"), torch.full((6, 4), 2.0))


def test_casting_and_moving_reach_every_parameter() -> None:
    pair = Pair().to(torch.bfloat16)
    assert {parameter.dtype for parameter in pair.parameters()} == {torch.bfloat16}
    assert {parameter.device.type for parameter in pair.to("meta").parameters()} == {"meta"}


def test_its_layers_are_shown() -> None:
    assert "0: 4 -> 6, inner.out_proj: 6 -> 2" in repr(Pair())


def test_no_search_for_linears_finds_a_part() -> None:
    found = {}
    for part, module in parts():
        modules = [(name, m) for name, m in module.named_modules() if name]
        found[part] = [n for n, m in modules if isinstance(m, SEARCHED_CLASSES) or n.rpartition(".")[2] in SEARCHED]
    assert len(found) >= len(FUSERS) + len(PROJECTORS)
    assert not any(found.values()), found


@pytest.mark.parametrize("fuser", FUSERS)
@pytest.mark.parametrize("projector", PROJECTORS)
def test_peft_leaves_the_branch_alone(fuser: str, projector: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = nn.ModuleDict({"0": nn.Linear(8, 8), "vega3d": SmallBranch(projector, fuser)})
    names = [name for name, _ in model["vega3d"].named_parameters()]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=sorted(SEARCHED)), model)
    assert [name for name, _ in model["vega3d"].named_parameters()] == names
    assert any("lora_A" in name for name, _ in model["0"].named_parameters())


@pytest.mark.parametrize("fuser", FUSERS)
def test_compiled_output_is_the_same(fuser: str) -> None:
    torch._dynamo.reset()
    model = SmallBranch("mlp", fuser).eval()
    compiled = torch.compile(model, fullgraph=False, backend="eager")
    semantic, features = inputs()
    assert torch.equal(compiled(semantic, features), model(semantic, features))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, without a network."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize(
    ("projector", "fuser"), [("mlp", "cross_attention"), ("mlp", "token_gated_residual"), ("avg", "context_gated")]
)
def test_fully_sharded(projector: str, fuser: str) -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    plain = SmallBranch(projector, fuser)
    sharded = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(sharded.projector, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    semantic, features = inputs()

    def train(model: nn.Module) -> Tensor:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        out = model(semantic, features)
        out.square().mean().backward()
        optimizer.step()
        get_optimizer_state_dict(model, optimizer)
        return out

    torch.testing.assert_close(train(sharded), train(plain))
    whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    assert list(whole) == list(plain.state_dict())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(whole[name], tensor, msg=name)

    other = {name: torch.randn_like(tensor) for name, tensor in whole.items()}
    set_model_state_dict(sharded, dict(other), options=StateDictOptions(full_state_dict=True))
    plain.load_state_dict(other)
    torch.testing.assert_close(sharded(semantic, features), plain(semantic, features))
