"""Earlier observations: of the right actor, whichever threads its calls come from."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
from collections.abc import Sequence

import pytest
import torch
from support.together import together

import vega3d
from vega3d_plugin.branch.history import Episode, History
from vega3d_plugin.contracts.clips import Clip, TokenGrid


def observation(value: float) -> list[Clip]:
    return [Clip(torch.full((1, 3, 4, 4), value), TokenGrid(1, 2, 2), "image")]


def values(clips: Sequence[Clip]) -> list[float]:
    return [float(frame.mean()) for frame in clips[0].frames]


def act(history: History, *steps: float) -> list[list[float]]:
    return [values(history.extend(observation(step), keep=True)) for step in steps]


@pytest.fixture
def history() -> History:
    return History(3)


def test_an_episode_of_its_own_for_each_thread(history: History) -> None:
    """The second one to begin says so, once, since one robot's calls may come from several threads."""
    with pytest.warns(vega3d.Vega3dWarning, match=r"history=3: .* second thread, .*episode\(\)") as caught:
        found = together(*(lambda n=n: act(history, *(n + i / 8 for i in range(4))) for n in range(4)))
    assert len(caught) == 1
    for n, steps in enumerate(found):
        frames = [n + i / 8 for i in range(4)]
        assert steps == [frames[:1], frames[:2], frames[:3], frames[1:4]]


def test_one_episode_in_several_threads(history: History) -> None:
    episode = Episode(history)

    def step(value: float) -> list[float]:
        with episode:
            return act(history, value)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [together(lambda v=v: step(v))[0] for v in (0.0, 0.25, 0.5, 0.75)]
    assert found == [[0.0], [0.0, 0.25], [0.0, 0.25, 0.5], [0.25, 0.5, 0.75]]


def test_episodes_side_by_side(history: History) -> None:
    first, second = Episode(history), Episode(history)
    act(history, 0.5)
    for value in (0.0, 0.25):
        with first:
            seen = act(history, value)[0]
            with second, first:
                pass
            with second:
                act(history, 1.0 - value)
    assert seen == [0.0, 0.25]
    with second:
        assert act(history, 0.5)[0] == [1.0, 0.75, 0.5]
    # Outside of all, the thread's own.
    assert act(history, 0.0)[0] == [0.5, 0.0]


def test_reset_forgets_this_episode_alone(history: History) -> None:
    episode = Episode(history)
    act(history, 0.0)
    with episode:
        act(history, 0.5)
        history.reset()
        assert act(history, 0.75) == [[0.75]]
    assert act(history, 0.25) == [[0.0, 0.25]]
    together(history.reset)
    assert act(history, 0.5) == [[0.0, 0.25, 0.5]]
    history.reset()
    assert act(history, 0.5) == [[0.5]]


def test_copies_and_pickles_begin_anew(history: History) -> None:
    """A saved model holds no pictures, and another model's episode is not taken for its own."""
    with Episode(history):
        act(history, 0.0)
        for twin in (copy.deepcopy(history), pickle.loads(pickle.dumps(history))):
            assert twin.length == 3
            assert act(twin, 0.5, 0.75) == [[0.5], [0.5, 0.75]]


def test_what_a_thread_saw_goes_with_it(history: History) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            thread = threading.Thread(target=act, args=(history, 0.5))
            thread.start()
            thread.join()
            del thread
    gc.collect()
    assert len(history._of_threads) == 0
