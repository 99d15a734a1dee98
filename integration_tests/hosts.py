"""All rows, and what tests do with a host."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from rows import Batch, Host
from torch import Tensor, nn

import vega3d

#: Modules of ``rows``, one per adapter or source of hosts.
MODULES = ("qwen_vl", "llava_package", "transformers_llava", "generic", "openvla")
PROJECTOR = {"name": "mlp", "hidden_dim": 64}
HOSTS: list[Host] = [row for module in MODULES for row in importlib.import_module(f"rows.{module}").ROWS]


def named(name: str) -> Host:
    """The row of that name."""
    return next(host for host in HOSTS if host.name == name)


def patch(model: nn.Module, **settings: Any) -> nn.Module:
    """Patch with the tiny prior and a small projector; new weights are equal on every call."""
    torch.manual_seed(0)
    return vega3d.patch(model, "tiny-wan", **{"projector": PROJECTOR, **settings})


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its floating-point tensors in another dtype; LLaVA and OpenVLA leave that to their users."""

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(item) for item in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {key: cast(value) for key, value in batch.items()}


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits without gradient."""
    with torch.no_grad():
        out: Tensor = model(**batch).logits
    return out


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The host's own loss, with the prompt as its labels where the batch has none."""
    out: Tensor = model(**{"labels": batch["input_ids"].clone(), **batch}).loss
    return out


def train(model: nn.Module, batch: Batch, steps: int = 3, lr: float = 1e-2) -> list[float]:
    """A few optimiser steps on all parameters that train; the losses."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    model.train()
    for _ in range(steps):
        loss = loss_of(model, batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def freeze_host(model: nn.Module) -> None:
    """Leave the branch alone to train."""
    model.requires_grad_(False)
    vega3d.get_handle(model).unfreeze()


__all__ = [
    "HOSTS", "PROJECTOR", "Batch", "Host", "freeze_host", "in_dtype", "logits", "loss_of", "named", "patch", "train",
]  # fmt: skip
