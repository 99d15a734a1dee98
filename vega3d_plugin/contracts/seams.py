"""Where and how a host's visual tokens are replaced: what an adapter plugin describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .clips import Clip, PixelStatistics

#: The name of the branch: a submodule of the module at the seam.
CHILD = "vega3d"


class SeamInput(NamedTuple):
    """What a seam yields on one call.

    Attributes:
        tokens: ``[L, D]``, the visual tokens of all clips, one after the other, each in raster order (t, h, w).
        clips: the clips, in the order of the tokens; their grids have ``L`` tokens together.
        put_back: makes the call's result from the fused tokens; default: :meth:`SeamReader.write`.
        acting: False: no step of a policy's episode (several rows, or rows with labels), so no history is kept.
    """

    tokens: Tensor
    clips: list[Clip]
    put_back: Callable[[Tensor], Any] | None = None
    acting: bool = True


class SeamCall(NamedTuple):
    """One call at a point of the seam.

    Attributes:
        module: the point's module.
        args: positional arguments of the call.
        kwargs: its keyword arguments.
        output: what it returned; None while a note is taken, which is before the call.
        samples: images per sample of the batch, in order, where the host told (``Seam.entry`` ran first), else None.
        as_scenes: True when the images of one sample are to be the views of one clip.
        method: name of the method that was called; empty for the module's forward.
        notes: what :meth:`NotingReader.note` returned last, while it is valid, else None. While a note is taken: that
            of the method from which this one is called.
        video_samples: as ``samples``, of videos.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    samples: ImageSamples | None
    as_scenes: bool
    method: str = ""
    notes: Any = None
    video_samples: ImageSamples | None = None


class ImageSamples(NamedTuple):
    """How the images of a batch, or its videos, belong to its samples.

    Attributes:
        counts: number of images of each sample.
        grid: the host's own grid tensor of these images, to recognise the call that encodes them.
    """

    counts: tuple[int, ...]
    grid: Tensor

    def rows(self, grid: Tensor, images: int) -> list[int] | None:
        """The sample of each of the images of a call; None where it is not known.

        Args:
            grid: the host's own tensor in the call that encodes the images.
            images: their number.
        """

        if sum(self.counts) != images or self.grid.shape != grid.shape:
            return None
        if self.grid is not grid and not self.grid.to(grid).equal(grid):
            return None
        return [row for row, count in enumerate(self.counts) for _ in range(count)]


class SeamReader(Protocol):
    """Reads tokens and clips from a call of the seam, and writes tokens back.

    Must be picklable and hold no reference to a model, so that copies of a patched model work. It keeps nothing of a
    call on itself, because several threads call one model: what one point of the seam has to tell another goes into
    the notes.
    """

    def read(self, call: SeamCall) -> SeamInput | None:
        """Tokens and clips of one call; None when there is nothing to fuse in it."""
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


def needs_no_tokens(reader: SeamReader) -> bool:
    """Whether a reader finds the clips of a call in its arguments alone, so that what makes the tokens need not run.

    A reader says so by an attribute ``clips_from_arguments = True``. It is used where clips are looked for without a
    host's weights; without it, the shape of the tokens is worked out on the meta device.
    """
    return bool(getattr(reader, "clips_from_arguments", False))


def fuses_several_times(reader: SeamReader) -> bool:
    """Whether one forward of a host comes to the branch more than once, all of it before it looks up its words.

    A reader says so by an attribute ``fuses_several_times = True``. It is used where clips are looked for without a
    host's weights: the forward must not be stopped at the first clips.
    """
    return bool(getattr(reader, "fuses_several_times", False))


@runtime_checkable
class NotingReader(Protocol):
    """A reader whose seam has points with the role ``note``: hosts whose pixels are not among the seam's arguments."""

    def note(self, call: SeamCall) -> Any:
        """What :meth:`SeamReader.read` will need to know of this call, which is about to be made.

        The notes of a method are valid until it returns, those of a forward until tokens have been fused or the
        host's forward ends, as long as they say themselves that they last (``lasts``: one forward fuses twice). None
        for a call without pixels. A reader that can do without says so with ``notes_optional = True``.
        """
        ...


