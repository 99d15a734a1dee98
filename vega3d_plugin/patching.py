"""``patch``, ``unpatch`` and the handle."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .branch import GenerativeBranch, active_branch
from .config import BranchSettings, FusionSettings, PriorSettings, ProjectorSettings
from .errors import CompiledModelError, HostError, MetaModelError, PatchError
from .features.store import FeatureStore
from .hooks import (
    CHILD,
    AfterForward,
    BeforeForward,
    BranchHook,
    FuseForward,
    FuseMethod,
    MethodReplacement,
    NoteForward,
    NoteMethod,
)
from .peft_support import base_model, forget_module, is_peft_model, save_with_adapter
from .plugins import plugin_manager
from .priors.base import Prior
from .priors.load import load_prior, resolve
from .seams import HostAdapter, Seam, SeamPoint
from .warnings import Vega3dWarning

log = logging.getLogger("vega3d")

DEFAULT_PRIOR = "wan2.1-t2v-1.3b"
DEFAULT_FUSION = "token_gated_residual"


@dataclass(frozen=True)
class Handle:
    """What was added to a patched model.

    Attributes:
        host: name of the adapter.
        seam: where the branch sits.
        branch: projector, fuser and prior; with PEFT, the copy of the active adapter.
    """

    host: str
    seam: Seam
    branch: GenerativeBranch

    @property
    def settings(self) -> BranchSettings:
        """All settings of the branch."""
        return self.branch.settings

    @property
    def prior(self) -> Prior:
        """The frozen prior."""
        return self.branch.prior

    def parameters(self) -> Iterator[nn.Parameter]:
        """What trains: projector and fuser."""
        return self.branch.parameters()

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """One optimiser group with the branch's parameters: ``handle.parameter_groups(lr=1e-4)``."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], **options}]

    def freeze(self) -> None:
        """Stop training the branch, on purpose."""
        self.branch.trainable = False
        self.branch.requires_grad_(False)

    def unfreeze(self) -> None:
        """Train the branch."""
        self.branch.trainable = True
        self.branch.requires_grad_(True)

    def reset(self) -> None:
        """Forget earlier observations (``history``): call it when an episode starts."""
        self.branch.history.reset()

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        s = self.settings
        return (
            f"Handle(host={self.host!r}, seam={self.seam.path!r}, prior={s.prior.name!r}, fusion={s.fusion.name!r}, "
            f"projector={s.projector.name!r}, parameters={count:,})"
        )


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
        images: ``separate`` (default) or ``scene``, see :class:`~vega3d_plugin.config.BranchSettings`.
        history: for policies, observations that a clip holds while the policy acts, see there.
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
    base = base_model(_plain(model))
    settings = _settings(prior, pretrained, fusion, init, projector, images, history, config, prior_settings)
    if is_patched(base):
        _check_same(base, settings, prior)
        log.info("The model is already patched with these settings; nothing was changed.")
        return model
    adapter = find_host(base, host)
    seam = _checked_seam(adapter, base, processor, settings)
    loaded = prior if isinstance(prior, Prior) else load_prior(settings.prior)
    if loaded.settings is not None:
        settings = settings.model_copy(update={"prior": loaded.settings})
        _tell_idle(settings)
    if store is not None and not isinstance(store, FeatureStore):
        store = FeatureStore(store)
    if store is not None:
        store.bind(loaded)
    seam_module = base.get_submodule(seam.path)
    # Parameters made in inference mode could never be trained.
    with torch.inference_mode(False):
        branch = GenerativeBranch(settings, loaded, seam, adapter.name, store)
        branch.to(**_placement(base.get_submodule(seam.like) if seam.like else seam_module))
    branch.train(seam_module.training)
    hook = plugin_manager().hook
    hook.vega3d_before_patch(model=model, settings=settings)
    try:
        _attach(model, base, branch)
        hook.vega3d_after_patch(model=model, handle=get_handle(model))
    except BaseException:
        _detach(model, base)
        raise
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Take the branch out again; the model is as it was before ``patch``.

    Raises:
        PatchError: the model is not patched.
    """
    base = base_model(model)
    get_handle(base)
    _detach(model, base)
    plugin_manager().hook.vega3d_after_unpatch(model=model)
    return model


def is_patched(model: nn.Module) -> bool:
    """True when the model has a branch; wrapped models (PEFT, DDP) are looked through."""
    return next(_branches(model), None) is not None


def get_handle(model: nn.Module) -> Handle:
    """The handle of a patched model, looked up anew on each call, so copies have their own.

    Raises:
        PatchError: the model is not patched.
    """
    branch = next(_branches(model), None)
    if branch is None:
        raise PatchError(f"{type(model).__name__} is not patched. Call vega3d.patch(model) first.")
    return Handle(branch.host, branch.seam, branch)


def find_host(model: nn.Module, name: str | None = None) -> HostAdapter:
    """The adapter for a model, by name or by looking at it.

    Raises:
        UnknownNameError: no adapter of that name.
        HostError: no adapter matches; the message lists what is supported and any plugin that failed to load.
    """
    manager = plugin_manager()
    found = name or manager.hook.vega3d_match_host(model=model)
    if found is not None:
        return manager.hosts.get(found)
    broken = "".join(f" Plugin {n!r} failed to load: {e}." for n, e in manager.broken.items())
    asked = [a.name for a in manager.hosts if type(model).__name__ in a.classes]
    if asked:
        raise HostError(
            f"No host adapter patches {type(model).__name__} by itself, but {asked[0]!r} does when it is asked to: "
            f"vega3d.patch(model, host={asked[0]!r}, processor=processor).{broken}"
        )
    known = "; ".join(f"{a.name}: {', '.join(a.classes)}" for a in manager.hosts) or "no adapter is installed"
    raise HostError(
        f"No host adapter matches {type(model).__module__}.{type(model).__name__}. Supported: {known}.{broken} "
        "Run `vega3d doctor`, or pass `host=` to try an adapter by name."
    )


def _settings(
    prior: str | Prior | PriorSettings | Mapping[str, Any],
    pretrained: str | Path | None,
    fusion: str | FusionSettings | Mapping[str, Any],
    init: str,
    projector: str | ProjectorSettings | Mapping[str, Any] | None,
    images: str | None,
    history: int | None,
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
    settings = BranchSettings.parse(values)
    if isinstance(prior, Prior):
        described = prior.settings or PriorSettings.model_construct(name=type(prior).__name__)
        return settings.model_copy(update={"prior": described})
    return settings.model_copy(update={"prior": resolve(settings.prior)})


def _tell_idle(settings: BranchSettings) -> None:
    """Warn of settings that have no effect in this company."""
    if settings.history > 1 and settings.prior.context == "frame":
        warnings.warn(
            f"history={settings.history} has no effect with context='frame', in which the prior sees each picture "
            "alone. Pass context='views'.",
            Vega3dWarning,
            stacklevel=3,
        )
    if settings.fusion.name == "context_gated":
        warnings.warn(
            "The fuser 'context_gated' is a plain token gate here: no host hands its instruction to the branch. Take "
            "fusion='token_gated_residual', which also starts as identity.",
            Vega3dWarning,
            stacklevel=3,
        )


def _plain(model: nn.Module) -> nn.Module:
    """Refuse models that are wrapped in a way that would hide or lose the branch."""
    if not isinstance(model, nn.Module):
        raise HostError(f"Expected a torch module, got {type(model).__name__}.")
    name = type(model).__name__
    if name in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"):
        raise HostError(
            f"The model is wrapped in {name}, which would not see parameters added now. Patch the model before it is "
            "wrapped."
        )
    if name.startswith("FSDP"):
        raise HostError("The model is already sharded (fully_shard). Patch it before it is sharded.")
    _refuse_compiled(model)
    return model


def _refuse_compiled(model: nn.Module) -> None:
    for module_name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise CompiledModelError(
                f"{module_name or type(model).__name__} is compiled; hooks added now may be ignored. Patch the model "
                "first, then call torch.compile."
            )


def _checked_seam(adapter: HostAdapter, base: nn.Module, processor: Any, settings: BranchSettings) -> Seam:
    """Everything that could go wrong with the model, checked before it is touched."""
    seams = adapter.seams(base, processor)
    if len(seams) != 1:
        raise HostError(f"Adapter {adapter.name!r} gave {len(seams)} seams for {type(base).__name__}, expected one.")
    seam = seams[0]
    module = base.get_submodule(seam.path)
    like = base.get_submodule(seam.like) if seam.like else module
    if any(parameter.is_meta for parameter in like.parameters()):
        raise MetaModelError(
            f"{seam.like or seam.path!r} has no weights yet: its parameters lie on the meta device. Load the weights "
            "first; with device_map, keep this module off disk and CPU offload."
        )
    if CHILD in dict(module.named_children()):
        raise HostError(f"{seam.path!r} already has a submodule {CHILD!r} that is no branch.")
    if type(module).forward is nn.Sequential.forward:
        raise HostError(
            f"Adapter {adapter.name!r} gives the branch a home in {seam.path!r}, a {type(module).__name__}, which "
            "would run it as one more layer."
        )
    for point in seam.points:
        _check_point(adapter, base, seam, point)
    if settings.history > 1 and not seam.policy:
        raise HostError(
            f"history={settings.history} is for policies, which act on one observation after the other; host "
            f"{adapter.name!r} is none. Give it a video instead, or leave history at 1."
        )
    return seam


def _check_point(adapter: HostAdapter, base: nn.Module, seam: Seam, point: SeamPoint) -> None:
    if not f"{seam.path}.".startswith(f"{point.path}." if point.path else ""):
        raise HostError(
            f"Adapter {adapter.name!r} has a point at {point.path!r}, from which the branch in {seam.path!r} cannot be "
            "reached: a point must be the branch's home or a module above it."
        )
    owner = base.get_submodule(point.path)
    where = f"{type(owner).__name__} at {point.path!r}" if point.path else type(owner).__name__
    if point.method and not callable(getattr(type(owner), point.method, None)):
        raise HostError(f"Host {adapter.name!r} expects the method {point.method!r}, not found on {where}.")
    if point.method in owner.__dict__:
        raise HostError(
            f"Host {adapter.name!r}: {point.method!r} of {where} was already replaced in this instance, by "
            f"{owner.__dict__[point.method]!r}. Undo that first, or patch before it is done."
        )


def _placement(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of the seam: those of its last floating-point parameter, where the tokens come out."""
    floating = [p for p in module.parameters() if p.is_floating_point()]
    if not floating:
        return {"dtype": torch.bfloat16, "device": next((p.device for p in module.parameters()), torch.device("cpu"))}
    last = floating[-1]
    # 8-bit floats hold quantised weights; nothing can be trained in them.
    return {"device": last.device, "dtype": last.dtype if last.element_size() > 1 else torch.bfloat16}


