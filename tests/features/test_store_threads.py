"""A feature store that many threads fill and read: no wrong entry, no error, and the memory it says it takes."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from support.together import outcomes, together
from torch import Tensor, nn

import vega3d
from vega3d import FeatureStore
from vega3d_plugin.contracts.errors import StoreError


class Yielding(Tensor):
    """Lets another thread go first whenever its size is looked at, which is in the middle of the bookkeeping."""

    @property
    def nbytes(self) -> int:
        time.sleep(0)
        return self.numel() * self.element_size()


def features(key: str) -> Tensor:
    """Of various sizes, and of values that belong to the key."""
    number = int(key, 16)
    return torch.full((1, 2, 1, 1 + number % 7), float(number))


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_what_is_found_is_what_was_put(tmp_path: Path, where: str) -> None:
    """Also in memory that holds a few of them alone, so that they come and go."""
    store = FeatureStore(tmp_path if where == "folder" else None, memory_bytes=300)
    maps = {key: features(key) for key in (f"{number:032x}" for number in range(12))}
    if where == "memory":
        maps = {key: tensor.as_subclass(Yielding) for key, tensor in maps.items()}
    steps = 400 if where == "memory" else 40

    def work(seed: int) -> int:
        keys, found = random.Random(seed).choices(list(maps), k=steps), 0
        for key in keys:
            kept = store.get(key)
            if kept is None:
                store.put(key, maps[key])
            else:
                assert torch.equal(kept, maps[key])
                found += 1
            assert key in store or where == "memory"
        return found

    assert sum(together(*(partial(work, seed) for seed in range(6)))) > 0
    held = sum(tensor.nbytes for tensor in store._recent.values())
    assert store._held == held
    assert held <= 300


def test_one_of_two_priors_gets_a_new_store() -> None:
    class Named(vega3d.Prior):
        feature_dim = 1

        def __init__(self, name: str) -> None:
            self.fingerprint = name

        def __call__(self, frames: Tensor) -> Tensor:
            return frames[:, :1]

    for _ in range(30):
        bind = FeatureStore().bind
        found = outcomes(*(partial(bind, Named(name)) for name in "ab"))
        assert sorted(type(result).__name__ for result in found) == ["NoneType", "StoreError"]
        assert any(isinstance(result, StoreError) for result in found)


def test_models_that_share_a_prior_and_a_store(tmp_path: Path) -> None:
    """A clip that one thread computes is not computed again by another that waited for it."""

    class Counting(vega3d.Prior):
        """Keeps what it works on, as many models do."""

        feature_dim, fingerprint = 3, "counting"

        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, frames: Tensor) -> Tensor:
            self.calls, self.frames = self.calls + 1, frames
            for _ in range(20):
                small = nn.functional.adaptive_avg_pool2d(self.frames, (4, 6))
            return small

    prior, store = Counting(), FeatureStore(tmp_path)
    branches = [vega3d.get_handle(_patched(prior, store)).branch for _ in range(2)]
    clips = [vega3d.Clip(torch.rand(2, 3, 56, 84), vega3d.TokenGrid(1, 2, 3)) for _ in range(8)]

    def fill(seed: int) -> bool:
        order = random.Random(seed).sample(range(len(clips)), len(clips))
        found = {index: branches[seed % 2].features(clips[index]) for index in order}
        return all(
            torch.equal(found[index], nn.functional.adaptive_avg_pool2d(clips[index].frames, (4, 6))) for index in order
        )

    assert together(*(lambda s=s: fill(s) for s in range(4))) == [True] * 4
    assert prior.calls == len(clips)


def _patched(prior: vega3d.Prior, store: FeatureStore) -> nn.Module:
    from vega3d_qwen_vl.tiny import tiny_model

    return vega3d.patch(tiny_model(), prior, projector={"name": "mlp", "hidden_dim": 16}, store=store)
