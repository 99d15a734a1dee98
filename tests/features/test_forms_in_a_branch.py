"""What is fused does not depend on the form in which features are kept: to the last bit, or by how much."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vega3d
from vega3d import FeatureStore
from vega3d_plugin.features.forms import FORMS

SPACES = ("bilinear", "adaptive_avg")


class Waves(vega3d.Prior):
    """Smooth maps, with fewer steps in time than frames, as of a video VAE."""

    feature_dim, fingerprint = 6, "waves"

    def __init__(self, steps: int = 0) -> None:
        self.steps, self.calls = steps, 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.calls += 1
        maps = torch.nn.functional.interpolate(frames.repeat(1, 2, 1, 1), (7, 9), mode="bilinear").sin()
        return maps[: self.steps or None]

    def spans(self, frames: int, steps: int) -> list[tuple[float, float]] | None:
        return [(i / steps, (i + 1) / steps) for i in range(steps)] if self.steps else None


def branch(prior: vega3d.Prior, store: FeatureStore | None, space: str) -> vega3d.GenerativeBranch:
    statistics = vega3d.PixelStatistics((0.0,) * 3, (1.0,) * 3)
    seam = vega3d.Seam("visual", "", 8, 2, statistics, "family", reader=None)  # type: ignore[arg-type]
    settings = vega3d.BranchSettings(
        prior={"name": "tiny-wan"}, fusion={"init": "released"}, projector={"hidden_dim": 8}, space=space
    )
    torch.manual_seed(0)
    return vega3d.GenerativeBranch(settings, prior, seam, "test", store).eval()


def clips() -> list[vega3d.Clip]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(3, 4, 3, 32, 48, generator=generator)
    grids = [vega3d.TokenGrid(2, 2, 3), vega3d.TokenGrid(4, 2, 3), vega3d.TokenGrid(2, 5, 4)]
    return [vega3d.Clip(f, grid) for f, grid in zip(frames, grids, strict=True)]


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_fused_tokens_by_form(tmp_path: Path, form: object, space: str, steps: int) -> None:
    tokens = torch.randn(sum(clip.grid.tokens for clip in clips()), 8)
    expected = branch(Waves(steps), None, space)(tokens, clips())
    prior, first = Waves(steps), FeatureStore(tmp_path, form=form)
    fused = [
        # Computed, from memory, from files, from shards.
        branch(prior, store, space)(tokens, clips())
        for store in (first, first, FeatureStore(tmp_path, form=form))
    ]
    first.pack()
    fused.append(branch(prior, FeatureStore(tmp_path, form=form), space)(tokens, clips()))
    assert prior.calls == 3
    assert all(torch.equal(fused[0], again) for again in fused[1:])
    if not form.numbers:
        assert torch.equal(fused[0], expected)
    else:
        error = (fused[0] - expected).abs().max() / (expected - tokens).abs().max()
        assert 0 < error < 0.02


@pytest.mark.parametrize("form", ["native", "aligned"])
def test_autocast_changes_no_features(tmp_path: Path, form: str) -> None:
    """A trainer's autocast is on while features are aligned, and off while a store is filled beforehand."""
    clip = clips()[0]
    plain = branch(Waves(3), FeatureStore(form=form), "bilinear").aligned(clip, torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = branch(Waves(3), FeatureStore(form=form), "bilinear").aligned(clip, torch.device("cpu"))
    assert torch.equal(plain, cast)


def test_the_native_map_can_be_seen_beside_an_aligned_store() -> None:
    clip = clips()[0]
    store = FeatureStore(form="aligned")
    made = branch(Waves(), store, "bilinear")
    made.aligned(clip, torch.device("cpu"))
    assert made.features(clip).shape == (4, 6, 7, 9)
    assert all(".aligned_" in name for name in store.names())
