"""Reading Wan weights: diffusers' layout and the original one, from a folder or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import PriorSettings
from ..errors import CheckpointError, PromptError
from .base import Prior
from .checkpoint import (
    Tensors,
    assemble,
    download,
    expect,
    listing,
    locate,
    read_json,
    read_pickle,
    read_tensors,
    until,
    weight_files,
)  # fmt: skip
from .empty_prompt import empty_prompt
from .frozen import resolved_tap
from .wan import WanPrior

# What is needed of a repository; the text encoder (11 GB) is fetched only when no prompt embedding is at hand.
WEIGHT_PATTERNS = [
    "config.json", "transformer/*", "vae/*", "diffusion_pytorch_model*", "*VAE*.pth",
    "empty_prompt.safetensors", "empty_prompt.pt", "wan_prompt_embedding.pt",
]  # fmt: skip
TEXT_PATTERNS = ["text_encoder/*", "models_t5*.pth"]


@dataclass(frozen=True)
class Layout:
    """Where the parts of a checkpoint lie, and how its tensors are named."""

    kind: str
    transformer_config: dict[str, Any]
    transformer_files: list[Path]
    vae_config: dict[str, Any] | None
    vae_files: list[Path]


def load_wan(settings: PriorSettings) -> Prior:
    """Build a Wan 2.1 T2V prior from ``settings.pretrained``, a folder or a hub id.

    Raises:
        CheckpointError: the folder is missing, half there, or holds another architecture.
        PromptError: no embedding of the empty prompt, and no text encoder to compute it.
    """
    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    layout = find_layout(folder)
    transformer, tap = build_transformer(layout, settings)
    vae = build_vae(layout, folder)
    context = _context(folder, is_local, settings, int(transformer.config.text_dim))
    settings = settings.model_copy(update={"tap": tap})
    return WanPrior(transformer, vae, context, settings, reload=load_wan)


def load_prompt(settings: PriorSettings) -> Tensors:
    """The empty prompt's embedding ``context [n, text_dim]`` of the checkpoint, without loading anything else."""
    folder, is_local = locate(settings, WEIGHT_PATTERNS)
    text_dim = int(find_layout(folder).transformer_config.get("text_dim", 4096))
    return {"context": _context(folder, is_local, settings, text_dim)}


def _context(folder: Path, is_local: bool, settings: PriorSettings, text_dim: int) -> Tensor:
    try:
        return empty_prompt(folder, text_dim=text_dim)
    except PromptError:
        if is_local:
            raise
        download(settings, TEXT_PATTERNS)
        return empty_prompt(folder, text_dim=text_dim)


def find_layout(folder: Path) -> Layout:
    """Recognise the layout of a checkpoint folder, and check that it is complete."""
    if (folder / "transformer").is_dir():
        config = read_json(folder / "transformer" / "config.json")
        expect(config.get("_class_name"), {"WanTransformer3DModel"}, folder / "transformer" / "config.json")
        if not isinstance(config.get("num_layers"), int):
            raise CheckpointError(f"{folder / 'transformer' / 'config.json'} lacks num_layers.")
        if config.get("image_dim") or config.get("in_channels") != config.get("out_channels"):
            raise CheckpointError(f"{folder} holds an image-to-video Wan; this prior needs text-to-video weights.")
        vae_config = read_json(folder / "vae" / "config.json")
        expect(vae_config.get("_class_name"), {"AutoencoderKLWan"}, folder / "vae" / "config.json")
        return Layout(
            "diffusers", config, weight_files(folder / "transformer"), vae_config, weight_files(folder / "vae")
        )
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        expect(config.get("_class_name", "WanModel"), {"WanModel"}, folder / "config.json")
        expect(config.get("model_type"), {"t2v"}, folder / "config.json", key="model_type")
        vaes = sorted(folder.glob("*VAE*.pth"))
        if not vaes:
            raise CheckpointError(f"{folder} has no VAE: expected Wan2.1_VAE.pth beside config.json. {listing(folder)}")
        return Layout("original", _from_original(config), weight_files(folder), None, vaes[:1])
    raise CheckpointError(
        f"{folder} is no Wan checkpoint: expected transformer/config.json and vae/config.json (diffusers' layout), or "
        f"config.json, diffusion_pytorch_model*.safetensors and Wan2.1_VAE.pth (original layout). {listing(folder)}"
    )


def build_transformer(layout: Layout, settings: PriorSettings) -> tuple[Any, int]:
    """The transformer up to the tap, and the tap as an index. Later blocks are never read."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    tap = resolved_tap(settings.tap, int(layout.transformer_config["num_layers"]), settings.name)

    tensors = read_tensors(layout.transformer_files, until("blocks", tap))
    if layout.kind == "original":
        tensors = convert_wan_transformer_to_diffusers(tensors)
    config = {**layout.transformer_config, "num_layers": tap + 1}
    return assemble(lambda: WanTransformer3DModel.from_config(config), tensors, layout.transformer_files[0]), tap


def build_vae(layout: Layout, folder: Path) -> Any:
    """The VAE without its decoder."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    if layout.vae_config is not None:
        config = layout.vae_config
        tensors = read_tensors(layout.vae_files, lambda key: not key.startswith("decoder."))
    else:
        raw = read_pickle(layout.vae_files[0])
        if not all(isinstance(raw.get(key), Tensor) for key in ("encoder.conv1.weight", "conv2.weight")):
            raise CheckpointError(
                f"{layout.vae_files[0]} is no Wan VAE: it lacks encoder.conv1.weight or conv2.weight."
            )
        config = {"base_dim": raw["encoder.conv1.weight"].shape[0], "z_dim": raw["conv2.weight"].shape[0]}
        tensors = convert_wan_vae_to_diffusers({k: v for k, v in raw.items() if not k.startswith("decoder.")})

    def build() -> Any:
        vae = AutoencoderKLWan.from_config(config)
        vae.decoder = None
        return vae

    return assemble(build, tensors, layout.vae_files[0])


def _from_original(config: dict[str, Any]) -> dict[str, Any]:
    names = {
        "in_dim": "in_channels", "out_dim": "out_channels", "num_heads": "num_attention_heads", "text_dim": "text_dim",
        "freq_dim": "freq_dim", "ffn_dim": "ffn_dim", "num_layers": "num_layers", "eps": "eps",
        "cross_attn_norm": "cross_attn_norm",
    }  # fmt: skip
    missing = [key for key in ("dim", "num_heads", "num_layers", "ffn_dim") if key not in config]
    if missing:
        raise CheckpointError(f"config.json of the Wan checkpoint lacks {', '.join(missing)}.")
    # The released configurations leave out what equals the class's default.
    original = {"text_dim": 4096, "freq_dim": 256, "in_dim": 16, "out_dim": 16, **config}
    out = {ours: original[theirs] for theirs, ours in names.items() if theirs in original}
    out["attention_head_dim"] = config["dim"] // config["num_heads"]
    out["patch_size"] = tuple(config.get("patch_size", (1, 2, 2)))
    return out
