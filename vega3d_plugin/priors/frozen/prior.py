"""What all built-in priors share: frozen models on a device, in a compute dtype, with one identity."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...contracts.clips import check_frames
from ...contracts.errors import PriorError
from ...contracts.priors import Prior, turn
from ...contracts.settings import PriorSettings
from ..fast import Reduction, chosen
from ..fast.linears import CONVOLVED_LINEARS
from .allocator import freed_memory_kept
from .devices import has_bfloat16, usable
from .fingerprint import fingerprint
from .int8 import use_int8
from .memory import explain_out_of_memory
from .resizing import resize_crop, resize_stretch
from .taps import asking
from .towers import apply_tower

log = logging.getLogger("vega3d")

# On a CPU a forward of this many tokens keeps all cores busy.
_CPU_TOKENS = 2048


def _memory(device: torch.device) -> AbstractContextManager[None]:
    return freed_memory_kept() if device.type == "cpu" else nullcontext()


Reload = Callable[[PriorSettings], Prior]

# When the last session's work on CUDA ends. Events cannot be pickled, so they lie beside the priors.
_ended: WeakKeyDictionary[FrozenPrior, torch.cuda.Event] = WeakKeyDictionary()


class PartKeeper(Protocol):
    """Keeps parts of one clip's features, such as :class:`~vega3d_plugin.features.parts.FolderParts`."""

    def get(self, stage: str, rows: range) -> Tensor | None:
        """A part that was kept."""

    def put(self, stage: str, rows: range, part: Tensor) -> None:
        """Keep a part."""


