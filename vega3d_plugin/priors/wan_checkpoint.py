"""Reading Wan weights: diffusers' layout and the original one, from a folder or the hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..config import PriorSettings
from ..errors import CheckpointError, PromptError
from ..sources import fetch, local_folder
from .base import Prior
from .empty_prompt import empty_prompt
from .wan import WanPrior, resolved_tap

log = logging.getLogger("vega3d")

Tensors = dict[str, Tensor]

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
    folder, is_local = locate(settings)
    layout = find_layout(folder)
    transformer, tap = build_transformer(layout, settings)
    vae = build_vae(layout, folder)
    text_dim = int(transformer.config.text_dim)
    try:
        context = empty_prompt(folder, text_dim=text_dim)
    except PromptError:
        if is_local:
            raise
        _download(settings, TEXT_PATTERNS)
        context = empty_prompt(folder, text_dim=text_dim)
    settings = settings.model_copy(update={"tap": tap})
    return WanPrior(transformer, vae, context, settings, reload=load_wan)


def locate(settings: PriorSettings) -> tuple[Path, bool]:
    """The checkpoint's folder, downloaded when ``pretrained`` is a hub id; True when it is the user's own folder."""
    source = settings.pretrained
    if not source:
        raise CheckpointError(f"Prior {settings.name!r} needs `pretrained`: a folder or a hub id.")
    folder = local_folder(source, CheckpointError, f"Prior {settings.name!r}")
    return (folder, True) if folder is not None else (_download(settings, WEIGHT_PATTERNS), False)


def _download(settings: PriorSettings, patterns: list[str]) -> Path:
    hint = f"Prior {settings.name!r}: pass `pretrained=` a folder in diffusers' or the original layout."
    return fetch(str(settings.pretrained), patterns, CheckpointError, revision=settings.revision, hint=hint)


def find_layout(folder: Path) -> Layout:
    """Recognise the layout of a checkpoint folder, and check that it is complete."""
    if (folder / "transformer").is_dir():
        config = _json(folder / "transformer" / "config.json")
        _expect(config.get("_class_name"), {"WanTransformer3DModel"}, folder / "transformer" / "config.json")
        if not isinstance(config.get("num_layers"), int):
            raise CheckpointError(f"{folder / 'transformer' / 'config.json'} lacks num_layers.")
        if config.get("image_dim") or config.get("in_channels") != config.get("out_channels"):
            raise CheckpointError(f"{folder} holds an image-to-video Wan; this prior needs text-to-video weights.")
        vae_config = _json(folder / "vae" / "config.json")
        _expect(vae_config.get("_class_name"), {"AutoencoderKLWan"}, folder / "vae" / "config.json")
        return Layout(
            "diffusers", config, _safetensors(folder / "transformer"), vae_config, _safetensors(folder / "vae")
        )
    if (folder / "config.json").is_file():
        config = _json(folder / "config.json")
        _expect(config.get("_class_name", "WanModel"), {"WanModel"}, folder / "config.json")
        _expect(config.get("model_type"), {"t2v"}, folder / "config.json", key="model_type")
        vaes = sorted(folder.glob("*VAE*.pth"))
        if not vaes:
            raise CheckpointError(
                f"{folder} has no VAE: expected Wan2.1_VAE.pth beside config.json. {_listing(folder)}"
            )
        return Layout("original", _from_original(config), _safetensors(folder), None, vaes[:1])
    raise CheckpointError(
        f"{folder} is no Wan checkpoint: expected transformer/config.json and vae/config.json (diffusers' layout), or "
        f"config.json, diffusion_pytorch_model*.safetensors and Wan2.1_VAE.pth (original layout). {_listing(folder)}"
    )


def build_transformer(layout: Layout, settings: PriorSettings) -> tuple[Any, int]:
    """The transformer up to the tap, and the tap as an index. Later blocks are never read."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    tap = resolved_tap(settings.tap, int(layout.transformer_config["num_layers"]), settings.name)

    def wanted(key: str) -> bool:
        parts = key.split(".")
        return not (parts[0] == "blocks" and int(parts[1]) > tap)

    tensors = read_tensors(layout.transformer_files, wanted)
    if layout.kind == "original":
        tensors = convert_wan_transformer_to_diffusers(tensors)
    config = {**layout.transformer_config, "num_layers": tap + 1}
    return _assemble(lambda: WanTransformer3DModel.from_config(config), tensors, layout.transformer_files[0]), tap


def build_vae(layout: Layout, folder: Path) -> Any:
    """The VAE without its decoder."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    if layout.vae_config is not None:
        config = layout.vae_config
        tensors = read_tensors(layout.vae_files, lambda key: not key.startswith("decoder."))
    else:
        raw = _pickle(layout.vae_files[0])
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

    return _assemble(build, tensors, layout.vae_files[0])


def read_tensors(files: Iterable[Path], wanted: Callable[[str], bool]) -> Tensors:
    """Tensors of safetensors files, by name, only those that are wanted."""
    tensors: Tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                tensors.update({key: handle.get_tensor(key) for key in handle.keys() if wanted(key)})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged or incomplete ({error}). Fetch it again.") from error
    return tensors


def _assemble(build: Callable[[], Any], tensors: Tensors, file: Path) -> Any:
    from accelerate import init_empty_weights

    # Weights are taken over as they are read; initialising them first would cost a minute and twice the memory.
    with init_empty_weights(include_buffers=False):
        model: nn.Module = build()
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit {type(model).__name__}: {error}") from error
    return model


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


def _safetensors(folder: Path) -> list[Path]:
    index = next(iter(sorted(folder.glob("diffusion_pytorch_model*.safetensors.index.json"))), None)
    if index is not None:
        files = sorted({folder / name for name in _json(index).get("weight_map", {}).values()})
        missing = [file.name for file in files if not file.is_file()]
        if missing or not files:
            raise CheckpointError(
                f"{folder} is half there: {index.name} names {', '.join(missing)}, missing. Fetch again."
            )
        return files
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no diffusion_pytorch_model*.safetensors. {_listing(folder)}")
    return files


def _pickle(file: Path) -> Tensors:
    try:
        # Pickles can run code; weights_only refuses anything but tensors.
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read as plain weights: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, expected a dict of tensors.")
    return loaded


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} is half there: {file.name} is missing. {_listing(file.parent)}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is no valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds a {type(values).__name__}, expected an object.")
    return values


def _expect(found: Any, expected: set[str], file: Path, key: str = "_class_name") -> None:
    if found not in expected:
        raise CheckpointError(
            f"{file} is of another architecture: {key} is {found!r}, expected {' or '.join(sorted(expected))}. "
            "`vega3d ls priors` shows which prior reads which checkpoint."
        )


def _listing(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir()) if folder.is_dir() else []
    return f"Found: {', '.join(names[:8]) or 'nothing'}{', ...' if len(names) > 8 else ''}."
