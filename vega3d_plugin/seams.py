"""Where and how a host's visual tokens are replaced: what an adapter plugin describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from .clips import Clip, PixelStatistics


class SeamInput(NamedTuple):
    """What a seam yields on one call.

    Attributes:
        tokens: ``[L, D]``, the visual tokens of all clips, one after the other, each in raster order (t, h, w).
        clips: the clips, in the order of the tokens; their grids have ``L`` tokens together.
    """

    tokens: Tensor
    clips: list[Clip]


class SeamCall(NamedTuple):
    """One call of the seam's module, as a forward hook sees it.

    Attributes:
        module: the seam's module.
        args: its positional arguments.
        kwargs: its keyword arguments.
        output: what it returned.
        samples: images per sample of the batch, in order, where the host told (``Seam.entry`` ran first), else None.
        as_scenes: True when the images of one sample are to be the views of one clip.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    samples: ImageSamples | None
    as_scenes: bool


class ImageSamples(NamedTuple):
    """How the images of a batch belong to its samples.

    Attributes:
        counts: number of images of each sample.
        grid: the host's own grid tensor of these images, to recognise the call that encodes them.
    """

    counts: tuple[int, ...]
    grid: Tensor


class SeamReader(Protocol):
    """Reads tokens and clips from a call of the seam, and writes tokens back.

    Must be picklable and hold no reference to a model, so that copies of a patched model work.
    """

    def read(self, call: SeamCall) -> SeamInput:
        """Tokens and clips of one call."""
        ...

    def write(self, output: Any, tokens: Tensor) -> Any:
        """The module's output with its tokens replaced by ``tokens [L, D]``."""
        ...

    def visual_input(self, kwargs: Mapping[str, Any]) -> str | None:
        """Name the argument of the entry's forward that carries images or video, or None for text alone."""
        ...

    def image_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """How the images belong to the samples, from the arguments of the entry's forward."""
        ...


@dataclass(frozen=True)
class Seam:
    """The one place in a host where its visual tokens, in the LLM's hidden size, can be replaced.

    Attributes:
        path: dotted path of the module whose output holds the tokens.
        entry: dotted path of the module whose forward receives the pixels (empty: the model itself).
        hidden_size: size ``D`` of the tokens.
        merge: patches per token and axis, for the projectors that merge.
        statistics: with which the host normalised its pixels.
        statistics_source: where the statistics come from: ``processor`` or ``family``.
        reader: reads and writes the tokens.
    """

    path: str
    entry: str
    hidden_size: int
    merge: int
    statistics: PixelStatistics
    statistics_source: str
    reader: SeamReader


@runtime_checkable
class HostAdapter(Protocol):
    """What an adapter plugin registers for one host family.

    ``matches`` and ``seams`` look at structure and class names; they import no host library and change nothing.
    """

    name: str
    #: One line for ``vega3d ls hosts``.
    summary: str
    #: Class names it was run with.
    classes: Sequence[str]

    def matches(self, model: nn.Module) -> bool:
        """True when this adapter can patch ``model``."""
        ...

    def seams(self, model: nn.Module, processor: Any = None) -> Sequence[Seam]:
        """The seams of ``model``.

        Raises:
            HostError: the model is of the family but not built as expected; the message has the path and what was
                found there.
        """
        ...
