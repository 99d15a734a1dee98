"""The plugin manager: loads plugins one by one and keeps what they registered."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from . import hookspecs
from .contracts.errors import PluginError
from .contracts.registry import Registry
from .contracts.tables import FUSERS, HOSTS, PRIORS

if TYPE_CHECKING:
    from .contracts.fusers import Fuser
    from .contracts.later import LazyFuser
    from .contracts.seams import HostAdapter
    from .contracts.specs import PriorSpec

log = logging.getLogger("vega3d")


class PluginManager:
    """Loads plugins and holds the registries that they fill.

    Attributes:
        hosts, priors, fusers: what the plugins registered; the tables given, else tables of its own.
        broken: name of each plugin that failed to load, with its error; the others are loaded all the same.
    """

    def __init__(
        self,
        *,
        load_entry_points: bool = True,
        hosts: Registry[HostAdapter] | None = None,
        priors: Registry[PriorSpec] | None = None,
        fusers: Registry[type[Fuser]] | None = None,
    ) -> None:
        self.hosts = Registry("host") if hosts is None else hosts
        self.priors = Registry("prior") if priors is None else priors
        self.fusers = Registry("fuser") if fusers is None else fusers
        self.broken: dict[str, str] = {}
        for registry in self._registries():
            registry.broken = self.broken
        self.loaded: dict[str, str] = {}
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        # Not before it is needed: `import vega3d` is light.
        from .builtin import PLUGINS

        for name, plugin in PLUGINS.items():
            self.register(plugin, name, source="built in")
        if load_entry_points:
            self.load_entry_points()

    def load_entry_points(self) -> None:
        """Load every installed plugin, by name; one that fails is noted in :attr:`broken`."""
        for entry_point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda e: e.name):
            self._load(entry_point)

    @property
    def hook(self) -> Any:
        """Pluggy's hook caller: ``hook.vega3d_match_host(model=...)``."""
        return self._pluggy.hook

    def register(self, plugin: object, name: str, source: str = "registered in Python") -> None:
        """Add one plugin and let it register what it brings.

        Raises:
            PluginError: a hook has a wrong signature, or a name is taken. Nothing of the plugin stays registered.
        """
        if name in self.loaded:
            raise PluginError(
                f"Plugin {name!r} ({source}) could not be registered: a plugin of that name is already loaded "
                f"({self.loaded[name]})."
            )
        before = [(r, dict(r._things), dict(r._plugins)) for r in self._registries()]
        try:
            self._pluggy.register(plugin, name=name)
            self._pluggy.check_pending()
            self._collect(plugin, name)
        except BaseException as error:
            if self._pluggy.has_plugin(name):
                self._pluggy.unregister(name=name)
            for registry, things, plugins in before:
                registry._things, registry._plugins = things, plugins
            if isinstance(error, PluginError) or not isinstance(error, Exception):
                raise
            raise PluginError(f"Plugin {name!r} ({source}) could not be registered: {error}") from error
        self.loaded[name] = source

    def unregister(self, name: str) -> None:
        """Remove a plugin and all it registered."""
        self._pluggy.unregister(name=name)
        self.loaded.pop(name, None)
        for registry in self._registries():
            for thing in [t for t, owner in registry._plugins.items() if owner == name]:
                registry.remove(thing)

    def _registries(self) -> tuple[Registry[Any], ...]:
        return self.hosts, self.priors, self.fusers

    def _load(self, entry_point: EntryPoint) -> None:
        source = f"entry point {entry_point.value}"
        try:
            self.register(entry_point.load(), entry_point.name, source)
        except (Exception, SystemExit) as error:
            self.broken[entry_point.name] = f"{source}: {type(error).__name__}: {error}"
            log.warning("vega3d plugin %r was not loaded: %s", entry_point.name, self.broken[entry_point.name])

    def _collect(self, plugin: object, name: str) -> None:
        """Call the plugin's own register hooks, and no other plugin's."""

        def add_fuser(fuser: type[Fuser] | LazyFuser, *, name: str | None = None, _plugin: str) -> None:
            self.fusers.add(name or fuser.name, fuser, _plugin)

        callbacks = {
            "vega3d_register_hosts": lambda host: self.hosts.add(host.name, host, name),
            "vega3d_register_priors": lambda spec: self.priors.add(spec.name, spec, name),
            "vega3d_register_fusers": partial(add_fuser, _plugin=name),
        }
        others = [p for p in self._pluggy.get_plugins() if p is not plugin]
        for hook, callback in callbacks.items():
            self._pluggy.subset_hook_caller(hook, others)(register=callback)


_lock = threading.RLock()
_manager: PluginManager | None = None


def plugin_manager() -> PluginManager:
    """The process-wide manager, made at first use. ``VEGA3D_NO_ENTRY_POINTS=1`` leaves installed plugins out."""
    global _manager
    with _lock:
        if _manager is None:
            # Kept before the plugins are loaded, because they may use the library while they are imported.
            _manager = PluginManager(load_entry_points=False, hosts=HOSTS, priors=PRIORS, fusers=FUSERS)
            if os.environ.get("VEGA3D_NO_ENTRY_POINTS") != "1":
                _manager.load_entry_points()
        return _manager


@contextmanager
def registered(plugin: object, name: str) -> Iterator[PluginManager]:
    """Register a plugin for the length of a ``with`` block: for tests and notebooks."""
    manager = plugin_manager()
    manager.register(plugin, name)
    try:
        yield manager
    finally:
        manager.unregister(name)
