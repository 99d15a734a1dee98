"""The host's own weights in a released checkpoint: which of a model's parameters each one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...contracts.errors import PatchError, SavedBranchError
from ...hosts.peft import is_peft_model
from ...storage.weights import Stored, read_stored

# How the beginnings of names differ between releases of the hosts' code. Both directions are tried: the checkpoint may
# be older or newer than the model.
_RENAMES = (
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    # LLaVA's own code, and transformers'.
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_model."),
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
)
# Buffers that older releases wrote and newer ones compute.
_COMPUTED = (".rotary_emb.inv_freq", ".position_ids")


def match_host(
    model: nn.Module, entries: Mapping[str, Stored], ignore: Sequence[str], where: str
) -> list[tuple[Stored, Tensor]]:
    """Each stored weight with the parameter that it fills. Nothing is read or changed.

    Args:
        model: the host, not patched.
        entries: the host's weights in the checkpoint, by name.
        ignore: beginnings of names in the checkpoint that the model need not have a place for.
        where: for messages.

    Raises:
        PatchError: the model is inside PEFT.
        SavedBranchError: missing, surplus or misshapen weights, listed.
    """
    if is_peft_model(model) or any(".base_layer." in name for name, _ in model.named_parameters()):
        raise PatchError(
            "The checkpoint holds the host's own weights too, and the model is inside PEFT already. Load it before "
            "get_peft_model, or pass host_weights=False."
        )
    targets = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if tensor is not None}
    pairs: list[tuple[Stored, Tensor]] = []
    surplus, misshapen = [], []
    filled: set[int] = set()
    for key, entry in entries.items():
        name = next((name for name in _candidates(key) if name in targets), None)
        if name is None:
            if not key.endswith(_COMPUTED) and not key.startswith(tuple(ignore)):
                surplus.append(key)
            continue
        target = targets[name]
        filled.add(id(target))
        if tuple(target.shape) != entry.shape:
            misshapen.append(f"{key}: checkpoint {list(entry.shape)}, model {list(target.shape)}")
        pairs.append((entry, target))
    # Tied weights are one tensor under two names, and a checkpoint holds it once.
    missing = [name for name, tensor in targets.items() if id(tensor) not in filled and not name.endswith(_COMPUTED)]
    problems = [*_some("not in the checkpoint", missing), *_some("no place in the model", surplus)]
    problems += _some("of another shape", misshapen)
    if problems:
        raise SavedBranchError(
            f"{where} holds {len(entries)} weights of a host that do not fit {type(model).__name__}:\n  "
            + "\n  ".join(problems)
            + "\nPass the model that it was trained from, host_weights=False to load the branch alone, or ignore=[...] "
            "with beginnings of names that the model need not have."
        )
    return pairs


def load_host_weights(pairs: Sequence[tuple[Stored, Tensor]]) -> int:
    """Copy stored weights into their parameters, one at a time; returns how many."""
    by_name = {entry.key: target for entry, target in pairs}
    with torch.no_grad():
        for key, tensor in read_stored(entry for entry, _ in pairs):
            by_name[key].copy_(tensor)
    return len(by_name)


def _candidates(key: str) -> list[str]:
    names = [key]
    for old, new in _RENAMES:
        if key.startswith(old):
            names.append(new + key[len(old) :])
        if key.startswith(new):
            names.append(old + key[len(new) :])
    return names


def _some(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{what} ({len(names)}): {', '.join(names[:5])}{more}"]
