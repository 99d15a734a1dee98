"""Correspondence: features whose score is known beforehand, real priors, resuming, and wrong input."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from judged import GRID, SIZE, giving, picked, room, world_features
from PIL import Image
from torch import Tensor

import vega3d
from vega3d_plugin.analysis import CorrespondenceResult, correspondence
from vega3d_plugin.analysis.contexts import judged_views
from vega3d_plugin.analysis.controls import CONTROLS, position_only
from vega3d_plugin.analysis.partners import shared_views, token_places
from vega3d_plugin.analysis.protocols import Probe3d, Protocol, Released, Visible
from vega3d_plugin.analysis.results import ITSELF
from vega3d_plugin.analysis.scoring import AnalysisWarning
from vega3d_plugin.errors import AnalysisError, PriorError, SceneError, UnknownNameError
from vega3d_plugin.priors.base import Prior
from vega3d_plugin.priors.framing import Framing
from vega3d_plugin.scenes.scene import Scene

#: Quick forms of each.
QUICK: dict[str, Callable[[], Protocol]] = {
    "visible": Visible,
    "released": lambda: Released(voxel=0.3),
    "probe3d": lambda: Probe3d(within=(2, 4), side=48, matches=200),
}
NO_TWIN = [name for name in CONTROLS if name != "untrained twin"]


def judged(prior: Prior, protocol: str = "visible", scene: Scene | None = None) -> CorrespondenceResult:
    with pytest.warns(AnalysisWarning, match="one scene"):
        return correspondence(prior, scene or picked(room()), protocol=QUICK[protocol](), views=6)


def value(result: CorrespondenceResult, figure: str, control: str = ITSELF) -> float:
    return result.priors[0].figure(figure, control).value


# Features whose score is known beforehand


@pytest.mark.parametrize("protocol", QUICK)
def test_features_that_are_the_place_itself_score_near_one(protocol: str) -> None:
    found = judged(giving(world_features(picked(room())), "world"), protocol)
    expected = {
        "visible": {"centred": 0.9, "recall@1": 0.9},
        "released": {"centred": 0.85},
        "probe3d": {"recall@4px": 0.8},
    }
    for figure, least in expected[protocol].items():
        assert value(found, figure) > least
        # Neighbouring views show nearly the same place at the same position, and share most of it with the next.
        near = ("views shuffled", "same position") if protocol == "released" else ()
        for control in ("views shuffled", "same position", "pixels", "random"):
            assert value(found, figure) > value(found, figure, control) + (0.0 if control in near else 0.1), control


@pytest.mark.parametrize("protocol", ["visible", "released"])
def test_noise_with_an_offset_scores_high_and_nothing_once_centred(protocol: str) -> None:
    noise = torch.randn(6, 256, *GRID, generator=torch.Generator().manual_seed(0)) + 4
    found = judged(giving(noise, "offset"), protocol)
    raw = next(iter(found.figures))
    assert value(found, raw) > 0.9
    assert abs(value(found, "centred")) < 0.05
    assert value(found, raw, "offset and noise") == pytest.approx(value(found, raw), abs=0.02)
    offset = next(text for text in found.findings() if "offset" in text)
    assert f"of which {value(found, raw) - value(found, 'centred'):.3f} is an offset" in offset


@pytest.mark.parametrize("protocol", ["visible", "probe3d"])
def test_position_alone_finds_the_same_position(protocol: str) -> None:
    found = judged(giving(position_only(6, GRID), "position"), protocol)
    for figure in (name for name in found.figures if name.startswith("recall")):
        assert value(found, figure) == value(found, figure, "position only")
        if protocol == "visible":
            assert value(found, figure) == value(found, figure, "same position")
    assert "NOT clearly above" in " ".join(found.findings())


def test_noise_finds_by_chance() -> None:
    found = judged(giving(torch.randn(6, 64, *GRID, generator=torch.Generator().manual_seed(0)), "noise"))
    # The share of the tokens that lie within one token of a place.
    assert value(found, "recall@1") < 0.08
    assert value(found, "recall@1") == pytest.approx(value(found, "recall@1", "random"), abs=0.03)


def test_the_right_pair_of_views_counts() -> None:
    """Shuffled features of the place itself are features of another place."""
    found = judged(giving(world_features(picked(room())), "world"))
    assert value(found, "centred", "views shuffled") < value(found, "centred") - 0.1


# Geometry


def test_partners_are_the_same_point_of_the_world() -> None:
    scene, grid = picked(room()), (18, 24)
    framing = Framing.stretch(SIZE, SIZE)
    coordinates = world_places(scene, grid)
    pairs = shared_views(scene, framing, grid)
    assert sum(pair.shared for pair in pairs) > 1000
    for pair in pairs:
        for i, j, partners in ((pair.first, pair.second, pair.there), (pair.second, pair.first, pair.back)):
            distance = (coordinates[i][partners.tokens] - coordinates[j][partners.nearest(grid)]).norm(dim=-1)
            # Within the size of a token at a few metres, but for edges that cut a token.
            assert float(distance.quantile(0.8)) < 0.35


def world_places(scene: Scene, grid: tuple[int, int]) -> Tensor:
    framing = Framing.stretch(SIZE, SIZE)
    return torch.stack([token_places(view, view.read_depth(), framing, grid)[0] for view in scene.views])


def test_depth_of_another_size_gives_the_same_partners() -> None:
    scene = picked(room())
    finer = [torch.nn.functional.interpolate(v.depth()[None, None], scale_factor=2)[0, 0] for v in scene.views]
    larger = Scene.from_arrays(scene.frames(), torch.stack(finer), scene.views[0].intrinsics, scene.poses)
    framing = Framing.crop(SIZE, (64, 96))
    for one, two in zip(shared_views(scene, framing, (4, 6)), shared_views(larger, framing, (4, 6)), strict=True):
        assert torch.equal(one.there.tokens, two.there.tokens)
        torch.testing.assert_close(one.there.places, two.there.places, rtol=0, atol=0.2)


def test_what_the_crop_leaves_out_has_no_partner() -> None:
    scene = picked(room())
    whole = shared_views(scene, Framing.stretch(SIZE, SIZE), (6, 8))
    # Sees the middle half of the height.
    narrow = Framing.crop(SIZE, (36, 96))
    assert narrow.box == pytest.approx((0, 18, 96, 54))
    cut = shared_views(scene, narrow, (3, 8))
    for one, two in zip(whole, cut, strict=True):
        assert two.shared < one.shared
        assert float(two.there.places[:, 1].max()) < 3


# Real priors


@cache
def of_tiny_wan() -> CorrespondenceResult:
    return correspondence(vega3d.load_prior("tiny-wan", size=(48, 80)), [room(0), room(1)], views=4)


@pytest.fixture
def found() -> CorrespondenceResult:
    return of_tiny_wan()


def test_a_prior_is_judged_in_each_of_its_contexts(found: CorrespondenceResult) -> None:
    assert [scores.context for scores in found.priors] == ["frame", "views", "video"]
    for scores in found.priors:
        assert scores.controls == [ITSELF, *CONTROLS]
        assert scores.absent == {}
        for scene in scores.scenes:
            assert scene.grid == (3, 5)
            assert scene.seen == (48, 80)
            assert all(count >= 8 for count in scene.shared)
    frame, views, video = found.priors
    assert frame.figure("cosine") != views.figure("cosine") != video.figure("cosine")
    assert len({scores.fingerprint for scores in found.priors}) == 3
    assert frame.over == "2 scenes"
    assert frame.figure("cosine").is_known


def test_the_result_survives_a_file(found: CorrespondenceResult, tmp_path: Path) -> None:
    assert CorrespondenceResult.from_json(found.to_json()) == found
    path = tmp_path / "result.json"
    path.write_text(found.to_json())
    assert CorrespondenceResult.read(path).table() == found.table()


def test_the_table_says_what_was_measured(found: CorrespondenceResult) -> None:
    table = found.table()
    for text in ("bootstrap over 2 scenes", "untrained twin", "VAE alone", "by rotation", "0-15", "is an offset"):
        assert text in table
    assert "vega3d ablate" in table


def test_the_picture(found: CorrespondenceResult, tmp_path: Path) -> None:
    picture = found.plot(tmp_path / "deep" / "result.png")
    with Image.open(tmp_path / "deep" / "result.png") as read:
        assert read.size == picture.size
        assert len(read.getcolors(1 << 24)) > 20


def test_encoders_have_no_vae(tmp_path: Path) -> None:
    from toys.vjepa2 import TOYS

    if not TOYS:
        pytest.skip("this version of transformers has no V-JEPA 2")
    TOYS[0].write(tmp_path)
    result = correspondence(TOYS[0].load(tmp_path), [room(0), room(1)], views=4)
    assert all("VAE" in scores.absent["VAE alone"] for scores in result.priors)
    assert "no VAE alone" in result.table()
    assert {scores.context for scores in result.priors} >= {"views", "video"}


def test_in_a_video_every_judged_view_begins_a_step() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(48, 80), context="video")
    views = judged_views(prior, room(0), 4)
    assert [view.name for view in views.scene.views] == [room(0).views[i].name for i in (0, 3, 7, 11)]
    assert views.places == (0, 1, 5, 9)
    assert len(views.clip) == 13
    for place, view in zip(views.places, views.scene.views, strict=True):
        assert torch.equal(views.clip[place], view.frame())
    # Between view 3 and 7 lie 4, 5 and 6; behind the last there is none, so it stands still.
    assert torch.equal(views.clip[2], room(0).views[4].frame())
    assert torch.equal(views.clip[12], room(0).views[11].frame())
    assert views.repeated == 3
    assert prior(views.clip).shape[0] == 4


# Resuming


class Counting(vega3d.Prior):
    """Counts how often it is run."""

    feature_dim, fingerprint, settings = 8, "counting", None

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.runs += 1
        return torch.nn.functional.adaptive_avg_pool2d(frames, GRID).repeat(1, 3, 1, 1)[:, :8]


def test_what_was_judged_is_not_judged_again(tmp_path: Path) -> None:
    prior = Counting()
    scenes = [picked(room(0)), picked(room(1))]
    first = correspondence(prior, scenes, records=tmp_path)
    assert prior.runs == 2
    assert correspondence(prior, scenes, records=tmp_path) == first
    assert prior.runs == 2
    other = correspondence(prior, scenes, records=tmp_path, seed=1)
    assert prior.runs == 4
    assert other.priors[0].figure("cosine", "random") != first.priors[0].figure("cosine", "random")


def test_a_damaged_record_is_told_and_made_again(tmp_path: Path) -> None:
    prior = Counting()
    scenes = [picked(room(0)), picked(room(1))]
    first = correspondence(prior, scenes, records=tmp_path)
    damaged = sorted(tmp_path.glob("*.json"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.warns(AnalysisWarning, match=f"{damaged.name}.*computed again"):
        assert correspondence(prior, scenes, records=tmp_path) == first
    assert prior.runs == 3
    assert correspondence(prior, scenes, records=tmp_path) == first


def test_features_come_from_the_store(tmp_path: Path) -> None:
    prior = Counting()
    scenes = [picked(room(0)), picked(room(1))]
    first = correspondence(prior, scenes, store=tmp_path)
    assert prior.runs == 2
    assert correspondence(prior, scenes, store=tmp_path, protocol=Visible(tolerance=0.2)) != first
    assert prior.runs == 2


def test_pictures_of_the_first_scenes(tmp_path: Path) -> None:
    correspondence(Counting(), [picked(room(0)), picked(room(1)), picked(room(2))], pictures=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["room_0000_Counting_clip_counting.png", "room_0001_Counting_clip_counting.png"]
    with Image.open(tmp_path / names[0]) as picture:
        assert picture.width > 700


# What cannot be judged


def test_a_scene_without_depth_or_poses() -> None:
    scene = picked(room())
    without_depth = Scene.from_arrays(scene.frames(), None, scene.views[0].intrinsics, scene.poses)
    with pytest.raises(SceneError, match="lacks depth"):
        correspondence(Counting(), without_depth)
    depth = torch.stack([view.read_depth() for view in scene.views])
    with pytest.raises(SceneError, match="lacks pose"):
        correspondence(Counting(), Scene.from_arrays(scene.frames(), depth, scene.views[0].intrinsics))
    poses = scene.poses.clone()
    poses[1, 0, 0] = float("nan")
    with pytest.raises(SceneError, match="NaN"):
        Scene.from_arrays(scene.frames(), depth, scene.views[0].intrinsics, poses)
    inverted = torch.linalg.inv(scene.poses)
    with pytest.raises(SceneError, match="world-to-camera"):
        correspondence(Counting(), Scene.from_arrays(scene.frames(), depth, scene.views[0].intrinsics, inverted))


def test_one_view() -> None:
    with pytest.raises(AnalysisError, match=r"1 views, of which 1.*at least two"):
        correspondence(Counting(), room().select([3]), check=False)
    with pytest.raises(AnalysisError, match="of which 1 would be judged"):
        correspondence(Counting(), room(), views=1)


def test_views_that_share_nothing() -> None:
    scene = picked(room())
    poses = scene.poses.clone()
    poses[:, 0, 3] += torch.arange(len(poses)) * 100.0
    depth = torch.stack([view.read_depth() for view in scene.views])
    apart = Scene.from_arrays(scene.frames(), depth, scene.views[0].intrinsics, poses, name="apart")
    for protocol in ("visible", "released"):
        with pytest.raises(AnalysisError, match=r"scene 'apart'.*share too little"):
            correspondence(Counting(), apart, protocol=protocol, check=False)


def test_features_that_are_not_finite() -> None:
    maps = torch.rand(6, 8, *GRID)
    maps[2, 3, 1, 1] = float("inf")
    with pytest.raises(AnalysisError, match=r"1 of \d+ features of prior 'callable' on scene 'room_0000'"):
        correspondence(giving(maps, "broken"), picked(room()))


def test_names_that_nobody_knows() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'visible'"):
        correspondence(Counting(), room(), protocol="visibel")
    with pytest.raises(UnknownNameError, match="Did you mean 'random'"):
        correspondence(Counting(), room(), controls=["randum"])
    with pytest.raises(PriorError, match="Did you mean 'views'"):
        correspondence("tiny-wan", room(), contexts=["view"])
    with pytest.raises(UnknownNameError, match="tiny-wan"):
        correspondence("tiny-wam", room())
    with pytest.raises(AnalysisError, match="no prior"):
        correspondence([], room())
    with pytest.raises(AnalysisError, match="no scene"):
        correspondence(Counting(), [])


def test_a_prior_that_was_changed_is_not_loaded_again() -> None:
    prior = vega3d.load_prior("tiny-wan", size=(48, 80))
    with torch.no_grad():
        prior.models["transformer"].blocks[0].ffn.net[0].proj.weight.add_(0.5)
    with pytest.raises(PriorError, match="was changed since it was loaded"):
        correspondence(prior, [room(0)], views=3, contexts=["views"])


def test_a_function_has_no_twin() -> None:
    found = judged(giving(world_features(picked(room())), "world"))
    assert found.priors[0].controls == [ITSELF, *(name for name in NO_TWIN if name != "VAE alone")]
    assert "no modules" in found.priors[0].absent["untrained twin"]
    assert "judged without these controls: untrained twin, VAE alone" in found.table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is no CorrespondenceResult"),
        (lambda text: text.replace('"protocol"', '"protokoll"'), "protokoll|protocol"),
        (lambda text: text.replace('"format": 1', '"format": 9'), "format"),
        (lambda text: "[" * 100_000, "is no CorrespondenceResult"),
        (lambda text: "\x00", "is no CorrespondenceResult"),
        (lambda text: re.sub(r'"angles": \[\s*[\d.]+', '"angles": [NaN', text, count=1), "angles"),
    ],
)
def test_any_other_text_is_refused(found: CorrespondenceResult, change: Callable[[str], str], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        CorrespondenceResult.from_json(change(found.to_json()))


def test_values_must_fit_the_pairs(found: CorrespondenceResult) -> None:
    scene = found.priors[0].scenes[0]
    with pytest.raises(ValueError, match="angles has 0 entries"):
        type(scene)(**{**scene.model_dump(), "angles": ()})
    assert all(math.isnan(v) for v in scene.numbers("nobody", "cosine"))
    with pytest.raises(AnalysisError, match="cannot be read"):
        CorrespondenceResult.read("/nowhere/result.json")


def test_two_cameras_of_a_policy() -> None:
    """A scene of two views, as the agent and the wrist camera of a robot are."""
    pair = picked(room()).select([0, 2])
    with pytest.warns(AnalysisWarning, match="one scene"):
        found = correspondence(giving(world_features(pair), "world"), pair, views=2)
    scores = found.priors[0]
    assert scores.scenes[0].pairs == ((0, 1),)
    assert scores.figure("centred").value > 0.8
    assert not scores.figure("centred").is_known
    # With one pair there is no interval, so nothing is claimed to be above anything.
    assert "is above" not in " ".join(found.findings())


def test_a_scene_without_metres() -> None:
    scene = picked(room())
    small = [view.read_depth() / 50 for view in scene.views]
    poses = scene.poses.clone()
    poses[:, :3, 3] /= 50
    scaled = Scene.from_arrays(scene.frames(), torch.stack(small), scene.views[0].intrinsics, poses)
    scaled = dataclasses.replace(scaled, metric=False)
    one, two = (Visible().pairs(each, Counting(), GRID) for each in (scene, scaled))
    assert one.views == two.views
    # The share of the distance alone is a little stricter than 5 cm for what is near.
    assert 0.8 < sum(two.shared) / sum(one.shared) <= 1
    with pytest.raises(AnalysisError, match="up to its scale only"):
        Released().pairs(scaled, Counting(), GRID)
