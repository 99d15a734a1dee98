"""Access to the reference vectors."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("VEGA3D_GOLDENS", Path(__file__).parents[1] / "goldens"))


@dataclass(frozen=True)
class Golden:
    info: dict[str, Any]
    inputs: dict[str, Tensor]
    weights: dict[str, Tensor]
    outputs: dict[str, Tensor]


def find(name: str) -> Path:
    """The JSON of a reference, such as ``wan_vae`` or ``space/max_coverage``; a set may lie in one folder."""
    path = FOLDER / f"{name}.json"
    return path if path.is_file() else FOLDER / path.name


def load(name: str) -> Golden:
    path = find(name)
    weights = path.with_suffix(".safetensors")
    tensors = load_file(weights) if weights.is_file() else {}

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return Golden(json.loads(path.read_text()), part("inputs."), part("weights."), part("outputs."))


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def names(pattern: str) -> list[str]:
    return sorted(path.stem for path in FOLDER.glob(f"{pattern}.json"))


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float((actual - expected).abs().max() / expected.abs().max())
