"""``patch``, ``unpatch`` and the handle."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .branch.branch import GenerativeBranch
from .branch.handle import get_handle, is_patched
from .branch.idle_settings import idle_settings
from .branch.shown import embedding
from .contracts.errors import PatchError, Vega3dWarning
from .contracts.priors import Prior
from .contracts.settings import BranchSettings, FusionSettings, PriorSettings, ProjectorSettings
from .contracts.tables import FUSERS
from .features.store import FeatureStore
from .hosts.attaching import attach, detach, placement
from .hosts.checking import check_model, checked_seam
from .hosts.finding import find_host
from .hosts.peft import base_model
from .plugins import plugin_manager
from .priors.load import load_prior
from .priors.resolving import resolve

log = logging.getLogger("vega3d")

DEFAULT_PRIOR = "wan2.1-t2v-1.3b"
DEFAULT_FUSION = "token_gated_residual"


def patch(
    model: nn.Module,
    prior: str | Prior | PriorSettings | Mapping[str, Any] = DEFAULT_PRIOR,
    *,
    pretrained: str | Path | None = None,
    fusion: str | FusionSettings | Mapping[str, Any] = DEFAULT_FUSION,
    init: str = "identity",
    projector: str | ProjectorSettings | Mapping[str, Any] | None = None,
    images: str | None = None,
    history: int | None = None,
    positions: str | None = None,
    config: BranchSettings | Mapping[str, Any] | str | Path | None = None,
    processor: Any = None,
    store: FeatureStore | str | Path | None = None,
    host: str | None = None,
    **prior_settings: Any,
) -> nn.Module:
    """Give a host the generative branch. The model is changed in place and returned.

    Args:
        model: a supported host (``vega3d ls hosts``), or a ``PeftModel`` of one; not compiled, not wrapped for
            distributed training, with its weights in place.
        prior: a registered name, a loaded prior, or its settings.
        pretrained: the prior's weights: hub id or folder.
        fusion: a registered fuser or its settings.
        init: ``identity``: the patched model computes what it did before, bit for bit, until it is trained;
            ``released``: as the released code starts.
        projector: ``mlp`` (default), ``avg`` or ``mlp2x_gelu``, or its settings.
        images: ``separate`` (default) or ``scene``, see :class:`~vega3d_plugin.contracts.settings.BranchSettings`.
        history: for policies, observations that a clip holds while the policy acts, see there.
        positions: ``none`` (default) or ``sin3d``: each token is given a sinusoid of the world point that it shows, see
            there; the calls are then given ``vega3d_points=vega3d.view_points(scene)``.
        config: all of these settings at once, or a YAML or JSON file; other arguments that are not at their default
            override it.
        processor: the host's processor; its pixel statistics are then used instead of the family's known ones.
        store: a feature store or its folder.
        host: name of the adapter; default: found by looking at the model.
        prior_settings: ``timestep``, ``shift``, ``tap``, ``size``, ``context``, ``seed``, ``dtype``, ``device``, ...

    Returns:
        ``model``. Patching again with the same settings changes nothing.

    Raises:
        HostError: not a supported host, or not built as its family; CompiledModelError, MetaModelError.
        PatchError: already patched with other settings.
        SettingsError, UnknownNameError, PriorError, StoreError: see there. On any error the model is as it was.
    """
    base = base_model(check_model(model))
    settings = _settings(prior, pretrained, fusion, init, projector, images, history, positions, config, prior_settings)
    if is_patched(base):
        _check_same(base, settings, prior)
        log.info("The model is already patched with these settings; nothing was changed.")
        return model
    adapter = find_host(base, host)
    seam = checked_seam(adapter, base, processor, settings)
    if FUSERS.get(settings.fusion.name).uses_context:
        embedding(base.get_submodule(seam.entry), adapter.name)
    loaded = prior if isinstance(prior, Prior) else load_prior(settings.prior)
    if loaded.settings is not None:
        settings = settings.model_copy(update={"prior": loaded.settings})
        for sentence in idle_settings(settings):
            warnings.warn(sentence, Vega3dWarning, stacklevel=2)
    if store is not None and not isinstance(store, FeatureStore):
        store = FeatureStore(store)
    if store is not None:
        store.bind(loaded)
    seam_module = base.get_submodule(seam.path)
    # Parameters made in inference mode could never be trained.
    with torch.inference_mode(False):
        branch = GenerativeBranch(settings, loaded, seam, adapter.name, store)
        branch.to(**placement(base.get_submodule(seam.like) if seam.like else seam_module))
    branch.train(seam_module.training)
    hook = plugin_manager().hook
    hook.vega3d_before_patch(model=model, settings=settings)
    try:
        attach(model, base, branch)
        hook.vega3d_after_patch(model=model, handle=get_handle(model))
    except BaseException:
        detach(model, base)
        raise
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Take the branch out again; the model is as it was before ``patch``.

    Raises:
        PatchError: the model is not patched.
    """
    base = base_model(model)
    get_handle(base)
    detach(model, base)
    plugin_manager().hook.vega3d_after_unpatch(model=model)
    return model


