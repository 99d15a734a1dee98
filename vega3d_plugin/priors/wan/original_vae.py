"""The VAE of a Wan checkpoint in the original layout: one pickled file, 2.1 or 2.2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ...contracts.errors import CheckpointError
from ...storage.weights import Tensors, read_pickle

# Statistics of the latents of Wan 2.2, which are in its code and not in its weights (Wan-Video/Wan2.2, class
# Wan2_2_VAE). Those of 2.1 are the defaults of diffusers' class.
MEAN_22 = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]  # fmt: skip
STD_22 = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
]  # fmt: skip

# In Wan 2.2 a level has its own list, whose last entry is the downsampling.
_LEVEL = re.compile(r"encoder\.down_blocks\.(\d+)\.downsamples\.(\d+)\.(.+)")


def read_original_vae(file: Path) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors of the encoder, as diffusers' ``AutoencoderKLWan`` has them.

    Raises:
        CheckpointError: the file is damaged, or no Wan VAE.
    """
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    raw = read_pickle(file)
    if not all(isinstance(raw.get(key), Tensor) for key in ("encoder.conv1.weight", "conv2.weight")):
        raise CheckpointError(f"{file} is no Wan VAE: it lacks encoder.conv1.weight or conv2.weight.")
    dim, channels = raw["encoder.conv1.weight"].shape[:2]
    config: dict[str, Any] = {"base_dim": dim, "z_dim": raw["conv2.weight"].shape[0]}
    tensors = convert_wan_vae_to_diffusers({k: v for k, v in raw.items() if not k.startswith("decoder.")})
    if channels == 3:
        return config, tensors
    if channels != 12 or config["z_dim"] != len(MEAN_22):
        raise CheckpointError(
            f"{file} takes {channels} channels and gives {config['z_dim']}: neither Wan 2.1 (3 and 16) nor 2.2 (12 "
            f"and {len(MEAN_22)})."
        )
    config |= {
        "in_channels": 12, "out_channels": 12, "patch_size": 2, "is_residual": True, "scale_factor_spatial": 16,
        "latents_mean": MEAN_22, "latents_std": STD_22,
    }  # fmt: skip
    return config, {_renamed(name): value for name, value in tensors.items()}


def _renamed(name: str) -> str:
    match = _LEVEL.fullmatch(name)
    if match is None:
        return name
    level, index, rest = match.groups()
    is_resampling = rest.startswith(("resample.", "time_conv."))
    return f"encoder.down_blocks.{level}.{'downsampler' if is_resampling else f'resnets.{index}'}.{rest}"
