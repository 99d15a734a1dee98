"""The grounding head: the released features, scores and losses, and wrong shapes told."""

from __future__ import annotations

import math

import pytest
import torch
from support import goldens

from vega3d_plugin.contracts.errors import AlignmentError, SettingsError
from vega3d_plugin.training.model.grounding import GroundingHead, ground_query, patches_in_boxes, proposal_features

GOLDEN = goldens.load("space/ground_head")
CONFIG, LOSSES = GOLDEN.info["config"], GOLDEN.info["loss"]
SIDE, REPEATED = 384, 14


def world() -> torch.Tensor:
    coarse = GOLDEN.inputs["world_coords_coarse27"]
    fine = coarse.repeat_interleave(REPEATED, dim=1).repeat_interleave(REPEATED, dim=2)
    rest = SIDE - fine.shape[1]
    return torch.nn.functional.pad(fine, (0, 0, 0, rest, 0, rest))


def head() -> GroundingHead:
    made = GroundingHead(GOLDEN.inputs["hidden"].shape[-1], CONFIG["temperature"])
    made.load_state_dict({key.removeprefix("ground_head_"): value for key, value in GOLDEN.weights.items()})
    return made


def features() -> torch.Tensor:
    boxes = GOLDEN.inputs["boxes"]
    return proposal_features(GOLDEN.inputs["features"], patches_in_boxes(world(), boxes), boxes)


def scores() -> torch.Tensor:
    query = ground_query(GOLDEN.inputs["hidden"], GOLDEN.inputs["labels"], CONFIG["ground_token_id"])
    return head()(features(), query)


def test_patches_of_boxes_are_the_released_ones() -> None:
    found = patches_in_boxes(world(), GOLDEN.inputs["boxes"])
    assert torch.equal(found, GOLDEN.outputs["object_patch"].bool())
    assert found.flatten(1).sum(1).tolist() == GOLDEN.info["patches_per_object"]


def test_features_of_boxes_are_the_released_ones() -> None:
    plain = proposal_features(GOLDEN.inputs["features"], GOLDEN.outputs["object_patch"].bool())
    assert goldens.error(plain, GOLDEN.outputs["object_features"]) < 1e-5
    assert goldens.error(features(), GOLDEN.outputs["object_features_pe"]) < 1e-5


def test_scores_are_the_released_ones() -> None:
    assert goldens.error(scores(), GOLDEN.outputs["scores"]) < 1e-5


# Which boxes the losses' names stand for is nowhere written: "one" and "two" are found among all choices.
@pytest.mark.parametrize(("name", "count"), [("one", 1), ("two", 2)])
def test_losses_are_the_released_ones(name: str, count: int) -> None:
    found = scores()
    choices = torch.combinations(torch.arange(len(found) - 1), count).tolist()
    losses = [float(head().loss(found, choice)) for choice in choices]
    near = [
        choice for choice, loss in zip(choices, losses, strict=True) if math.isclose(loss, LOSSES[name], abs_tol=1e-4)
    ]
    assert near, losses


def test_the_loss_without_targets_is_the_released_one() -> None:
    assert float(head().loss(scores(), [])) == pytest.approx(LOSSES["none"], abs=1e-4)
    # Without labels there is none.
    assert LOSSES["unlabelled"] is None


def test_every_output_is_looked_at() -> None:
    assert {*GOLDEN.outputs} == {"object_features", "object_features_pe", "object_patch", "scores"}
    assert {*LOSSES} == {"one", "two", "none", "unlabelled"}


def test_coarse_patches_need_a_quarter_of_their_pixels() -> None:
    points = torch.full((1, 54, 54, 3), 9.0)
    box = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
    # int(27 * 27 / 4) = 182 pixels.
    points[0, :14, :13] = 0.5
    assert patches_in_boxes(points, box, 27)[0, 0].tolist() == [[True, False], [False, False]]
    points[0, 0, 0] = 0.51
    assert not patches_in_boxes(points, box, 27).any()


def test_a_head_learns_which_box_is_meant() -> None:
    torch.manual_seed(0)
    made = GroundingHead(8)
    boxes, query = torch.randn(4, 8), torch.randn(1, 8)
    optimiser = torch.optim.Adam(made.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        loss = made.loss(made(boxes, query), [2])
        loss.backward()
        optimiser.step()
    assert int(made(boxes, query).argmax()) == 2
    assert float(loss) < 0.01


def test_what_cannot_be_is_an_error() -> None:
    box = torch.zeros(1, 6)
    with pytest.raises(AlignmentError, match=r"\[N, 6\], centre and full size, found \[1, 9\]"):
        patches_in_boxes(torch.zeros(1, 378, 378, 3), torch.zeros(1, 9))
    with pytest.raises(AlignmentError, match="no whole patches of 14"):
        patches_in_boxes(torch.zeros(1, 27, 27, 3), box)
    with pytest.raises(SettingsError, match="one of 14, 27"):
        patches_in_boxes(torch.zeros(1, 378, 378, 3), box, 16)  # type: ignore[arg-type]
    with pytest.raises(AlignmentError, match="do not go together"):
        proposal_features(torch.zeros(2, 9, 4), torch.zeros(1, 2, 2, 2, dtype=torch.bool))
    with pytest.raises(AlignmentError, match=r"different boxes from 0 to 1, found \[2\]"):
        GroundingHead(4).loss(torch.zeros(3), [2])
    with pytest.raises(AlignmentError, match="found 0"):
        ground_query(torch.zeros(1, 3, 4), torch.zeros(1, 3), 7)
