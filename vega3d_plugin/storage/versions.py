"""Versions of installed packages, read without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "vega3d-plugin"


def library_version() -> str:
    """Version of the installed package, or ``0+unknown`` when run from a source tree that is not installed."""
    return package_version(DISTRIBUTION) or "0+unknown"


def package_version(name: str) -> str | None:
    """Version of an installed package, read without importing it; None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
