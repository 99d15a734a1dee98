"""Finds out by running it how a host turns a picture into tokens: which module makes them, and in which grid."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vega3d_plugin.contracts.clips import RANGE_TOLERANCE, PixelStatistics
from vega3d_plugin.contracts.errors import AlignmentError, HostError
from vega3d_plugin.hosts.probing import PICTURE_TOLERANCE, as_frame, known_picture
from vega3d_qwen_vl.pixels import Packing

from .packed import GRIDS, named, pack
from .reader import IMAGES, Layout

SIDE = 224
#: What the dark probe shows. Not black: hosts take a picture of zeros for padding.
DARK = 0.1
#: Parts of a halved square: (lower, right).
QUARTERS = ((0, 0), (0, 1), (1, 0), (1, 1))
#: How often the sides are halved at most, and the share of tokens that must then be where they should.
DEPTHS, AGREEMENT = 3, 0.75
#: Tokens on the shorter side that a grid must have.
COARSEST = 4


class SeamRefusedError(HostError):
    """The host was measured, and its visual tokens are not such that features can be aligned with them."""


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        projector: path of the module that makes the tokens, below the one with the method.
        layout: of the tokens of the probe's picture.
        cell: pixels per token and axis where the host encodes each picture in its own size, else 0.
        packing: of the pixels, where the processor cuts pictures into rows of patches.
    """

    projector: str
    layout: Layout
    cell: int
    packing: Packing | None


@dataclass(frozen=True)
class Shown:
    """The pictures in what the processor made.

    Attributes:
        pictures: ``[N, 3, H, W]``, normalised.
        shape: of the host's ``pixel_values``.
        packing: see :class:`Measured`.
    """

    pictures: Tensor
    shape: Sequence[int]
    packing: Packing | None

    def given_for(self, pictures: Tensor) -> Tensor:
        """The host's ``pixel_values`` for other pictures of that size."""
        return pictures.reshape(tuple(self.shape)) if self.packing is None else pack(pictures, self.packing)


@dataclass(frozen=True)
class Run:
    """One call of the method.

    Attributes:
        tokens: ``[L, D]``, all that it returned.
        made_by: modules that returned as many tokens of that size, in the order in which they ended.
    """

    tokens: Tensor
    made_by: tuple[str, ...]


def measure(base: nn.Module, processor: Any, statistics: PixelStatistics, hidden_size: int) -> Measured:
    """Show the host a dark picture, then the same with parts of it lit.

    Args:
        base: the module with the method ``get_image_features``.
        processor: the host's.
        statistics: with which it normalises.
        hidden_size: of the LLM.

    Raises:
        SeamRefusedError: the tokens keep no grid, are not in raster order, or not made by one module.
    """
    arguments = _arguments(base, processor)
    shown = _shown(processor, statistics, arguments)
    _check_statistics(processor, statistics, shown)
    dark = statistics.normalise(torch.full((3, 1, 1), DARK)).to(shown.pictures)
    dark = dark.expand_as(shown.pictures).contiguous()
    with torch.no_grad(), _left_as_it_was(base):

        def run(pictures: Tensor) -> Run:
            return _run(base, {**arguments, "pixel_values": shown.given_for(pictures)}, hidden_size)

        first = run(dark)
        layout, cell = _layout(first.tokens.shape[0], shown, arguments.get("image_sizes"))
        projector = _projector(base, first)
        light = statistics.normalise(torch.ones(3, 1, 1)).to(dark)
        _check_order(lambda where: run(torch.where(where.to(dark.device), light, dark)).tokens, dark.shape[-2:], layout)
    return Measured(projector, layout, cell, shown.packing)


