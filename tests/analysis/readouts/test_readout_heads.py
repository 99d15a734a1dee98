"""The heads of read-outs: the published one is the published one, the small one is small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vega3d_plugin.analysis.readouts.depth_heads import DepthHead
from vega3d_plugin.analysis.readouts.heads import FullReadout, SmallReadout, build_head
from vega3d_plugin.errors import AnalysisError


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_full_head_has_the_published_parameters() -> None:
    with torch.device("meta"):
        head = FullReadout(1536)
    # Counted of vidfm3d/models/components/probe_pixalign.py::ProbeModelPA with configs/model/probe.yaml.
    assert count(head) == 383_859_224
    assert count(head.backbone) == 102_375_424
    assert count(head.camera_head) == 216_174_610


def filled(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + len(name)) * 0.1
            one = 1 if "norm" in name and name.endswith("weight") else 0
            parameter.copy_((values + one).view(parameter.shape))
    return module.eval()


def test_the_full_head_computes_what_the_released_code_does() -> None:
    """Numbers of the released ``ProbeModelPA`` with the same widths, weights and features."""
    head = filled(FullReadout(6, 64, 16, 16, (8, 12, 16, 20)))
    features = torch.sin(torch.arange(2 * 3 * 6 * 3 * 4, dtype=torch.float64) * 0.37).float().view(2, 3, 6, 3, 4)
    with torch.no_grad():
        found = head(features, (30, 44))
    assert found.points.shape == (2, 3, 30, 44, 3)
    assert found.depth.shape == (2, 3, 30, 44, 1)
    corner, last = found.points[0, 0, 0, 0].tolist(), found.points[1, 2, 29, 43].tolist()
    assert corner == pytest.approx([-0.0110832, 0.1713039, 0.0041633], abs=1e-6)
    assert last == pytest.approx([-0.0150330, 0.1734124, 0.0047644], abs=1e-6)
    assert float(found.points.mean()) == pytest.approx(0.0554154, abs=1e-6)
    assert float(found.depth[0, 1, 7, 9]) == pytest.approx(0.9886038, abs=1e-6)
    assert float(found.depth.mean()) == pytest.approx(0.9883224, abs=1e-6)
    assert len(found.cameras) == 4
    assert float(found.cameras[0].sum()) == pytest.approx(0.4750785, abs=1e-5)
    expected = [0.6100422, 0.1801468, -0.3015267, -0.5332714, -0.3992774, -0.0284078, 0.3080338, 0.3851473, 0.172358]
    assert found.cameras[-1][1, 2].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_narrow_full_head_trains() -> None:
    head = FullReadout(5, 32, 4, 8, (8, 8, 8, 8)).train()
    found = head(torch.randn(1, 2, 5, 4, 6, generator=torch.Generator().manual_seed(0)), (16, 24))
    (found.points.mean() + found.depth.mean() + sum(c.mean() for c in found.cameras)).backward()
    # All but the channels of the confidence, which no loss uses.
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize("channels", [4, 1536])
def test_the_small_head(channels: int) -> None:
    head = build_head(channels, "small")
    assert isinstance(head, SmallReadout)
    assert count(head) - channels * (64 + 2) < 150_000
    found = head(torch.randn(2, 4, channels, 3, 5, generator=torch.Generator().manual_seed(0)), (3, 5))
    assert found.points.shape == (2, 4, 3, 5, 3)
    assert found.depth.shape == (2, 4, 3, 5, 1)
    assert bool((found.depth > 0).all())
    assert found.cameras[-1].shape == (2, 4, 9)
    assert bool((found.cameras[-1][..., 7:] >= 0).all())


def test_weights_come_of_the_seed_alone() -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat([p.detach().flatten() for p in build_head(8, "small", seed).parameters()])

    before = torch.random.get_rng_state()
    torch.manual_seed(7)
    first = weights(0)
    torch.manual_seed(8)
    state = torch.random.get_rng_state()
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.random.set_rng_state(before)


def test_the_first_view_is_told_apart() -> None:
    head = filled(SmallReadout(6, width=16, depth=1, heads=2))
    features = torch.randn(1, 1, 6, 2, 3, generator=torch.Generator().manual_seed(0)).expand(1, 2, -1, -1, -1)
    with torch.no_grad():
        found = head(features, (2, 3))
    assert not torch.allclose(found.cameras[0][0, 0], found.cameras[0][0, 1], atol=1e-4)


def test_a_token_is_read_at_its_own_place() -> None:
    head = filled(SmallReadout(6, width=16, depth=1, heads=2))
    features = torch.zeros(1, 2, 6, 3, 4)
    features[0, 1, :, 2, 1] = torch.tensor([3.0, -2, 1, -1, 2, -3])
    with torch.no_grad():
        change = (head(features, (3, 4)).depth - head(torch.zeros_like(features), (3, 4)).depth)[0, :, :, :, 0].abs()
    assert int(change.flatten().argmax()) == 1 * 12 + 2 * 4 + 1


def test_a_dpt_head_takes_four_layers() -> None:
    with pytest.raises(AnalysisError, match="four layers, found 2"):
        DepthHead([8, 8], "dpt")
