"""What a reduction is, and which ones are on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...contracts.errors import PriorError, near_misses


@dataclass(frozen=True)
class Reduction:
    """One exact way to do less.

    Attributes:
        name: as in the setting ``fast``.
        why: why it is exact and where it holds, one or two sentences.
        apply: puts it in place in a prior whose models are on their device and in their dtype; called again after
            every move, so it must do no harm the second time.
        release: lets go of what it holds on the device, before the models leave it; ``apply`` comes again.
    """

    name: str
    why: str
    apply: Callable[[Any], None]
    release: Callable[[Any], None] = lambda prior: None


def chosen(reductions: Sequence[Reduction], fast: bool | Sequence[str], prior: str) -> list[Reduction]:
    """The reductions that the setting ``fast`` names: all, none, or some.

    Raises:
        PriorError: a name that this prior has not; the message lists those it has.
    """
    if isinstance(fast, bool):
        return list(reductions) if fast else []
    names = [reduction.name for reduction in reductions]
    unknown = [name for name in fast if name not in names]
    if unknown:
        raise PriorError(
            f"Prior {prior!r} has no reduction {unknown[0]!r}.{near_misses(unknown[0], names)} "
            f"It has: {', '.join(names) or 'none'}. `fast` is true, false or a list of these."
        )
    return [reduction for reduction in reductions if reduction.name in fast]


def replace(model: nn.Module, kind: str | tuple[str, ...], make: Callable[[Any], nn.Module]) -> int:
    """Put ``make(module)`` in the place of every submodule whose class is named ``kind``; return how many."""
    kinds = (kind,) if isinstance(kind, str) else kind
    found = list(_children(model, kinds))
    for parent, name, child in found:
        parent._modules[name] = make(child)
    return len(found)


def _children(model: nn.Module, kinds: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child).__name__ in kinds:
                yield parent, name, child
