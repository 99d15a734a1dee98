"""The tables of names: hosts, priors, fusers. A table that is asked before it is full has the plugins loaded first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from .errors import PluginError, UnknownNameError
from .later import Later

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things, each with the plugin that registered it.

    Args:
        kind: what the things are, for messages (``fuser``, ``prior``, ``host``).
        fill: called before each answer, so that a table may be filled when it is first asked.

    Attributes:
        broken: name of each plugin that failed to load, with its error: what is not in the table may be in there.
    """

    def __init__(self, kind: str, fill: Callable[[], object] | None = None) -> None:
        self.kind = kind
        self.broken: Mapping[str, str] = {}
        self._fill = fill or (lambda: None)
        self._things: dict[str, Any] = {}
        self._imported: dict[str, Any] = {}
        self._plugins: dict[str, str] = {}

    def add(self, name: str, thing: T | Later, plugin: str) -> None:
        """Add a thing, or the place where it is.

        Raises:
            PluginError: the name is empty, or taken by another plugin.
        """
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
        found = self.registered(name)
        if isinstance(found, Later):
            found = self._imported.setdefault(name, found.get())
        return found  # type: ignore[no-any-return]

    def registered(self, name: str) -> Any:
        """What a plugin registered under that name: the thing, or a :class:`Later` that says what it is.

        Raises as :meth:`get`.
        """
        self._fill()
        try:
            return self._things[name]
        except (KeyError, TypeError):
            raise self.unknown(name) from None

    def unknown(self, name: object) -> UnknownNameError:
        """The error for a name that is not here: it names close matches, and plugins that failed to load."""
        return UnknownNameError(self.kind, name, self.names(), broken=self.broken)

    def remove(self, name: str) -> None:
        """Forget one thing."""
        del self._things[name], self._plugins[name]
        self._imported.pop(name, None)

    def names(self) -> list[str]:
        """All names, sorted."""
        self._fill()
        return sorted(self._things)

    def plugin_of(self, name: str) -> str:
        """The plugin that registered ``name``."""
        self._fill()
        return self._plugins[name]

    def __contains__(self, name: object) -> bool:
        self._fill()
        return name in self._things

    def __iter__(self) -> Iterator[T]:
        return iter([self.get(name) for name in self.names()])


_loaders: list[Callable[[], object]] = []


def load_with(loader: Callable[[], object]) -> None:
    """Say who loads the plugins: called whenever a table is asked, so it must be quick once they are loaded."""
    _loaders[:] = [loader]


def _load() -> None:
    for loader in _loaders:
        loader()


_tables: dict[str, Registry[Any]] = {kind: Registry(kind, _load) for kind in ("host", "prior", "fuser")}


def table(kind: str) -> Registry[Any]:
    """What the plugins of this process registered: the table of ``host``, ``prior`` or ``fuser``.

    :mod:`~vega3d_plugin.contracts.tables` has the same tables with the types of what is in them.
    """
    return _tables[kind]
