"""The demo's host: a tiny Qwen2.5-VL built offline, or real weights from a folder or the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import HostError


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
    from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

    return DemoHost(tiny_model, tiny_processor(), tiny=True)


def real_host(source: str) -> DemoHost:
    """A model from a folder or the hub, in bfloat16 on a GPU where there is one.

    Raises:
        HostError: it cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def build() -> nn.Module:
        model: nn.Module = AutoModelForImageTextToText.from_pretrained(source, torch_dtype=dtype).to(device).eval()
        return model

    try:
        return DemoHost(build, AutoProcessor.from_pretrained(source), tiny=False)
    except (OSError, ValueError) as error:
        raise HostError(
            f"The host {source!r} cannot be loaded: {error} Pass --host a folder with config.json, weights and the "
            "processor's files, or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct."
        ) from error
