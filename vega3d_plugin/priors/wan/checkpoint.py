"""Reading Wan weights, 2.1 and 2.2 and VACE: diffusers' layout and the original one, from a folder or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...contracts.errors import CheckpointError, PromptError
from ...contracts.printable import brief
from ...contracts.priors import Prior
from ...contracts.settings import PriorSettings
from ...storage.reading import JsonObject
from ...storage.weights import Tensors, listing, read_json, read_tensors, weight_files
from ..diffusion.families import Family
from ..frozen.components import assemble, download, expect, locate, read_config, until  # fmt: skip
from ..frozen.prior import resolved_tap
from ..prompts.one_vector import empty_prompt
from .original_vae import read_original_vae
from .prior import WanPrior

PROMPT_PATTERNS = ["empty_prompt.safetensors", "empty_prompt.pt", "wan_prompt_embedding.pt"]
# Fetched only when no prompt embedding is at hand: the text encoder has 11 GB.
TEXT_PATTERNS = ["text_encoder/*", "models_t5*.pth"]
# Names the components of a diffusers' checkpoint, those too that were not fetched.
INDEX = "model_index.json"
SECOND = "transformer_2"


@dataclass(frozen=True)
class Variant(Family):
    """What tells one kind of Wan checkpoint from another.

    Attributes:
        transformer: diffusers' class.
        original: ``_class_name`` and ``model_type`` in the original layout.
        folders: of the transformer, in diffusers' layout and in the original one (empty: the checkpoint's own).
        prior: the class of its priors.
        patched_vae: its VAE takes patches of pixels: that of Wan 2.2 5B, whose latents are of 16x16 pixels.
        meaning: for messages.
    """

    transformer: str = "WanTransformer3DModel"
    original: tuple[str, str] = ("WanModel", "t2v")
    folders: tuple[str, str] = ("transformer", "")
    prior: type[WanPrior] = WanPrior
    patched_vae: bool = False
    meaning: str = "text-to-video weights"

    def load(self, settings: PriorSettings) -> Prior:
        """As promised by :class:`~vega3d_plugin.priors.diffusion.families.Family`, from either layout."""
        self.check(settings)
        folder, is_local = locate(settings, self.patterns)
        layout = find_layout(folder, self)
        transformer, tap = build_transformer(layout, settings, self)
        vae = build_vae(layout)
        context = _context(folder, is_local, settings, int(transformer.config.text_dim))
        return self.prior(transformer, vae, context, settings.model_copy(update={"tap": tap}), reload=self.load)

    def prompt(self, settings: PriorSettings) -> Tensors:
        """The empty prompt's embedding ``context [n, text_dim]`` of the checkpoint, without loading anything else."""
        folder, is_local = locate(settings, self.patterns)
        text_dim = find_layout(folder, self).transformer_config.integer("text_dim", 4096)
        return {"context": _context(folder, is_local, settings, text_dim)}

    def check(self, settings: PriorSettings) -> None:
        """Refuse settings that this kind of checkpoint cannot serve, before anything is read."""

    @property
    def patterns(self) -> list[str]:
        """What is needed of a hub repository, without the text encoder."""
        home = f"{self.folders[1]}/" if self.folders[1] else ""
        return [
            f"{home}config.json", f"{home}diffusion_pytorch_model*", "*VAE*.pth", f"{self.folders[0]}/*", "vae/*",
            INDEX, *PROMPT_PATTERNS,
        ]  # fmt: skip


TEXT_TO_VIDEO = Variant()
#: Builds a Wan text-to-video prior from settings.
load_wan = TEXT_TO_VIDEO.load


@dataclass(frozen=True)
class Layout:
    """Where the parts of a checkpoint lie, and how its tensors are named."""

    kind: str
    transformer_config: JsonObject
    transformer_files: list[Path]
    vae_config: dict[str, Any] | None
    vae_files: list[Path]


def _context(folder: Path, is_local: bool, settings: PriorSettings, text_dim: int) -> Tensor:
    try:
        return empty_prompt(folder, text_dim=text_dim)
    except PromptError:
        if is_local:
            raise
        download(settings, TEXT_PATTERNS)
        return empty_prompt(folder, text_dim=text_dim)


def find_layout(folder: Path, variant: Variant = TEXT_TO_VIDEO) -> Layout:
    """Recognise the layout of a checkpoint folder, and check that it is complete."""
    ours, theirs = folder / variant.folders[0], folder / variant.folders[1]
    if ours.is_dir():
        _check_experts(folder, variant)
        config = read_config(ours, variant.transformer)
        if config.get("num_layers") is None:
            raise CheckpointError(f"{ours / 'config.json'} lacks num_layers.")
        config.integer("num_layers")
        if config.get("image_dim") or config.get("in_channels") != config.get("out_channels"):
            raise CheckpointError(
                f"{ours / 'config.json'} is of an image-to-video Wan (image_dim {brief(config.get('image_dim'))}, "
                f"in_channels {brief(config.get('in_channels'))}, out_channels {brief(config.get('out_channels'))}); "
                f"this prior needs {variant.meaning}."
            )
        vae_config = read_config(folder / "vae", "AutoencoderKLWan")
        _check_vae(vae_config, folder / "vae" / "config.json", variant)
        return Layout("diffusers", config, weight_files(ours), vae_config, weight_files(folder / "vae"))
    if (theirs / "config.json").is_file():
        config = read_json(theirs / "config.json")
        name, kind = variant.original
        expect(config.get("_class_name", name), {name}, theirs / "config.json")
        expect(config.get("model_type"), {kind}, theirs / "config.json", key="model_type")
        vaes = sorted(folder.glob("*VAE*.pth"))
        if not vaes:
            raise CheckpointError(f"{folder} has no VAE: expected Wan2.1_VAE.pth beside config.json. {listing(folder)}")
        return Layout("original", _from_original(config), weight_files(theirs), None, vaes[:1])
    home = f"{variant.folders[1]}/" if variant.folders[1] else ""
    raise CheckpointError(
        f"{folder} is no Wan checkpoint with {variant.meaning}: expected {variant.folders[0]}/config.json and "
        f"vae/config.json (diffusers' layout), or {home}config.json, {home}diffusion_pytorch_model*.safetensors and "
        f"Wan2.1_VAE.pth or Wan2.2_VAE.pth (original layout). {listing(folder)}"
    )


