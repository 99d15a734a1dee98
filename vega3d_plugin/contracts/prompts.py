"""What a host is asked: the token ids of its prompts, and which of them make the instruction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import HostError

#: What hosts label tokens that are not to be learned with, which are those of the prompt.
IGNORED = -100
# Names in a config of the tokens that stand for pictures, and of those around them.
_VISUAL = re.compile(r"(image|video|vision|boi|eoi)\w*_token_(id|index)$")


class Prompts(NamedTuple):
    """The prompts of one batch.

    Attributes:
        ids: ``[B, L]``, integers; what stands for a picture is negative or one of :func:`visual_tokens`.
        labels: ``[B, L]``, -100 at the tokens of the prompt, or None where the answers are not there yet.
        mask: ``[B, L]``, 0 at padding, or None for a batch without any.
    """

    ids: Tensor
    labels: Tensor | None = None
    mask: Tensor | None = None

    def check(self, host: str) -> Prompts:
        """These prompts, when their shapes belong together.

        Raises:
            HostError: they do not, or one row holds several samples.
        """
        if self.ids.ndim != 2:
            raise HostError(f"Host {host!r}: input_ids must be [B, L], found {list(self.ids.shape)}.")
        for name, given in (("labels", self.labels), ("attention_mask", self.mask)):
            if given is not None and given.shape != self.ids.shape:
                raise HostError(
                    f"Host {host!r}: the instruction is read from input_ids {list(self.ids.shape)}, which {name} "
                    f"{list(given.shape)} do not fit. Pass {name} [B, L], or tell the prompts: with "
                    "vega3d.instruction(model, input_ids, attention_mask=..., labels=...)."
                )
        return self


@dataclass(frozen=True)
class PromptReading:
    """Which tokens of a prompt make the instruction, and how much each counts, as in the released code.

    It takes the prompt's text after the first picture; the whole text where there is none after it. Template tokens are
    left out, the last ``keep_last`` are kept, and relation tokens from anywhere in it; with those, each token counts
    once, and relation tokens count ``relation_boost`` times. (``llava_arch.py::_build_instruction_context_vectors``,
    which takes a prompt together with its answer where the prompt has no text of its own; here that has no
    instruction.)

    Attributes:
        relation_tokens: ids of words such as "left"; released checkpoints have them in config.json.
        template_tokens: ids of words that all prompts share.
        relation_boost: weight of a relation token, others have 1.
        keep_last: tokens that are kept, 0 for all.
    """

    relation_tokens: tuple[int, ...] = ()
    template_tokens: tuple[int, ...] = ()
    relation_boost: float = 2.0
    keep_last: int = 96

    def chosen(self, prompts: Prompts, row: int, visual: frozenset[int]) -> tuple[Tensor, Tensor]:
        """Token ids ``[n]`` and weights ``[n]`` of one row's instruction; ``n`` is 0 for a row without text."""
        ids = prompts.ids[row]
        text = ids >= 0
        if visual:
            text &= ~torch.isin(ids, torch.tensor(sorted(visual), device=ids.device))
        pictures = (~text).nonzero()
        first = int(pictures[0]) if len(pictures) else -1
        for given in (prompts.mask, None if prompts.labels is None else prompts.labels == IGNORED):
            if given is not None:
                text &= given[row].to(ids.device).bool()
        everything, found = ids[text], ids[first + 1 :][text[first + 1 :]]
        found = found if len(found) else everything
        if self.template_tokens:
            rest = found[~torch.isin(found, self._of(self.template_tokens, found)) | self._related(found)]
            found = rest if len(rest) else everything
        tail = found[-self.keep_last :] if self.keep_last else found
        related = found[self._related(found)]
        if len(related):
            tail = torch.tensor(list(dict.fromkeys([*tail.tolist(), *related.tolist()])), device=found.device)
        return tail, torch.where(self._related(tail), self.relation_boost, 1.0)

    def _related(self, ids: Tensor) -> Tensor:
        if not self.relation_tokens:
            return torch.zeros_like(ids, dtype=torch.bool)
        return torch.isin(ids, self._of(self.relation_tokens, ids))

    def _of(self, tokens: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.tensor(tokens, device=like.device, dtype=like.dtype)


def visual_tokens(config: Any) -> frozenset[int]:
    """Ids that stand for pictures or mark where one begins and ends, from what a host's config calls them."""
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    return frozenset(v for k, v in values.items() if _VISUAL.search(k) and type(v) is int)


__all__ = ["IGNORED", "PromptReading", "Prompts", "visual_tokens"]
