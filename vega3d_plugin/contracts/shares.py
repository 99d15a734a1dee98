"""What a fusion does to each token: the effective share of each source, and how far the host's token moves.

The one definition, used by logs, pictures, reports and cards alike. A raw gate is no share: the default fuser,
``sem + a * (g * sem + (1 - g) * gen - sem)``, starts at ``a = 0`` and is then the host alone, whatever ``g`` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

#: How the shares of a fuser were found, see :class:`Shares`.
Measure = Literal["weights", "contributions", "undefined"]


@dataclass(frozen=True, eq=False)
class Shares:
    """What one fusion did to its tokens; maps are float32 ``[...]``, the tokens' shape without ``D``, no gradient.

    ``measure`` says what the shares are:

    - ``weights``: the fused token is ``(1 - w) * host + w * generative``, of the raw tokens or of the LayerNormed ones.
      The share of the generative token is ``|w| / (|w| + |1 - w|)``, which is ``w`` itself wherever ``w`` lies in
      0..1; with a weight per channel, the mean over channels.
    - ``contributions``: the fuser is no such mean. The host's part is what the fuser gives for generative tokens of
      zero, at rest (without dropout); the generative part is what the generative tokens add to that. The share of the
      generative token is ``|generative part| / (|generative part| + |host's part|)``, with Euclidean lengths.
    - ``undefined``: neither could be found; ``reason`` says why.

    Attributes:
        generative: effective share of the generative token in the fused one, in 0..1; None where it is undefined.
        change: ``|fused - host| / |host|`` of each token, 0 for a token that passes unchanged. A host's token of
            length zero that changes counts as 1.
        measure: see above.
        scale: the learned scale ``a`` of the whole branch, where the fuser has one.
        gate: the raw gate in (0, 1), where the fuser has one, the mean over channels for a gate per channel. A
            detail: how far it acts depends on the scale.
        reason: why the shares are undefined.
    """

    generative: Tensor | None
    change: Tensor
    measure: Measure
    scale: float | None = None
    gate: Tensor | None = None
    reason: str = ""

    @property
    def host(self) -> Tensor | None:
        """Effective share of the host's token: ``1 - generative``."""
        return None if self.generative is None else 1 - self.generative

    def split(self, rows: Sequence[int]) -> list[Shares]:
        """One for each clip of a batch.

        Args:
            rows: how many entries of the first dimension belong to each.
        """
        whole = (self.generative, self.change, self.gate)
        parts = zip(*([None] * len(rows) if m is None else m.split(list(rows)) for m in whole), strict=True)
        return [Shares(g, c, self.measure, self.scale, gate, self.reason) for g, c, gate in parts]

    def __str__(self) -> str:
        """``host 0.993, generative 0.007 (a = 0.0098), relative change 0.012``: means over the tokens."""
        scale = "" if self.scale is None else f" (a = {self.scale:.4g})"
        if self.generative is None:
            shares = f"share not defined: {self.reason}"
        else:
            generative = float(self.generative.mean())
            shares = f"host {1 - generative:.4g}, generative {generative:.4g}"
        return f"{shares}{scale}, relative change {float(self.change.mean()):.4g}"


@dataclass(eq=False)
class Listener:
    """What a fusion that is being measured hands over.

    Attributes:
        found: the shares of each fusion that has ended.
        weights: told by the fuser that runs, with its scale.
        gates: told by it.
    """

    found: list[Shares] = field(default_factory=list)
    weights: list[tuple[Tensor, Tensor | float | None]] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)


# Of the call that runs in this thread: a fuser may be called from several at once.
_LISTENER: ContextVar[Listener | None] = ContextVar("vega3d_share_listener", default=None)


def listener() -> Listener | None:
    """Who measures in this thread, if anybody does."""
    return _LISTENER.get()


@contextmanager
def listening(to: Listener) -> Iterator[Listener]:
    """Within it, fusers that are called in this thread hand what they do to ``to``."""
    token = _LISTENER.set(to)
    try:
        yield to
    finally:
        _LISTENER.reset(token)


@contextmanager
def measured_shares() -> Iterator[list[Shares]]:
    """Measure every fuser that is called in this thread: ``with measured_shares() as found: fuser(sem, gen)``.

    Yields:
        A list that receives the :class:`Shares` of each call.
    """
    with listening(Listener()) as here:
        yield here.found


def share_of_weight(weight: Tensor) -> Tensor:
    """``|w| / (|w| + |1 - w|)`` in float32: ``w`` itself in 0..1."""
    weight = weight.detach().float()
    return weight.abs() / (weight.abs() + (1 - weight).abs())


def relative_change(host: Tensor, fused: Tensor) -> Tensor:
    """``|fused - host| / |host|`` of each token, ``[..., D]`` to ``[...]`` in float32; see :class:`Shares`."""
    host, moved = host.detach().float(), fused.detach().float() - host.detach().float()
    length, distance = host.norm(dim=-1), moved.norm(dim=-1)
    from_nothing = length == 0
    change: Tensor = (distance / length.masked_fill(from_nothing, 1)).where(~from_nothing, distance.sign())
    return change


def share_of_part(part: Tensor, rest: Tensor) -> Tensor:
    """``|part| / (|part| + |rest|)`` of each token, ``[..., D]`` to ``[...]`` in float32; 0 where both are zero."""
    length, other = part.float().norm(dim=-1), rest.float().norm(dim=-1)
    total = length + other
    share: Tensor = length / total.masked_fill(total == 0, 1)
    return share
