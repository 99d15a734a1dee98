"""Linear layers for the branch, under the released parameter names but invisible to PEFT's searches.

PEFT finds linears by class (``all-linear``: ``nn.Linear``) and by the last part of a module's name (``"0"``,
``"out_proj"``). The released parameters are called ``gate_projection.0.weight`` or ``cross_attention.out_proj.bias``,
and hosts have modules called ``0`` too (Qwen-VL's ``merger.mlp.0``). So the names are kept, dots included, but they
belong to one module: there is no submodule ``0`` for a search to hit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Dotted(nn.Module):
    """A module whose parameters may have dots in their names, which ``nn.Module`` refuses."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, also under a name with dots."""
        if "." in name:
            self._parameters[name] = param
        else:
            super().register_parameter(name, param)

    def __getattr__(self, name: str) -> Any:
        # Tools that walk a parameter's dotted path (distributed checkpoints, accelerate) get a view of the layer.
        if any(key.startswith(f"{name}.") for key in self.__dict__.get("_parameters", ())):
            return _LayerView(self._parameters, name)
        return super().__getattr__(name)

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        unexpected: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected, error_msgs)
        # nn.Module takes the part before a dot for a submodule, and calls what it doesn't find unexpected.
        unexpected_keys.extend(key for key in unexpected if key[len(prefix) :] not in self._parameters)


class Linears(_Dotted):
    """Several linear layers in one module, with parameters ``<layer>.weight [out, in]`` and ``<layer>.bias [out]``.

    Args:
        shapes: layer name to ``(in_features, out_features)``.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (fan_in, fan_out) in shapes.items():
            self.register_parameter(f"{name}.weight", nn.Parameter(torch.empty(fan_out, fan_in)))
            self.register_parameter(f"{name}.bias", nn.Parameter(torch.empty(fan_out)))
            # The initialisation of nn.Linear.
            nn.init.kaiming_uniform_(self.parameter(f"{name}.weight"), a=math.sqrt(5))
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(self.parameter(f"{name}.bias"), -bound, bound)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Apply layer ``name`` to ``[..., in]``."""
        return F.linear(x, self.parameter(f"{name}.weight"), self.parameter(f"{name}.bias"))

    def parameter(self, name: str) -> Tensor:
        """The parameter of that name, such as ``0.weight``."""
        return self._parameters[name]  # type: ignore[return-value]

    @torch.no_grad()
    def zero(self, name: str) -> None:
        """Set the weight and bias of layer ``name`` to zero, so that its output is exactly zero."""
        self.parameter(f"{name}.weight").zero_()
        self.parameter(f"{name}.bias").zero_()

    def extra_repr(self) -> str:
        """Layer names with their sizes."""
        weights = [(key[: -len(".weight")], p) for key, p in self._parameters.items() if key.endswith(".weight")]
        return ", ".join(f"{n}: {p.shape[1]} -> {p.shape[0]}" for n, p in weights if p is not None and p.ndim == 2)


class Linear(nn.Module):
    """A linear layer with the parameters and the initialisation of ``nn.Linear``, which it is not."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        source = nn.Linear(fan_in, fan_out)
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return F.linear(x, self.weight, self.bias)


class MLP(Linears):
    """Two linear layers with an exact GELU between, named as in the ``nn.Sequential`` of the released code.

    Args:
        sizes: input, hidden and output features.
    """

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__({"0": (sizes[0], sizes[1]), "2": (sizes[1], sizes[2])})

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return self.linear("2", F.gelu(self.linear("0", x)))

    def zero_output(self) -> None:
        """Make the output exactly zero, while gradients still reach the last layer."""
        self.zero("2")


class _LayerView(_Dotted):
    """One layer of :class:`Linears` as a module of its own; reads and writes go to the owner."""

    def __init__(self, owner: MutableMapping[str, nn.Parameter | None], name: str) -> None:
        super().__init__()
        self.__dict__["_parameters"] = _Slice(owner, f"{name}.")


class _Slice(MutableMapping[str, "nn.Parameter | None"]):
    def __init__(self, owner: MutableMapping[str, nn.Parameter | None], prefix: str) -> None:
        self.owner, self.prefix = owner, prefix

    def __getitem__(self, key: str) -> nn.Parameter | None:
        return self.owner[self.prefix + key]

    def __setitem__(self, key: str, value: nn.Parameter | None) -> None:
        self.owner[self.prefix + key] = value

    def __delitem__(self, key: str) -> None:
        del self.owner[self.prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key[len(self.prefix) :] for key in self.owner if key.startswith(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
