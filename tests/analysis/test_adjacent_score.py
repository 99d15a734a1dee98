"""The released adjacent score against the reference vectors."""

from __future__ import annotations

import math
from typing import Any

import goldens
import numpy as np
import pytest
import torch

from vega3d_plugin.analysis import adjacent
from vega3d_plugin.errors import AnalysisError
from vega3d_plugin.priors.framing import Framing
from vega3d_plugin.scenes.coordinates import PointMap
from vega3d_plugin.scenes.views import uniform

SCORE = 1e-5


@pytest.fixture(scope="module")
def golden() -> goldens.Golden:
    return goldens.load("space/correspondence_adjacent")


@pytest.fixture(scope="module")
def tokens(golden: goldens.Golden) -> adjacent.Tokens:
    inputs, config = golden.inputs, golden.info["config"]
    return adjacent.pooled_tokens(
        inputs["features"],
        PointMap(inputs["world_coords"], inputs["depth_valid"].bool()),
        Framing.crop(tuple(inputs["depth_valid"].shape[1:]), tuple(config["out_hw"])),
        valid_share=config["valid_ratio_threshold"],
    )


def number(value: Any) -> float:
    return float("nan") if value == "nan" else float(value)


def same(found: float, expected: Any, tolerance: float = SCORE) -> bool:
    expected = number(expected)
    return math.isnan(found) == math.isnan(expected) and (math.isnan(found) or abs(found - expected) < tolerance)


