"""Prompts that a host was shown, and their instructions as vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts.errors import HostError
from ..contracts.packed_rows import holds_several
from ..contracts.prompts import PromptReading, Prompts, visual_tokens
from ..contracts.seams import ImageSamples


@dataclass(frozen=True)
class Shown:
    """Prompts that a host was shown. Nothing is read of them before the seam asks.

    Attributes:
        host: name of the adapter.
        module: the host or its base model, which knows its embedding of tokens.
        prompts: see there.
        arguments: of the call that showed them; empty where the user told the prompts.
        samples, video_samples: how their pictures belong to them, where that was counted.
    """

    host: str
    module: nn.Module
    prompts: Prompts
    arguments: Mapping[str, Any]
    samples: ImageSamples | None = None
    video_samples: ImageSamples | None = None

    @property
    def rows(self) -> int:
        """Number of prompts."""
        return self.prompts.ids.shape[0]

    def vectors(self, reading: PromptReading) -> Tensor:
        """``[B, D]``: the weighted mean of each instruction's embedded tokens, of length 1; 0 for one without text.

        Raises:
            HostError: prompts that cannot be read.
        """
        prompts = self.prompts.check(self.host)
        _refuse_packed(self.host, self.arguments)
        embed = embedding(self.module, self.host)
        weight = next(embed.parameters())
        visual = visual_tokens(getattr(self.module, "config", None))
        found: list[Tensor] = []
        for row in range(self.rows):
            ids, counts = reading.chosen(prompts, row, visual)
            if not len(ids):
                found.append(torch.zeros_like(weight[0]))
                continue
            embedded: Tensor = embed(ids.to(weight.device))
            counts = counts.to(embedded)
            mean = (embedded * counts[:, None]).sum(dim=0) / counts.sum()
            found.append(F.normalize(mean.float(), dim=0, eps=1e-6).to(embedded.dtype))
        return torch.stack(found)


def embedding(module: nn.Module, host: str) -> nn.Module:
    """The module that embeds the token ids of a host.

    Raises:
        HostError: it has none.
    """
    get: Callable[[], Any] | None = getattr(module, "get_input_embeddings", None)
    found = get() if callable(get) else None
    if isinstance(found, nn.Module):
        return found
    raise HostError(
        f"Host {host!r}: {type(module).__name__} has no get_input_embeddings(), so the instruction cannot be embedded. "
        "Choose a fusion that does not use it, as 'token_gated_residual'."
    )


def _refuse_packed(host: str, arguments: Mapping[str, Any]) -> None:
    """Several samples in one row, one after the other, have one instruction each."""
    if holds_several(arguments):
        raise HostError(
            f"Host {host!r} was given several samples in one row (packing), whose instructions cannot be separated. "
            "Pad them to rows of their own, or choose a fusion that uses no instruction, as 'token_gated_residual'."
        )
