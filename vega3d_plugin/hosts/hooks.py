"""The callables that ``patch`` hangs on a host's modules.

All are picklable and look the branch up at call time, so copies of a model use their own. Hooks hold strings only; a
method's replacement also holds the module it lives in, which copies along with it. What one hook has to tell another
lies in the call (:mod:`~vega3d_plugin.branch.calls`), never on a module: the next thread's call must not see it.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..branch import calls, given_points
from ..branch.blocks import block
from ..branch.branch import GenerativeBranch, active_branch, keep_out_of_graphs
from ..branch.calls import HostCall
from ..branch.instructions import note_labels
from ..contracts.errors import HostError, SeamMissedWarning
from ..contracts.seams import CHILD, CheckingReader, NotingReader, SeamCall, SeamInput
from ..scenes.view_points import POINTS
from .pointing import points_for
from .prompting import arguments_by_name, context_for, looks_at_prompts, samples_in, shown_by


class BranchHook:
    """Base of the hooks on the module that receives the pixels.

    Args:
        path: dotted path from that module to the branch.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def child(self, module: nn.Module) -> nn.Module:
        """The submodule ``vega3d``: the branch or PEFT's wrapper of it."""
        return module.get_submodule(self.path)


class FuseForward(BranchHook):
    """Forward hook of a point of the seam: replace the visual tokens in the module's output."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """See the class."""
        return _fuse(self.child(module), module, args, kwargs, output)


class NoteForward(BranchHook):
    """Forward pre-hook of a point of the seam: note the pixels for a later point."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See the class."""
        branch = active_branch(self.child(module))
        call = calls.current(branch.key)
        call.notes, call.notes_last = _note(branch, call, module, args, kwargs), False


class MethodReplacement:
    """Stands in for a method in the dictionary of one instance.

    Args:
        owner: the module; reached again through its copy when it is copied or unpickled.
        method: name of the method, which its class has.
        path: dotted path from ``owner`` to the branch.
    """

    def __init__(self, owner: nn.Module, method: str, path: str) -> None:
        self.owner, self.method, self.path = owner, method, path
        self.__name__, self.__doc__ = method, inspect.getdoc(getattr(type(owner), method))

    @property
    def original(self) -> Any:
        """The class's own method, bound."""
        return getattr(type(self.owner), self.method).__get__(self.owner)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the method; hosts look at it."""
        return inspect.signature(self.original)

    def child(self) -> nn.Module:
        """The submodule ``vega3d``: the branch or PEFT's wrapper of it."""
        return self.owner.get_submodule(self.path)


class FuseMethod(MethodReplacement):
    """Replaces the visual tokens in a method's result."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method and fuse."""
        output = self.original(*args, **kwargs)
        return _fuse(self.child(), self.owner, args, kwargs, output, self.method)


class NoteMethod(MethodReplacement):
    """Notes the pixels among a method's arguments, for the points that it reaches on its way."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note and call the method."""
        branch = active_branch(self.child())
        call = calls.current(branch.key)
        notes = _note(branch, call, self.owner, args, kwargs, self.method)
        with calls.noting(call, notes):
            output = self.original(*args, **kwargs)
        reader = branch.seam.reader
        if notes is not None and isinstance(reader, CheckingReader):
            # Said when the forward ends, which `generate` calls later; a host may encode images and videos apart.
            call.left_out = call.left_out or reader.missed(notes)
        return output


class ShowPrompts(MethodReplacement):
    """Shows the prompts that a method is given, such as ``generate``, to what encodes pictures inside it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method in sight of its prompts."""
        branch = active_branch(self.child())
        entry = self.owner.get_submodule(branch.seam.entry)
        points = kwargs.pop(POINTS, None)
        shown = shown_by(branch, entry, arguments_by_name(self.original, args, kwargs))
        with ExitStack() as blocks:
            if shown is not None:
                blocks.enter_context(block(branch.key, "asked", value=shown))
            if points is not None:
                blocks.enter_context(block(branch.key, "points", value=points))
            return self.original(*args, **kwargs)


