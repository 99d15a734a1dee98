"""The public API: ``import vega3d`` gives the same names."""

from . import analysis, errors
from .alignment import align
from .branch import GenerativeBranch
from .clips import Clip, PixelStatistics, TokenGrid, clip_key
from .config import BranchSettings, FusionSettings, PriorSettings, ProjectorSettings
from .controls import disabled, record_gates, zeroed
from .errors import Vega3dError
from .features import FeatureStore
from .fusers import Fuser, build_fuser, list_fusers
from .hookspecs import hookimpl
from .matching import list_hosts
from .patching import Handle, get_handle, is_patched, patch, unpatch
from .plugins import plugin_manager
from .priors import Prior, PriorSpec, list_priors, load_prior
from .priors.function import CallablePrior
from .projectors import build_projector
from .record import library_version as _library_version
from .released import load_released
from .saving import load_pretrained, save_pretrained
from .seams import HostAdapter, Seam, SeamPoint
from .warnings import Vega3dWarning

__version__ = _library_version()

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
    "PixelStatistics",
    "Prior",
    "PriorSettings",
    "PriorSpec",
    "ProjectorSettings",
    "Seam",
    "SeamPoint",
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
    "save_pretrained",
    "unpatch",
    "zeroed",
]