def _settings(
    prior: str | Prior | PriorSettings | Mapping[str, Any],
    pretrained: str | Path | None,
    fusion: str | FusionSettings | Mapping[str, Any],
    init: str,
    projector: str | ProjectorSettings | Mapping[str, Any] | None,
    images: str | None,
    history: int | None,
    positions: str | None,
    config: BranchSettings | Mapping[str, Any] | str | Path | None,
    prior_settings: dict[str, Any],
) -> BranchSettings:
    """One settings object from the arguments, all mistakes reported together."""
    if isinstance(config, str | Path):
        config = BranchSettings.read(config)
    values: dict[str, Any] = dict(
        config.model_dump(exclude_unset=True) if isinstance(config, BranchSettings) else config or {}
    )
    if isinstance(prior, Prior):
        if prior_settings or pretrained is not None:
            raise PatchError("A loaded prior has its settings already: pass them to vega3d.load_prior instead.")
        values.pop("prior", None)
    else:
        if isinstance(prior, PriorSettings):
            chosen = prior.model_dump(exclude_unset=True)
        elif isinstance(prior, Mapping):
            chosen = dict(prior)
        else:
            chosen = {} if prior == DEFAULT_PRIOR and "prior" in values else {"name": prior}
        extra = {**prior_settings, **({} if pretrained is None else {"pretrained": pretrained})}
        values["prior"] = {**values.get("prior", {}), **chosen, **extra}
    if isinstance(fusion, FusionSettings):
        values["fusion"] = fusion.model_dump(exclude_unset=True)
    elif isinstance(fusion, Mapping):
        values["fusion"] = dict(fusion)
    elif fusion != DEFAULT_FUSION or "fusion" not in values:
        values["fusion"] = {**values.get("fusion", {}), "name": fusion}
    if init != "identity" and isinstance(values["fusion"], Mapping):
        values["fusion"] = {**values["fusion"], "init": init}
    if projector is not None:
        values["projector"] = {"name": projector} if isinstance(projector, str) else projector
    if images is not None:
        values["images"] = images
    if history is not None:
        values["history"] = history
    if positions is not None:
        values["positions"] = positions
    settings = BranchSettings.parse(values)
    if isinstance(prior, Prior):
        described = prior.settings or PriorSettings.model_construct(name=type(prior).__name__)
        return settings.with_prior(described)
    return settings.with_prior(resolve(settings.prior))


def _check_same(base: nn.Module, settings: BranchSettings, prior: object) -> None:
    handle = get_handle(base)
    same_prior = not isinstance(prior, Prior) or prior is handle.prior or prior.fingerprint == handle.prior.fingerprint
    ours, theirs = handle.settings.to_dict(), settings.to_dict()
    # A tap of -1 is resolved when the weights are read, so it cannot be compared before.
    if (theirs["prior"].get("tap") or 0) < 0:
        theirs["prior"]["tap"] = ours["prior"].get("tap")
    different = list(_differences(ours, theirs))
    if different or not same_prior:
        raise PatchError(
            "The model is already patched with other settings: "
            + ("; ".join(different) or "another prior object")
            + ". Call vega3d.unpatch(model) first."
        )


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{path}{key}.")
        elif a != b:
            yield f"{path}{key} is {a!r}, asked for {b!r}"
