"""The public API: ``import vega3d`` gives the same names. Each is imported when it is first used."""

import importlib
import os
import typing

from .contracts.registry import load_with as _load_with

if typing.TYPE_CHECKING:
    from . import analysis
    from .branch.alignment import align
    from .branch.branch import GenerativeBranch
    from .branch.fusers import Fuser, build_fuser, list_fusers
    from .branch.handle import Handle, get_handle, is_patched
    from .branch.instructions import instruction
    from .branch.projectors import build_projector
    from .branch.switches import disabled, record_gates, record_shares, zeroed
    from .checkpoints.released.loading import load_released
    from .checkpoints.saving import load_pretrained, save_pretrained
    from .contracts import errors
    from .contracts.clips import Clip, PixelStatistics, TokenGrid, clip_key
    from .contracts.errors import Vega3dError, Vega3dWarning
    from .contracts.seams import HostAdapter, ImageSamples, Seam, SeamCall, SeamInput, SeamPoint, SeamReader
    from .contracts.settings import BranchSettings, FusionSettings, PriorSettings, ProjectorSettings
    from .contracts.shares import Shares
    from .features import FeatureStore
    from .hookspecs import hookimpl
    from .hosts.finding import list_hosts
    from .patching import patch, unpatch
    from .plugins import plugin_manager
    from .priors import Prior, PriorSpec, list_priors, load_prior
    from .priors.yours.function import CallablePrior
    from .scenes.view_points import view_points

# Modules that others open by name are thin files in a folder of their own.
__path__.append(os.path.join(os.path.dirname(__file__), "doors"))

#: Where each public name lives.
_PLACES = {
    "align": ".branch.alignment",
    "GenerativeBranch": ".branch.branch",
    "Fuser": ".branch.fusers",
    "build_fuser": ".branch.fusers",
    "list_fusers": ".branch.fusers",
    "Handle": ".branch.handle",
    "get_handle": ".branch.handle",
    "is_patched": ".branch.handle",
    "instruction": ".branch.instructions",
    "build_projector": ".branch.projectors",
    "disabled": ".branch.switches",
    "record_gates": ".branch.switches",
    "record_shares": ".branch.switches",
    "zeroed": ".branch.switches",
    "load_released": ".checkpoints.released.loading",
    "load_pretrained": ".checkpoints.saving",
    "save_pretrained": ".checkpoints.saving",
    "errors": ".contracts",
    "Clip": ".contracts.clips",
    "PixelStatistics": ".contracts.clips",
    "TokenGrid": ".contracts.clips",
    "clip_key": ".contracts.clips",
    "Vega3dError": ".contracts.errors",
    "Vega3dWarning": ".contracts.errors",
    "HostAdapter": ".contracts.seams",
    "ImageSamples": ".contracts.seams",
    "Seam": ".contracts.seams",
    "SeamCall": ".contracts.seams",
    "SeamInput": ".contracts.seams",
    "SeamPoint": ".contracts.seams",
    "SeamReader": ".contracts.seams",
    "BranchSettings": ".contracts.settings",
    "FusionSettings": ".contracts.settings",
    "PriorSettings": ".contracts.settings",
    "ProjectorSettings": ".contracts.settings",
    "Shares": ".contracts.shares",
    "FeatureStore": ".features",
    "hookimpl": ".hookspecs",
    "list_hosts": ".hosts.finding",
    "patch": ".patching",
    "unpatch": ".patching",
    "plugin_manager": ".plugins",
    "Prior": ".priors",
    "PriorSpec": ".priors",
    "list_priors": ".priors",
    "load_prior": ".priors",
    "CallablePrior": ".priors.yours.function",
    "view_points": ".scenes.view_points",
}


def _load_plugins() -> object:
    from .plugins import plugin_manager

    return plugin_manager()


# A table of names that is asked before it is full has the plugins loaded first.
_load_with(_load_plugins)


def __getattr__(name: str) -> typing.Any:
    if name == "__version__":
        from .storage.versions import library_version

        value: typing.Any = library_version()
    elif name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name], __name__), name)
    elif name == "analysis":
        value = importlib.import_module(".analysis", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "BranchSettings",
    "CallablePrior",
    "Clip",
    "FeatureStore",
    "Fuser",
    "FusionSettings",
    "GenerativeBranch",
    "Handle",
    "HostAdapter",
    "ImageSamples",
    "PixelStatistics",
    "Prior",
    "PriorSettings",
    "PriorSpec",
    "ProjectorSettings",
    "Seam",
    "SeamCall",
    "SeamInput",
    "SeamPoint",
    "SeamReader",
    "Shares",
    "TokenGrid",
    "Vega3dError",
    "Vega3dWarning",
    "__version__",
    "align",
    "analysis",
    "build_fuser",
    "build_projector",
    "clip_key",
    "disabled",
    "errors",
    "get_handle",
    "hookimpl",
    "instruction",
    "is_patched",
    "list_fusers",
    "list_hosts",
    "list_priors",
    "load_pretrained",
    "load_prior",
    "load_released",
    "patch",
    "plugin_manager",
    "record_gates",
    "record_shares",
    "save_pretrained",
    "unpatch",
    "view_points",
    "zeroed",
]
