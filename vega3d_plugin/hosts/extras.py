"""Packages that only some commands need: which are missing, and what installs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

from ..contracts.errors import HostError
from ..contracts.printable import first_line
from ..storage.versions import DISTRIBUTION

#: What each extra of this library is for; `doctor` says which of it works here.
PURPOSES = {
    "qwen": "demo; train, extract, answer, ablate, compare and look with Qwen-VL and other hosts that take videos",
    "train": "train with train.trainer: trl",
    "remote": "stores at URLs: extract, train and store with s3://, gs:// and others",
    "ray": "extract --ray",
    "lerobot": "data lerobot with data sets of version 3.0",
}


@dataclass(frozen=True)
class Extra:
    """Packages that some commands need.

    Attributes:
        name: as pip takes it in brackets.
        purpose: the commands.
        missing: packages of it that are not installed.
    """

    name: str
    purpose: str
    missing: tuple[str, ...]

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install '{DISTRIBUTION}[{self.name}]'"


def extras() -> list[Extra]:
    """Every extra that users may want."""
    packages = _packages()
    return [
        Extra(name, purpose, tuple(package for package in packages.get(name, ()) if not _is_there(package)))
        for name, purpose in PURPOSES.items()
    ]


@contextmanager
def installed_first(what: str) -> Iterator[None]:
    """Tell an import that fails for want of a package as what has to be installed first.

    Args:
        what: needs the package.

    Raises:
        HostError: in place of the ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise HostError(needed_first(what, error)) from error


def needed_first(what: str, error: BaseException) -> str:
    """What has to be installed, where an error names a missing package of an extra; else the error's first line."""
    said = _plain(str(error))
    for extra in extras():
        lacks = [package for package in extra.missing if _plain(package) in said]
        if lacks:
            return f"{what} needs {' and '.join(lacks)}, which is not installed. Install it first: {extra.install}"
    return f"{what} cannot be imported: {type(error).__name__}: {first_line(error)}"


def _packages() -> dict[str, list[str]]:
    """The packages of each extra, as this library's metadata lists them."""
    from packaging.requirements import Requirement

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for parsed in map(Requirement, lines):
        for name in re.findall(r"extra\s*==\s*[\"']([\w-]+)[\"']", str(parsed.marker or "")):
            found.setdefault(name, []).append(parsed.name)
    return found


def _is_there(package: str) -> bool:
    return find_spec(package.replace("-", "_")) is not None


def _plain(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")
