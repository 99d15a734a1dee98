"""Branches to be saved, told apart by their timestep, without a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vega3d
from vega3d_plugin.storage.record import make_record


def record(timestep: int) -> dict[str, Any]:
    settings = vega3d.BranchSettings.parse({"prior": {"name": "tiny-wan", "timestep": timestep}})
    sizes = {"hidden_size": 8, "merge": 2, "feature_dim": 96}
    return make_record(settings, host="qwen_vl", fingerprint=f"f{timestep}", **sizes)


def tensors(timestep: int) -> dict[str, Tensor]:
    return {"projector.weight": torch.full((40, 30), float(timestep)), "fuser.gate": torch.arange(5.0)}
