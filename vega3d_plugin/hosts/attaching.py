"""Hanging a branch on a host, and taking it off without a trace."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..branch.branch import GenerativeBranch
from ..branch.copies import at_path, plain_path, running_modules
from ..branch.handle import is_branch
from ..contracts.seams import CHILD, Seam
from .hooks import (
    AfterForward,
    BeforeForward,
    BranchHook,
    DropPoints,
    FuseForward,
    FuseMethod,
    MethodReplacement,
    NoteForward,
    NoteLabels,
    NoteMethod,
    ShowPrompts,
    TakePoints,
    keep_hooks_out_of_graphs,
)
from .nested_copies import watch_copies
from .peft import active_adapter, forget_module, save_with_adapter
from .prompting import looks_at_prompts, prompt_methods


def placement(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of the seam: those of its last floating-point parameter, where the tokens come out."""
    floating = [p for p in module.parameters() if p.is_floating_point()]
    if not floating:
        return {"dtype": torch.bfloat16, "device": next((p.device for p in module.parameters()), torch.device("cpu"))}
    last = floating[-1]
    # 8-bit floats hold quantised weights; nothing can be trained in them.
    return {"device": last.device, "dtype": last.dtype if last.element_size() > 1 else torch.bfloat16}


def attach(model: nn.Module, base: nn.Module, branch: GenerativeBranch) -> None:
    """Put the branch in its home, and hooks or replacements at the points of the seam.

    Where PEFT has copied the home, or a module around it, each of the copies gets a branch: as if PEFT had come later.
    """
    keep_hooks_out_of_graphs()
    watch_copies()
    seam = branch.seam = _plain(base, branch.seam)
    _place(model, base, branch)
    if branch.settings.positions != "none":
        _attach_to_points(base, seam)
    # First, so that a note taken of the same forward comes after the old ones are forgotten.
    entries = at_path(base, seam.entry)
    for entry in entries:
        entry.register_forward_pre_hook(BeforeForward(_below(seam.entry, seam)), with_kwargs=True)
    for point in seam.points:
        path = _below(point.path, seam)
        for owner in at_path(base, point.path):
            if point.method:
                replacement = FuseMethod if point.role == "fuse" else NoteMethod
                owner.__dict__[point.method] = replacement(owner, point.method, path)
            elif point.role == "fuse":
                owner.register_forward_hook(FuseForward(path), with_kwargs=True)
            else:
                owner.register_forward_pre_hook(NoteForward(path), with_kwargs=True)
    if looks_at_prompts(branch) or branch.settings.positions != "none":
        _attach_to_prompts(base, branch)
    for entry in entries:
        entry.register_forward_hook(AfterForward(_below(seam.entry, seam)), with_kwargs=True, always_call=True)


def _attach_to_prompts(base: nn.Module, branch: GenerativeBranch) -> None:
    """Have the branch see the prompts where the host's forward alone would show them too late, or without labels."""
    path = _below("", branch.seam)
    for name in prompt_methods(branch.seam, base):
        if name not in base.__dict__:
            base.__dict__[name] = ShowPrompts(base, name, path)
    if branch.uses_instruction and branch.seam.entry:
        base.register_forward_pre_hook(NoteLabels(path), with_kwargs=True)


def _attach_to_points(base: nn.Module, seam: Seam) -> None:
    """Have the host take world points beside pixels, wherever it is called."""
    for path in {"", seam.entry}:
        for owner in at_path(base, path):
            owner.register_forward_pre_hook(TakePoints(_below(path, seam)), with_kwargs=True)
            owner.register_forward_hook(DropPoints(_below(path, seam)), with_kwargs=True, always_call=True)


def _plain(base: nn.Module, seam: Seam) -> Seam:
    """The seam with the paths that hold without PEFT; an adapter that looks at names may find those of a copy."""
    points = tuple(replace(point, path=plain_path(base, point.path)) for point in seam.points)
    path, entry, like = (plain_path(base, name) for name in (seam.path, seam.entry, seam.like))
    return replace(seam, path=path, entry=entry, like=like, points=points)


def _place(model: nn.Module, base: nn.Module, branch: GenerativeBranch) -> None:
    """Register the branch, so that it trains and is saved with the adapter where there is one."""
    homes, adapter = at_path(base, branch.seam.path), active_adapter(model)
    if len(homes) == 1:
        homes[0].add_module(CHILD, branch)
        if adapter is not None:
            save_with_adapter(model, homes[0], CHILD)
        return
    runs = {id(module) for module in running_modules(base)}
    for home in homes:
        own = branch if id(home) in runs else copy.deepcopy(branch)
        own.requires_grad_(id(home) in runs)
        home.add_module(CHILD, own)
    if adapter is not None:
        # It is saved with the module around it.
        forget_module(model, CHILD)


def _below(path: str, seam: Seam) -> str:
    """The branch's path as seen from a module above it."""
    child = f"{seam.path}.{CHILD}" if seam.path else CHILD
    return child[len(path) + 1 :] if path else child


def detach(model: nn.Module, base: nn.Module) -> None:
    """Take out the branch, its hooks and its replacements; the model is as it was before."""
    for module in base.modules():
        for hooks, *marks in (
            (module._forward_hooks, module._forward_hooks_with_kwargs, module._forward_hooks_always_called),
            (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        ):
            for key in [k for k, hook in hooks.items() if isinstance(hook, BranchHook)]:
                del hooks[key]
                for marked in marks:
                    marked.pop(key, None)
        for name in [n for n, value in module.__dict__.items() if isinstance(value, MethodReplacement)]:
            del module.__dict__[name]
    for module in list(base.modules()):
        child = module._modules.get(CHILD)
        if child is not None and is_branch(child):
            del module._modules[CHILD]
            if active_adapter(model) is not None:
                forget_module(model, CHILD)