class NoteLabels(BranchHook):
    """Forward pre-hook of the host: what it learns, which the module that receives the pixels may not be told."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See the class."""
        note_labels(_named(args, kwargs))


class TakePoints(BranchHook):
    """Forward pre-hook: takes the world points out of a call, whose forward knows nothing of them."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See the class."""
        if POINTS not in kwargs:
            return None
        if kwargs[POINTS] is not None:
            given_points.give(active_branch(self.child(module)).key, kwargs[POINTS])
        return args, {key: value for key, value in kwargs.items() if key != POINTS}


class DropPoints(BranchHook):
    """Forward hook, also after a forward that raised: lets go of them."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """See the class."""
        given_points.drop()


def _fuse(
    child: nn.Module,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
    method: str = "",
) -> Any:
    branch = active_branch(child)
    found = _read(branch, module, args, kwargs, output, method)
    if found is None:
        return output
    # Through the child, not the branch, so that PEFT's and FSDP's own wrappers take part.
    context, points = _told(branch, found)
    fused = child(found.tokens, found.clips, acting=found.acting, context=context, points=points)
    return branch.seam.reader.write(output, fused) if found.put_back is None else found.put_back(fused)


def _read(
    branch: GenerativeBranch,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
    method: str,
) -> SeamInput | None:
    call = calls.current(branch.key)
    reader = branch.seam.reader
    needs_notes = isinstance(reader, NotingReader) and not getattr(reader, "notes_optional", False)
    if call.is_replay and needs_notes and call.notes is None:
        raise _not_the_same(branch, "the pixels, which were noted outside of the checkpointed part, are not there")
    scenes = branch.settings.images == "scene"
    images, videos = samples_in(branch, call)
    found = reader.read(SeamCall(module, args, kwargs, output, images, scenes, method, call.notes, videos))
    if found is None:
        return None
    if not call.notes_last and not getattr(call.notes, "lasts", False):
        # Pixels are not kept longer than they are needed.
        call.notes = None
    call.fired += 1
    call.joined = call.joined or (images is None and any(clip.kind == "scene" for clip in found.clips))
    if branch.training:
        _heed_checkpointing(branch, call)
    return found


def _told(branch: GenerativeBranch, found: SeamInput) -> tuple[Tensor | None, list[Tensor] | None]:
    """The instruction and the world points of each clip, where the branch uses them."""
    return context_for(branch, calls.current(branch.key), found.clips), points_for(branch, found.clips)


def _heed_checkpointing(branch: GenerativeBranch, call: HostCall) -> None:
    """Refuse to compute again, in the backward pass and maybe in another thread, what would not be the same."""
    if not call.is_replay:
        branch.key.trained_with.add(branch.switches())
        return
    if branch.uses_instruction:
        raise _not_the_same(branch, "the prompts, whose instruction the fusion uses, are not there")
    if branch.settings.positions != "none":
        raise _not_the_same(branch, "the world points of the pictures are not there")
    if call.joined:
        raise _not_the_same(branch, "images='scene' cannot tell which images belong to which sample")
    if branch.key.trained_with != {branch.switches()}:
        raise _not_the_same(branch, "it is not known whether that was inside vega3d.disabled or vega3d.zeroed")


def _not_the_same(branch: GenerativeBranch, why: str) -> HostError:
    return HostError(
        f"Host {branch.host!r}: gradient checkpointing computed {_fusing(branch)} again in the backward pass, where "
        f"{why}. Checkpoint the layers of the vision tower and of the language model, but not this module."
    )


def _note(
    branch: GenerativeBranch,
    call: HostCall,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    method: str = "",
) -> Any:
    reader = branch.seam.reader
    if not isinstance(reader, NotingReader):
        raise HostError(f"Host {branch.host!r} has a point that notes, but {type(reader).__name__} has no `note`.")
    scenes = branch.settings.images == "scene"
    images, videos = samples_in(branch, call)
    return reader.note(SeamCall(module, args, kwargs, None, images, scenes, method, call.notes, videos))


class BeforeForward(BranchHook):
    """Forward pre-hook: a call begins. Notes its prompts, and which images belong to which."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See the class."""
        branch = active_branch(self.child(module))
        arguments = _named(args, kwargs)
        # A batch without images does not continue what was encoded before it: taken for this call's, that would leave
        # the branch out of the graph.
        encodes = branch.seam.reader.visual_input(arguments) is not None
        call = calls.begin(branch.key, encodes=encodes)
        if not encodes or not looks_at_prompts(branch):
            return
        call.shown = shown_by(branch, module, arguments)
        told = call.shown is not None and call.shown.samples is not None
        if call.joined and not told and _distinct_prompts(arguments) > 1:
            raise HostError(
                "images='scene' cannot tell which image belongs to which prompt in a batch whose images were encoded "
                "before its prompts were seen. Encode one prompt at a time, or in the model's forward or `generate`, "
                "or patch with images='separate'."
            )


