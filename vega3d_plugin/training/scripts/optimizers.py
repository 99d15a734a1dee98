"""The branch in the script's optimisers: put there when they are made, checked before their first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...branch.branch import GenerativeBranch
from ...contracts.errors import FrozenBranchError
from .script import RunError
from .session import Host, Session, unfreeze


def own_groups(session: Session, optimizer: torch.optim.Optimizer) -> None:
    """Have an optimiser that trains a host of this run train its branch too.

    Parameters of the branch that the script left out, because its freezing code had frozen them, become a group of
    their own. With a learning rate for the branch, those that it put into groups move to groups of their own, equal
    but for the rate.
    """
    session.optimizers.add(optimizer)
    for waiting in list(_alive(session)):
        if _trains(optimizer, waiting):
            session.complete(waiting)
    for host, model, branch in session.branches():
        if not branch.trainable or not _trains(optimizer, model):
            continue
        unfreeze(branch)
        session.raise_precision(host, branch)
        session.made_for.setdefault(optimizer, []).append(host)
        session.hooks += _watch(host, branch)
        mine = {id(p): name for name, p in branch.named_parameters()}
        given = {id(p) for p in _parameters(optimizer)}
        missing = [p for p in branch.parameters() if id(p) not in given]
        rate: dict[str, Any] = {} if session.branch_lr is None else {"lr": session.branch_lr}
        if rate:
            for group in list(optimizer.param_groups):
                _split(optimizer, group, mine, rate)
        if missing:
            named = any("param_names" in group for group in optimizer.param_groups)
            params: Any = [(f"vega3d.{mine[id(p)]}", p) for p in missing] if named else missing
            optimizer.add_param_group({"params": params, **rate})
        about = "a group of its own" if missing or rate else "the groups of the script"
        session.tell(f"{_name(optimizer)}: the branch of {host.name} is in {about}, lr {_rates(optimizer, mine)}")


def before_step(session: Session, optimizer: torch.optim.Optimizer) -> None:
    """Before an optimiser's first step: will the branch train?

    Raises:
        FrozenBranchError: a host is in this optimiser, or got gradients, and its branch is frozen, in no optimiser, or
            outside the graph.
        RunError: no host was built, so the script would train without a branch.
    """
    if optimizer in session.checked:
        return
    session.checked.add(optimizer)
    session.begun += 1
    if not session.hosts or any(_trains(optimizer, m) for m in _alive(session)):
        raise RunError(f"{_name(optimizer)} is about to train, but {nothing_built(session)}")
    for host, model, branch in session.branches():
        parameters = dict(branch.named_parameters())
        graded = host.reached or any(p.grad is not None for p in parameters.values())
        given = _trains(optimizer, model)
        # DeepSpeed trains copies of the parameters that the optimiser was made for.
        copies = not given and host in session.made_for.get(optimizer, ())
        if not branch.trainable or not (graded or given or copies):
            continue
        where = f"{_name(optimizer)} is about to make its first step on {host.name}, but"
        frozen = [name for name, p in parameters.items() if not p.requires_grad]
        if frozen:
            raise FrozenBranchError(
                f"{where} {_some(frozen)} of the branch {_is(frozen)} frozen. The script froze "
                "them after the optimiser was made; leave out what matches 'vega3d' there."
            )
        known = {id(p) for known in session.optimizers for p in _parameters(known)}
        missing = [name for name, p in parameters.items() if id(p) not in known]
        if missing and not copies:
            raise FrozenBranchError(
                f"{where} {_some(missing)} of the branch {_is(missing)} in the parameter groups of no optimiser "
                f"({', '.join(sorted(_name(o) for o in session.optimizers))}). Give it "
                "vega3d.get_handle(model).parameter_groups(), or the model's own parameters after the branch was added."
            )
        if not graded and any(p.grad is not None for p in _parameters(optimizer)):
            raise FrozenBranchError(
                f"{where} its branch got no gradient: images and video did not pass {branch.seam.path!r}, or the loss "
                "does not depend on them. `vega3d doctor` checks the host."
            )


def nothing_built(session: Session) -> str:
    """Why there is no branch, for messages."""
    if session.waiting:
        return " ".join(
            f"{host.name} from {host.source} could not be given a branch: {host.error}" for host in session.waiting
        )
    other = next(filter(None, session.others.values()), None)
    if other is None:
        advice = (
            "Name a recipe of the script's host (`vega3d recipes ls`). In a script that makes its model in another "
            "way, call vega3d.patch(model), and run it without `vega3d run`."
        )
    else:
        advice = f"Name a recipe of adapter {other!r} (`vega3d recipes ls`)."
    built = f"built were {', '.join(session.others)}" if session.others else "nothing was"
    return f"no host of adapter {session.adapter!r} was built by from_pretrained ({built}). {advice}"


def _alive(session: Session) -> Iterator[nn.Module]:
    """Hosts that still wait for their branch."""
    return (model for host in session.waiting if (model := host.ref()) is not None)


def _watch(host: Host, branch: GenerativeBranch) -> list[RemovableHandle]:
    """Note when a gradient comes to a branch: DeepSpeed takes it away before the optimiser's step."""

    def reached(gradient: Tensor) -> None:
        host.reached = True

    return [p.register_hook(reached) for p in branch.parameters()]


def _trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    own = {id(p) for p in model.parameters()}
    return any(id(p) in own for p in _parameters(optimizer))


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _split(optimizer: torch.optim.Optimizer, group: dict[str, Any], mine: dict[int, str], rate: dict[str, Any]) -> None:
    """Move the branch's parameters of one group to a new one that differs in the learning rate alone."""
    at = [index for index, p in enumerate(group["params"]) if id(p) in mine]
    if not at:
        return
    moved: dict[str, Any] = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    params: list[Any] = [group["params"][index] for index in at]
    if "param_names" in group:
        params = [(group["param_names"][index], group["params"][index]) for index in at]
    for key in ("params", "param_names"):
        if key in group:
            group[key] = [value for index, value in enumerate(group[key]) if index not in at]
    optimizer.add_param_group({**moved, "params": params, **rate})


def _rates(optimizer: torch.optim.Optimizer, mine: dict[int, str]) -> str:
    rates = {float(g.get("lr", 0)) for g in optimizer.param_groups if any(id(p) in mine for p in g["params"])}
    return ", ".join(f"{rate:g}" for rate in sorted(rates))


def _name(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__.partition('.')[0]}.{type(optimizer).__qualname__}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