def tokens_of(output: Any, hidden_size: int) -> Tensor:
    """``[L, D]``: what ``get_image_features`` returned, in any of the forms that transformers gave it.

    A tensor, tensors of one image each, or an output whose ``pooler_output`` is one of these.

    Raises:
        SeamRefusedError: something else, or tokens of another size.
    """
    found = getattr(output, "pooler_output", output)
    if isinstance(found, list | tuple) and found and all(isinstance(part, Tensor) for part in found):
        parts = [part.reshape(-1, part.shape[-1]) for part in found]
        found = torch.cat(parts) if len({part.shape[-1] for part in parts}) == 1 else None
    if not isinstance(found, Tensor):
        raise SeamRefusedError(
            f"{IMAGES!r} returned {type(output).__name__} without tokens in it: they are made somewhere else."
        )
    if found.ndim < 2 or found.shape[-1] != hidden_size:
        raise SeamRefusedError(
            f"{IMAGES!r} returned {list(found.shape)}: not tokens in the LLM's hidden size {hidden_size}."
        )
    return found.reshape(-1, hidden_size)


def _arguments(base: Any, processor: Any) -> dict[str, Any]:
    """A picture as the host's processor prepares it, and what else the method asks for, from the config."""
    given = _prepared(processor, np.zeros((SIDE, SIDE, 3), dtype=np.uint8))
    like = next(p for p in base.parameters() if p.is_floating_point())
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(getattr(base, IMAGES)).parameters.items():
        if name in given:
            value = given[name]
            arguments[name] = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
        elif hasattr(base.config, name):
            arguments[name] = getattr(base.config, name)
        elif parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            raise SeamRefusedError(f"{IMAGES!r} asks for {name!r}, which the image processor does not make.")
    if not isinstance(arguments.get("pixel_values"), Tensor):
        raise SeamRefusedError(f"{IMAGES!r} takes no 'pixel_values', but {sorted(arguments)}.")
    return arguments


def _shown(processor: Any, statistics: PixelStatistics, arguments: Mapping[str, Any]) -> Shown:
    """The pictures among the arguments; rows of patches are put together again."""
    given = arguments["pixel_values"]
    grids = named(arguments, GRIDS)
    if grids is None:
        if given.ndim < 4 or given.shape[-3] != 3:
            raise SeamRefusedError(f"{IMAGES!r} takes no pictures [..., 3, H, W], but {list(given.shape)}.")
        return Shown(given.reshape(-1, *given.shape[-3:]), given.shape, None)
    images = getattr(processor, "image_processor", processor)
    keys = ("patch_size", "temporal_patch_size", "merge_size")
    # Some pack no frames together, and do not say so.
    values: list[Any] = [getattr(images, key, 1 if key == "temporal_patch_size" else None) for key in keys]
    if not all(isinstance(value, int) for value in values):
        raise SeamRefusedError(f"{type(images).__name__} does not say how it packs patches ({', '.join(keys)}).")
    packing = Packing(*values)
    t, h, w = grids[0].tolist()
    try:
        pictures = packing.unpack(given, (t, h, w))
        known = packing.unpack(_prepared(processor, known_picture(SIDE))["pixel_values"], (t, h, w))
    except AlignmentError as error:
        raise SeamRefusedError(f"{type(images).__name__} packs patches in another way: {error}") from error
    frame = statistics.unnormalise(known[0])
    off = float((frame - as_frame(known_picture(SIDE), *frame.shape[-2:])).abs().mean())
    if off > PICTURE_TOLERANCE:
        raise SeamRefusedError(
            f"{type(images).__name__} packs patches in another order than Qwen-VL's does: put together again, a known "
            f"picture is off by {off:.3f} on average."
        )
    return Shown(pictures, given.shape, packing)


def _prepared(processor: Any, picture: np.ndarray) -> Mapping[str, Tensor]:
    from PIL import Image

    images = getattr(processor, "image_processor", processor)
    try:
        batch = images(images=[Image.fromarray(picture)], return_tensors="pt")
    except Exception as error:
        raise SeamRefusedError(
            f"{type(images).__name__} refuses one picture: {type(error).__name__}: {error}"
        ) from error
    return {name: torch.as_tensor(value) for name, value in batch.items() if isinstance(value, Tensor | list)}


