"""The contract of a fuser."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .errors import FusionError
from .printable import first_line
from .prompts import PromptReading
from .shares import Listener, Shares, listener, listening, relative_change, share_of_part, share_of_weight


class Fuser(nn.Module):
    """Mixes semantic and generative tokens of one size.

    Subclasses implement :meth:`mix`, and tell there with :meth:`tell_weight` how much of the fused token is generative,
    if it is a weighted mean. Parameter names are those of the released ``FeatureFusionModule``, so released
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
    #: Uses the instruction: the branch then reads it from the host's prompts, as :attr:`reading` says.
    uses_context: ClassVar[bool] = False
    reading: PromptReading = PromptReading()
    #: Released names of a parameter that has another name here: the two branches name one parameter differently.
    aliases: ClassVar[dict[str, str]] = {}

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        if hidden_size < 1:
            raise FusionError(f"Fusion {self.name!r} needs hidden_size >= 1, got {hidden_size}.")
        self.hidden_size = hidden_size

    def forward(self, semantic: Tensor, generative: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Fuse two sets of tokens.

        Args:
            semantic: ``[..., D]``, usually ``[B, L, D]`` or ``[B, h, w, D]``: the host's visual tokens.
            generative: the same shape: the projected features of the prior.
            context: ``[D]`` or ``[B, D]``, the instruction, for fusers with :attr:`uses_context`; ``B`` is the first
                dimension of the tokens. A row of zeros is no instruction.

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
        outer = listener()
        if outer is None:
            return self.mix(semantic, generative, context)
        # A fuser may be made of others, whose shares are not its own.
        with listening(Listener()) as told:
            fused = self.mix(semantic, generative, context)
        outer.found.append(self._shares(semantic, generative, fused, context, told))
        return fused

    def mix(self, semantic: Tensor, generative: Tensor, context: Tensor | None) -> Tensor:
        """Fuse tokens whose shapes are already checked. To be implemented by each method."""
        raise FusionError(f"{type(self).__name__} does not implement mix().")

    def tell_weight(self, weight: Tensor, *, scale: Tensor | float | None = None) -> None:
        """Say, in :meth:`mix`, that the fused token is ``(1 - w) * host + w * generative``: exact shares need no more.

        A fuser that is no weighted mean tells nothing; its shares are then those of the contributions, see
        :class:`~vega3d_plugin.contracts.shares.Shares`.

        Args:
            weight: ``w``, ``[..., 1]``, or ``[..., D]`` with one for each channel.
            scale: the learned scale ``a`` that is part of ``w``, if there is one.
        """
        told = listener()
        if told is not None:
            told.weights.append((weight, scale))

    def tell_gate(self, gate: Tensor) -> None:
        """Hand a raw gate ``[..., n]`` to whoever measures: its mean over the ``n`` values, ``[...]`` in float32."""
        told = listener()
        if told is not None:
            told.gates.append(gate.detach().float().mean(dim=-1))

    def share_limits(self) -> tuple[float, float] | None:
        """Lowest and highest share of the generative token that these parameters allow, whatever the tokens are.

        None where the tokens alone decide.
        """
        return None

    @torch.no_grad()
    def _shares(
        self, semantic: Tensor, generative: Tensor, fused: Tensor, context: Tensor | None, told: Listener
    ) -> Shares:
        change = relative_change(semantic, fused)
        gate = told.gates[-1] if told.gates else None
        if told.weights:
            weight, scale = told.weights[-1]
            # Of one weight for all tokens, too, there is a map.
            share = share_of_weight(weight).mean(dim=-1).expand(change.shape)
            return Shares(share, change, "weights", None if scale is None else float(scale), gate)
        rest = _at_rest(self)
        try:
            host_part = rest.mix(semantic, torch.zeros_like(generative), context)
            whole = rest.mix(semantic, generative, context) if self.training else fused
            share = share_of_part(whole - host_part, host_part)
        except Exception as error:
            reason = f"{self.name!r} fails for generative tokens of zero ({type(error).__name__}: {first_line(error)})"
            return Shares(None, change, "undefined", gate=gate, reason=reason)
        return Shares(share, change, "contributions", gate=gate)

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


def _at_rest(fuser: Fuser) -> Fuser:
    """The same fuser in evaluation, sharing its parameters: no dropout, no random number drawn, nothing switched."""

    def still(module: nn.Module) -> nn.Module:
        twin = copy.copy(module)
        twin.training = False
        twin._modules = {name: None if child is None else still(child) for name, child in module._modules.items()}
        return twin

    return still(fuser)  # type: ignore[return-value]
