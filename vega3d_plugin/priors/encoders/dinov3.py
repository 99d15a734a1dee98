"""DINOv3 (arXiv 2508.10104; released ``DINOv3OnlineEncoder``), ViT and ConvNeXt, on transformers' own classes.

An image encoder: semantics without a generator and without time. The features are the patch tokens after one layer
(ViT) or stage (ConvNeXt). The released code reads the same weights in timm's layout; this reads transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from ...contracts.clips import PixelStatistics
from ...contracts.errors import CheckpointError
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.weights import TRANSFORMERS, read_json
from ..frozen.components import load_component, locate, read_config, until
from ..frozen.prior import Reload, resolved_tap
from ..frozen.without_weights import without_weights
from .encoder import IMAGENET, EncoderPrior, as_maps, from_transformers, normed_taps

FILES = ["config.json", "preprocessor_config.json", "model*.safetensors*"]


class Dinov3Prior(EncoderPrior):
    """Features of a DINOv3 model: its patch tokens, without the class token and the registers.

    Args:
        model: transformers' ``DINOv3ViTModel`` or ``DINOv3ConvNextModel`` whose LAST layer or stage is the tap.
        settings: resolved settings; ``size`` must be divisible by ``stride``.
        feature_dim: channels at the tap.
        stride: pixels per patch at the tap.
        statistics: with which the model wants its pixels normalised.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.
    """

    family = "dinov3"
    block_classes: ClassVar[tuple[str, ...]] = ("DINOv3ViTLayer", "DINOv3ConvNextLayer")

    def __init__(
        self,
        model: nn.Module,
        settings: PriorSettings,
        *,
        feature_dim: int,
        stride: int,
        statistics: PixelStatistics = IMAGENET,
        reload: Reload | None = None,
    ) -> None:
        super().__init__({"model": model}, settings, feature_dim=feature_dim, stride=stride, reload=reload)
        self.statistics = statistics

    def taps(self) -> range:
        """The layers of a ViT that are there; the stages of a ConvNeXt differ in size, so they need a run each."""
        return range(len(self._layers() or ()))

    def _layers(self) -> Sequence[nn.Module] | None:
        model: Any = self.models["model"]
        if not hasattr(model, "norm"):
            return None
        # Versions of transformers differ in where they keep them.
        layers: Sequence[nn.Module] = model.layer if hasattr(model, "layer") else model.model.layer
        return layers

    def encode(self, pixels: Tensor) -> Tensor:
        """``[B, 1, 1, 3, H, W]`` to ``[B, 1, C, H / stride, W / stride]``."""
        size = (self.size[0] // self.stride, self.size[1] // self.stride)
        model: Any = self.models["model"]

        def run() -> Tensor:
            tokens: Tensor = model(pixels[:, 0, 0]).last_hidden_state
            return tokens

        layers = self._layers()
        tokens = normed_taps(self, layers, model.norm, run) if layers is not None else run()
        # In front are the class token (ConvNeXt: the mean) and, in a ViT, the registers.
        return as_maps(tokens[:, -size[0] * size[1] :], 1, size)


def load_vit(settings: PriorSettings) -> Prior:
    """A DINOv3 ViT up to the tap, from a folder or hub id in transformers' layout.

    The last norm is applied behind any tap, as the authors' ``get_intermediate_layers`` does.

    Raises:
        PriorError: transformers is too old, or a tap or size that does not fit.
        CheckpointError: files missing or of another architecture or layout.
    """
    config_class, model_class = from_transformers(settings, "4.56", "DINOv3ViTConfig", "DINOv3ViTModel")
    folder, _ = locate(settings, FILES)
    config = config_class.from_dict(_config(folder, "dinov3_vit"))
    tap = resolved_tap(settings.tap, config.num_hidden_layers, settings.name, generates=False)
    config.num_hidden_layers = tap + 1
    model = _load(folder, lambda: model_class(config), "layer", tap)
    return Dinov3Prior(
        model,
        settings.model_copy(update={"tap": tap}),
        feature_dim=config.hidden_size,
        stride=int(config.patch_size),
        statistics=_statistics(folder),
        reload=load_vit,
    )


def load_convnext(settings: PriorSettings) -> Prior:
    """A DINOv3 ConvNeXt up to the tap, from a folder or hub id in transformers' layout.

    Stage ``i`` has a stride of ``4 * 2**i`` pixels. The last norm belongs to the last stage alone.

    Raises:
        PriorError: transformers is too old, or a tap or size that does not fit.
        CheckpointError: files missing or of another architecture or layout.
    """
    config_class, model_class = from_transformers(settings, "4.56", "DINOv3ConvNextConfig", "DINOv3ConvNextModel")
    folder, _ = locate(settings, FILES)
    config = config_class.from_dict(_config(folder, "dinov3_convnext"))
    stages = len(config.hidden_sizes)
    tap = resolved_tap(settings.tap, stages, settings.name, generates=False)
    config.hidden_sizes, config.depths = config.hidden_sizes[: tap + 1], config.depths[: tap + 1]
    last = tap == stages - 1

    def build() -> Any:
        model = model_class(config)
        if not last:
            model.layer_norm = nn.Identity()
        return model

    model = _load(folder, build, "stages", tap, *(() if last else ("layer_norm.",)))
    return Dinov3Prior(
        model,
        settings.model_copy(update={"tap": tap}),
        feature_dim=config.hidden_sizes[-1],
        stride=4 * 2**tap,
        statistics=_statistics(folder),
        reload=load_convnext,
    )


def _config(folder: Path, kind: str) -> dict[str, Any]:
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "model_type" not in config and "dinov3" in str(config.get("architecture", "")):
        raise CheckpointError(
            f"{folder} holds {config['architecture']!r} in timm's layout; expected transformers' layout (config.json "
            f"with model_type {kind!r}), as in facebook/dinov3-vitl16-pretrain-lvd1689m, which has the same weights."
        )
    return read_config(folder, kind, key="model_type")


def _load(folder: Path, build: Callable[[], Any], blocks: str, tap: int, without: str = "/") -> Any:
    """A model up to the tap: ``blocks`` is the name of its blocks; what begins with ``without`` is not read."""
    model = without_weights(build)
    # transformers 5 holds the blocks in a submodule `model`, the files do not.
    names = {_plain(name): name for name, _ in model.named_parameters()}
    before_tap = until(blocks, tap)
    return load_component(
        folder,
        lambda: model,
        stem=TRANSFORMERS,
        wanted=lambda key: before_tap(_plain(key)) and not _plain(key).startswith(without),
        rename=lambda tensors: {names.get(_plain(key), key): tensor for key, tensor in tensors.items()},
    )


def _plain(key: str) -> str:
    return key.removeprefix("model.")


def _statistics(folder: Path) -> PixelStatistics:
    """Those of the checkpoint: the models for satellite pictures have others than ImageNet's."""
    file = folder / "preprocessor_config.json"
    values = read_json(file) if file.is_file() else {}
    mean, std = values.get("image_mean", IMAGENET.mean), values.get("image_std", IMAGENET.std)
    try:
        (a, b, c), (d, e, f) = (map(float, mean), map(float, std))
    except (TypeError, ValueError):
        raise CheckpointError(
            f"{file} has image_mean {mean!r} and image_std {std!r}, expected three numbers each."
        ) from None
    return PixelStatistics((a, b, c), (d, e, f))
