"""Views are chosen as the released code chooses them, and each says what it adds."""

from __future__ import annotations

import goldens
import pytest
import torch
from scene_layouts import kept
from scenes.test_coordinates import released_scene

from vega3d_plugin.errors import SceneError, SettingsError, UnknownNameError
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.views import choose_views, uniform
from vega3d_plugin.scenes.worlds import rendered_scene

COVERAGE = goldens.load("space/max_coverage")
RATIOS = {"mc": 1.0, "mc-ratio95": 0.95, "mc-ratio90": 0.9}


@pytest.mark.parametrize("name", COVERAGE.info["scenes"])
def test_coverage_is_the_released_one(name: str) -> None:
    expected = COVERAGE.info["scenes"][name]
    inputs = goldens.below(COVERAGE.inputs, f"{name}.")
    scene = released_scene(inputs)
    options = {
        "scan": inputs["scan_voxels"],
        "voxel": COVERAGE.info["config"]["voxel_size"],
        "preset": "released",
    }
    choice = choose_views(scene, "coverage", len(expected["order"]), **options)
    gains = dict(zip(choice.indices, choice.gains, strict=True))
    assert list(choice.order) == expected["order"]
    assert [gains[index] for index in choice.order] == expected["voxel_nums"]
    assert choice.total == expected["num_all_voxels"]
    assert sum(choice.gains) == expected["num_select_voxels"]
    cuts = [key for key in expected if "@" in key]
    assert cuts
    for key in cuts:
        how, _, count = key.partition("@")
        cut = choose_views(scene, "coverage", int(count), ratio=RATIOS[how], **options)
        assert list(cut.indices) == expected[key], key


@pytest.mark.parametrize(("total", "count", "expected"), [(10, 4, [0, 3, 6, 9]), (3, 5, [0, 0, 1, 1, 2]), (7, 1, [0])])
def test_uniform_rounds_down_and_repeats(total: int, count: int, expected: list[int]) -> None:
    assert uniform(total, count) == expected


def test_uniform_is_what_the_score_was_computed_on() -> None:
    # The released correspondence takes 32 frames of a scene, both ends included, rounded down.
    chosen = uniform(333, 32)
    assert chosen[0] == 0
    assert chosen[-1] == 332
    assert chosen[1] == 10  # 10.7


@pytest.fixture(scope="module")
def room() -> Scene:
    return kept(rendered_scene(4, 12, (48, 64)))


def test_each_view_adds_most_of_all_that_are_left() -> None:
    room = kept(rendered_scene(4, 6, (24, 32)))
    greedy = choose_views(room, "coverage", 3)
    assert list(greedy.indices) == sorted(greedy.indices)
    gains = dict(zip(greedy.indices, greedy.gains, strict=True))
    for place, chosen in enumerate(greedy.order):
        before = list(greedy.order[:place])
        added = []
        for other in set(range(len(room))) - set(before):
            tried = choose_views(room, "given", given=[*before, other])
            added.append(dict(zip(tried.indices, tried.gains, strict=True))[other])
        # A given view's gain counts in the order given: it was the last.
        assert gains[chosen] == max(added)
    everything = choose_views(room, "every")
    assert everything.covered == 1
    assert everything.total == greedy.total


def test_coverage_stops_at_a_share(room: Scene) -> None:
    cut = choose_views(room, "coverage", 12, ratio=0.8)
    whole = choose_views(room, "coverage", 12)
    assert 0.8 <= cut.covered < 1
    assert cut.order == whole.order[: len(cut.order)]
    one_less = choose_views(room, "given", given=cut.order[:-1])
    assert one_less.covered < 0.8


def test_ties_go_to_the_earlier_view() -> None:
    same = Scene.from_arrays(
        torch.zeros(4, 3, 8, 8),
        torch.ones(4, 8, 8),
        torch.tensor([[8.0, 0, 3.5], [0, 8, 3.5], [0, 0, 1]]),
        torch.eye(4).expand(4, 4, 4),
    )
    choice = choose_views(same, "coverage", 3)
    assert choice.order == (0, 1, 2)
    assert choice.gains[1:] == (0, 0)


def test_every_and_given(room: Scene) -> None:
    assert choose_views(room, "every", step=5).indices == (0, 5, 10)
    named = choose_views(room, "given", given=["00007", 2, "3"])
    assert named.indices == (2, 3, 7)
    assert named.order == (7, 2, 3)
    assert named.gains is not None


def test_a_scene_without_geometry_tells_no_gains() -> None:
    flat = Scene.from_arrays(torch.zeros(5, 3, 4, 4))
    choice = choose_views(flat, "uniform", 2)
    assert (choice.indices, choice.gains, choice.covered) == ((0, 4), None, None)
    with pytest.raises(SceneError, match=r"lacks depth .* intrinsics .* pose"):
        choose_views(flat, "coverage", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count is 0"),
        ({"how": "every", "step": 0}, "step is 0"),
        ({"how": "coverage", "voxel": 0.0}, "voxel is 0"),
        ({"how": "coverage", "ratio": 1.5}, r"ratio is 1\.5"),
        ({"how": "coverage", "count": 33, "preset": "released"}, "at most 32"),
        ({"how": "given"}, "No views are given"),
        ({"how": "given", "given": ["00012x"]}, r"no view '00012x'\. Did you mean"),
        ({"how": "given", "given": [12]}, "has 12 views, the last is number 11: no 12"),
    ],
)
def test_choices_that_cannot_be(room: Scene, options: dict, message: str) -> None:
    with pytest.raises((SettingsError, SceneError), match=message):
        choose_views(room, **options)


def test_unknown_names_list_the_known(room: Scene) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'coverage'"):
        choose_views(room, "coverag")
    with pytest.raises(UnknownNameError, match="preset"):
        choose_views(room, "coverage", preset="release")


def test_points_beyond_all_reason_are_told() -> None:
    far = Scene.from_arrays(torch.zeros(1, 3, 4, 4), torch.full((1, 4, 4), 9e5), torch.eye(3), torch.eye(4)[None])
    with pytest.raises(SceneError, match=r"over 1,048,576 voxels away\. Check the unit"):
        choose_views(far, "coverage", 1)
