"""Which of several processes this one is, as torchrun and accelerate tell it. They need not speak to each other."""

from __future__ import annotations

import os

from ...contracts.errors import StoreError


def rank_and_world() -> tuple[int, int]:
    """Rank and number of processes; 0 of 1 without a launcher. On CUDA, each rank takes the GPU of its local rank.

    Raises:
        StoreError: the launcher's variables are none.
    """
    given = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world = (int(value) for value in given.values())
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise StoreError(f"The launcher says {given}, expected numbers with 0 <= RANK < WORLD_SIZE.")
    if world > 1:
        _take_gpu()
    return rank, world


def _take_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