def _check_statistics(processor: Any, statistics: PixelStatistics, shown: Shown) -> None:
    for value in (0, 255):
        pixels = _prepared(processor, np.full((SIDE, SIDE, 3), value, dtype=np.uint8))["pixel_values"]
        if shown.packing is None:
            pictures = pixels.reshape(-1, *pixels.shape[-3:])
        else:
            size = (shown.pictures.shape[-2] // shown.packing.patch, shown.pictures.shape[-1] // shown.packing.patch)
            pictures = shown.packing.unpack(pixels, (shown.pictures.shape[0] // shown.packing.temporal, *size))
        found = float(statistics.unnormalise(pictures).median())
        if abs(found - value / 255) > RANGE_TOLERANCE:
            raise SeamRefusedError(
                f"The processor's statistics do not undo what it does: a picture of {value} un-normalises to "
                f"{found:.3f}, expected {value / 255:.0f}."
            )


def _run(base: Any, arguments: Mapping[str, Any], hidden_size: int) -> Run:
    """Call the method, and note which modules below it return tokens."""
    seen: list[tuple[str, int]] = []

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2 and output.shape[-1] == hidden_size:
                seen.append((name, output.numel() // hidden_size))

        return note

    with ExitStack() as hooks:
        for name, module in base.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(noting(name)).remove)
        try:
            output = getattr(base, IMAGES)(**arguments)
        except Exception as error:
            raise SeamRefusedError(f"{IMAGES!r} fails on one picture: {type(error).__name__}: {error}") from error
    tokens = tokens_of(output, hidden_size)
    return Run(tokens, tuple(name for name, count in seen if count == tokens.shape[0]))


def _projector(base: Any, run: Run) -> str:
    """The last module that returned all tokens."""
    if not run.made_by:
        raise SeamRefusedError(
            f"No single module returns the {run.tokens.shape[0]} tokens that {IMAGES!r} returns: they are put together "
            "from several calls."
        )
    name = run.made_by[-1]
    module = base.get_submodule(name)
    if module is base.get_input_embeddings():
        raise SeamRefusedError(
            "The picture is turned into words of the LLM's vocabulary, which have no features to fuse."
        )
    if run.made_by.count(name) > 1:
        raise SeamRefusedError(
            f"{name!r}, which makes the tokens, is called {run.made_by.count(name)} times a picture."
        )
    if type(module).forward is nn.Sequential.forward:
        raise SeamRefusedError(
            f"{name!r}, which makes the tokens, is a Sequential: it would run the branch as a layer."
        )
    return name


def _layout(tokens: int, shown: Shown, sizes: Any) -> tuple[Layout, int]:
    """The grid of the first picture's tokens."""
    pictures, (height, width) = shown.pictures.shape[0], shown.pictures.shape[-2:]
    if shown.packing is not None:
        side = shown.packing.patch * shown.packing.merge
        if (height // side) * (width // side) != tokens:
            raise SeamRefusedError(
                f"{tokens} tokens for a picture of {width}x{height}, expected one for {side}x{side}."
            )
        return Layout(0, height // side, width // side), 0
    if sizes is not None:
        height, width = (int(value) for value in torch.as_tensor(sizes).reshape(-1, 2)[0].tolist())
        cell = round(math.sqrt(height * width / tokens))
        if pictures == 1 and cell and (height // cell) * (width // cell) == tokens:
            return Layout(0, height // cell, width // cell), cell
        raise SeamRefusedError(f"{tokens} tokens are no grid of square cells for a picture of {width}x{height}.")
    each = tokens // pictures
    if tokens % pictures or each < 16:
        raise SeamRefusedError(
            f"{tokens} tokens for {pictures} picture(s): pooled, there is no grid of at least 4 x 4."
        )
    for lead in (0, 1):
        rows = round(math.sqrt((each - lead) * height / width))
        if rows and (each - lead) % rows == 0:
            columns = (each - lead) // rows
            # Cells are about square.
            if 0.8 < (height / rows) / (width / columns) < 1.25:
                return Layout(lead, rows, columns), 0
    raise SeamRefusedError(
        f"{each} tokens are no grid for a picture of {width}x{height}: a resampler keeps no grid, so there is nothing "
        "to align features with."
    )


def _check_order(show: Callable[[Tensor], Tensor], size: Sequence[int], layout: Layout) -> None:
    """Have each token say in which part of the picture it looks, the parts down to four tokens wide, or to a half.

    The picture is halved both ways, and its four parts are lit one after the other; then the four parts of each part at
    once, and so on. Attention lets every token see that there is light somewhere, which is the same in all four
    pictures. Its own part is lit in one of them: under that it is unlike what it is under the other three.

    Raises:
        SeamRefusedError: the tokens do not see the picture, or not where raster order has them.
    """
    if min(layout.h, layout.w) < COARSEST:
        raise SeamRefusedError(
            f"A grid of {layout.h} x {layout.w} tokens is too coarse to find out whether they are in raster order, "
            f"expected {COARSEST} x {COARSEST} or more."
        )
    for depth in range(1, DEPTHS + 1):
        wide = min(layout.h, layout.w) // 2**depth >= 4
        if depth > 1 and not wide:
            return
        lit = [show(_part(size, depth, part)) for part in QUARTERS]
        grids = torch.stack([tokens[layout.lead : layout.tokens].float() for tokens in lit])
        apart = (grids[:, None] - grids[None]).abs().mean(dim=-1).sum(dim=1)
        if not bool(apart.any()):
            raise SeamRefusedError("The tokens are the same whatever the picture shows.")
        found = apart.argmax(dim=0).reshape(layout.h, layout.w).cpu()
        # Convolutions spill over a part's border, and GOT-OCR 2's shift all by half a token.
        down, right = (_halves(length, depth, margin=int(wide)) for length in (layout.h, layout.w))
        clear = (down >= 0)[:, None] & (right >= 0)[None]
        agree, transposed = (
            float((found == expected)[clear].float().mean())
            for expected in (2 * down[:, None] + right[None], down[:, None] + 2 * right[None])
        )
        if agree < AGREEMENT:
            if transposed >= AGREEMENT:
                raise SeamRefusedError("The tokens are ordered by columns, expected by rows.")
            raise SeamRefusedError(
                f"The {layout.h} x {layout.w} tokens are not in raster order: {agree:.0%} of them look where they "
                f"should when the picture is halved {depth} time(s), expected {AGREEMENT:.0%}, by chance 25%. A "
                "resampler or a shuffle keeps no grid."
            )


def _part(size: Sequence[int], depth: int, part: tuple[int, int]) -> Tensor:
    """``[H, W]``: the part ``(lower, right)`` of every cell of the ``depth - 1``-th halving."""
    rows, columns = (torch.arange(length) * 2**depth // length % 2 for length in size)
    lower, right = part
    both: Tensor = (rows == lower)[:, None] & (columns == right)[None]
    return both


def _halves(length: int, depth: int, margin: int) -> Tensor:
    """For each row (or column) of tokens, the half in which it lies at a halving; -1 for those near a border."""
    tokens = torch.arange(length)
    first = (tokens - margin).clamp(min=0) * 2**depth // length
    last = ((tokens + 1 + margin).clamp(max=length) * 2**depth - 1) // length
    return torch.where(first == last, first % 2, torch.tensor(-1))


@contextmanager
def _left_as_it_was(base: nn.Module) -> Iterator[None]:
    """In eval mode; afterwards without what running it has added.

    A first run leaves transformers' own hooks on a vision tower (those that collect hidden states), and a mark that
    they are there.
    """
    before = [(module, module.training, set(module.__dict__), set(module._forward_hooks)) for module in base.modules()]
    base.eval()
    try:
        yield
    finally:
        for module, training, names, hooks in before:
            for key in module._forward_hooks.keys() - hooks:
                del module._forward_hooks[key]
            for name in module.__dict__.keys() - names:
                del module.__dict__[name]
            module.training = training
