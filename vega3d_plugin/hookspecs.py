"""What a plugin can add. This file is the manual.

A plugin is any module or object with functions marked ``@hookimpl`` and named as below, published under the entry
point group ``vega3d``::

    # pyproject.toml of the plugin: the module itself, or "my_package:thing" for an object in it
    [project.entry-points.vega3d]
    my_plugin = "my_package"

    # my_package.py
    import vega3d

    class Quieter(vega3d.Fuser):
        name = "quieter"

        def mix(self, semantic, generative, context):
            return semantic + 0.1 * generative

    @vega3d.hookimpl
    def vega3d_register_fusers(register):
        register(Quieter)

Plugins serve set-up only: no hook is ever called inside a model's forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from torch import nn

    from .branch.handle import Handle
    from .contracts.fusers import Fuser
    from .contracts.later import LazyFuser, LazyHost
    from .contracts.seams import HostAdapter
    from .contracts.settings import BranchSettings
    from .contracts.specs import PriorSpec

PROJECT = "vega3d"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class RegisterFuser(Protocol):
    """Callback that takes a fuser class, under its ``name`` attribute or another name."""

    def __call__(self, fuser: type[Fuser] | LazyFuser, *, name: str | None = None) -> None:
        """Register."""
        ...


@hookspec
def vega3d_register_hosts(register: Callable[[HostAdapter | LazyHost], None]) -> None:
    """Register adapters for host families.

    Called once, when the plugins are loaded. Call ``register(adapter)`` for each; its ``name`` must be free. An
    adapter imports no host library: it looks at a model's structure and class names. A
    :class:`~vega3d_plugin.contracts.later.LazyHost` in its place is listed without importing the adapter.
    """


@hookspec
def vega3d_register_priors(register: Callable[[PriorSpec], None]) -> None:
    """Register priors.

    Called once, when the plugins are loaded. Call ``register(PriorSpec(name, load, ...))`` for each. ``load`` is
    called with :class:`~vega3d_plugin.contracts.settings.PriorSettings` when the prior is used, and returns a
    :class:`~vega3d_plugin.contracts.priors.Prior`; import heavy libraries there, not at the top of the plugin.
    """


@hookspec
def vega3d_register_fusers(register: RegisterFuser) -> None:
    """Register fusers.

    Called once, when the plugins are loaded. Call ``register(FuserClass)`` for each; the class has a ``name`` and is
    built as ``FuserClass(hidden_size, **options)``. A :class:`~vega3d_plugin.contracts.later.LazyFuser` in its place is
    listed without importing torch.
    """


@hookspec(firstresult=True)
def vega3d_match_host(model: nn.Module) -> str | None:
    """Name the registered host that can patch ``model``.

    Called once by ``vega3d.patch`` when no host is named. Stops at the first result that is not None. The built-in
    implementation runs last and asks each registered adapter's ``matches``. Must not import a host library or modify
    ``model``.
    """


@hookspec
def vega3d_before_patch(model: nn.Module, settings: BranchSettings) -> None:
    """Called by ``vega3d.patch`` after every check has passed and before the model is touched.

    Raise to refuse; the model is then as it was.
    """


@hookspec
def vega3d_after_patch(model: nn.Module, handle: Handle) -> None:
    """Called by ``vega3d.patch`` when the branch is in place."""


@hookspec
def vega3d_after_unpatch(model: nn.Module) -> None:
    """Called by ``vega3d.unpatch`` when the model is as it was before ``patch``."""
