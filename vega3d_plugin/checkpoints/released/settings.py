"""Which settings a checkpoint of the released code was trained with: from its tensors' shapes and its config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...contracts.errors import SavedBranchError
from ...contracts.printable import brief
from ...contracts.tables import PRIORS
from ...storage.reading import JsonObject

Shapes = Mapping[str, tuple[int, ...]]

# The released towers by their names in config.json, and the prior that each is; Wan's depends on the task too.
_WAN = ("wan_t2v_online", "wan_t2v", "wan_online", "wan_vace_online")
_TOWERS = {
    "sd21_online": "sd2.1", "sd2.1_online": "sd2.1", "diffusion_online": "sd2.1", "svd_online": "svd",
    "vjepa_online": "vjepa2-vitg", "jepa_online": "vjepa2-vitg", "dinov3_online": "dinov3-vitl",
    "dino_online": "dinov3-vitl", "vggt_online": "vggt", "vggt": "vggt", "vae_online": "sd2.1-vae",
}  # fmt: skip
#: Of a frame, in pixels, as the settings of a prior have it.
_LONGEST_SIDE = 1 << 14
# Another name of one method in the main branch.
_FUSIONS = {"instruction_token_gated": "context_gated"}


@dataclass(frozen=True)
class Layout:
    """One of the two released branches.

    Attributes:
        host: name of the adapter whose host it was trained on.
        hosts: names of all adapters whose hosts have that seam.
        projector, fuser: how the names of their tensors begin.
        space: alignment in space.
        size: height and width of frames when config.json does not say.
        tap: block when config.json is not there.
        fusion_key, projector_key: of the names in config.json.
        options: prefix of the fusion's other values in config.json.
    """

    host: str
    hosts: tuple[str, ...]
    projector: str
    fuser: str
    space: str
    size: tuple[int, int]
    tap: int
    fusion_key: str
    projector_key: str
    options: str

    def owner(self, key: str) -> tuple[str, str] | None:
        """``("projector" or "fuser", name in it)`` of a tensor of the branch, whatever stands before; else None."""
        for part, prefix in (("projector", self.projector), ("fuser", self.fuser)):
            lead, found, name = key.rpartition(prefix)
            if found and (not lead or lead.endswith(".")):
                return part, name
        return None


QWEN = Layout(
    "qwen_vl", ("qwen_vl",), "generative_merger.", "generative_fusion.", "bilinear", (480, 832), -1,
    "generative_fusion_method", "generative_merger_type", "generative_fusion_",
)  # fmt: skip
LLAVA = Layout(
    "llava_video", ("llava_video", "llava_transformers"), "generative_projector.", "feature_fusion.",
    "adaptive_avg", (720, 1280), 20,
    "feature_fusion_method", "generative_projector_type", "fusion_",
)  # fmt: skip


@dataclass(frozen=True)
class Inferred:
    """What a released checkpoint says about its branch.

    Attributes:
        settings: values of :class:`~vega3d_plugin.config.BranchSettings`; without ``prior`` when it is not known.
        feature_dim: channels of the prior's feature map.
        hidden_size: of the host.
        merge: patches per token and axis that the projector merges.
        notes: what was assumed because nothing said so.
    """

    settings: dict[str, Any]
    feature_dim: int
    hidden_size: int
    merge: int
    notes: list[str] = field(default_factory=list)


def infer(layout: Layout, projector: Shapes, fuser: Shapes, config: Mapping[str, Any] | None, where: str) -> Inferred:
    """Settings of a released checkpoint.

    Args:
        layout: which branch it is of.
        projector, fuser: shapes of the tensors by name.
        config: of its config.json, or None without one.
        where: for messages.

    Raises:
        SavedBranchError: tensors of no known projector or fuser, or config.json says another one.
    """
    notes: list[str] = []
    values = config if isinstance(config, JsonObject) else JsonObject(config or {}, where, SavedBranchError)
    name, feature_dim, hidden_dim, hidden_size, merge = _projector(layout, projector, where)
    _agree(values.get(layout.projector_key), name, layout.projector_key, where)
    _agree(values.get("hidden_size"), hidden_size, "hidden_size", where)
    fusion: dict[str, Any] = {"name": _fusion(layout, fuser, hidden_size, values, where), "init": "released"}
    if fusion["name"] == "cross_attention":
        blocks = {key.split(".")[1] for key in fuser if key.startswith("cross_attn_blocks.")}
        fusion["num_layers"] = len(blocks)
        key = f"{layout.options}attention_heads"
        fusion["num_heads"] = 8 if values.get(key) is None else values.integer(key, high=hidden_size)
        if values.get(key) is None:
            notes.append("attention heads are not recorded: 8, as the released code takes then")
    if fusion["name"] == "context_gated":
        fusion["options"] = _reading(values, notes)
    if values.get(f"{layout.options}dropout") is not None:
        fusion["dropout"] = values.number(f"{layout.options}dropout")
    settings = {
        "fusion": fusion,
        "projector": {"name": name, "hidden_dim": hidden_dim},
        "space": layout.space,
        "images": "separate",
    }
    prior = _prior(layout, values, feature_dim, notes)
    if prior is not None:
        settings["prior"] = prior
    return Inferred(settings, feature_dim, hidden_size, merge, notes)


def _projector(layout: Layout, shapes: Shapes, where: str) -> tuple[str, int, int, int, int]:
    """Name, feature dim, width, hidden size and merge of a projector."""
    if layout is LLAVA:
        if set(shapes) != {"0.weight", "0.bias", "2.weight", "2.bias"}:
            raise SavedBranchError(
                f"{where} has a projector {layout.projector}* of tensors {brief(', '.join(sorted(shapes)))}; only the "
                "two-layer 'mlp2x_gelu' (0 and 2, weight and bias) can be loaded."
            )
        hidden_dim, feature_dim = _matrix(layout, shapes, "0.weight", where)
        return "mlp2x_gelu", feature_dim, hidden_dim, _matrix(layout, shapes, "2.weight", where)[0], 1
    missing = [key for key in ("mlp.0.weight", "mlp.2.weight") if key not in shapes]
    if missing:
        raise SavedBranchError(f"{where} is incomplete: {layout.projector}{missing[0]} is missing.")
    hidden_dim, fan_in = _matrix(layout, shapes, "mlp.0.weight", where)
    hidden_size = _matrix(layout, shapes, "mlp.2.weight", where)[0]
    if "ln_q.weight" not in shapes:
        return "avg", fan_in, hidden_dim, hidden_size, 2
    feature_dim = math.prod(shapes["ln_q.weight"])
    merge = math.isqrt(fan_in // max(1, feature_dim))
    if merge * merge * feature_dim != fan_in:
        raise SavedBranchError(
            f"{where}: {layout.projector}mlp.0.weight takes {fan_in} channels, which is no square window of patches "
            f"of {layout.projector}ln_q.weight's {feature_dim}."
        )
    return "mlp", feature_dim, hidden_dim, hidden_size, merge


def _matrix(layout: Layout, shapes: Shapes, key: str, where: str) -> tuple[int, int]:
    """The two sides of a weight."""
    shape = shapes[key]
    if len(shape) != 2 or min(shape) < 1:
        raise SavedBranchError(f"{where}: {layout.projector}{key} has shape {list(shape)}, expected a matrix.")
    return shape[0], shape[1]


def _fusion(layout: Layout, shapes: Shapes, hidden_size: int, config: Mapping[str, Any], where: str) -> str:
    said = config.get(layout.fusion_key)
    said = _FUSIONS.get(said, said) if isinstance(said, str) else said
    if layout is LLAVA and config.get("use_feat_fusion") is False:
        raise SavedBranchError(
            f"{where} was trained with use_feat_fusion=False: its generative tokens stand beside the semantic ones "
            "instead of being fused, which no branch of this library does."
        )
    found = _fusion_of(shapes, hidden_size)
    if found is None:
        if shapes:
            raise SavedBranchError(
                f"{where}: {layout.fuser}* has tensors of no known fusion: {brief(', '.join(shapes))}."
            )
        # `add` and `only` have no tensors at all.
        if said not in ("add", "only"):
            named = f"says {layout.fusion_key}={brief(said)}, which has some" if said else "does not say which fusion"
            raise SavedBranchError(
                f"{where} has no tensors {layout.fuser}*, and config.json {named}. Are all its files there?"
            )
        return str(said)
    _agree(said, found, layout.fusion_key, where)
    return found


def _fusion_of(shapes: Shapes, hidden_size: int) -> str | None:
    """The fusion that has these parameters."""
    gate = shapes.get("gate_projection.0.weight")
    if "residual_scale" in shapes:
        return "token_gated_residual"
    if "ctx_projection.0.weight" in shapes:
        return "context_gated"
    if gate is not None:
        return "gated" if gate[:1] == (hidden_size,) else "token_gated"
    if "weight_2d" in shapes:
        return "weighted"
    if "projection.weight" in shapes:
        return "concat"
    return "cross_attention" if any(key.startswith("cross_attn_blocks.") for key in shapes) else None


def _reading(values: JsonObject, notes: list[str]) -> dict[str, Any]:
    """Which tokens of a prompt make its instruction, see :class:`~vega3d_plugin.contracts.prompts.PromptReading`."""
    if "instruction_tail_keep_tokens" not in values:
        notes.append("which tokens make an instruction is not recorded: the last 96, none of them a relation word")
    kept = "instruction_tail_keep_tokens"
    found: dict[str, Any] = {
        "keep_last": values.integer(kept, 96, low=0, high=1 << 20),
        # Below 1 it has no effect there.
        "relation_boost": max(1.0, values.number("instruction_relation_boost", 2.0)),
    }
    for kind in ("relation", "template"):
        ids = values.get(f"instruction_{kind}_token_ids") or []
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in ids):
            raise values.wrong(f"instruction_{kind}_token_ids", f"is {brief(ids)}, expected a list of token ids")
        found[f"{kind}_tokens"] = ids
    return found


def _prior(layout: Layout, config: JsonObject, feature_dim: int, notes: list[str]) -> dict[str, Any] | None:
    """The prior's settings, or None when nothing tells which it is."""
    given = {key: value for key, value in config.items() if value is not None}
    values = JsonObject(given, config.file, config.error)
    name = _prior_name(layout, values, feature_dim, notes)
    if name is None:
        return None
    spec = PRIORS.get(name)
    prior: dict[str, Any] = {"name": name, "context": "frame"}
    if "released" in spec.presets:
        prior["preset"] = "released"
    tower = "generative_vision_tower_"
    wan = name.startswith("wan")
    if wan:
        prior["size"] = _size(values, f"{tower}size", layout.size)
        prior["tap"] = values.integer(f"{tower}feat_block_idx", -1 if config else layout.tap, low=-1000, high=1000)
        prior["shift"] = values.number(f"{tower}shift", 5.0)
    if wan or (layout is LLAVA and f"{tower}timestep" in values):
        # In the Qwen branch the other towers run at a timestep of their own, whatever is asked for; see the preset.
        prior["timestep"] = values.integer(f"{tower}timestep", 300, low=0, high=1000)
    if "vace" in name:
        first = values.get(f"{tower}condition_on_first_frame", True)
        scale = values.number(f"{tower}context_scale", 1.0)
        prior["options"] = {"context_scale": scale, **({} if first else {"reference": "none"})}
    side = next((key for key in (f"{tower}input_size", f"{tower}img_size") if values.get(key)), None)
    if not wan and side is not None:
        prior["size"] = (values.integer(side, high=_LONGEST_SIDE),) * 2
    if not wan and f"{tower}height" in values and f"{tower}width" in values:
        prior["size"] = tuple(values.integer(f"{tower}{key}", high=_LONGEST_SIDE) for key in ("height", "width"))
    return prior