class AfterForward(BranchHook):
    """Forward hook, also after a forward that raised: the call ends.

    Warns when images passed by the seam, and keeps the branch in the graph when there were none.
    """

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """See the class."""
        child = self.child(module)
        branch = active_branch(child)
        call = calls.end(branch.key, raised=output is None)
        if call is None or output is None:
            return None
        arguments = _named(args, kwargs)
        source = branch.seam.reader.visual_input(arguments)
        given = None if source is None else arguments.get(source)
        if call.left_out:
            received = f"received {source!r}" if source else "encoded images"
            _warn(f"Host {branch.host!r} {received}, but the branch did not see {call.left_out}")
        if call.fired:
            if call.is_continued:
                calls.note_encoded(given)
            return None
        if source is not None and not call.left_out and not calls.is_encoded(given):
            _warn(
                f"Host {branch.host!r} received {source!r} in this call, but {_fusing(branch)} was not called, so "
                "the branch did not see these images. If they were encoded beforehand by this patched model, they are "
                "fused already; otherwise pass pixels."
            )
        if module.training and torch.is_grad_enabled() and "disabled" not in branch.switches():
            return _keep_in_graph(output, child(None))
        return None


def keep_hooks_out_of_graphs() -> None:
    """Have ``torch.compile`` run the hooks as they are, since what they find differs from call to call.

    The branch itself may be traced. Done when the first branch is attached: at import it would load dynamo.
    """
    for owner in (NoteForward, NoteLabels, TakePoints, DropPoints, BeforeForward, AfterForward):
        keep_out_of_graphs(owner, "__call__")
    keep_out_of_graphs(sys.modules[__name__], "_read", "_note", "_told")
    keep_out_of_graphs(calls, "current")


def _warn(message: str) -> None:
    warnings.warn(message, SeamMissedWarning, stacklevel=3)


def _fusing(branch: GenerativeBranch) -> str:
    """The points that fuse, for a message."""
    return " or ".join(repr(str(point)) for point in branch.seam.points if point.role == "fuse")


def _keep_in_graph(output: Any, zero: Tensor) -> Any:
    """Add a zero that depends on the branch's parameters to whatever the loss will be computed from."""
    if isinstance(output, Tensor):
        return output + zero.to(output)
    if isinstance(output, Mapping):
        for key in ("loss", "logits", "last_hidden_state"):
            value = output.get(key)
            if isinstance(value, Tensor):
                output[key] = value + zero.to(value)  # type: ignore[index]
                break
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (output[0] + zero.to(output[0]), *output[1:])
    return output


def _named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments by name; hosts are called with keywords, but the first may be positional."""
    return {"input_ids": args[0], **kwargs} if args else kwargs


def _distinct_prompts(arguments: Mapping[str, Any]) -> int:
    ids = arguments.get("input_ids")
    # Beam search repeats one prompt; that is still one scene.
    return 0 if ids is None else int(torch.unique(ids, dim=0).shape[0])


__all__ = [
    "CHILD",
    "AfterForward",
    "BeforeForward",
    "BranchHook",
    "DropPoints",
    "FuseForward",
    "FuseMethod",
    "MethodReplacement",
    "NoteForward",
    "NoteLabels",
    "NoteMethod",
    "SeamMissedWarning",
    "ShowPrompts",
    "TakePoints",
]
