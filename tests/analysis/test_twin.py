"""The untrained twin of every kind of prior."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.small_wan import apart, frames
from support.toys import Toy, all_toys
from torch import nn

import vega3d
from vega3d_plugin.analysis.twin import untrained_twin
from vega3d_plugin.contracts.errors import AnalysisError

# One size of each architecture is enough.
TOYS = [toy for toy in all_toys() if not toy.prior.endswith(("14b", "a14b", "5b")) or toy.prior == "wan2.2-ti2v-5b"]


@pytest.mark.parametrize("toy", TOYS, ids=lambda toy: toy.id or toy.prior)
def test_the_twin_of_every_prior(toy: Toy, tmp_path: Path) -> None:
    toy.write(tmp_path)
    prior, clip = toy.load(tmp_path), frames(3)
    before = prior(clip)
    twin = untrained_twin(prior)
    features = twin(clip)
    assert features.shape == before.shape
    assert bool(features.isfinite().all())
    assert isinstance(twin, type(prior))
    assert twin.fingerprint != prior.fingerprint
    # The prior goes on as it was, and what it kept of its weights is not in the twin: a plain prior's twin is the same.
    assert torch.equal(prior(clip), before)
    plain = untrained_twin(toy.load(tmp_path, fast=False))
    assert plain.fingerprint == twin.fingerprint
    assert float((plain(clip) - features).abs().max() / features.abs().max()) < 1e-4
    # The seed matters, and the clip.
    other = untrained_twin(prior, seed=1)
    assert other.fingerprint != twin.fingerprint
    assert apart(other(clip), features) > 0.1
    assert apart(twin(1 - clip), features) > 1e-2


def test_latents_of_the_twin_have_unit_variance() -> None:
    twin = untrained_twin(vega3d.load_prior("tiny-wan", size=(32, 48)))
    latents = twin.encode(frames(4))
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.var(dim=(0, 2, 3)), torch.ones(16), atol=1e-4, rtol=0)


def test_every_parameter_is_drawn_anew() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(32, 48))
    with torch.no_grad():
        for model in prior.models.values():
            for parameter in model.parameters():
                parameter.fill_(7.0)
    for name, model in untrained_twin(prior).models.items():
        for path, parameter in model.named_parameters():
            assert not bool((parameter == 7.0).any()), f"{name}.{path}"


def test_a_module_of_the_users_own() -> None:
    module = nn.Conv2d(3, 6, 8, stride=8)
    prior = vega3d.CallablePrior(module, 6)
    twin = untrained_twin(prior)
    assert twin(frames(2)).shape == prior(frames(2)).shape
    assert twin.fingerprint != prior.fingerprint
    assert apart(twin(frames(2)), prior(frames(2))) > 0.1
    assert twin.module is not module


def test_running_statistics_are_those_of_a_new_norm() -> None:
    """They are learned: with those of the trained weights, random ones would look worse than they are."""
    module = nn.Sequential(nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6))
    module[1].running_mean.fill_(5)
    module[1].running_var.fill_(9)
    made = untrained_twin(vega3d.CallablePrior(module, 6)).module[1]
    assert made.running_mean.tolist() == [0] * 6
    assert made.running_var.tolist() == [1] * 6
    assert module[1].running_mean.tolist() == [5] * 6


def test_a_function_has_no_weights() -> None:
    prior = vega3d.CallablePrior(lambda frames: frames[:, :, ::8, ::8], 3, fingerprint="thin")
    with pytest.raises(AnalysisError, match=r"CallablePrior holds no modules.*vega3d\.CallablePrior"):
        untrained_twin(prior)
