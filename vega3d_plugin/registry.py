"""A named collection that answers unknown names with near misses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from .errors import PluginError, UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things, each with the plugin that registered it.

    Args:
        kind: what the things are, for messages (``fuser``, ``prior``, ``host``).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}
        self._plugins: dict[str, str] = {}

    def add(self, name: str, thing: T, plugin: str) -> None:
        """Add a thing. Raises :class:`PluginError` when the name is empty or taken by another plugin."""
        if not name:
            raise PluginError(f"Plugin {plugin!r} registered a {self.kind} without a name: {thing!r}.")
        if name in self._things and (self._things[name] is not thing or self._plugins[name] != plugin):
            raise PluginError(
                f"Plugin {plugin!r} registers the {self.kind} {name!r}, which plugin {self._plugins[name]!r} already "
                "registered. Rename one of them."
            )
        self._things[name] = thing
        self._plugins[name] = plugin

    def get(self, name: str) -> T:
        """The thing of that name. Raises :class:`UnknownNameError` naming close matches."""
        try:
            return self._things[name]
        except (KeyError, TypeError):
            raise UnknownNameError(self.kind, name, self._things) from None

    def remove(self, name: str) -> None:
        """Forget one thing."""
        del self._things[name], self._plugins[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._things)

    def plugin_of(self, name: str) -> str:
        """The plugin that registered ``name``."""
        return self._plugins[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[T]:
        return iter([self._things[name] for name in self.names()])
