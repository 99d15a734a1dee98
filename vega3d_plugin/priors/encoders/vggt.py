"""VGGT (arXiv 2503.11651; released ``VGGTOnlineEncoder``), on the user's installed package ``vggt``.

A transformer trained with 3D supervision to predict cameras, depth and points from views, and no generator. The
features are the aggregator's tokens after one pair of blocks: half of the channels come from the block that sees each
frame alone, half from the one that sees all views of the window. The heads are never read.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...contracts.errors import CheckpointError, PriorError
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.weights import TRANSFORMERS, listing, read_json, read_pickle, read_tensors, weight_files
from ..frozen.components import assemble, locate
from ..frozen.components import until as until_tap
from ..frozen.prior import Reload, resolved_tap
from ..frozen.taps import asked
from ..frozen.without_weights import without_weights
from .encoder import EncoderPrior, as_maps

PREFIX = "aggregator."
#: Settings of ``config.json`` that ``VGGT`` takes; it has those of the released weights by default.
CONFIG = ("img_size", "patch_size", "embed_dim")


class VggtPrior(EncoderPrior):
    """Features of VGGT's aggregator: its patch tokens, without the camera token and the registers.

    The first view of a window is the reference, as the model was trained.

    Args:
        aggregator: of ``vggt.models.vggt.VGGT``, cut after the tap.
        settings: resolved settings; ``size`` must be divisible by the patch size (14).
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    family = "vggt"
    block_classes: ClassVar[tuple[str, ...]] = ("Block",)
    # The aggregator normalises by itself.
    statistics = None

    def __init__(self, aggregator: nn.Module, settings: PriorSettings, reload: Reload | None = None) -> None:
        token: Any = aggregator.camera_token
        patch: Any = aggregator.patch_size
        super().__init__(
            {"aggregator": aggregator},
            settings,
            feature_dim=2 * int(token.shape[-1]),
            stride=int(patch),
            reload=reload,
        )

    @property
    def aggregator(self) -> Any:
        """VGGT's aggregator, cut after the tap."""
        return self.models["aggregator"]

    def taps(self) -> range:
        """The pairs of blocks that are there."""
        return range(int(self.aggregator.aa_block_num) * int(self.aggregator.aa_block_size))

    def encode(self, pixels: Tensor) -> Tensor:
        """``[B, steps, 1, 3, H, W]`` in [0, 1] to ``[B, steps, 2 * dim, H / 14, W / 14]``."""
        levels, first_patch = self.aggregator(pixels[:, :, 0].contiguous())
        chosen = [levels[tap][:, :, int(first_patch) :] for tap in asked(self, own=int(self.settings.tap or 0))]
        tokens = torch.cat(chosen, dim=-1) if len(chosen) > 1 else chosen[0]
        size = (self.size[0] // self.stride, self.size[1] // self.stride)
        return as_maps(tokens.flatten(1, 2), pixels.shape[1], size)

    def prepare(self, device: torch.device) -> None:
        """Move to the device, in the compute dtype; the package keeps constants and positions of its own."""
        super().prepare(device)
        for name in ("_resnet_mean", "_resnet_std"):
            buffer = getattr(self.aggregator, name, None)
            if buffer is not None:
                buffer.data = buffer.data.to(self.dtype)
        positions = getattr(getattr(self.aggregator, "position_getter", None), "position_cache", None)
        # Positions that it keeps by size alone would stay on the device where they were made.
        if positions and any(tensor.device != device for tensor in positions.values()):
            positions.clear()


def load_vggt(settings: PriorSettings) -> Prior:
    """VGGT's aggregator up to the tap, from a folder or hub id with ``model.safetensors`` or ``model.pt``.

    ``config.json`` may be left out, as in the released folder.

    Raises:
        PriorError: the package ``vggt`` cannot be imported, or a tap or size that does not fit.
        CheckpointError: files missing or of another architecture.
    """
    model_class = _vggt(settings)
    # The hub repository has the same weights as model.pt once more.
    folder, _ = locate(settings, ["config.json", "model*.safetensors*"])
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    given = {key: config[key] for key in CONFIG if key in config}
    aggregator = without_weights(lambda: model_class(**given).aggregator)
    tap = resolved_tap(settings.tap, len(aggregator.frame_blocks), settings.name, generates=False)
    _cut(aggregator, tap)
    tensors, file = _tensors(folder, len(aggregator.frame_blocks) - 1)
    aggregator = assemble(lambda: aggregator, tensors, file)
    return VggtPrior(aggregator, settings.model_copy(update={"tap": tap}), reload=load_vggt)


def _vggt(settings: PriorSettings) -> Any:
    try:
        return importlib.import_module("vggt.models.vggt").VGGT
    except (ImportError, AttributeError) as error:
        raise PriorError(
            f"Prior {settings.name!r} needs the package vggt, with vggt.models.vggt.VGGT, which could not be imported "
            f"({type(error).__name__}: {error}). Install it: pip install "
            "git+https://github.com/facebookresearch/vggt.git"
        ) from error


def _cut(aggregator: Any, tap: int) -> None:
    """Drop the blocks after the tap. Frame and global blocks take turns in groups, mostly of one."""
    groups = tap // aggregator.aa_block_size + 1
    count = groups * aggregator.aa_block_size
    aggregator.aa_block_num = groups
    for name in ("frame_blocks", "global_blocks"):
        setattr(aggregator, name, getattr(aggregator, name)[:count])


def _tensors(folder: Path, last: int) -> tuple[dict[str, Tensor], Path]:
    """The aggregator's tensors up to the last block that is wanted, by its own names, and the file for messages."""
    frames, globals_ = until_tap("frame_blocks", last), until_tap("global_blocks", last)

    def wanted(key: str) -> bool:
        name = key.removeprefix(PREFIX)
        return key.startswith(PREFIX) and frames(name) and globals_(name)

    if any(folder.glob("model*.safetensors*")):
        files = weight_files(folder, TRANSFORMERS)
        tensors = read_tensors(files, wanted)
    elif (folder / "model.pt").is_file():
        files = [folder / "model.pt"]
        tensors = {key: tensor for key, tensor in read_pickle(files[0]).items() if wanted(key)}
    else:
        raise CheckpointError(f"{folder} is no VGGT: expected model.safetensors or model.pt. {listing(folder)}")
    if f"{PREFIX}camera_token" not in tensors:
        raise CheckpointError(
            f"{files[0]} is of another architecture: it has no {PREFIX}camera_token, expected the weights of VGGT, as "
            "in facebook/VGGT-1B."
        )
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}, files[0]