def _check_experts(folder: Path, variant: Variant) -> None:
    """Refuse the A14B where one transformer is wanted: its ``transformer/`` is the expert for high noise."""
    index = folder / INDEX
    has_second = (folder / SECOND).is_dir() or (index.is_file() and _named(read_json(index).get(SECOND)))
    if has_second and variant.folders[0] != SECOND:
        raise CheckpointError(
            f"{folder} holds two transformers, as Wan 2.2 A14B does: {variant.folders[0]}/ is that for high noise. "
            f"This prior needs {variant.meaning}. For the expert for low noise use the prior 'wan2.2-a14b'."
        )


def _named(entry: Any) -> bool:
    """Whether an entry of ``model_index.json`` names a class: ``[library, class]``, or two nulls."""
    return isinstance(entry, list) and any(entry)


def _check_vae(config: dict[str, Any], file: Path, variant: Variant) -> None:
    """Refuse the VAE of the other version: transformers of both are of one class."""
    if bool(config.get("patch_size")) != variant.patched_vae:
        versions = ["Wan 2.1's (8x8 pixels a latent)", "Wan 2.2 5B's (16x16 pixels a latent)"]
        expected, found = versions[variant.patched_vae], versions[not variant.patched_vae]
        raise CheckpointError(
            f"{file} is of another version: the VAE is {found}, expected {expected}. This prior needs "
            f"{variant.meaning}. `vega3d ls priors` shows which prior reads which checkpoint."
        )


def build_transformer(layout: Layout, settings: PriorSettings, variant: Variant) -> tuple[Any, int]:
    """The transformer up to the tap, and the tap as an index. Later blocks are never read."""
    import diffusers
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    given = layout.transformer_config
    tap = resolved_tap(settings.tap, given.integer("num_layers"), settings.name)
    config: dict[str, Any] = {**given, "num_layers": tap + 1}
    wanted = until("blocks", tap)
    if "vace_layers" in config:
        config["vace_layers"] = [int(layer) for layer in given.numbers("vace_layers") if layer <= tap]
        in_time, hints = wanted, until("vace_blocks", len(config["vace_layers"]) - 1)

        def wanted(key: str) -> bool:
            return in_time(key) and hints(key)

    tensors = read_tensors(layout.transformer_files, wanted)
    if layout.kind == "original":
        tensors = convert_wan_transformer_to_diffusers(tensors)
    model = getattr(diffusers, variant.transformer)
    return assemble(lambda: model.from_config(config), tensors, layout.transformer_files[0]), tap


def build_vae(layout: Layout) -> Any:
    """The VAE without its decoder."""
    from diffusers import AutoencoderKLWan

    if layout.vae_config is not None:
        config = layout.vae_config
        tensors = read_tensors(layout.vae_files, lambda key: not key.startswith("decoder."))
    else:
        config, tensors = read_original_vae(layout.vae_files[0])

    def build() -> Any:
        vae = AutoencoderKLWan.from_config(config)
        vae.decoder = None
        return vae

    return assemble(build, tensors, layout.vae_files[0])


def _from_original(config: JsonObject) -> JsonObject:
    names = {
        "in_dim": "in_channels", "out_dim": "out_channels", "num_heads": "num_attention_heads", "text_dim": "text_dim",
        "freq_dim": "freq_dim", "ffn_dim": "ffn_dim", "num_layers": "num_layers", "eps": "eps",
        "cross_attn_norm": "cross_attn_norm", "vace_layers": "vace_layers", "vace_in_dim": "vace_in_channels",
    }  # fmt: skip
    missing = [key for key in ("dim", "num_heads", "num_layers", "ffn_dim") if key not in config]
    if missing:
        raise CheckpointError(f"{config.file} of the Wan checkpoint lacks {', '.join(missing)}.")
    # The released configurations leave out what equals the class's default.
    original = {"text_dim": 4096, "freq_dim": 256, "in_dim": 16, "out_dim": 16, **config}
    out = {ours: original[theirs] for theirs, ours in names.items() if theirs in original}
    out["attention_head_dim"] = config.integer("dim") // config.integer("num_heads")
    out["patch_size"] = (1, 2, 2) if "patch_size" not in config else tuple(map(int, config.numbers("patch_size")))
    return JsonObject(out, config.file, config.error)
