"""Functions of other libraries, wrapped for a while: each is listed, and each is put back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Given the original as a plain function, and its arguments; does the work and calls it.
Around = Callable[..., Any]


@dataclass(frozen=True)
class Wrap:
    """One wrapped attribute.

    Attributes:
        owner, attribute: where it is.
        why: what for, one line.
        original, replacement: as they lie in the owner's dictionary.
    """

    owner: Any
    attribute: str
    why: str
    original: Any
    replacement: Any

    @property
    def name(self) -> str:
        """Dotted name, as in ``peft.PeftModel.save_pretrained``."""
        module = getattr(self.owner, "__module__", None)
        own = getattr(self.owner, "__qualname__", None) or self.owner.__name__
        return ".".join(part for part in (module and module.partition(".")[0], own, self.attribute) if part)

    @property
    def in_place(self) -> bool:
        """True while the owner has the replacement."""
        return vars(self.owner).get(self.attribute) is self.replacement


class Wraps:
    """A stack of wrapped attributes.

    A wrapper works only while the stack is open: a script that has kept one, or put its own function over it, is left
    with one that passes everything on.
    """

    def __init__(self) -> None:
        self.open = True
        self.wraps: list[Wrap] = []

    def add(self, owner: Any, attribute: str, around: Around, why: str) -> None:
        """Wrap ``owner.attribute``, a function, method or classmethod that ``owner`` itself defines.

        Args:
            owner: a class or a module.
            attribute: its name there.
            around: called as ``around(original, *args, **kwargs)``; ``self`` or ``cls`` is the first of ``args``.
            why: for ``--explain``.
        """
        raw = vars(owner)[attribute]
        function = raw.__func__ if isinstance(raw, classmethod) else raw

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.open:
                return function(*args, **kwargs)
            return around(function, *args, **kwargs)

        replacement = classmethod(wrapper) if isinstance(raw, classmethod) else wrapper
        setattr(owner, attribute, replacement)
        self.wraps.append(Wrap(owner, attribute, why, raw, replacement))

    def undo(self) -> list[Wrap]:
        """Put everything back, the last one first.

        Returns:
            Those that something else has been put over since; that is left as it is.
        """
        self.open = False
        covered = []
        for wrap in reversed(self.wraps):
            if wrap.in_place:
                setattr(wrap.owner, wrap.attribute, wrap.original)
            else:
                covered.append(wrap)
        self.wraps.clear()
        return covered
