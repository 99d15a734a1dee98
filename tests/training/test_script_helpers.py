"""What ``vega3d run`` does about scripts that start Ray's workers or switch torch's initialisation off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vega3d_plugin.training.scripts import ray_tasks
from vega3d_plugin.training.scripts.initialisers import own_initialisers


def rays(*args: object, **options: object) -> object:
    """Stands for Ray's own function."""
    return ("ray's", args, options)


def test_a_task_runs_here() -> None:
    made = ray_tasks.remote(rays, num_gpus=1)(lambda a, b: a + b)
    results = [made.remote(1, b=2), made.options(num_cpus=3).remote(3, 4)]
    assert ray_tasks.get(rays, results) == [3, 7]
    assert ray_tasks.get(rays, results[0]) == 3
    assert ray_tasks.get(rays, ray_tasks.remote(rays, lambda: 5).remote()) == 5


def test_what_is_rays_stays_so() -> None:
    class Actor:
        pass

    assert ray_tasks.remote(rays, Actor) == ("ray's", (Actor,), {})
    assert ray_tasks.get(rays, ["a reference"], timeout=1) == ("ray's", (["a reference"],), {"timeout": 1})


def test_an_error_of_a_task_is_shown_as_it_is() -> None:
    def fails() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        ray_tasks.remote(rays, fails).remote()


def test_layers_are_initialised_where_the_script_has_switched_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: nn.Module) -> None:
        pass

    monkeypatch.setattr(nn.Linear, "reset_parameters", nothing)
    torch.manual_seed(0)
    with own_initialisers():
        inside = nn.Linear(4, 4)
    assert vars(nn.Linear)["reset_parameters"] is nothing
    monkeypatch.undo()
    torch.manual_seed(0)
    assert torch.equal(inside.weight, nn.Linear(4, 4).weight)