def _size(values: JsonObject, key: str, default: tuple[int, int]) -> tuple[int, int]:
    """Height and width; the released code writes ``width*height``."""
    if key not in values:
        return default
    found = re.fullmatch(r"(\d{1,5})\*(\d{1,5})", values.text(key), re.ASCII)
    if found is None:
        raise values.wrong(key, f"is {brief(values[key])}, expected width*height, such as '832*480'")
    return int(found[2]), int(found[1])


def _prior_name(layout: Layout, values: JsonObject, feature_dim: int, notes: list[str]) -> str | None:
    source = "generative_encoder_tower_type" if layout is QWEN else "generative_vision_tower_type"
    tower = values.text(source) if source in values else None
    if layout is LLAVA and values.get("generative_feature_source") == "offline":
        return None
    if tower is None:
        guess = "wan2.1-t2v-1.3b"
        if PRIORS.get(guess).feature_dim != feature_dim:
            return None
        notes.append(f"which prior is not recorded: {guess}, whose features have {feature_dim} channels too")
        return guess
    if tower in _WAN:
        family = "t2v" if "t2v" in tower else "vace"
        task = values.text("generative_vision_tower_task", "")
        if not task:
            task = f"{family}-1.3B"
            notes.append(f"Wan's task is not recorded: {task}, by the tower's name {tower!r}")
        elif layout is LLAVA:
            # There the tower's class decides; the task is left at its default when T2V is trained.
            task = f"{family}-{task.rpartition('-')[2]}"
        name = f"wan2.1-{task.lower()}"
        return name if name in PRIORS else None
    return _TOWERS.get(tower)


def _agree(said: Any, found: Any, key: str, where: str) -> None:
    if said is not None and said != found:
        raise SavedBranchError(
            f"{where}: config.json says {key}={brief(said)}, but its tensors are those of {found!r}."
        )