def test_tokens_at_the_coarse_grid(golden: goldens.Golden, tokens: adjacent.Tokens) -> None:
    torch.testing.assert_close(tokens.features, golden.outputs["features14"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokens.world, golden.outputs["world14"], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(tokens.valid_share, golden.outputs["valid_ratio14"], rtol=1e-5, atol=1e-6)
    assert torch.equal(tokens.valid, golden.outputs["valid14"].bool())


def test_pair_scores(golden: goldens.Golden, tokens: adjacent.Tokens) -> None:
    assert golden.info["pairs"]
    for pair in golden.info["pairs"]:
        found = adjacent.pair_score(tokens, pair["pair"], pair["pair"] + 1, pair["voxel_size"])
        assert same(found.score, pair["score"]), pair
        assert (found.shared, found.voxels) == (pair["num_pairs"], pair["num_voxels_total"]), pair


def test_token_maps(golden: goldens.Golden, tokens: adjacent.Tokens) -> None:
    pairs = sum(name.startswith("map_i.") for name in golden.outputs)
    assert pairs
    # One of the voxel sizes is that of the maps: the summary's.
    fitting = []
    for voxel in {pair["voxel_size"] for pair in golden.info["pairs"]}:
        scores = [adjacent.pair_score(tokens, i, i + 1, voxel) for i in range(pairs)]
        summary = adjacent.scene_summary([score.score for score in scores])
        if same(summary[0], golden.info["summary_mean"]):
            fitting.append(voxel)
            assert same(summary[1], golden.info["summary_std_ddof1"])
            for i, score in enumerate(scores):
                for side, name in enumerate("ij"):
                    expected = golden.outputs[f"map_{name}.{i}"]
                    torch.testing.assert_close(score.maps[side], expected, rtol=0, atol=SCORE, equal_nan=True)
    assert len(fitting) == 1


def test_matches(golden: goldens.Golden, tokens: adjacent.Tokens) -> None:
    assert golden.info["matching"]
    for case in golden.info["matching"]:
        found = adjacent.match(
            tokens,
            case["pair"],
            case["pair"] + 1,
            least_similarity=case["sim_threshold"],
            mutual=case["mutual_only"],
            farthest=case["max_world_dist"],
        )
        assert found.valid == (case["num_valid_i"], case["num_valid_j"])
        assert (found.mutual, len(found)) == (case["num_mutual"], case["num_selected"])
        assert same(float(found.similarity.double().mean()), case["mean_sim"])
        assert same(float(found.distance.double().mean()), case["mean_world_dist"], 2e-5)
        for k, (first, second, similarity, distance) in enumerate(case["first5"]):
            assert (int(found.first[k]), int(found.second[k])) == (first, second)
            assert same(float(found.similarity[k]), similarity)
            assert same(float(found.distance[k]), distance, 2e-5)


def test_consistency_without_geometry(golden: goldens.Golden) -> None:
    features, expected = golden.outputs["features14"], golden.info["token_consistency"]
    assert expected
    for i, value in enumerate(expected):
        assert same(adjacent.token_consistency(features[i], features[i + 1]), value)


def test_the_crop(golden: goldens.Golden) -> None:
    for case in golden.info["resize_crop_params"]:
        framing = Framing.crop(tuple(case["in"][::-1]), tuple(case["out"][::-1]))
        assert framing.covered == (case["new_h"], case["new_w"])
        assert framing.corner == (case["top"], case["left"])
        assert framing.scale == pytest.approx((case["sx"], case["sy"]), rel=1e-12)


def test_token_centres(golden: goldens.Golden) -> None:
    case = golden.info["resize_crop_params"][0]
    framing = Framing.crop(tuple(case["in"][::-1]), tuple(case["out"][::-1]))
    for centre in golden.info["token_centres"]:
        assert adjacent.token_centre(framing, centre["row"], centre["col"]) == pytest.approx(centre["xy"], abs=1e-9)


def test_choice_of_views(golden: goldens.Golden) -> None:
    for case in golden.info["frame_indices"]:
        assert uniform(case["total"], case["num"]) == case["indices"]


def test_picture_of_the_norm(golden: goldens.Golden) -> None:
    found = adjacent.norm_picture(golden.inputs["features"])
    np.testing.assert_allclose(found, golden.outputs["norm_vis"].numpy(), atol=1e-5)
    features = golden.inputs["features"].clone()
    features[0, 0, 0, 0] = float("nan")
    assert adjacent.norm_picture(features)[0, 0, 0] == 0
    assert (adjacent.norm_picture(torch.full((1, 2, 2, 2), float("nan"))) == 0).all()


def test_no_shared_voxel_and_no_valid_token(tokens: adjacent.Tokens) -> None:
    expected = goldens.load("space/correspondence_edges").info
    far = tokens.world.clone()
    far[1] += 1000
    apart = adjacent.Tokens(tokens.features, far, tokens.valid, tokens.valid_share)
    score = adjacent.pair_score(apart, 0, 1)
    assert same(score.score, expected["no_shared_voxel"]["score"])
    assert score.shared == expected["no_shared_voxel"]["num_pairs"]
    assert torch.isnan(score.maps).all()

    empty = tokens.valid.clone()
    empty[0] = False
    blind = adjacent.Tokens(tokens.features, tokens.world, empty, tokens.valid_share)
    found, wanted = adjacent.match(blind, 0, 1), expected["no_valid_token"]
    assert found.valid == (wanted["num_valid_i"], int(tokens.valid[1].sum()))
    assert (found.mutual, len(found)) == (wanted["num_mutual"], wanted["num_selected"])
    nothing = adjacent.Tokens(tokens.features, tokens.world, torch.zeros_like(empty), tokens.valid_share)
    assert adjacent.pair_score(nothing, 0, 1).voxels == 0


def test_nearest_times() -> None:
    cases = goldens.load("space/correspondence_edges").info["nearest"]
    assert cases
    for case in cases:
        assert adjacent.nearest_times(case["times"], case["target"]) == case["index"]


def test_an_offset_alone_scores_high_and_nothing_once_centred(tokens: adjacent.Tokens) -> None:
    """Independent noise and one constant: the caution of the released score."""
    noise = torch.randn(tokens.features.shape[0], 1536, 14, 14, generator=torch.Generator().manual_seed(3))
    expected = {0.0: 0.0, 1.0: 0.5, 4.0: 0.94}
    for offset, value in expected.items():
        shifted = adjacent.Tokens(noise + offset, tokens.world, tokens.valid, tokens.valid_share)
        assert adjacent.pair_score(shifted, 0, 1).score == pytest.approx(value, abs=0.03)


def test_features_that_are_not_finite(tokens: adjacent.Tokens) -> None:
    features = tokens.features.clone()
    features[1, 0, 3, 3] = float("nan")
    with pytest.raises(AnalysisError, match=r"1 of \d+ features of views 0 and 1"):
        adjacent.pair_score(adjacent.Tokens(features, tokens.world, tokens.valid, tokens.valid_share), 0, 1)
    with pytest.raises(AnalysisError, match="edge above 0"):
        adjacent.pair_score(tokens, 0, 1, 0.0)
