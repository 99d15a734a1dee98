"""Save and load what ``patch`` added."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..branch.branch import GenerativeBranch
from ..branch.handle import get_handle, is_patched
from ..branch.records import tell_without_instruction
from ..contracts.errors import SavedBranchError
from ..contracts.priors import Prior
from ..contracts.settings import BranchSettings, PriorSettings
from ..features.store import FeatureStore
from ..hosts.finding import find_host
from ..hosts.peft import base_model
from ..patching import patch, unpatch
from ..plugins import plugin_manager
from ..priors.frozen.towers import Tower, find_tower, write_tower
from ..storage.record import CONFIG_FILE, TOWER_FILE, WEIGHTS_FILE
from .branch_files import CARD_FILE, SavedBranch, not_finite, write_branch
from .fitting import check_fit
from .reading import read_saved


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    card: bool = True,
) -> Path:
    """Write the branch of a patched model: ``vega3d_config.json``, ``vega3d.safetensors`` and a model card.

    Neither the host's weights nor the prior's are written; a tower of the prior's own
    (:mod:`~vega3d_plugin.priors.frozen.towers`) is. Interrupted at any moment, the folder holds the branch that was
    there or the new one. A model card that somebody has changed stays.

    Args:
        model: a patched model, plain or in a ``PeftModel``.
        folder: where to write; made if it does not exist.
        push_to_hub: upload the folder too.
        repo_id: on the hub; default: the folder's name.
        private, token: for the hub.
        card: False: no model card, as in a folder that holds a host's own checkpoint too.

    Returns:
        The folder.

    Raises:
        PatchError: the model is not patched.
        SavedBranchError: the parameters are partitioned over processes and not gathered; or the folder cannot be
            written to.
    """
    branch = get_handle(model).branch
    folder = Path(folder)
    tensors = {name: _whole(name, tensor) for name, tensor in branch.state_dict().items() if name != "record"}
    source = branch.settings.prior.tower
    write_files(folder, branch.make_record(), tensors, None if source is None else find_tower(source), card=card)
    if push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        target = api.create_repo(repo_id or folder.resolve().name, private=private, exist_ok=True).repo_id
        patterns = [CONFIG_FILE, WEIGHTS_FILE, *([] if source is None else [TOWER_FILE]), CARD_FILE]
        api.upload_folder(repo_id=target, folder_path=folder, allow_patterns=patterns)
    return folder


def write_files(
    folder: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor], tower: Tower | None, *, card: bool = True
) -> None:
    """Write a branch, and the tower of its prior where that has one of its own, which the record then names.

    Raises:
        SavedBranchError: the folder cannot be written to.
    """
    from safetensors import SafetensorError

    try:
        if tower is not None:
            settings = record["settings"]
            record = {
                **record,
                "prior": {**record["prior"], "tower": write_tower(tower, folder)},
                "settings": {**settings, "prior": {**settings["prior"], "tower": TOWER_FILE}},
            }
        write_branch(folder, record, tensors, card=card)
    except (OSError, SafetensorError) as error:
        raise SavedBranchError(f"The branch cannot be saved in {folder}: {error}. Choose another place.") from error


def load_pretrained(
    model: nn.Module,
    source: str | Path,
    *,
    prior: str | Prior | PriorSettings | Mapping[str, Any] | None = None,
    pretrained: str | Path | None = None,
    allow_prior: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    processor: Any = None,
    store: FeatureStore | str | Path | None = None,
    host: str | None = None,
    **prior_settings: Any,
) -> nn.Module:
    """Patch ``model`` as a saved branch says, and load its weights. Strict: all or nothing.

    Args:
        model: a fresh host of the same family and hidden size, or one that is patched with the same settings.
        source: what :func:`save_pretrained` wrote; or any checkpoint folder of a trainer that holds the branch: a
            PEFT adapter (``modules_to_save=["vega3d"]``) or a full model; or a hub id of either.
        prior: a loaded prior, or another one than recorded (see ``allow_prior``).
        pretrained: where the prior's weights are on this machine, when not where they were.
        allow_prior: name of a prior that may differ from the recorded one, in kind or in weights.
        revision, token: for the hub.
        processor, store, host: as for :func:`~vega3d_plugin.patching.patch`; a host that had to be named then need
            not be named again.
        prior_settings: ``device``, ``dtype`` or ``chunk_frames``; ``tower``, where the tower of a prior that has one
            of its own is on this machine; others would change the features.

    Returns:
        ``model``.

    Raises:
        SavedBranchError: wrong host, hidden size or prior; missing, surplus or misshapen tensors. The message has
            both sides' values, and the model is as it was.
    """
    saved = read_saved(source, revision=revision, token=token)
    record = saved.record
    tell_without_instruction(record, saved.where)
    base = base_model(model)
    adapter = find_host(base, host or _recorded_host(base, record))
    seam = adapter.seams(base, processor)[0]
    trained_there = getattr(adapter, "takes_branches_of", adapter.name)
    _compare("host", record["host"].get("name"), trained_there, saved)
    _compare("hidden size", record["host"].get("hidden_size"), seam.hidden_size, saved)
    chosen = _prior(record, prior, pretrained, allow_prior, prior_settings, saved)
    fresh = not is_patched(base)
    if not fresh and not isinstance(chosen, Prior) and chosen.get("tower") is not None:
        # Wherever this branch keeps its copy; the fingerprint tells whether it is that of the model.
        chosen["tower"] = get_handle(base).settings.prior.tower or chosen["tower"]
    config = {k: v for k, v in record["settings"].items() if k != "prior"}
    # Before anything of these sizes is built.
    check_fit(saved.where, record, saved.tensors)
    own = {"prior": chosen} if isinstance(chosen, dict) else {}
    BranchSettings.parse({**config, **own}, where=f"{saved.where}, {CONFIG_FILE}")
    patch(model, chosen, config=config, processor=processor, store=store, host=adapter.name)
    try:
        branch = get_handle(base).branch
        _check_fingerprint(branch, record, allow_prior, saved)
        load_tensors(branch, saved)
        # Its adapter, or a trainer's checkpoint of it, may be read afterwards.
        branch.accepts = record if allow_prior is not None else None
    except BaseException:
        if fresh:
            unpatch(model)
        raise
    return model


def _recorded_host(base: nn.Module, record: Mapping[str, Any]) -> str | None:
    """The adapter that the branch was made with, where none finds this model by itself: it was named then."""
    manager, name = plugin_manager(), record["host"].get("name")
    if manager.hook.vega3d_match_host(model=base) is None and name in manager.hosts.names():
        return str(name)
    return None


def _prior(
    record: Mapping[str, Any],
    prior: str | Prior | PriorSettings | Mapping[str, Any] | None,
    pretrained: str | Path | None,
    allow_prior: str | None,
    overrides: dict[str, Any],
    saved: SavedBranch,
) -> Prior | dict[str, Any]:
    """The recorded prior with this machine's overrides, or the one given if it may differ."""
    recorded = record["prior"].get("name")
    if isinstance(prior, Prior):
        return prior
    harmless = {"tower", "device", "dtype", "chunk_frames", "max_tokens", "fast", "compile", "offload"}
    if set(overrides) - harmless and allow_prior is None:
        raise SavedBranchError(
            f"{saved.where} was trained with its prior's own settings; {', '.join(sorted(set(overrides) - harmless))} "
            f"would change the features. Pass allow_prior={recorded!r} if you mean it."
        )
    if isinstance(prior, PriorSettings):
        asked = prior.model_dump(exclude_unset=True)
    else:
        asked = {"name": prior} if isinstance(prior, str) else dict(prior or {})
    name = asked.get("name", recorded)
    if name != recorded and allow_prior != name:
        raise SavedBranchError(
            f"{saved.where} was trained with the prior {recorded!r}, asked for {name!r}. "
            f"Pass allow_prior={name!r} if you mean it."
        )
    # Where the prior ran is a matter of the machine, not of the branch.
    values = {k: v for k, v in record["settings"]["prior"].items() if k != "device"} if name == recorded else {}
    # Nor can a file give the user's word that code may be imported (prior `callable`).
    values.pop("trust", None)
    if isinstance(values.get("options"), Mapping):
        values["options"] = {k: v for k, v in values["options"].items() if k != "trust"}
    if values.get("tower") is not None and "tower" not in {**asked, **overrides}:
        values["tower"] = _tower_of(saved, values["tower"])
    values = {**values, **asked, **overrides, "name": name}
    if pretrained is not None:
        values |= {"pretrained": str(pretrained), "revision": None}
    return values


