"""The callables that ``patch`` hangs on a host's modules.

All are picklable and hold strings only: they look the branch up at call time, so copies of a model use their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .branch import active_branch
from .errors import HostError
from .seams import SeamCall
from .warnings import Vega3dWarning

CHILD = "vega3d"


class SeamMissedWarning(Vega3dWarning):
    """Images reached the host without passing the seam, so they were not fused."""


def fuse_at_seam(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    """Forward hook of the seam's module: replace the visual tokens of its output."""
    child: nn.Module = module.vega3d  # type: ignore[assignment]
    branch = active_branch(child)
    reader = branch.seam.reader
    call = SeamCall(module, args, kwargs, output, branch.samples, branch.settings.images == "scene")
    tokens, clips = reader.read(call)
    # Through the child, not the branch, so that PEFT's and FSDP's own wrappers take part.
    return reader.write(output, child(tokens, clips))


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


class BeforeForward(BranchHook):
    """Forward pre-hook: forget a call that was broken off, and note which images belong to which sample."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """See the class."""
        branch = active_branch(self.child(module))
        arguments = _named(args, kwargs)
        if branch.seam.reader.visual_input(arguments) is None:
            # Left from a forward that raised, or from images encoded on their own: taken for this call's, a batch
            # without images would leave the branch out of the graph.
            branch.fired = 0
        if branch.settings.images != "scene":
            return
        branch.samples = branch.seam.reader.image_samples(module, arguments)
        if branch.fired and branch.samples is None and _distinct_prompts(arguments) > 1:
            # `generate` encodes images before it shows the prompts, so a batch cannot be split into scenes.
            branch.fired = 0
            raise HostError(
                "images='scene' cannot tell which image belongs to which prompt in a batched `generate`: the host "
                "encodes images before the prompts are seen. Generate one prompt at a time, or patch with "
                "images='separate'."
            )


class AfterForward(BranchHook):
    """Forward hook: warn when images passed by the seam, and keep the branch in the graph when there were none."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """See the class."""
        child = self.child(module)
        branch = active_branch(child)
        fired, branch.fired, branch.samples = branch.fired, 0, None
        if fired:
            return None
        source = branch.seam.reader.visual_input(_named(args, kwargs))
        if source is not None:
            warnings.warn(
                f"Host {branch.host!r} received {source!r} in this call, but {branch.seam.path!r} was not called, so "
                "the branch did not see these images. If they were encoded beforehand by this patched model, they are "
                "fused already; otherwise pass pixels.",
                SeamMissedWarning,
                stacklevel=2,
            )
        if module.training and torch.is_grad_enabled() and branch.enabled:
            return _keep_in_graph(output, child(None))
        return None


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


__all__ = ["CHILD", "AfterForward", "BeforeForward", "SeamMissedWarning", "fuse_at_seam"]
