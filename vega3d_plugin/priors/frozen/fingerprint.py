"""A short, stable identity of weights and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def fingerprint(modules: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor], settings: Any) -> str:
    """32 hex digits from weights and settings.

    Weights are hashed as bfloat16, so that one checkpoint has one fingerprint whether it is run in float32 on a CPU
    or in bfloat16 on a GPU.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()} | dict(tensors)
    for name in sorted(named):
        tensor = named[name].detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
