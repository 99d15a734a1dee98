"""The instruction of each prompt as one vector, for fusers that use it; found while a call of the host runs.

A host shows its prompts where its forward, ``generate`` or another method of it is called, and its pictures where the
seam is. What was shown first is noted, in this thread alone, and embedded when the seam asks for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts.errors import HostError
from ..contracts.prompts import PromptReading, Prompts
from .blocks import block, open_blocks
from .calls import BranchKey
from .handle import get_handle, is_patched
from .shown import Shown


@contextmanager
def instruction(
    model: nn.Module, input_ids: Tensor, *, attention_mask: Tensor | None = None, labels: Tensor | None = None
) -> Iterator[None]:
    """Tell the prompts where a call does not: ``with vega3d.instruction(model, input_ids): model(inputs_embeds=...)``.

    For fusers that use the instruction (``context_gated``). A call that is given ``input_ids`` needs no such block; in
    one, the block's prompts are used. It is for calls in this thread.

    Args:
        model: patched.
        input_ids: ``[B, L]``; one row is used for all rows of the call.
        attention_mask: ``[B, L]``, 0 at padding.
        labels: ``[B, L]``, other than -100 at the answers, which are left out.

    Raises:
        PatchError: the model is not patched.
        HostError: the shapes do not belong together.
    """
    handle = get_handle(model)
    prompts = Prompts(input_ids, labels, attention_mask).check(handle.host)
    # Looked for below wrappers such as DDP.
    host = next((module for module in model.modules() if hasattr(module, "get_input_embeddings")), model)
    shown = Shown(handle.host, host, prompts, {})
    with block(handle.branch.key, "told", value=shown):
        yield


def answered(model: nn.Module, ids: Tensor, labels: Tensor) -> AbstractContextManager[None]:
    """For calls whose ids hold the answer and which are given no labels: the answer is no instruction.

    Args:
        model: patched or not.
        ids, labels: ``[B, L]``, labels other than -100 at the answers.
    """
    if not is_patched(model) or not get_handle(model).branch.uses_instruction:
        return nullcontext()
    return instruction(model, ids, labels=labels)


def told(key: BranchKey) -> Shown | None:
    """The prompts of the innermost block of the user's."""
    return next((b.value for b in reversed(open_blocks(key)) if b.kind == "told"), None)


def asked(key: BranchKey) -> Shown | None:
    """The prompts of the method of the host that runs, such as ``generate``; of several, the outermost."""
    return next((b.value for b in open_blocks(key) if b.kind == "asked"), None)


# Arguments of the outermost forward, not held; see :func:`note_labels`.
_LABELLED: ContextVar[tuple[weakref.ref[Tensor], ...] | None] = ContextVar("vega3d_labelled", default=None)


def note_labels(arguments: Mapping[str, Any]) -> None:
    """Note ids and labels of the host's outermost forward; the one that receives pixels may not be given labels."""
    ids, labels = arguments.get("input_ids"), arguments.get("labels")
    both = isinstance(ids, Tensor) and isinstance(labels, Tensor)
    _LABELLED.set((weakref.ref(ids), weakref.ref(labels)) if both else None)  # type: ignore[arg-type]


def with_labels(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments, with the noted labels where they are of these very ids."""
    noted, ids = _LABELLED.get(), arguments.get("input_ids")
    if noted is None or arguments.get("labels") is not None or not isinstance(ids, Tensor):
        return arguments
    theirs, labels = (ref() for ref in noted)
    if theirs is None or labels is None or theirs.shape != ids.shape:
        return arguments
    # A hook between the two forwards may have moved them.
    same = theirs is ids or torch.equal(theirs.to(ids.device), ids)
    return {**arguments, "labels": labels} if same else arguments


def contexts(shown: Shown, reading: PromptReading, rows: int, *, learning: bool) -> Tensor:
    """``[rows, D]``: the instruction of each row of a call.

    Args:
        shown: the prompts.
        reading: which of their tokens count.
        rows: rows of the call whose pictures are fused; beam search repeats each prompt.
        learning: the call trains the branch, so that answers are among the ids.

    Raises:
        HostError: answers cannot be told from prompts, or the rows are not those of the prompts.
    """
    if learning and shown.prompts.labels is None:
        raise HostError(
            f"Host {shown.host!r} trains without labels, so prompts and answers cannot be separated, and answers would "
            "be read as instructions. Pass labels to the model (a trainer that computes the loss itself takes them "
            "out), or call it inside `with vega3d.instruction(model, prompt_ids)`."
        )
    vectors = shown.vectors(reading)
    times, rest = divmod(rows, shown.rows)
    if rest or not times:
        raise HostError(
            f"Host {shown.host!r}: {rows} rows have pictures to fuse, and there are {shown.rows} prompts. Tell one "
            "prompt, or one for each row: with vega3d.instruction(model, input_ids)."
        )
    return vectors.repeat_interleave(times, dim=0) if times > 1 else vectors