def _tower_of(saved: SavedBranch, recorded: str) -> str:
    """Where the tower is that a branch was trained with: beside it, or where it was found then."""
    beside = Path(saved.where) / TOWER_FILE
    if not beside.is_file():
        if recorded == TOWER_FILE:
            raise SavedBranchError(
                f"{saved.where} was trained with a tower of its own, and lacks {TOWER_FILE}. Copy it too, or say where "
                "it is: tower=FILE."
            )
        return recorded
    said = saved.record["prior"].get("tower")
    found = find_tower(beside).checksum
    if said is not None and said != found:
        raise SavedBranchError(
            f"{beside} is of another branch: its checksum is {found}, the branch was trained with {said}. Copy the "
            "branch's files again from one place."
        )
    return str(beside)


def _compare(what: str, saved_value: Any, found: Any, saved: SavedBranch) -> None:
    if saved_value != found:
        raise SavedBranchError(f"{saved.where} was trained for {what} {saved_value!r}, this model has {found!r}.")


def _check_fingerprint(
    branch: GenerativeBranch, record: Mapping[str, Any], allow_prior: str | None, saved: SavedBranch
) -> None:
    recorded, found = record["prior"], branch.prior.fingerprint
    name = branch.settings.prior.name
    if recorded.get("fingerprint") is None:
        # Converted from a checkpoint that does not record the prior's weights.
        return
    if recorded["fingerprint"] != found and allow_prior != name:
        raise SavedBranchError(
            f"{saved.where} was trained with the prior {recorded.get('name')!r} from {recorded.get('source')!r} with "
            f"fingerprint {recorded.get('fingerprint')}; this one, from {branch.settings.prior.pretrained!r}, has "
            f"{found}: other weights or settings. Pass allow_prior={name!r} if you mean it."
        )


