"""One prior, many threads: each clip has the features that it has alone, bit for bit."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support.small_wan import frames
from support.together import Job, together
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.priors import turn

pytestmark = pytest.mark.once

TIMES = 6


def clips() -> list[Tensor]:
    return [frames(5), 1 - frames(5), frames(5).flip(0) * 0.5]


def check(prior: vega3d.Prior, given: list[Tensor], expected: list[Tensor]) -> Job:
    def job() -> int:
        return sum(
            not torch.equal(prior(clip), alone)
            for _ in range(TIMES)
            for clip, alone in zip(given, expected, strict=True)
        )

    return job


@pytest.mark.parametrize(
    "settings",
    [{}, {"fast": False}, {"context": "views"}, {"context": "video"}, {"offload": True}, {"dtype": "float16"}],
    ids=str,
)
def test_each_clip_has_its_own_features(settings: dict[str, Any]) -> None:
    prior = vega3d.load_prior("tiny-wan", size=(48, 80), **settings)
    alone = vega3d.load_prior("tiny-wan", size=(48, 80), **settings)
    given = clips()
    expected = [alone(clip) for clip in given]
    # The first calls, which put the models in place, are among them.
    assert together(check(prior, given, expected), check(prior, given[::-1], expected[::-1])) == [0, 0]


def test_copies_share_it() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(48, 80))
    given = clips()
    expected = [prior(clip) for clip in given]
    twin = copy.deepcopy({"prior": prior})["prior"]
    assert together(check(prior, given, expected), check(twin, given[::-1], expected[::-1])) == [0, 0]


def test_a_thread_inside_a_session_is_not_disturbed() -> None:
    prior: Any = vega3d.load_prior("tiny-wan", size=(48, 80), context="video")
    first, second, _ = clips()
    expected = prior(first)

    def in_parts() -> bool:
        for _ in range(TIMES):
            with prior.session(first.device):
                if not torch.equal(prior.features(prior.encode(first)), expected):
                    return False
        return True

    assert together(in_parts, lambda: [prior(second) for _ in range(TIMES)])[0]


def test_an_error_lets_the_next_thread_in() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(48, 80))
    expected = prior(frames(2))
    with pytest.raises(vega3d.errors.FramesError):
        prior(frames(2) + 5)

    def fails(*_: object) -> None:
        raise KeyError

    prior.progress = fails
    with pytest.raises(KeyError):
        prior(frames(2))
    prior.progress = None
    assert torch.equal(together(lambda: prior(frames(2)))[0], expected)


def test_the_fingerprint_while_the_weights_are_cast() -> None:
    expected = vega3d.load_prior("tiny-wan", size=(48, 80)).fingerprint
    for _ in range(3):
        prior = vega3d.load_prior("tiny-wan", size=(48, 80), dtype="float16")
        found = together(lambda p=prior: p.fingerprint, lambda p=prior: p(frames(2)), lambda p=prior: p.fingerprint)
        assert found[0] == found[2] == expected


def test_loading_in_several_threads() -> None:
    """The same weights in each, and the process's random numbers left alone."""
    expected = vega3d.load_prior("tiny-wan", size=(48, 80)).fingerprint
    before = torch.random.get_rng_state()
    loaded = together(*[lambda: vega3d.load_prior("tiny-wan", size=(48, 80)).fingerprint] * 4)
    assert loaded == [expected] * 4
    assert torch.equal(torch.random.get_rng_state(), before)


class Careless(vega3d.Prior):
    """A third party's, which keeps on itself what it works on, and yields to other threads meanwhile."""

    feature_dim, fingerprint = 3, "careless"

    def __init__(self) -> None:
        self.inside = self.most = 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.frames = frames
        time.sleep(0.002)
        self.inside -= 1
        return nn.functional.adaptive_avg_pool2d(self.frames, (4, 6))


class Careful(Careless):
    """One that says its calls may overlap."""

    fingerprint = "careful"
    concurrent: ClassVar[bool] = True


def features_of(prior: vega3d.Prior) -> Callable[[Tensor], Tensor]:
    """As a branch asks for them."""
    from vega3d_qwen_vl.tiny import tiny_model

    model = vega3d.patch(tiny_model(), prior, projector={"name": "mlp", "hidden_dim": 16})
    branch = vega3d.get_handle(model).branch
    return lambda given: branch.features(vega3d.Clip(given, vega3d.TokenGrid(1, 2, 3)))


@pytest.mark.parametrize("kind", [Careless, Careful])
def test_priors_of_third_parties_take_turns_unless_they_need_not(kind: type[Careless]) -> None:
    prior = kind()
    ask, given = features_of(prior), clips()
    expected = [nn.functional.adaptive_avg_pool2d(clip, (4, 6)) for clip in given]

    def job(clip: Tensor, alone: Tensor) -> int:
        return sum(not torch.equal(ask(clip), alone) for _ in range(20))

    wrong = together(*(partial(job, *pair) for pair in zip(given, expected, strict=True)))
    if kind is Careless:
        assert (sum(wrong), prior.most) == (0, 1)
    else:
        assert prior.most > 1


def test_functions_take_turns() -> None:
    inside: list[int] = []

    def pooled(frames: Tensor) -> Tensor:
        inside.append(len(inside))
        time.sleep(0.002)
        assert inside == [0]
        inside.pop()
        return nn.functional.adaptive_avg_pool2d(frames, (4, 6))

    prior = vega3d.CallablePrior(pooled, 3, fingerprint="pooled")
    together(*[lambda: [prior(frames(2)) for _ in range(10)]] * 3)


def test_turns_can_be_taken_again_and_go_with_the_prior(tmp_path: Path) -> None:
    from vega3d_plugin.contracts import priors

    prior = Careless()
    with turn(prior), turn(prior):
        pass
    assert id(prior) in priors._locks
    name = id(prior)
    del prior
    gc.collect()
    assert name not in priors._locks
