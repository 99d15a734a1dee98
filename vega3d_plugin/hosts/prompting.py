"""Which instruction belongs to which clip: looks at what a host is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..branch.branch import GenerativeBranch
from ..branch.calls import HostCall
from ..branch.instructions import asked, contexts, told, with_labels
from ..branch.shown import Shown
from ..contracts.clips import Clip
from ..contracts.errors import HostError
from ..contracts.packed_rows import holds_several
from ..contracts.prompts import Prompts
from ..contracts.seams import ImageSamples, Seam, VideoReader


def looks_at_prompts(branch: GenerativeBranch) -> bool:
    """True where images have to be told apart by prompts, or the instruction is used."""
    return branch.settings.images == "scene" or branch.uses_instruction


def shown_by(branch: GenerativeBranch, entry: nn.Module, arguments: Mapping[str, Any]) -> Shown | None:
    """What a call of the host shows; None where it is given no prompts.

    Args:
        branch: see there.
        entry: the module whose forward receives the pixels.
        arguments: of the call, by name.
    """
    ids = arguments.get("input_ids")
    if not isinstance(ids, Tensor):
        return None
    reader, images, videos = branch.seam.reader, None, None
    if branch.settings.images == "scene" or (branch.uses_instruction and len(ids) > 1):
        images = reader.image_samples(entry, arguments)
        videos = reader.video_samples(entry, arguments) if isinstance(reader, VideoReader) else None
    if branch.settings.images == "scene":
        _refuse_packed(branch, images, arguments)
    labelled = with_labels(arguments) if branch.uses_instruction else arguments
    prompts = Prompts(ids, labelled.get("labels"), arguments.get("attention_mask"))
    return Shown(branch.host, entry, prompts, arguments, images, videos)


def _refuse_packed(branch: GenerativeBranch, images: ImageSamples | None, arguments: Mapping[str, Any]) -> None:
    """Images of several samples in one row would become the views of one scene."""
    several = images is not None and max(images.counts, default=0) > 1
    if several and "disabled" not in branch.switches() and holds_several(arguments):
        raise HostError(
            f"Host {branch.host!r} was given several samples in one row (packing), whose images images='scene' would "
            "join as views of one scene. Pad the samples to rows of their own (no packing, no data_flatten, no "
            "padding-free collator), or patch with images='separate'."
        )


def samples_in(branch: GenerativeBranch, call: HostCall) -> tuple[ImageSamples | None, ImageSamples | None]:
    """How images and videos belong to samples: as the forward showed it, before it the method that will call it."""
    shown = call.shown if call.shown is not None or call.frame is not None else asked(branch.key)
    return (None, None) if shown is None else (shown.samples, shown.video_samples)


def context_for(branch: GenerativeBranch, call: HostCall, clips: Sequence[Clip]) -> Tensor | None:
    """``[len(clips), D]``: the instruction of each clip, or None for a fuser that uses none.

    Raises:
        HostError: the host was not shown its prompts, or they cannot be told apart.
    """
    if not branch.uses_instruction or "disabled" in branch.switches():
        return None
    by_user, by_method = told(branch.key), asked(branch.key)
    # What `generate` was given is whole; it may show its forward a part at a time.
    shown = by_user or by_method or call.shown
    if shown is None:
        raise HostError(
            f"Host {branch.host!r}: the fusion {branch.settings.fusion.name!r} uses the instruction, but this call has "
            "pictures and no input_ids to read it from. Pass input_ids instead of inputs_embeds, or make the call "
            "inside `with vega3d.instruction(model, input_ids):`."
        )
    here = call.shown or by_method
    rows = shown.rows if here is None else here.rows
    learning = branch.training and torch.is_grad_enabled() and by_user is None
    vectors = contexts(shown, branch.fuser.reading, rows, learning=learning)
    if shown.rows == 1:
        return vectors[:1].expand(len(clips), -1)
    samples = [clip.sample for clip in clips if clip.sample is not None]
    if len(samples) < len(clips):
        raise HostError(
            f"Host {branch.host!r}: it is not known which of {len(clips)} pictures belongs to which of {shown.rows} "
            f"prompts, whose instruction the fusion {branch.settings.fusion.name!r} uses. Give one prompt at a time."
        )
    return vectors[samples]


def prompt_methods(seam: Seam, base: nn.Module) -> list[str]:
    """Methods of the host that are given its prompts before the forward is."""
    return [name for name in seam.prompt_methods if callable(getattr(type(base), name, None))]


def arguments_by_name(method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a bound method that is given prompts; those that transformers calls ``inputs`` are ``input_ids``."""
    try:
        bound = inspect.signature(method).bind(*args, **kwargs)
    except TypeError:
        # The method itself will say what is wrong.
        return {}
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        more = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        named |= value if more else {name: value}
    inputs = named.get("inputs")
    if named.get("input_ids") is None and isinstance(inputs, Tensor) and not inputs.is_floating_point():
        named["input_ids"] = inputs
    return named
