"""A tower that is trained to see: what it is told is true, and what it tells is judged beyond its tokens' places."""

from __future__ import annotations

import numpy as np
import torch
from language.arms import ARMS, BETTER, FIRST, REST
from language.judging import PAIRS
from language.seeing import Seeing, cells, learn_to_see
from torch import nn

from vega3d_plugin.scenes.rendered import render_room

SIDE, GRID = 32, 4


def test_cells_are_those_of_the_room() -> None:
    view = render_room(3, (SIDE, SIDE), 5)
    told = cells(view, [2, 0], GRID)
    assert told.shape == (2, GRID * GRID, 8)
    # The token of row 1, column 2: pixels 8 to 15 and 16 to 23; its cells are 4 pixels wide, row by row.
    token = told[0, 1 * GRID + 2]
    for number, (row, column) in enumerate(((8, 16), (8, 20), (12, 16), (12, 20))):
        depth = view.depth[2, row : row + 4, column : column + 4]
        boxes = view.instance[2, row : row + 4, column : column + 4] >= 0
        np.testing.assert_allclose(token[number], np.log(depth).mean(), rtol=1e-5)
        np.testing.assert_allclose(token[4 + number], boxes.mean(), rtol=1e-5)


def test_what_a_tower_tells_is_judged_beyond_its_places() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 4, 2, generator=generator)
    places = 10 * torch.arange(4.0)[:, None]
    told = torch.cat([places + hidden, places + torch.randn(300, 4, 2, generator=generator)], dim=-1)
    tower = nn.Linear(2, 6)
    found = learn_to_see(tower, lambda numbers: tower(hidden[numbers]), told, 100, Seeing(steps=300), 0)
    assert found["depth"] > 0.9
    assert found["boxes"] < 0.1


def test_each_arm_is_run_once_and_compared() -> None:
    run = FIRST + REST + BETTER
    assert len(set(run)) == len(run)
    assert {*run, "zeroed"} == {*ARMS}
    assert {name for pair in PAIRS for name in pair} == {*ARMS} - {"blind"}
