"""The user's own function or module."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from pydantic import Field, field_validator, model_validator

from ...contracts.settings import Positive, Settings
from ...contracts.specs import PriorSpec
from .family import later

WRAP = "Wrap it: vega3d.patch(model, prior=vega3d.CallablePrior(function, feature_dim))"


#: What may be imported.
_trusted: set[str] = set()


def is_trusted(target: str) -> bool:
    """Whether the user has given his word for a target."""
    return target in _trusted


def trust(target: str) -> None:
    """Give one's word that ``package.module:name`` may be imported and called, for this process."""
    _trusted.add(target)


class CallableOptions(Settings):
    """Settings of ``callable`` alone.

    Attributes:
        function: in Python, the function itself instead of ``target``. It must be importable.
        target: import string ``package.module:name`` of a function or ``nn.Module``, or of a class whose constructor
            takes no arguments and makes one.
        feature_dim: channels of its maps. Default: the library calls it with two grey frames of ``size`` and looks.
        version: part of the fingerprint. Change it when you change the code, which the fingerprint does not contain.
        trust: true if you allow the target to be imported. Settings and saved branches do not keep it.
    """

    function: Any = Field(default=None, exclude=True)
    target: str | None = None
    feature_dim: Positive | None = None
    version: str = ""
    trust: bool = Field(default=False, strict=True, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("function") is None:
            return values
        values = dict(values)
        function = values.pop("function")
        if values.get("target") is not None:
            raise ValueError("give either function or target, not both.")
        target = import_string(function)
        if target is None:
            raise ValueError(f"{describe(function)} cannot be imported by a name, so it cannot be a setting. {WRAP}.")
        return {**values, "target": target, "trust": True}

    @field_validator("target")
    @classmethod
    def _is_import_string(cls, target: str | None) -> str | None:
        parts = [] if target is None else target.split(":")
        if target is not None and (len(parts) != 2 or not all(p.isidentifier() for p in ".".join(parts).split("."))):
            raise ValueError(f"expected 'package.module:name', found {target!r}")
        return target

    @model_validator(mode="after")
    def _remember(self) -> CallableOptions:
        if self.trust and self.target is not None:
            trust(self.target)
        return self


def import_string(function: Any) -> str | None:
    """``module:qualified.name`` where that names this very object, else None."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or inspect.ismethod(function):
        return None
    try:
        found: Any = sys.modules[module]
        for part in name.split("."):
            found = getattr(found, part)
    except (KeyError, AttributeError):
        return None
    return f"{module}:{name}" if found is function else None


def describe(thing: Any) -> str:
    """What to call a function or module in a message."""
    from torch import nn

    if isinstance(thing, nn.Module) or not callable(thing):
        return f"a {type(thing).__name__}"
    return f"{getattr(thing, '__module__', '?')}:{getattr(thing, '__qualname__', type(thing).__name__)}"


SPECS = (
    PriorSpec(
        "callable",
        later("yours.function:load_callable"),
        "your own function or module: frames [T, 3, H, W] in [0, 1] to features [T', C, h, w]",
        # It is called with the whole clip.
        contexts=("views",),
        defaults={"context": "views"},
        options=CallableOptions,
        licence="yours",
        kind=later("yours.function:CallablePrior"),
    ),
)
