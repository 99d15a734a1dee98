"""What is registered by the name of its place, and imported when it is first needed: listing it costs no import."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Later:
    """A thing in a module that may be slow to import.

    Attributes:
        place: ``package.module:name``, or ``package.module:name.attribute``.
    """

    place: str

    def get(self) -> Any:
        """The thing itself."""
        module, _, names = self.place.partition(":")
        return attrgetter(names)(importlib.import_module(module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.get()(*args, **kwargs)


@dataclass(frozen=True)
class LazyFuser(Later):
    """A fuser class, registered in its place.

    Attributes:
        name: as the class has it.
        summary: one line for ``vega3d ls fusers``.
        identity: whether it can start as if it were not there.
        options: of the class, with their defaults.
    """

    name: str
    summary: str
    identity: bool
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LazyHost(Later):
    """A host adapter, registered in the place of what makes it (a class). The other members are as of the adapter.

    Attributes:
        name: what users write.
        summary: one line for ``vega3d ls hosts``.
        classes: class names it was run with.
        seen_with: the versions with which the host was seen to work.
    """

    name: str
    summary: str
    classes: tuple[str, ...]
    seen_with: str = ""

    def get(self) -> Any:
        """The adapter."""
        return super().get()()
