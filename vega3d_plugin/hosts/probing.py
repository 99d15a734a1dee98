"""What ``vega3d doctor`` shows a host: a known picture, a black one and a white one, and a short video."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..branch.handle import get_handle
from ..contracts.clips import Clip
from ..contracts.errors import HostError
from .finding import find_host

SIDE = 224
CELLS = 8
FRAMES = 4
QUESTION = "What is left of the door?"

Batch = dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """Inputs of one host.

    Attributes:
        picture: the picture that :func:`known_picture` gives.
        black, white: pictures of one colour, everything else equal.
        video: a short video; None when the host takes none.
        no_video: why there is no video.
    """

    picture: Batch
    black: Batch
    white: Batch
    video: Batch | None
    no_video: str


@dataclass(frozen=True)
class SeamRecord:
    """One call of the branch: ``tokens [L, D]`` as the host made them, the clips, and the tokens that went back."""

    tokens: Tensor
    clips: list[Clip]
    fused: Tensor


def known_picture(side: int = SIDE) -> np.ndarray:
    """A picture without symmetry that reaches both ends of the range: ``[side, side, 3]`` uint8.

    Ramps to the right (red), downwards (green) and to the left (blue), under a checker pattern. Coarse, so that it
    survives a host's resizing, and smooth enough that a wrong order of patches shows.
    """
    down, right = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side), indexing="ij")
    ramps = np.stack([right, down, 1 - right], axis=-1)
    cell = np.arange(side) * CELLS // side
    checker = ((cell[:, None] + cell[None, :]) % 2)[..., None]
    return np.asarray(np.round(255 * (0.75 * ramps + 0.25 * checker)), dtype=np.uint8)


def as_frame(picture: np.ndarray, height: int, width: int) -> Tensor:
    """A picture as the clip of a host that resized it would hold it: ``[3, height, width]`` in [0, 1]."""
    frame = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(frame, (height, width), mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


def make_probe(processor: Any, model: nn.Module, host: str | None = None) -> Probe:
    """Put the pictures through the host's own processor.

    Args:
        processor: the host's.
        model: the host.
        host: name of its adapter, where that is not found by looking at it.

    Raises:
        HostError: the processor refuses a plain picture.
    """
    picture = known_picture()
    try:
        picture_batch, black, white = (
            _image_batch(processor, model, frame, host)
            for frame in (picture, np.zeros_like(picture), np.full_like(picture, 255))
        )
    except Exception as error:
        raise HostError(
            f"{type(processor).__name__} refuses one picture and a question: {type(error).__name__}: {error}"
        ) from error
    frames = np.stack([np.roll(picture, index * SIDE // FRAMES, axis=1) for index in range(FRAMES)])
    video, reason = None, "takes no videos"
    try:
        video = _video_batch(processor, model, frames, host)
    except Exception as error:
        reason = f"the processor refuses a video of {FRAMES} frames ({type(error).__name__}: {error})"
    return Probe(picture_batch, black, white, video, reason)


def words(model: nn.Module) -> Batch:
    """Eight tokens of text, for a host without a processor."""
    return {"input_ids": torch.arange(1, 9, device=_like(model).device)[None]}


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The host's logits ``[1, L, V]``, float32."""
    with torch.no_grad():
        out: Tensor = model(**batch).logits
    return out.float()


def answer(model: nn.Module, batch: Batch) -> Tensor:
    """The logits from which the answer's first token is drawn, ``[V]``."""
    return logits(model, batch)[0, -1]


@contextmanager
def watching(model: nn.Module) -> Iterator[list[SeamRecord]]:
    """Record every call of the branch of a patched model."""
    records: list[SeamRecord] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if args[0] is not None:
            records.append(SeamRecord(args[0].detach(), list(args[1]), output.detach()))

    handle = get_handle(model).branch.register_forward_hook(record)
    try:
        yield records
    finally:
        handle.remove()


@contextmanager
def frames_of_one_colour(model: nn.Module, value: float) -> Iterator[None]:
    """Show the branch clips of one colour, whatever the host sees: its pixels and its own tokens stay as they are."""

    def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, clips = args
        plain = [dataclasses.replace(clip, frames=torch.full_like(clip.frames, value), scene=None) for clip in clips]
        return (tokens, plain)

    handle = get_handle(model).branch.register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _image_batch(processor: Any, model: nn.Module, picture: np.ndarray, host: str | None) -> Batch:
    """One picture, as the adapter shows it when it has a way of its own."""
    own = getattr(find_host(model, host), "probe_batch", None)
    if own is None:
        return _batch(processor, model, "image", images=[picture])
    return _batch_like(own(processor, model, picture), model)


def _video_batch(processor: Any, model: nn.Module, frames: np.ndarray, host: str | None) -> Batch | None:
    """One video ``[T, H, W, 3]``, in the same way; None when the host takes none."""
    adapter = find_host(model, host)
    own = getattr(adapter, "probe_video", None)
    if own is not None:
        shown = own(processor, model, frames)
        return None if shown is None else _batch_like(shown, model)
    if hasattr(adapter, "probe_batch"):
        return None
    if getattr(processor, "video_processor", None) is None and not hasattr(processor, "video_token"):
        return None
    # Channels first: some processors guess the layout, and this is the one they guess right.
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return _batch(processor, model, "video", videos=[clip])


def _batch(processor: Any, model: nn.Module, kind: str, **media: Any) -> Batch:
    """One question about one image or video, on the model's device and in its dtype."""
    content = [{"type": kind}, {"type": "text", "text": QUESTION}]
    if getattr(processor, "chat_template", None):
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    else:
        text = f"{getattr(processor, f'{kind}_token', '')}{QUESTION}"
    # Some processors leave short values, such as seconds per frame, as lists.
    batch = {
        key: torch.tensor(value) if isinstance(value, list) else value
        for key, value in processor(text=[text], return_tensors="pt", **media).items()
    }
    return _batch_like(batch, model)


def _like(model: nn.Module) -> Tensor:
    return next(p for p in model.parameters() if p.is_floating_point())


def _batch_like(batch: Mapping[str, Any], model: nn.Module) -> Batch:
    like = _like(model)
    return {key: _placed(value, like) for key, value in batch.items()}


def _placed(value: Any, like: Tensor) -> Any:
    """Tensors in it on the device and, where they are floating point, in the dtype of another."""
    if isinstance(value, list):
        return [_placed(item, like) for item in value]
    if not isinstance(value, Tensor):
        return value
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


# The mean difference in [0, 1] between a picture and what a host's own resizing makes of it stays well below this.
PICTURE_TOLERANCE = 0.04