def _attach(model: nn.Module, base: nn.Module, branch: GenerativeBranch) -> None:
    seam = branch.seam
    module, entry = base.get_submodule(seam.path), base.get_submodule(seam.entry)
    module.add_module(CHILD, branch)
    if is_peft_model(model):
        save_with_adapter(model, module, CHILD)
    # First, so that a note taken of the same forward comes after the old ones are forgotten.
    entry.register_forward_pre_hook(BeforeForward(_below(seam.entry, seam)), with_kwargs=True)
    for point in seam.points:
        owner, path = base.get_submodule(point.path), _below(point.path, seam)
        if point.method:
            replacement = FuseMethod if point.role == "fuse" else NoteMethod
            owner.__dict__[point.method] = replacement(owner, point.method, path)
        elif point.role == "fuse":
            owner.register_forward_hook(FuseForward(path), with_kwargs=True)
        else:
            owner.register_forward_pre_hook(NoteForward(path), with_kwargs=True)
    entry.register_forward_hook(AfterForward(_below(seam.entry, seam)), with_kwargs=True)


def _below(path: str, seam: Seam) -> str:
    """The branch's path as seen from a module above it."""
    child = f"{seam.path}.{CHILD}" if seam.path else CHILD
    return child[len(path) + 1 :] if path else child


def _detach(model: nn.Module, base: nn.Module) -> None:
    for module in base.modules():
        for table in (
            (module._forward_hooks, module._forward_hooks_with_kwargs),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [k for k, hook in table[0].items() if isinstance(hook, BranchHook)]:
                del table[0][key]
                table[1].pop(key, None)
        for name in [n for n, value in module.__dict__.items() if isinstance(value, MethodReplacement)]:
            del module.__dict__[name]
    for module in list(base.modules()):
        child = module._modules.get(CHILD)
        if child is not None and _is_branch(child):
            del module._modules[CHILD]
            if is_peft_model(model):
                forget_module(model, CHILD)


def _branches(model: nn.Module) -> Iterator[GenerativeBranch]:
    for module in model.modules():
        child = module._modules.get(CHILD)
        if child is not None and _is_branch(child):
            yield active_branch(child)


def _is_branch(child: nn.Module) -> bool:
    return isinstance(child, GenerativeBranch) or isinstance(getattr(child, "original_module", None), GenerativeBranch)


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
