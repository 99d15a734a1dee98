"""A host without weights: its own code, which shows the clips that it would see, and computes nothing.

The model is built from its config on the meta device. Its own forward prepares the pixels for its vision tower, in its
own dtype and order, and the hooks that :func:`~vega3d_plugin.patching.patch` hangs on a host read them there; then the
forward is stopped. What comes before that in a host's code is real work on real pixels. Whatever has to do with weights
gives shapes only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..branch import calls
from ..contracts.clips import Clip
from ..contracts.errors import HostError, Vega3dError
from ..contracts.seams import Seam, fuses_several_times, needs_no_tokens
from ..contracts.settings import BranchSettings
from .attaching import attach
from .checking import checked_seam
from .finding import find_host

#: Arguments of a forward that hold pixels, one kind at a time: a host encodes each kind in a call of its own.
PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")


class _Seen(BaseException):  # not an error: the forward has done what it was called for
    """Ends a forward once its clips have been read. No host's ``except Exception`` stops it."""

    def __init__(self, clips: list[Clip]) -> None:
        self.clips = clips


class _Catcher(nn.Module):
    """Sits where the branch would, for the hooks to find; takes the clips and stops the host."""

    #: Nothing is fused, so whatever the fusion is, no instruction is asked for.
    fuser = SimpleNamespace(uses_context=False)

    def __init__(self, settings: BranchSettings, seam: Seam, host: str) -> None:
        super().__init__()
        self._mine = threading.local()
        self.several = fuses_several_times(seam.reader)
        self.settings, self.seam, self.host = settings, seam, host
        self.key = calls.BranchKey()
        #: Nothing is fused here, so nothing is asked for.
        self.uses_instruction = False

    def switches(self) -> frozenset[str]:
        """As of a branch; nothing is ever switched off here."""
        return frozenset()

    @property
    def found(self) -> list[Clip]:
        """The clips that one forward, in this thread, has shown so far."""
        clips: list[Clip] = self._mine.__dict__.setdefault("clips", [])
        return clips

    def forward(self, tokens: Tensor | None, clips: list[Clip], **rest: Any) -> Tensor | None:
        """Stop with the clips of this call; or take them, where the host comes back with more."""
        if not self.several:
            raise _Seen(list(clips))
        self.found.extend(clips)
        return tokens

    def stop(self, *_: Any) -> None:
        """Stop with the clips of all calls, if there were any."""
        if self.found:
            raise _Seen(list(self.found))


class _ShapesOnly(TorchDispatchMode):
    """Whatever touches a tensor without content gives tensors without content; all else is computed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See the class."""
        kwargs = kwargs or {}
        if _any_empty(args) or _any_empty(kwargs.values()):
            args, kwargs = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, (args, kwargs))
            if "device" in kwargs:
                kwargs = {**kwargs, "device": torch.device("meta")}
        return func(*args, **kwargs)


def _any_empty(values: Iterable[Any]) -> bool:
    """Whether there is a tensor without content among an operator's arguments, which hold tensors or lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            if value.is_meta:
                return True
        elif isinstance(value, list | tuple) and _any_empty(value):
            return True
    return False


class HollowHost:
    """Which clips a host sees in a batch. Threads may share it.

    Args:
        model: of the host, on the meta device and in the dtype it will have.
        processor: its processor.
        settings: of the branch that it would have.
        host: name of the adapter; default: found by looking at the model.

    Raises:
        HostError: not a supported host, or one whose seam can only be found by running it.
    """

    def __init__(self, model: nn.Module, processor: Any, settings: BranchSettings, host: str | None = None) -> None:
        adapter = find_host(model, host)
        try:
            self.seam = checked_seam(adapter, model, processor, settings, weights=False)
        except HostError as error:
            raise HostError(
                f"Host {adapter.name!r} cannot show its clips without its weights: {error} Fill the store by training "
                "or evaluating with store=..., which runs the host."
            ) from error
        self.host, self.settings = adapter.name, settings.model_copy(update={"positions": "none"})
        self.model = model.eval().requires_grad_(False)
        if needs_no_tokens(self.seam.reader):
            home: Any = model.get_submodule(self.seam.path)
            home.forward = _nothing(self.seam.hidden_size)
        self._catcher = _Catcher(self.settings, self.seam, adapter.name)
        attach(model, model, self._catcher)  # type: ignore[arg-type]
        if self._catcher.several:
            # Pictures come first in such a host, so with its words it has shown them all.
            words: Any = model
            words.get_input_embeddings().register_forward_pre_hook(self._catcher.stop)

    def clips(self, batch: Mapping[str, Any], device: torch.device | None = None) -> list[Clip]:
        """The clips of a batch as the branch would be given them; empty for text alone.

        Args:
            batch: arguments of the host's forward, pixels with them.
            device: where the host would be, which rounds what it does to the pixels.

        Raises:
            HostError: the host took pixels, and its seam did not fire.
            Vega3dError: what the adapter finds wrong with them.
        """
        placed = dict(batch) if device is None else tree_map(lambda v: _on(v, device), dict(batch))
        named = self.seam.reader.visual_input(placed)
        kinds = [key for key in PIXELS if placed.get(key) is not None] or ([] if named is None else [named])
        clips = []
        for kind in kinds:
            others = [key for key in kinds if key != kind]
            clips += self._seen(kind, {key: value for key, value in placed.items() if key not in others})
        return clips

    def _seen(self, kind: str, batch: Mapping[str, Any]) -> list[Clip]:
        self._catcher.found.clear()
        try:
            with torch.no_grad(), _quiet(), _ShapesOnly():  # type: ignore[no-untyped-call]
                self.model(**{key: value for key, value in batch.items() if key != "labels"})
        except _Seen as seen:
            return seen.clips
        except Vega3dError:
            raise
        except Exception as error:
            raise HostError(
                f"Host {self.host!r} cannot show the clips of {kind!r} without its weights: {type(error).__name__}: "
                f"{error}. Fill the store by training or evaluating with store=..., which runs the host."
            ) from error
        raise HostError(f"Host {self.host!r} took {kind!r}, but its seam {self.seam.path!r} was not called.")


def build_hollow(model_class: Any, config: Any, dtype: str) -> nn.Module:
    """A model of a class on the meta device, where it takes no memory.

    Args:
        model_class: of transformers.
        config: its config.
        dtype: that the host's weights will have.

    Raises:
        HostError: this class cannot be built there.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = model_class(config)
    except Exception as error:
        raise HostError(
            f"{model_class.__name__} cannot be built without its weights: {type(error).__name__}: {error}. Fill the "
            "store by training or evaluating with store=..., which runs the host."
        ) from error
    return model.to(getattr(torch, dtype))


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _nothing(width: int) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return torch.empty(0, width, device="meta")

    return forward


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within it, code may move, cast and combine tensors without content as if they had any."""
    with _ShapesOnly():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """The seam's warnings are about forwards that run to their end."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
