"""The demo's host: a tiny Qwen2.5-VL built offline, or real weights from a folder or the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...contracts.errors import HostError
from ...contracts.tables import HOSTS
from ...hosts.loading import load_host, load_processor, read_source, small_host


@dataclass(frozen=True)
class DemoHost:
    """A host to play with.

    Attributes:
        build: makes a fresh base model, equal on every call, in eval mode.
        processor: its processor.
        tiny: True for the random toy.
    """

    build: Callable[[], nn.Module]
    processor: Any
    tiny: bool


def tiny_host() -> DemoHost:
    """A random Qwen2.5-VL of the real classes with its real processor."""
    adapter: Any = HOSTS.get("qwen_vl")
    built = small_host("qwen_vl")
    if built is None:
        raise HostError("The plugin 'qwen_vl' has no small host, which the demo trains. Give it a model: --host MODEL.")
    return DemoHost(lambda: adapter.tiny()[0], built[1], tiny=True)


def real_host(source: str) -> DemoHost:
    """A model from a folder or the hub, in the dtype it was saved in on a GPU, in float32 on a CPU.

    Raises:
        HostError: it cannot be loaded.
    """
    found = read_source(source)
    # Before the weights: what it needs may not be installed.
    processor = load_processor(source)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def build() -> nn.Module:
        model = load_host(found, device=device).model
        # Where bfloat16 is slow and the demo compares bits.
        return model if device == "cuda" else model.float()

    return DemoHost(build, processor, tiny=False)
