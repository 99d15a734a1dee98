"""Read-outs: shallow heads trained on frozen features, after VidFM3D and probe3d."""

from __future__ import annotations

from .experiment import readout, training_settings
from .results import DepthExample, PriorReadout, ReadoutResult, SceneFigures
from .training import TrainingSettings

__all__ = [
    "DepthExample",
    "PriorReadout",
    "ReadoutResult",
    "SceneFigures",
    "TrainingSettings",
    "readout",
    "training_settings",
]
