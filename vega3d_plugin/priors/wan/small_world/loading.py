"""Reading ``small-world``: from the package, or from a folder that its training script wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ....contracts.errors import CheckpointError, Vega3dError
from ....contracts.priors import Prior
from ....contracts.settings import PriorSettings
from ....storage.weights import weight_files
from ...diffusion.video_transformer import number_of
from ...frozen.components import locate_parts, read_config
from ..checkpoint import TEXT_TO_VIDEO, Layout, build_transformer
from .prior import SmallWorldPrior

PART = "transformer"
CLASS = "WanTransformer3DModel"
HERE = Path(__file__).parent
# Far above what a small generator has, and small enough that no config.json makes the machine swap.
MOST = 4096
SIZES = (
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "rope_max_seq_len",
)


def load_small_world(settings: PriorSettings) -> Prior:
    """Build the prior from the package's weights, or from ``settings.pretrained``: a folder or a hub id.

    Raises:
        CheckpointError: the folder is missing, incomplete, or holds another architecture.
    """
    folder = locate_parts(settings, {PART: "diffusion_pytorch_model"})[0] if settings.pretrained else HERE
    config = read_config(folder / PART, CLASS)
    _check(config, folder / PART / "config.json")
    layout = Layout("diffusers", config, weight_files(folder / PART), None, [])
    try:
        transformer, tap = build_transformer(layout, settings, TEXT_TO_VIDEO)
    except Vega3dError:
        raise
    except Exception as error:
        file = folder / PART / "config.json"
        raise CheckpointError(f"{file} describes no {CLASS} ({type(error).__name__}: {error}).") from error
    return SmallWorldPrior(transformer, settings.model_copy(update={"tap": tap}), reload=load_small_world)


def _check(config: dict[str, Any], file: Path) -> None:
    """Refuse a Wan transformer that takes a VAE's latents, or patches that the prior cannot lay out."""
    for key in SIZES:
        if (value := number_of(config, key, file)) > MOST:
            raise CheckpointError(
                f"{file} gives {key} as {value}, expected at most {MOST} for the prior 'small-world'."
            )
    for key in ("in_channels", "out_channels"):
        if config.get(key) != 3:
            raise CheckpointError(
                f"{file} gives {key} as {config.get(key)!r}, expected 3: the prior 'small-world' takes pixels. For a "
                "Wan checkpoint with a VAE use 'wan2.1-t2v-1.3b'."
            )
    eps = config.get("eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"{file} gives eps as {eps!r}, expected a number between 0 and 1.")
    patch = config.get("patch_size")
    if not isinstance(patch, list) or len(patch) != 3 or patch[0] != 1 or patch[1] != patch[2]:
        raise CheckpointError(f"{file} gives patch_size as {patch!r}, expected [1, n, n]: square patches of one frame.")
    if not isinstance(patch[1], int) or patch[1] < 1:
        raise CheckpointError(f"{file} gives patch_size as {patch!r}, expected whole numbers of at least 1.")