@runtime_checkable
class VideoReader(Protocol):
    """A reader of a host that takes videos, and can tell which of them belongs to which prompt."""

    def video_samples(self, entry: nn.Module, kwargs: Mapping[str, Any]) -> ImageSamples | None:
        """How the videos belong to the samples, as :meth:`SeamReader.image_samples`."""
        ...


@runtime_checkable
class CheckingReader(Protocol):
    """A noting reader that can tell what was left out. Asked when a method that was noted returns."""

    def missed(self, notes: Any) -> str:
        """Which of the noted pixels no point has fused, and why that may be; empty when all were."""
        ...


@dataclass(frozen=True)
class SeamPoint:
    """A place where the branch steps in.

    Attributes:
        path: dotted path of a module: the home of the branch or a module above it (empty: the model itself).
        method: the method whose result holds the tokens, or whose arguments are noted; empty: the module's forward.
        role: ``fuse``: replace tokens in the result; ``note``: note the arguments for a later point.
    """

    path: str
    method: str = ""
    role: Literal["fuse", "note"] = "fuse"

    def __str__(self) -> str:
        return ".".join(part for part in (self.path, self.method) if part) or "forward"


@dataclass(frozen=True)
class Seam:
    """The one place in a host where its visual tokens, in the LLM's hidden size, can be replaced.

    Attributes:
        path: dotted path of the branch's home: the module that gets the submodule ``vega3d``. It must have a forward
            of its own: a ``Sequential`` would run the branch as one more layer.
        entry: dotted path of the module whose forward receives the pixels (empty: the model itself).
        hidden_size: size ``D`` of the tokens.
        merge: patches per token and axis, for the projectors that merge.
        statistics: with which the host normalised its pixels.
        statistics_source: where the statistics come from: ``processor``, ``family`` or ``vision tower``.
        reader: reads and writes the tokens.
        points: where the branch steps in; default: after the forward of ``path``.
        like: dotted path of the module whose device and dtype the branch takes; default: ``path``.
        policy: True when the host acts on one observation after the other, so that earlier ones can be kept
            (``BranchSettings.history``).
        prompt_methods: methods of the host that are given its prompts before its forward is, and may encode pictures.
    """

    path: str
    entry: str
    hidden_size: int
    merge: int
    statistics: PixelStatistics
    statistics_source: str
    reader: SeamReader
    points: tuple[SeamPoint, ...] = ()
    like: str = ""
    policy: bool = False
    prompt_methods: tuple[str, ...] = ("generate",)

    def __post_init__(self) -> None:
        if not self.points:
            object.__setattr__(self, "points", (SeamPoint(self.path),))


def seen_with(adapter: HostAdapter) -> str:
    """The versions with which an adapter's host was seen to work; empty when it does not say."""
    return str(getattr(adapter, "seen_with", ""))


@runtime_checkable
class HostAdapter(Protocol):
    """What an adapter plugin registers for one host family.

    ``matches`` and ``seams`` look at structure and class names; they import no host library and change nothing.

    Some members are optional, for messages and ``vega3d doctor``. ``seen_with: str``: the versions with which the host
    itself was seen to work. ``notices(model) -> list[str]``: what a user of this very model
    should know that is no fault of the branch. ``probe_batch(processor, model, picture) -> Mapping``: the arguments of
    the model's forward for one picture ``[H, W, 3]`` uint8 and any prompt, where the processor is not called as
    ``processor(text=[...], images=[...])`` or the forward takes more than the processor gives.
    ``probe_video(processor, model, frames) -> Mapping | None``: the same for a video ``[T, H, W, 3]``; None when this
    host takes none. ``tiny() -> tuple[nn.Module, processor]``: a small model of the family's real classes with random
    weights, equal on every call, and its processor: for the demo and for recipes with ``host.model: tiny``.
    ``takes_branches_of: str``: the adapter whose branches fit, where this host is the same model in other code.
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