class FrozenPrior(Prior):
    """A prior made of frozen modules.

    It may be called from any number of threads. Calls take turns, because a call moves and changes the modules and some
    of them keep what they saw of a clip.

    Args:
        models: modules by name; moved, cast and hashed together.
        tensors: further tensors that features depend on (prompt embeddings), by name.
        settings: resolved settings; ``size`` must be divisible by ``stride``.
        feature_dim: channels of the feature map.
        stride: pixels per feature, in height and width.
        reload: rebuilds this prior from its settings, so that a pickle carries no weights; None pickles the weights.

    Raises:
        PriorError: a size that does not fit.
    """

    #: Names the kind of features in the fingerprint.
    family: ClassVar[str]
    #: Settings that change a feature, besides the weights.
    identity: ClassVar[tuple[str, ...]] = ("tap", "size", "resize", "context")
    #: Whether the setting ``every`` does something.
    interpolates: ClassVar[bool] = False
    #: Whether the setting ``int8`` does something.
    multiplies_in_int8: ClassVar[bool] = False
    #: What the fast path is made of, in the order of application.
    reductions: ClassVar[tuple[Reduction, ...]] = (CONVOLVED_LINEARS,)

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        settings: PriorSettings,
        *,
        feature_dim: int,
        stride: int,
        tensors: Mapping[str, Tensor] | None = None,
        reload: Reload | None = None,
    ) -> None:
        self.models = {name: model.eval().requires_grad_(False) for name, model in models.items()}
        self.tensors = dict(tensors or {})
        self.settings: PriorSettings = settings
        self.feature_dim = feature_dim
        self.stride = stride
        self.size = checked_size(settings, stride)
        #: Called with (stage, frames done, frames in all) while a clip is worked on, whichever thread's clip it is; for
        #: progress bars.
        self.progress: Callable[[str, int, int], None] | None = None
        #: Keeps the parts of the clip that is worked on, so that a long one can be resumed; None: nobody does.
        self.parts: PartKeeper | None = None
        self._reload = reload
        self._ready: tuple[torch.device, torch.dtype] | None = None
        self._busy = False
        self._fingerprint: str | None = None
        chosen(self.reductions, settings.fast, settings.name)

    def __call__(self, frames: Tensor) -> Tensor:
        """Extract features; see :class:`Prior`.

        Args:
            frames: ``[T, 3, H, W]`` in [0, 1].

        Returns:
            ``[T', C, h, w]`` in the compute dtype.

        Raises:
            FramesError: frames of a wrong shape, dtype or range.
            PriorError: the device cannot be used or lacks the dtype, or its memory does not suffice; the message says
                what to change.
        """
        frames = check_frames(frames, f"Prior {self.settings.name!r}")
        with self.session(frames.device):
            return self.extract(frames)

    @abstractmethod
    def extract(self, frames: Tensor) -> Tensor:
        """Checked frames ``[T, 3, H, W]`` to features ``[T', C, h, w]``, inside a :meth:`session`."""

    def features(self, latents: Tensor) -> Tensor:
        """Latents ``[T', z, h, w]`` to features ``[T', C, h, w]``, where there are any."""
        raise PriorError(f"Prior {self.settings.name!r} has no latents: give it frames.")

    def taps(self) -> range:
        """Taps that :meth:`at_taps` can give in one run: those up to the prior's own; none where it has no choice."""
        return range(0)

    def at_taps(self, frames: Tensor, taps: Sequence[int], *, latents: Tensor | None = None) -> dict[int, Tensor]:
        """Features after several taps for the price of the last one.

        Bit for bit those of priors that end at each of them; memory grows with the number of taps.

        Args:
            frames: ``[T, 3, H, W]`` in [0, 1].
            taps: of :meth:`taps`, each once.
            latents: of these frames, as a generator's ``encode`` gave them, so that they are not encoded again.

        Returns:
            ``[T', C, h, w]`` by tap, in the compute dtype.

        Raises:
            FramesError: frames of a wrong shape, dtype or range.
            PriorError: a tap that it cannot give, or blocks that are compiled, in which nobody can listen.
        """
        known, wanted = self.taps(), list(dict.fromkeys(taps))
        unknown = [tap for tap in wanted if tap not in known]
        if unknown or not wanted:
            its = f"gives {known[0]} to {known[-1]} in one run" if known else "cannot give several taps in one run"
            raise PriorError(f"Prior {self.settings.name!r} {its}, asked for {list(taps)}.")
        if latents is not None and self.settings.every > 1:
            raise PriorError(
                f"Prior {self.settings.name!r} has every={self.settings.every}, which leaves out frames before "
                "there are latents. Give it no latents, or use every=1."
            )
        if self.settings.compile:
            raise PriorError(f"Prior {self.settings.name!r} is compiled, which hides its taps. Use compile=False.")
        with asking(self, wanted):
            maps = self(frames) if latents is None else self.features(latents)
        return dict(zip(wanted, maps.split(self.feature_dim, dim=1), strict=True))

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Of the weights up to the tap, the other tensors, and the settings that change a feature."""
        # In turn, because a first call casts the weights and replaces modules.
        with turn(self):
            if self._fingerprint is None:
                values = {key: self.settings.to_dict()[key] for key in self.identity}
                values = {"family": self.family, **values, **self.more_identity()}
                self._fingerprint = fingerprint(self.models, self.tensors, values)
            return self._fingerprint

    def more_identity(self) -> dict[str, Any]:
        """Further values that change a feature; plain ones, as JSON has them."""
        more: dict[str, Any] = {"options": self.settings.options} if self.settings.options else {}
        # Only where they are asked for, so that what was kept before they were there stays valid.
        if self.settings.every > 1:
            more["every"] = self.settings.every
        if self.settings.int8:
            more["int8"] = True
        return more

    # Device and dtype

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The compute dtype there: the one asked for, else bfloat16 on CUDA where it exists, else float32.

        Raises:
            PriorError: the device lacks the dtype that was asked for, or cannot be used.
        """
        device = usable(self.settings.device) if self.settings.device else device
        if self.settings.dtype is None:
            return torch.bfloat16 if device.type == "cuda" and has_bfloat16(device) else torch.float32
        dtype: torch.dtype = getattr(torch, self.settings.dtype)
        if dtype == torch.bfloat16 and not has_bfloat16(device):
            raise PriorError(
                f"Prior {self.settings.name!r} was asked for bfloat16, which {device} lacks. "
                "Use dtype='float16', or 'float32' with a lower chunk_frames."
            )
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the models are now."""
        return self._parameter().device

    @property
    def dtype(self) -> torch.dtype:
        """What the models compute in now."""
        return self._parameter().dtype

    def _parameter(self) -> nn.Parameter:
        # The largest one: small ones may be kept in float32.
        return max((p for model in self.models.values() for p in model.parameters()), key=lambda p: p.numel())

    @contextmanager
    def session(self, device: torch.device) -> Iterator[None]:
        """Models in place, gradients and autocast off; what the frames' device is called matters only by default.

        Sessions of several threads take turns; one inside another, in the same thread, is part of it.
        """
        with turn(self):
            if self._busy:
                yield
                return
            device = usable(self.settings.device) if self.settings.device else device
            # The meta device, on which shapes and work are counted, has no autocast of its own.
            kind = "cpu" if device.type == "meta" else device.type
            # Features may be kept and used in training later, so they must not be inference tensors.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
                self._busy = True
                try:
                    with explain_out_of_memory(self), self._in_order(device), _memory(device):
                        self.prepare(device)
                        yield
                finally:
                    self._busy = False
                    if self.settings.offload:
                        self._offload()

    @contextmanager
    def _in_order(self, device: torch.device) -> Iterator[None]:
        """On CUDA, work of the last session may still be under way in another thread's stream."""
        if device.type != "cuda":
            yield
            return
        if self in _ended:
            torch.cuda.current_stream(device).wait_event(_ended[self])
        try:
            yield
        finally:
            _ended[self] = torch.cuda.current_stream(device).record_event()

    def _offload(self) -> None:
        for reduction in chosen(self.reductions, self.settings.fast, self.settings.name):
            reduction.release(self)
        self._move(torch.device("cpu"))

    def prepare(self, device: torch.device) -> None:
        """Move to the device, choose the compute dtype, and put the fast path in place."""
        dtype = self.dtype_on(device)
        if self._ready == (device, dtype):
            return
        if dtype == torch.float16:
            _ = self.fingerprint  # of the weights before they are rounded in another way than it rounds them
        for model in self.models.values():
            # Cast first: in float32 the weights might not fit where they are going.
            cast(model, dtype)
        self._move(device)
        for reduction in chosen(self.reductions, self.settings.fast, self.settings.name):
            reduction.apply(self)
        if self.settings.int8:
            use_int8(self)
        if self.settings.compile:
            self._compile()
        self._ready = (device, dtype)

    def _move(self, device: torch.device) -> None:
        for model in self.models.values():
            model.to(device)
        self._ready = None

    def _compile(self) -> None:
        parts = [part for part in self.repeated_parts() if part._compiled_call_impl is None]
        if parts:
            log.info(
                "Prior %r: compiling %d blocks. The first clip of every size and length waits for it, up to minutes.",
                self.settings.name,
                len(parts),
            )
        for part in parts:
            part.compile()

    def repeated_parts(self) -> list[nn.Module]:
        """The blocks that ``compile`` is applied to, one by one: they share one compiled graph."""
        names = {name for model in self.models.values() for name in getattr(model, "_repeated_blocks", None) or ()}
        return [m for model in self.models.values() for m in model.modules() if type(m).__name__ in names]

    # Frames

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames ``[T, 3, H, W]`` in [0, 1], any size, to the prior's size, float32, on its device."""
        resize = resize_crop if self.settings.resize == "crop" else resize_stretch
        return resize(frames.to(self.device).float(), self.size)

    def chunk(self, tokens_per_frame: int) -> int:
        """Frames per forward, where every frame is on its own: within ``chunk_frames`` or ``max_tokens``."""
        if self.settings.chunk_frames is not None:
            return self.settings.chunk_frames
        tokens = self.settings.max_tokens
        if self.device.type == "cpu":
            # More at once only leave the cache.
            tokens = min(tokens, _CPU_TOKENS)
        return max(1, tokens // max(1, tokens_per_frame))

    def part(self, stage: str, rows: range, compute: Callable[[], Tensor]) -> Tensor:
        """A part of a clip from whoever keeps parts, else computed, and then kept.

        Args:
            stage: ``latents`` or ``features``.
            rows: of the clip.
            compute: gives the part.
        """
        if self.parts is None:
            return compute()
        known = self.parts.get(stage, rows)
        if known is not None:
            return known.to(self.device)
        part = compute()
        self.parts.put(stage, rows, part)
        return part

    def report(self, stage: str, done: int, total: int) -> None:
        """Tell whoever listens how far it is."""
        if self.progress is not None:
            self.progress(stage, done, total)

    def __reduce__(self) -> Any:
        if self._reload is None:
            return super().__reduce__()
        return _unpickle, (self._reload, self.settings, self.fingerprint)

    def __repr__(self) -> str:
        s = self.settings
        return (
            f"{type(self).__name__}({s.name!r}, tap={s.tap}, timestep={s.timestep}, size={self.size}, "
            f"context={s.context!r}, feature_dim={self.feature_dim})"
        )


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters, but not those that diffusers keeps in float32, nor the buffers of the position embedding."""
    keep: Sequence[str] = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, parameter in model.named_parameters():
        target = torch.float32 if dtype != torch.float32 and set(name.split(".")) & set(keep) else dtype
        parameter.data = parameter.data.to(target)


def checked_size(settings: PriorSettings, stride: int) -> tuple[int, int]:
    """The size in pixels. Raises :class:`PriorError` where it does not fit, and names the nearest that does."""
    if settings.size is None:
        raise PriorError(f"Prior {settings.name!r} needs a size (height, width) in pixels.")
    height, width = settings.size
    if height % stride or width % stride:
        nearest = tuple(max(stride, math.floor(side / stride + 0.5) * stride) for side in (height, width))
        raise PriorError(
            f"Prior {settings.name!r} needs a size divisible by {stride} (pixels per feature), "
            f"got {height}x{width}. The nearest is {nearest[0]}x{nearest[1]}."
        )
    return height, width


def resolved_tap(tap: int | None, blocks: int, name: str, *, generates: bool = True) -> int:
    """The tap as a 0-based index. Raises :class:`PriorError` outside ``[-blocks, blocks)``.

    Args:
        tap: None: the last block.
        blocks: of the network.
        name: of the prior, for the message.
        generates: generators know most in the middle, encoders at the end.
    """
    index = blocks - 1 if tap is None else tap + blocks if tap < 0 else tap
    if not 0 <= index < blocks:
        raise PriorError(
            f"Prior {name!r} has {blocks} blocks, so the tap is in [{-blocks}, {blocks - 1}], got {tap}."
            + _advised_tap(blocks, generates)
        )
    return index


def _advised_tap(blocks: int, generates: bool) -> str:
    if not generates:
        return f" The last block is tap={blocks - 1}."
    # Two thirds, as block 20 of Wan's 30, and never the last.
    middle = min(round(blocks * 2 / 3), blocks - 2)
    return f" Generators do best at mid depth: try tap={middle}." if middle >= 0 else ""


def _unpickle(reload: Reload, settings: PriorSettings, expected: str) -> Prior:
    with torch.inference_mode(False):
        prior = reload(settings)
        apply_tower(prior, settings.tower)
    if prior.fingerprint != expected:
        raise PriorError(
            f"The pickled model used a prior {settings.name!r} with fingerprint {expected}, but "
            f"{settings.pretrained!r} now gives {prior.fingerprint}: its weights have changed."
        )
    return prior
