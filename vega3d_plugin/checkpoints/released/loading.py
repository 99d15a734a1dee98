"""Checkpoints of the released VEGA-3D code: into a model, or into files of ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...branch.fusers.build import build_fuser
from ...branch.handle import get_handle, is_patched
from ...branch.projectors import build_projector
from ...contracts.errors import SavedBranchError, SettingsError, UnknownNameError
from ...contracts.paths import given_path
from ...contracts.printable import brief, first_line
from ...contracts.priors import Prior
from ...contracts.settings import BranchSettings, FusionSettings, PriorSettings
from ...contracts.tables import PRIORS
from ...features.store import FeatureStore
from ...hosts.finding import find_host
from ...hosts.peft import base_model
from ...patching import patch, unpatch
from ...priors.frozen.towers import tower_entries
from ...priors.load import load_prior
from ...priors.resolving import resolve
from ...storage.folders import fetch, local_folder
from ...storage.reading import read_json
from ...storage.record import make_record
from ...storage.weights import Stored, listing, read_stored, stored_tensors
from ..branch_files import SavedBranch
from ..reading import holds_branch
from ..saving import load_tensors, write_files
from .host_weights import load_host_weights, match_host
from .own_tower import TowerChoice, keep_tower, leave_tower, load_with_tower, tell_given, tower_of
from .settings import LLAVA, QWEN, Inferred, Layout, infer

log = logging.getLogger("vega3d")

#: What is fetched of a hub repository.
PATTERNS = ["config.json", "model*.safetensors*", "pytorch_model*.bin*", "mm_projector.bin", "non_lora_trainables.bin"]
# The frozen tower is a submodule in the released Qwen branch, so its weights may be in the checkpoint too.
TOWERS = ("generative_encoder.", "generative_vision_tower.")


@dataclass(frozen=True)
class ReleasedBranch:
    """A branch of the released code.

    Attributes:
        where: the file or folder.
        layout: which of the two released branches.
        inferred: settings and sizes.
        tensors: of projector and fuser, by the names that a branch has here.
        host_weights: the host's own weights that lie beside them, by name; not read yet.
        skipped: names of the weights of the frozen tower.
        tower: those of them that are known to be its, by what stands behind ``generative_encoder.tower.``; not read.
        tower_line: what was found of the tower and done, once the branch is loaded or converted; empty without one.
    """

    where: str
    layout: Layout
    inferred: Inferred
    tensors: dict[str, Tensor]
    host_weights: dict[str, Stored]
    skipped: list[str]
    tower: dict[str, Stored] = field(default_factory=dict)
    tower_line: str = ""

    @property
    def full(self) -> bool:
        """True when the file holds a whole language model."""
        return any(key.endswith("embed_tokens.weight") for key in self.host_weights)

    @property
    def summary(self) -> str:
        """One line: what there is."""
        settings, count = self.inferred.settings, sum(t.numel() for t in self.tensors.values())
        return (
            f"host {self.layout.host}, hidden size {self.inferred.hidden_size}, prior "
            f"{settings.get('prior', {}).get('name', 'unknown')}, fusion {settings['fusion']['name']}, projector "
            f"{settings['projector']['name']}: {count:,} parameters in {len(self.tensors)} tensors; "
            f"{len(self.host_weights)} weights of the host, {len(self.skipped)} of the frozen tower"
        )


def read_released(source: str | Path, *, revision: str | None = None, token: str | None = None) -> ReleasedBranch:
    """Read the branch of a released checkpoint, and find out what else is there.

    Args:
        source: folder, file of weights, or hub id. Names may have anything before ``generative_merger.`` or
            ``generative_projector.``, as DDP and PEFT put there.
        revision, token: for the hub.

    Raises:
        SavedBranchError: nothing of a branch there; or tensors that are missing, surplus or of another shape.
    """
    path = given_path(source, SavedBranchError, "The checkpoint")
    if not path.is_file():
        folder = local_folder(source, SavedBranchError)
        path = folder or fetch(str(source), PATTERNS, SavedBranchError, revision=revision, token=token)
    config = _config(path if path.is_dir() else path.parent)
    searched = 0
    for stored in stored_tensors(path):
        searched += len(stored)
        for layout in (QWEN, LLAVA):
            if any(layout.owner(key) for key in stored):
                return _read(str(path), layout, stored, config)
    ours = path.is_dir() and holds_branch(path)
    raise SavedBranchError(
        f"{path} holds no branch of the released code: no tensors named '*{QWEN.projector}*' or "
        f"'*{LLAVA.projector}*' among {searched}. "
        + (
            "It is a branch of this library: use vega3d.load_pretrained."
            if ours
            else listing(path if path.is_dir() else path.parent)
        )
    )


def load_released(
    model: nn.Module,
    source: str | Path,
    *,
    prior: str | Prior | PriorSettings | Mapping[str, Any] | None = None,
    pretrained: str | Path | None = None,
    host_weights: bool | None = None,
    own_tower: bool = True,
    ignore: Sequence[str] = (),
    revision: str | None = None,
    token: str | None = None,
    processor: Any = None,
    store: FeatureStore | str | Path | None = None,
    host: str | None = None,
    **prior_settings: Any,
) -> nn.Module:
    """Patch ``model`` as a checkpoint of the released code was trained, and load its weights. All or nothing.

    Projector, fusion and their sizes come from the tensors; the prior and how it looks at frames from config.json
    (tower, task, size, timestep, tap), with the released defaults where it does not say. A checkpoint that holds the
    weights of its tower is given that tower, where it differs from the published one
    (:mod:`~vega3d_plugin.priors.frozen.towers`). How many weights were loaded is logged (logger ``vega3d``, level
    INFO), and so are what had to be assumed and which tower it is.

    Args:
        model: the host that the checkpoint was trained from, not patched.
        source: folder, file or hub id of ``H-EmbodVis/VEGA-3D-Spatial-Reasoning`` or a checkpoint of that code.
        prior: another prior than config.json names, or a loaded one; needed when it names none that is known here.
        pretrained: the prior's weights, folder or hub id.
        host_weights: load the host's own weights too; default: when the checkpoint holds a whole language model.
        own_tower: False: the published tower, whatever the checkpoint holds.
        ignore: beginnings of names among the host's weights that ``model`` need not have a place for.
        revision, token: for the hub.
        processor, store, host: as for :func:`~vega3d_plugin.patching.patch`.
        prior_settings: as for :func:`~vega3d_plugin.patching.patch`; they override config.json.

    Returns:
        ``model``.

    Raises:
        SavedBranchError: no such branch, another host or hidden size; missing, surplus or misshapen weights, of the
            branch or of the host. The model is then as it was, unless a file breaks off while it is read.
        PatchError: the model is patched already with other settings, or inside PEFT while the checkpoint has weights
            of the host.
    """
    released = read_released(source, revision=revision, token=token)
    base = base_model(model)
    adapter = find_host(base, host)
    if adapter.name not in released.layout.hosts:
        _same("host", released.layout.host, adapter.name, released)
    seam = adapter.seams(base, processor)[0]
    _same("hidden size", released.inferred.hidden_size, seam.hidden_size, released)
    fresh = not is_patched(base)
    wanted = released.full if host_weights is None else host_weights
    if wanted and not fresh:
        raise SavedBranchError(f"{released.where} has weights of the host too: call vega3d.unpatch(model) first.")
    pairs = match_host(model, released.host_weights, ignore, released.where) if wanted else []
    chosen, line = _chosen_prior(released, source, revision, prior, pretrained, own_tower, prior_settings)
    config = {key: value for key, value in released.inferred.settings.items() if key != "prior"}
    patch(model, chosen, config=config, processor=processor, store=store, host=adapter.name)
    try:
        load_tensors(get_handle(base).branch, SavedBranch(released.where, {}, released.tensors))
        loaded = load_host_weights(pairs)
    except BaseException:
        if fresh:
            unpatch(model)
        raise
    for told in _report(replace(released, tower_line=line), loaded):
        log.info(told)
    return model


def _chosen_prior(
    released: ReleasedBranch,
    source: str | Path,
    revision: str | None,
    prior: str | Prior | PriorSettings | Mapping[str, Any] | None,
    pretrained: str | Path | None,
    own_tower: bool,
    overrides: Mapping[str, Any],
) -> tuple[Prior | dict[str, Any], str]:
    """The prior to patch with, and what is to be told of its tower."""
    tower = tower_of(source, revision, released.tower)
    if isinstance(prior, Prior):
        if pretrained is not None or overrides:
            raise SettingsError("A loaded prior has its settings already: pass them to vega3d.load_prior instead.")
        return prior, tell_given(tower, prior) if tower is not None and own_tower else ""
    values = _prior_values(released, prior, pretrained, overrides)
    if tower is None or values.get("tower") is not None:
        return values, ""
    if not own_tower:
        return values, leave_tower(tower, "own_tower=False").line
    found = load_with_tower(resolve(PriorSettings.parse(values)), tower)
    return (values if found.prior is None else found.prior), found.line


def convert_released(
    source: str | Path,
    folder: str | Path,
    *,
    host: str | None = None,
    prior: str | None = None,
    pretrained: str | Path | None = None,
    fingerprint: bool = False,
    own_tower: bool = True,
    revision: str | None = None,
    token: str | None = None,
) -> ReleasedBranch:
    """Write the branch of a released checkpoint as :func:`~vega3d_plugin.checkpoints.saving.save_pretrained` would.

    No host is built. Host weights are not written: the result loads into the host that the checkpoint holds.

    Args:
        source: as for :func:`read_released`.
        folder: where to write.
        host: name of the adapter whose hosts it is for; default: that of the host it was trained on.
        prior: name of the prior, when config.json names none that is known here.
        pretrained: where the prior's weights are, to be recorded.
        fingerprint: load the prior and record its fingerprint, so that loading checks for the same weights; else any
            weights of that prior are accepted.
        own_tower: False: leave the checkpoint's own tower. Otherwise it is written beside the branch, unless it is
            found to be the published one: it is compared where ``pretrained`` is a folder or ``fingerprint`` is asked
            for.
        revision, token: for the hub.

    Raises:
        SavedBranchError, SettingsError, UnknownNameError: see :func:`read_released`; or the prior is not known.
    """
    released = read_released(source, revision=revision, token=token)
    inferred = released.inferred
    host = released.layout.host if host is None else host
    if host not in released.layout.hosts:
        raise UnknownNameError("host of this checkpoint", host, released.layout.hosts)
    chosen = resolve(PriorSettings.parse(_prior_values(released, prior, pretrained, {})))
    tower = tower_of(source, revision, released.tower) if own_tower else None
    if tower is None:
        found = TowerChoice(load_prior(chosen) if fingerprint else None, None, "")
    elif fingerprint or (chosen.pretrained and Path(chosen.pretrained).expanduser().is_dir()):
        found = load_with_tower(chosen, tower)
    else:
        found = keep_tower(tower)
    mark = found.prior.fingerprint if found.prior is not None and (fingerprint or found.tower is not None) else None
    record = make_record(
        BranchSettings.parse({**inferred.settings, "prior": chosen}).with_prior(chosen),
        host=host,
        hidden_size=inferred.hidden_size,
        merge=inferred.merge,
        feature_dim=inferred.feature_dim,
        fingerprint=mark,
    )
    write_files(Path(folder), record, released.tensors, found.tower)
    return replace(released, tower_line=found.line)


def _read(where: str, layout: Layout, stored: Mapping[str, Stored], config: dict[str, Any] | None) -> ReleasedBranch:
    parts: dict[str, dict[str, Stored]] = {"projector": {}, "fuser": {}}
    host: dict[str, Stored] = {}
    skipped: list[str] = []
    for key, entry in stored.items():
        owner = layout.owner(key)
        if owner is not None:
            part, name = owner
            if name in parts[part]:
                raise SavedBranchError(f"{where} has two tensors for {name!r}: {parts[part][name].key} and {key}.")
            parts[part][name] = entry
        elif any(tower in key for tower in TOWERS):
            skipped.append(key)
        else:
            host[key] = entry
    shapes = {part: {name: entry.shape for name, entry in found.items()} for part, found in parts.items()}
    inferred = infer(layout, shapes["projector"], shapes["fuser"], config, where)
    tensors = _named_here(inferred, {part: _tensors(found) for part, found in parts.items()}, layout, where)
    return ReleasedBranch(where, layout, inferred, tensors, host, skipped, tower_entries(stored))


def _named_here(
    inferred: Inferred, parts: Mapping[str, Mapping[str, Tensor]], layout: Layout, where: str
) -> dict[str, Tensor]:
    """The branch's tensors under the names and shapes they have here, checked against modules without memory."""
    fusion, projector = inferred.settings["fusion"], inferred.settings["projector"]
    options = FusionSettings.parse(fusion, where).options_for()
    try:
        with torch.device("meta"):
            modules: dict[str, nn.Module] = {
                "projector": build_projector(
                    projector["name"],
                    inferred.feature_dim,
                    inferred.hidden_size,
                    hidden_dim=projector["hidden_dim"],
                    merge=inferred.merge,
                ),
                "fuser": build_fuser(fusion["name"], inferred.hidden_size, **options),
            }
    except Exception as error:
        # From config.json and the tensors' shapes together.
        raise SavedBranchError(f"{where} makes no branch of {fusion} and {projector}: {first_line(error)}") from error
    named: dict[str, Tensor] = {}
    for part, module in modules.items():
        try:
            module.load_state_dict(dict(parts[part]), assign=True)
        except RuntimeError as error:
            prefix = layout.projector if part == "projector" else layout.fuser
            raise SavedBranchError(f"{where}: {prefix}* does not fit its settings. {brief(str(error), 1000)}") from None
        named |= {f"{part}.{name}": tensor.detach() for name, tensor in module.state_dict().items()}
    return named


