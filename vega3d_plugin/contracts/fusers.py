"""The contract of a fuser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .errors import FusionError

GateSink = list[Tensor]

# Of the call that runs in this thread: a fuser may be called from several at once.
_SINK: ContextVar[GateSink | None] = ContextVar("vega3d_gate_sink", default=None)


@contextmanager
def collecting_gates(sink: GateSink) -> Iterator[None]:
    """Within it, fusers that are called in this thread append their gates, see :meth:`Fuser.tell_gate`."""
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


class Fuser(nn.Module):
    """Mixes semantic and generative tokens of one size.

    Subclasses implement :meth:`mix`. Parameter names are those of the released ``FeatureFusionModule``, so released
    weights load by name; scalars that learn have shape ``(1,)`` (FSDP2 rejects 0-d parameters), and released 0-d
    scalars are reshaped on load.

    Args:
        hidden_size: the size ``D`` of both kinds of token.
    """

    #: Registered name, the released code's ``fusion_method``.
    name: ClassVar[str] = ""
    #: How ``init="identity"`` is reached: the fuser starts as identity by itself (``own``), it does once the projector
    #: gives zeros (``zero_generative``), or it cannot, because it replaces or normalises the semantic tokens (None).
    identity: ClassVar[Literal["own", "zero_generative"] | None] = None
    #: Released names of a parameter that has another name here: the two branches name one parameter differently.
    aliases: ClassVar[dict[str, str]] = {}

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        if hidden_size < 1:
            raise FusionError(f"Fusion {self.name!r} needs hidden_size >= 1, got {hidden_size}.")
        self.hidden_size = hidden_size
        #: Receives the gates of every call, whoever makes it; for trying a fuser by itself.
        self._gate_sink: GateSink | None = None

    def forward(self, semantic: Tensor, generative: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Fuse two sets of tokens.

        Args:
            semantic: ``[..., D]``, usually ``[B, L, D]`` or ``[B, h, w, D]``: the host's visual tokens.
            generative: the same shape: the projected features of the prior.
            context: ``[D]`` or ``[B, D]``, the instruction; used by ``context_gated`` only.

        Returns:
            The fused tokens, in the shape of ``semantic``.

        Raises:
            FusionError: the shapes differ from each other or from ``hidden_size``.
        """
        if semantic.shape != generative.shape or semantic.shape[-1] != self.hidden_size:
            raise FusionError(
                f"Fusion {self.name!r} expects semantic and generative tokens of one shape [..., {self.hidden_size}], "
                f"got {list(semantic.shape)} and {list(generative.shape)}."
            )
        return self.mix(semantic, generative, context)

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """Fuse tokens whose shapes are already checked. To be implemented by each method."""
        raise FusionError(f"{type(self).__name__} does not implement mix().")

    def tell_gate(self, gate: Tensor) -> None:
        """Hand a gate ``[..., n]`` to whoever records gates: its mean over the ``n`` values, ``[...]`` in float32."""
        for sink in (self._gate_sink, _SINK.get()):
            if sink is not None:
                sink.append(gate.detach().float().mean(dim=-1))

    def make_identity(self) -> None:
        """Set the parameters so that the output equals ``semantic`` (with ``zero_generative``: for zero features)."""

    def idle_parameters(self, context: Tensor | None) -> Iterable[nn.Parameter]:
        """Parameters that the next forward will not touch; DDP needs them in the graph all the same."""
        return ()

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        for released, ours in self.aliases.items():
            if prefix + released in state_dict:
                state_dict[prefix + ours] = state_dict.pop(prefix + released)
        for name, parameter in self._parameters.items():
            value = state_dict.get(prefix + name)
            if parameter is not None and parameter.shape == (1,) and value is not None and value.ndim == 0:
                state_dict[prefix + name] = value.reshape(1)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def scalar(value: float) -> nn.Parameter:
    """A learnable scalar of shape ``(1,)``."""
    return nn.Parameter(torch.full((1,), float(value)))
