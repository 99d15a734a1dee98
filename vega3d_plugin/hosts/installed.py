"""What is installed: versions, plugins, and which host classes the installed transformers has. Runs no model."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

from ..contracts.registry import Registry
from ..contracts.seams import seen_with
from ..plugins import plugin_manager
from ..storage.versions import DISTRIBUTION, package_version

PACKAGES = ("torch", "transformers", "diffusers", "peft", "accelerate", "huggingface_hub")


@dataclass(frozen=True)
class Package:
    """An installed package, its version read without importing it.

    Attributes:
        name, version: None when it is not installed.
        needs: what this library asks for, such as ``>=4.50``.
        fits: False when the version is missing or not what is needed.
    """

    name: str
    version: str | None
    needs: str
    fits: bool


@dataclass(frozen=True)
class PluginState:
    """A plugin, loaded or broken.

    Attributes:
        name, source: its name and where it comes from.
        registered: kind to names, of what it registered.
        error: why it could not be loaded, empty when it was.
    """

    name: str
    source: str
    registered: dict[str, list[str]]
    error: str = ""


@dataclass(frozen=True)
class HostClasses:
    """The model classes that an adapter knows.

    Attributes:
        host: name of the adapter.
        present: classes that the installed transformers has.
        absent: classes it lacks; they may come with another version or from elsewhere.
        seen_with: versions with which the host was seen to work; empty when its adapter does not say.
    """

    host: str
    present: list[str]
    absent: list[str]
    seen_with: str


def platform_versions() -> dict[str, str]:
    """Python, the system, and what the tensors would run on."""
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cuda = f"{torch.version.cuda}, {', '.join(devices)}" if devices else "not available, models run on the CPU"
    return {"python": platform.python_version(), "system": platform.platform(), "cuda": cuda}


def package_versions(names: Iterable[str] = PACKAGES) -> list[Package]:
    """This library and what it stands on."""
    needs = _requirements()
    found = [Package(DISTRIBUTION, package_version(DISTRIBUTION), "", package_version(DISTRIBUTION) is not None)]
    for name in names:
        installed, needed = package_version(name), needs.get(name, "")
        found.append(Package(name, installed, needed, installed is not None and _fits(installed, needed)))
    return found


def plugin_states() -> list[PluginState]:
    """Every plugin, by name, broken ones included."""
    manager = plugin_manager()
    kinds: dict[str, Registry[Any]] = {"hosts": manager.hosts, "priors": manager.priors, "fusers": manager.fusers}
    states = []
    for name, source in manager.loaded.items():
        registered = {
            kind: [thing for thing in registry.names() if registry.plugin_of(thing) == name]
            for kind, registry in kinds.items()
        }
        states.append(PluginState(name, source, {kind: names for kind, names in registered.items() if names}))
    for name, error in manager.broken.items():
        source, _, reason = error.partition(": ")
        states.append(PluginState(name, source, {}, reason or error))
    return sorted(states, key=lambda state: state.name)


def host_classes() -> list[HostClasses]:
    """For each adapter, which of its classes the installed transformers has.

    Raises:
        ImportError: transformers cannot be imported.
    """
    import transformers

    # The names alone: getattr would import each model's code.
    known = set(dir(transformers))
    return [
        HostClasses(
            adapter.name,
            [c for c in adapter.classes if c in known],
            [c for c in adapter.classes if c not in known],
            seen_with(adapter),
        )
        for adapter in plugin_manager().hosts
    ]


def _requirements() -> dict[str, str]:
    from packaging.requirements import Requirement

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    # Requirements with a marker belong to extras.
    parsed = [Requirement(line) for line in lines]
    return {r.name.replace("-", "_"): str(r.specifier) for r in parsed if r.marker is None}


def _fits(installed: str, needed: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(needed).contains(installed, prereleases=True)
