"""A tower that sees: before its host learns to answer, it learns to tell depth and boxes of other rooms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vega3d_plugin.contracts.seeded import seeded
from vega3d_plugin.evaluation.demo.comparison import descend, optimisers_of
from vega3d_plugin.scenes.rendered import RoomClip

ROWS = 32  # clips of a step
WARM_UP = 20  # steps
#: First seeds of the rooms that towers learn from, and of those on which it is seen how well.
LEARNT, SEEN = 30_000, 40_000
#: Cells of a token, in height and in width.
CELLS = 2


@dataclass(frozen=True)
class Seeing:
    """Attributes: ``rooms``: that a tower learns from; ``judged``: rooms that it is judged on; ``steps``."""

    rooms: int = 160
    judged: int = 40
    steps: int = 400


def cells(view: RoomClip, frames: list[int], grid: int) -> NDArray[np.float32]:
    """What a token is to tell: of each of its 2x2 cells and of each frame the log of the depth and the share of boxes.

    Args:
        view: a room.
        frames: that the tower sees, in this order.
        grid: tokens along a side.

    Returns:
        ``[frames, grid * grid, 8]``, depth first.
    """
    fine = CELLS * grid
    side = view.depth.shape[1] // fine
    maps = np.stack([np.log(view.depth[frames]), view.instance[frames] >= 0]).astype(np.float32)
    means = maps.reshape(2, len(frames), fine, side, fine, side).mean(axis=(3, 5))
    of_token = means.reshape(2, len(frames), grid, CELLS, grid, CELLS).transpose(1, 2, 4, 0, 3, 5)
    return np.ascontiguousarray(of_token.reshape(len(frames), grid * grid, 2 * CELLS**2))


def learn_to_see(
    tower: nn.Module, look: Callable[[Tensor], Tensor], told: Tensor, judged: int, plan: Seeing, seed: int
) -> dict[str, float]:
    """Train a tower and a linear layer behind it, which is thrown away.

    Args:
        tower: what is trained.
        look: from numbers of clips to the tower's tokens, float ``[N, tokens, width]``.
        told: ``[clips, tokens, D]``, what the tokens are to tell: depth in the first half of ``D``, then boxes.
        judged: clips at the end that are not learnt from.
        plan: steps.
        seed: of the linear layer and of the order.

    Returns:
        R^2 of ``depth`` and ``boxes`` on the clips at the end; 0 is what each token's place alone tells.
    """
    learnt = len(told) - judged
    # What a place shows in the mean takes no sight.
    truth = told - told[:learnt].mean(dim=0)
    truth = truth / truth[:learnt].std(dim=(0, 1))
    with seeded(seed), torch.no_grad():
        head = nn.Linear(look(torch.arange(1)).shape[-1], told.shape[-1])
    both = nn.ModuleList([tower, head]).train()

    def loss_of(numbers: Tensor) -> Tensor:
        return nn.functional.mse_loss(head(look(numbers)), truth[numbers])

    descend(
        loss_of, list(both.parameters()), optimisers_of(both, 1.0), learnt, plan.steps, seed, rows=ROWS, warm_up=WARM_UP
    )
    both.zero_grad(set_to_none=True)
    both.eval()
    with torch.no_grad():
        said = torch.cat([head(look(some)) for some in torch.arange(learnt, len(told)).split(64)])
    left = (said - truth[learnt:]).square().mean(dim=(0, 1)) / truth[learnt:].square().mean(dim=(0, 1))
    half = told.shape[-1] // 2
    return {"depth": round(float(1 - left[:half].mean()), 4), "boxes": round(float(1 - left[half:].mean()), 4)}


def state_of(tower: nn.Module) -> dict[str, Any]:
    """A copy of a tower's weights."""
    return {name: value.detach().clone() for name, value in tower.state_dict().items()}