def load_tensors(branch: GenerativeBranch, saved: SavedBranch) -> None:
    """Copy a saved branch's tensors into a branch. Strict.

    Raises:
        SavedBranchError: lists what is missing, surplus or of another shape; or values are not finite.
    """
    bad = not_finite(saved.tensors)
    if bad:
        raise SavedBranchError(
            f"{saved.where} holds NaN or infinity in {', '.join(bad[:5])}: its training had diverged. Use an earlier "
            "checkpoint."
        )
    expected = {name: tensor for name, tensor in branch.state_dict().items() if name != "record"}
    problems = [f"missing: {name} {list(t.shape)}" for name, t in expected.items() if name not in saved.tensors]
    problems += [f"not part of this branch: {name}" for name in saved.tensors if name not in expected]
    problems += [
        f"{name}: saved {list(saved.tensors[name].shape)}, branch {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in saved.tensors and saved.tensors[name].shape != tensor.shape
    ]
    if problems:
        raise SavedBranchError(f"{saved.where} does not fit the branch:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(saved.tensors[name])


def _whole(name: str, tensor: Tensor) -> Tensor:
    """The full tensor on the CPU, gathered when it is sharded (FSDP2)."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    if tensor.is_meta:
        raise SavedBranchError(
            f"{name} has no values here: the model was offloaded (device_map, cpu_offload or disk_offload of "
            "accelerate), which keeps them elsewhere between calls. Take that away first: "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True); then save."
        )
    if tensor.numel() == 0 and hasattr(tensor, "ds_numel"):
        raise SavedBranchError(
            f"{name} is partitioned by ZeRO-3. Gather it first: with deepspeed.zero.GatheredParameters("
            "list(vega3d.get_handle(model).parameters())): vega3d.save_pretrained(...)."
        )
    return tensor.detach().cpu().contiguous()
