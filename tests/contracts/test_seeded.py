"""Random weights from a seed: those that ``torch.manual_seed`` gives, and nobody else's numbers are touched."""

from __future__ import annotations

import pytest
import torch
from support.together import together
from torch import Tensor, nn

from vega3d_plugin.contracts.seeded import seeded


def drawn() -> list[Tensor]:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 2, 3), nn.Embedding(5, 3), nn.MultiheadAttention(4, 2))
    other = torch.empty(4)
    nn.init.trunc_normal_(other)
    return [
        *layers.parameters(), other, nn.init.xavier_uniform_(torch.empty(3, 3)), torch.randn(3), torch.rand(2, 2),
        torch.randint(9, (4,)), torch.randperm(5), torch.zeros(3).normal_(1, 2), torch.zeros(3).uniform_(),
        torch.normal(0.0, 1.0, (2,)), torch.bernoulli(torch.full((6,), 0.5)), nn.init.orthogonal_(torch.empty(3, 3)),
        torch.multinomial(torch.ones(5), 3),
    ]  # fmt: skip


def expected(seed: int) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return drawn()


def same(found: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, others, strict=True))


def test_the_numbers_of_manual_seed() -> None:
    with seeded(3):
        found = drawn()
    assert same(found, expected(3))
    assert not same(found, expected(4))


def test_the_process_draws_as_if_nothing_had_been() -> None:
    before = torch.random.get_rng_state()
    with seeded(0):
        drawn()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_generator_that_is_given_is_used() -> None:
    own = torch.Generator().manual_seed(5)
    with seeded(0):
        found = torch.randn(3, generator=own)
    assert torch.equal(found, torch.randn(3, generator=torch.Generator().manual_seed(5)))


def test_threads_do_not_draw_from_each_other() -> None:
    alone = [expected(seed) for seed in range(4)]
    before = torch.random.get_rng_state()

    def seeded_draws(seed: int) -> bool:
        for _ in range(5):
            with seeded(seed):
                found = drawn()
            if not same(found, alone[seed]):
                return False
        return True

    assert together(*(lambda s=s: seeded_draws(s) for s in range(4))) == [True] * 4
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("device", ["meta"])
def test_without_values_nothing_is_drawn(device: str) -> None:
    with seeded(0):
        torch.empty(3, device=device).normal_()
        assert torch.equal(torch.randn(2), expected_first())


def expected_first() -> Tensor:
    return torch.randn(2, generator=torch.Generator().manual_seed(0))
