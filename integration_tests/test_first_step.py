"""A branch that gets no gradient in the first step is an error in every loop; what is meant is none."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import hosts
import pytest
import torch
from hosts import Batch, loss_of, patch, train
from torch import Tensor, nn

import vega3d
from vega3d_plugin.contracts.errors import FrozenBranchError

HOST = hosts.named("llava")
OPTIMISERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
}


@pytest.fixture
def model() -> nn.Module:
    return patch(HOST.build()).train()


def beside_the_seam(model: Any, batch: Batch) -> Tensor:
    """A loss as of a script that computes the visual tokens from the host's parts by itself."""
    inner = getattr(model, "model", model)
    projector = inner.multi_modal_projector
    with torch.no_grad():
        seen = inner.vision_tower(batch["pixel_values"]).last_hidden_state[:, 1:]
    tokens = projector.linear_2(projector.act(projector.linear_1(seen)))
    words = inner.get_input_embeddings()(batch["input_ids"])
    image = model.config.to_dict().get("image_token_id", getattr(model.config, "image_token_index", None))
    where = (batch["input_ids"] == image)[..., None]
    words = words.masked_scatter(where, tokens.to(words.dtype))
    return inner.language_model(inputs_embeds=words)[0].square().mean()


@pytest.mark.parametrize("optimiser", OPTIMISERS.values(), ids=OPTIMISERS)
def test_a_script_that_passes_the_seam_by(model: nn.Module, optimiser: Callable[[Any], Any]) -> None:
    steps = optimiser(model.parameters())
    beside_the_seam(model, HOST.batch()).backward()
    with pytest.raises(FrozenBranchError, match="got none, so it would not learn"):
        steps.step()
    # Not once only: whoever catches it does not train on.
    with pytest.raises(FrozenBranchError):
        steps.step()


def test_the_optimiser_of_another_copy(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    trained = [*vega3d.get_handle(twin).parameters(), *model.get_input_embeddings().parameters()]
    steps = torch.optim.AdamW(trained, lr=1e-2)
    loss_of(model, HOST.batch()).backward()
    with pytest.raises(FrozenBranchError, match="a copy of the branch that does not run"):
        steps.step()


def test_a_branch_that_was_unpickled(model: nn.Module) -> None:
    branch = copy.deepcopy(vega3d.get_handle(model).branch)
    other = nn.Parameter(torch.ones(1))
    steps = torch.optim.SGD([*branch.parameters(), other], lr=1.0)
    other.sum().backward()
    with pytest.raises(FrozenBranchError):
        steps.step()


def half(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """One step of a branch in bfloat16."""
    branch = vega3d.get_handle(model).branch.bfloat16()
    steps = torch.optim.AdamW(branch.parameters(), lr=rate)
    loss_of(model, HOST.batch()).backward()
    steps.step()
    return steps


def test_steps_that_are_rounded_away_are_told(model: nn.Module) -> None:
    weight = dict(vega3d.get_handle(model).branch.named_parameters())["fuser.gate_projection.0.weight"]
    with pytest.warns(
        vega3d.errors.Vega3dWarning, match="bfloat16 without float32 copies, at a learning rate of 1e-05"
    ):
        steps = half(model, 1e-5)
    # Once; and it is true.
    before = weight.detach().clone()
    steps.step()
    assert (weight == before).float().mean() > 0.5


def test_steps_that_are_not(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", vega3d.errors.Vega3dWarning)
        half(model, 1e-2)


class TestNoFalseAlarm:
    def test_words_alone(self, model: nn.Module) -> None:
        train(model, HOST.text_batch(), steps=2)

    def test_accumulation(self, model: nn.Module) -> None:
        steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for batch in (HOST.text_batch(), HOST.batch(), HOST.batch()):
            (loss_of(model, batch) / 3).backward()
        steps.step()

    def test_evaluation_in_training_mode(self, model: nn.Module) -> None:
        with torch.no_grad():
            for _ in range(3):
                loss_of(model, HOST.batch())
        for _ in range(2):
            loss_of(model, HOST.batch())
        train(model, HOST.batch(), steps=1)

    def test_gradient_checkpointing(self, model: Any) -> None:
        model.gradient_checkpointing_enable()
        train(model, HOST.batch(), steps=2)

    def test_frozen_on_purpose(self, model: nn.Module) -> None:
        vega3d.get_handle(model).freeze()
        steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
        beside_the_seam(model, HOST.batch()).backward()
        steps.step()

    def test_switched_off(self, model: nn.Module) -> None:
        steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
        with vega3d.disabled(model):
            loss_of(model, HOST.batch()).backward()
            steps.step()

    def test_a_step_before_any_gradient(self, model: nn.Module) -> None:
        """As trainers make the optimiser's state with."""
        steps = torch.optim.AdamW(model.parameters(), lr=1e-2)
        steps.step()
        beside_the_seam(model, HOST.batch()).backward()
        with pytest.raises(FrozenBranchError):
            steps.step()

    def test_two_optimisers(self, model: nn.Module) -> None:
        mine = list(vega3d.get_handle(model).parameters())
        ids = {id(p) for p in mine}
        host = torch.optim.AdamW([p for p in model.parameters() if id(p) not in ids], lr=1e-2)
        branch = torch.optim.AdamW(mine, lr=1e-2)
        loss_of(model, HOST.batch()).backward()
        host.step()
        branch.step()

    def test_unpatched_afterwards(self, model: nn.Module) -> None:
        vega3d.unpatch(model)
        train(model, HOST.batch(), steps=1)
