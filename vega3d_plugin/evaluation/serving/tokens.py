"""The fused visual tokens of a prompt, as the language model is given them; and a host that is given them.

They are taken where a host of transformers calls its language model: from ``inputs_embeds`` at the placeholders of
images and videos, so after everything that a host does behind its projector (pooling, packing of tiles, newline
tokens). Qwen3-VL also hands its language model what is added behind the first layers (deepstack).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...branch.handle import get_handle, is_patched
from ...contracts.errors import HostError
from ...hosts.peft import base_model
from ...training.answers import fitting, on_model, padded
from ...training.rows.encoding import Encoded
from .fused import KINDS, FusedTokens, Kind

#: What is added to the tokens behind the first layers, and the mask of the tokens, as Qwen3-VL calls them.
DEEPSTACK, MASK = "deepstack_visual_embeds", "visual_pos_masks"


class _EnoughError(Exception):
    """Ends a forward where the language model would begin."""


@torch.no_grad()
def fused_tokens(model: nn.Module, inputs: Mapping[str, Any]) -> FusedTokens:
    """Run what a host does before its language model, the branch included.

    Args:
        model: a host of transformers in eval mode, patched or not.
        inputs: of one prompt, ``input_ids`` ``[1, L]``, from :func:`~vega3d_plugin.training.answers.encode_question`.

    Returns:
        The tokens, on the model's device in its dtype; none for a prompt of text alone.

    Raises:
        HostError: a host whose tokens cannot be found, or whose branch did not see the pixels.
    """
    return _of_batch(model, inputs)[0]


@torch.no_grad()
def fused_tokens_of(model: nn.Module, prompts: Sequence[Encoded], pad: int) -> list[FusedTokens]:
    """The same for several prompts; those whose pictures fit into one batch go through tower and branch together.

    A prompt's tokens are those that it has alone, but for rounding: kernels round by the shape of a batch.

    Args:
        model: as for :func:`fused_tokens`.
        prompts: the inputs of each.
        pad: token that fills shorter prompts up.

    Raises:
        HostError: as :func:`fused_tokens`.
    """
    found: dict[int, FusedTokens] = {}
    for places in fitting(prompts):
        batch = padded([prompts[place] for place in places], pad)
        found |= dict(zip(places, _of_batch(model, batch), strict=True))
    return [found[place] for place in range(len(prompts))]


def _of_batch(model: nn.Module, inputs: Mapping[str, Any]) -> list[FusedTokens]:
    base = base_model(model)
    batch = on_model(base, dict(inputs))
    found: list[FusedTokens] = []

    def take(given: dict[str, Any]) -> None:
        found.extend(_taken(base, batch["input_ids"], given))
        raise _EnoughError

    try:
        with _before_language_model(base, take):
            model(**batch)
    except _EnoughError:
        pass
    if any(tokens.embeds for tokens in found) and is_patched(base) and not get_handle(base).branch.fired:
        raise HostError(f"{type(base).__name__} encoded pictures without its branch: run `vega3d doctor` on it.")
    return found


@torch.no_grad()
def logits_of(model: nn.Module, inputs: Mapping[str, Any], tokens: FusedTokens | None = None) -> Tensor:
    """What a host says of one prompt, ``[L, vocabulary]`` on the CPU.

    Args:
        model: in eval mode.
        inputs: as for :func:`fused_tokens`.
        tokens: the visual tokens that the language model is given; the pixels are then blank, so that nothing can
            come from them.
    """
    base = base_model(model)
    batch = on_model(base, dict(inputs))
    if tokens is None:
        return _logits(model, batch)
    blank = {k: torch.zeros_like(v) if k.startswith("pixel_values") else v for k, v in batch.items()}
    with _before_language_model(base, lambda given: _put(base, batch["input_ids"], given, tokens)):
        return _logits(model, blank)


def _logits(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    logits: Tensor = model(**batch).logits[0]
    return logits.cpu()


@contextmanager
def _before_language_model(base: nn.Module, see: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Inside, ``see`` is called with the arguments of the language model, which it may change."""
    seen = False

    def hook(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal seen
        seen = True
        if not isinstance(given.get("inputs_embeds"), Tensor):
            raise HostError(f"{type(base).__name__} does not hand its language model `inputs_embeds` by name.")
        changed = dict(given)
        see(changed)
        return args, changed

    handle = _language_model(base).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
    if not seen:
        raise HostError(f"{type(base).__name__} did not call the module that holds its input embeddings.")


def _language_model(base: nn.Module) -> nn.Module:
    """The module that is called with embeddings: the one that holds the table of them."""
    table = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None  # type: ignore[operator]
    for module in base.modules():
        if table is not None and any(child is table for child in module.children()):
            return module
    raise HostError(
        f"{type(base).__name__} has no table of input embeddings (get_input_embeddings), so it is no language model "
        "whose visual tokens could be taken."
    )


def placeholders(base: nn.Module) -> dict[Kind, int]:
    """The token that stands for one visual token of an image and of a video, where the host has one."""
    found: dict[Kind, int] = {}
    for kind in KINDS:
        names = (f"{kind}_token_id", f"{kind}_token_index")
        values = [getattr(getattr(base, "config", None), name, None) for name in names]
        value = next((value for value in values if isinstance(value, int)), None)
        if value is not None:
            found[kind] = value
    if not found:
        raise HostError(f"The config of {type(base).__name__} names no image_token_id and no video_token_id.")
    return found


def _masks(base: nn.Module, ids: Tensor) -> dict[Kind, Tensor]:
    """Where the placeholders of each kind stand, ``[B, L]``, of the kinds that there are."""
    masks = {kind: ids == token for kind, token in placeholders(base).items()}
    return {kind: mask for kind, mask in masks.items() if bool(mask.any())}


def _taken(base: nn.Module, ids: Tensor, given: Mapping[str, Any]) -> list[FusedTokens]:
    """The tokens of each prompt of a batch."""
    embeds: Tensor = given["inputs_embeds"]
    masks, deeper = _masks(base, ids), given.get(DEEPSTACK) or []
    taken: list[dict[Kind, Tensor]] = [{} for _ in ids]
    for kind, mask in masks.items():
        streams = [embeds[mask.to(embeds.device)]]
        # Of all visual tokens, images' and videos', in the order of the prompts.
        own = mask[given[MASK].to(mask.device)] if deeper else None
        streams += [stream[own.to(stream.device)] for stream in deeper if own is not None]
        sizes = mask.sum(dim=-1).tolist()
        for place, rows in enumerate(torch.cat(streams, dim=-1).split(sizes)):
            if len(rows):
                taken[place][kind] = rows
    return [FusedTokens(embeds.shape[-1], kinds) for kinds in taken]


def _put(base: nn.Module, ids: Tensor, given: dict[str, Any], tokens: FusedTokens) -> None:
    if ids.shape[0] != 1:
        raise HostError(f"One prompt at a time: input_ids is {list(ids.shape)}.")
    masks = _masks(base, ids)
    sizes = {kind: (_count(masks.get(kind)), _rows(tokens.embeds.get(kind))) for kind in KINDS}
    wrong = [f"{a} placeholders of {kind}s in the prompt, {b} tokens" for kind, (a, b) in sizes.items() if a != b]
    if wrong:
        raise HostError("The tokens are of another prompt: " + "; ".join(wrong) + ".")
    embeds = given["inputs_embeds"].clone()
    deeper = [stream.clone() for stream in given.get(DEEPSTACK) or []]
    for kind, mask in masks.items():
        first, *others = tokens.streams(kind)
        embeds[mask.to(embeds.device)] = first.to(embeds)
        if len(others) != len(deeper):
            raise HostError(f"{len(others)} further streams with the tokens, {len(deeper)} in {type(base).__name__}.")
        for stream, other in zip(deeper, others, strict=True):
            stream[mask[given[MASK].to(mask.device)].to(stream.device)] = other.to(stream)
    given["inputs_embeds"] = embeds
    if deeper:
        given[DEEPSTACK] = deeper


def _count(mask: Tensor | None) -> int:
    return 0 if mask is None else int(mask.sum())


def _rows(embeds: Tensor | None) -> int:
    return 0 if embeds is None else int(embeds.shape[0])


def runs(ids: Sequence[int], token: int) -> list[int]:
    """Lengths of the stretches in which a token follows itself."""
    found: list[int] = []
    for before, here in zip([None, *ids], ids, strict=False):
        if here == token and before == token:
            found[-1] += 1
        elif here == token:
            found.append(1)
    return found