def _tensors(entries: Mapping[str, Stored]) -> dict[str, Tensor]:
    names = {entry.key: name for name, entry in entries.items()}
    return {names[key]: tensor for key, tensor in read_stored(entries.values())}


def _prior_values(
    released: ReleasedBranch,
    prior: str | PriorSettings | Mapping[str, Any] | None,
    pretrained: str | Path | None,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The prior of config.json with the caller's changes."""
    if isinstance(prior, PriorSettings):
        asked = prior.model_dump(exclude_unset=True)
    else:
        asked = {"name": prior} if isinstance(prior, str) else dict(prior or {})
    found = released.inferred.settings.get("prior", {})
    name = asked.get("name", found.get("name"))
    if name is None:
        raise SavedBranchError(
            f"{released.where} does not say which prior it was trained with, or names one that is not known here. Its "
            f"features have {released.inferred.feature_dim} channels: pass prior=..., see `vega3d ls priors`."
        )
    dim = PRIORS.get(name).feature_dim
    if dim is not None and dim != released.inferred.feature_dim:
        raise SavedBranchError(
            f"{released.where} was trained with features of {released.inferred.feature_dim} channels, the prior "
            f"{name!r} gives {dim}."
        )
    values = {**(found if name == found.get("name") else {}), **asked, **overrides, "name": name}
    if pretrained is not None:
        values |= {"pretrained": str(pretrained), "revision": None}
    return values


def _same(what: str, saved: Any, found: Any, released: ReleasedBranch) -> None:
    if saved != found:
        raise SavedBranchError(f"{released.where} was trained for {what} {saved!r}, this model has {found!r}.")


def _report(released: ReleasedBranch, loaded: int) -> list[str]:
    lines = [f"{released.where}: {released.summary}.", f"Loaded {len(released.tensors)} tensors of the branch"]
    left = len(released.host_weights) - loaded
    lines[-1] += f" and {loaded} weights of the host" + (f"; {left} others were left." if left else ".")
    lines += [released.tower_line] if released.tower_line else []
    return [*lines, *(f"Assumed: {note}." for note in released.inferred.notes)]


def _config(folder: Path) -> dict[str, Any] | None:
    file = folder / "config.json"
    return read_json(file, SavedBranchError) if file.is_file() else None
