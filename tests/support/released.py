"""Checkpoints in the released layouts, with invented weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import vega3d

TOWER = {
    "use_generative_encoder": True,
    "generative_encoder_tower_type": "wan_t2v_online",
    "generative_encoder_path": "data/models/Wan2.1-T2V-1.3B",
    "generative_vision_tower_task": "t2v-1.3B",
    "generative_encoder_feature_dim": 2048,
}


LLAVA = {
    "use_generative_feature": True, "generative_feat_dim": 1536, "generative_projector_type": "mlp2x_gelu",
    "generative_feature_source": "online", "generative_vision_tower_type": "wan_t2v_online",
    "generative_vision_tower_task": "vace-1.3B", "generative_vision_tower_size": "1280*720",
    "generative_vision_tower_timestep": 300, "generative_vision_tower_shift": 5.0,
    "generative_vision_tower_feat_block_idx": 20, "generative_vision_tower_input_size": None,
    "use_feat_fusion": True, "feature_fusion_method": "token_gated",
}  # fmt: skip


class RecordedTower(vega3d.Prior):
    """Hands out recorded features, one map per clip, in order."""

    fingerprint = "recorded"

    def __init__(self, features: Tensor) -> None:
        self.feature_dim = features.shape[1]
        self.maps = list(features[:, None])

    def __call__(self, frames: Tensor) -> Tensor:
        return self.maps.pop(0)


def qwen_tensors(
    fusion: str = "token_gated_residual", merger: str = "mlp", dim: int = 1536, size: int = 16
) -> dict[str, Tensor]:
    """A released Qwen branch's tensors, of its real names, small."""
    torch.manual_seed(0)
    projector = vega3d.build_projector(merger, dim, size, hidden_dim=8)
    fuser = vega3d.build_fuser(fusion, size, num_heads=2)
    parts = {"generative_merger.": projector.state_dict(), "generative_fusion.": fuser.state_dict()}
    tensors = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    # The released scalars have no dimension.
    return {key: t.reshape(()) if t.shape == (1,) and "residual" in key else t for key, t in tensors.items()}


def llava_tensors(fusion: str = "token_gated", prefix: str = "model.") -> dict[str, Tensor]:
    torch.manual_seed(0)
    projector = vega3d.build_projector("mlp2x_gelu", 1536, 16)
    fuser = vega3d.build_fuser(fusion, 16, num_heads=2)
    parts = {"generative_projector.": projector.state_dict(), "feature_fusion.": fuser.state_dict()}
    return {prefix + start + name: tensor for start, part in parts.items() for name, tensor in part.items()}


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None, name: str = "model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if name.endswith(".bin"):
        torch.save(tensors, folder / name)
    else:
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / name, metadata={"format": "pt"})
    return folder


def shards(folder: Path, tensors: dict[str, Tensor], save: Callable, name: str) -> None:
    """Two shards and their index, as Trainer writes large models."""
    stem, suffix = name.split(".")
    weight_map = {}
    for number, keys in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        save({key: tensors[key].clone() for key in keys}, folder / file)
        weight_map |= dict.fromkeys(keys, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
