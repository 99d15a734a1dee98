"""The handle of a patched model: what users hold, looked up anew on each call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..contracts.errors import PatchError
from ..contracts.priors import Prior
from ..contracts.seams import CHILD, Seam
from ..contracts.settings import BranchSettings
from .branch import GenerativeBranch, active_branch
from .copies import running_modules
from .history import Episode


@dataclass(frozen=True)
class Handle:
    """What was added to a patched model.

    Attributes:
        host: name of the adapter.
        seam: where the branch sits.
        branch: projector, fuser and prior; with PEFT, the copy of the active adapter, also where PEFT copied a module
            around the branch.
    """

    host: str
    seam: Seam
    branch: GenerativeBranch

    @property
    def settings(self) -> BranchSettings:
        """All settings of the branch."""
        return self.branch.settings

    @property
    def prior(self) -> Prior:
        """The frozen prior."""
        return self.branch.prior

    def parameters(self) -> Iterator[nn.Parameter]:
        """What trains: projector and fuser."""
        return self.branch.parameters()

    def parameter_groups(self, **options: Any) -> list[dict[str, Any]]:
        """One optimiser group with the branch's parameters: ``handle.parameter_groups(lr=1e-4)``."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], **options}]

    def freeze(self) -> None:
        """Stop training the branch, on purpose."""
        self.branch.trainable = False
        self.branch.requires_grad_(False)

    def unfreeze(self) -> None:
        """Train the branch."""
        self.branch.trainable = True
        self.branch.requires_grad_(True)

    def reset(self) -> None:
        """Forget earlier observations (``history``): call it when an episode starts.

        Those of the calling thread, or of the :meth:`episode` whose block is open.
        """
        self.branch.history.reset()

    def episode(self) -> Episode:
        """A new episode (``history``): calls inside ``with episode:`` belong to it, whichever thread makes them.

        Without one, the calls of each thread are an episode of their own.
        """
        return Episode(self.branch.history)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        s = self.settings
        return (
            f"Handle(host={self.host!r}, seam={self.seam.path!r}, prior={s.prior.name!r}, fusion={s.fusion.name!r}, "
            f"projector={s.projector.name!r}, parameters={count:,})"
        )


def is_patched(model: nn.Module) -> bool:
    """True when the model has a branch; wrapped models (PEFT, DDP) are looked through."""
    return next(_branches(model), None) is not None


def get_handle(model: nn.Module) -> Handle:
    """The handle of a patched model, looked up anew on each call, so copies have their own.

    Raises:
        PatchError: the model is not patched.
    """
    branch = next(_branches(model), None)
    if branch is None:
        raise PatchError(f"{type(model).__name__} is not patched. Call vega3d.patch(model) first.")
    return Handle(branch.host, branch.seam, branch)


def _branches(model: nn.Module) -> Iterator[GenerativeBranch]:
    for module in running_modules(model):
        child = module._modules.get(CHILD)
        if child is not None and is_branch(child):
            yield active_branch(child)


def is_branch(child: nn.Module) -> bool:
    """True for a branch, and for PEFT's wrapper of one."""
    return isinstance(child, GenerativeBranch) or isinstance(getattr(child, "original_module", None), GenerativeBranch)
