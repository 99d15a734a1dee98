"""What ``vega3d run`` wraps while the script runs: one function per place, and the list of them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ...branch.handle import get_handle
from ...checkpoints.reading import folder_with_branch
from ...contracts.seams import CHILD
from ...hosts.peft import copied_around, is_peft_model, save_with_adapter
from . import ray_tasks
from .optimizers import before_step, own_groups
from .session import Session
from .state_dicts import complete, is_state_of

Original = Callable[..., Any]


@contextmanager
def wrapped(session: Session) -> Iterator[None]:
    """Wrap everything for the length of a ``with`` block; put back on any way out."""
    try:
        for owner, attribute, around, why in _places(session):
            session.wraps.add(owner, attribute, around, why)
        session.hooks.append(
            register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: before_step(session, optimizer))
        )
        yield
    finally:
        for hook in session.hooks:
            hook.remove()
        for wrap in session.wraps.undo():
            session.tell(f"{wrap.name} was replaced by the script, and stays so")


def _places(session: Session) -> Iterator[tuple[Any, str, Original, str]]:
    """Owner, attribute, what to do around it, and why."""
    import peft
    import safetensors.torch
    import transformers
    from torch.nn.parallel import DistributedDataParallel

    model, adapter = transformers.PreTrainedModel, peft.PeftModel
    around = Around(session)
    yield model, "from_pretrained", around.build, "adds the branch to each matching host; restores a trained one"
    yield model, "save_pretrained", around.save, "writes the branch beside the model"
    yield adapter, "__init__", around.adapter_init, "adds 'vega3d' to modules_to_save, or a module around it is there"
    yield adapter, "add_adapter", around.add_adapter, "adds 'vega3d' to modules_to_save, or a module around it is there"
    yield adapter, "from_pretrained", around.adapter_build, "restores the branch of an adapter's folder"
    yield adapter, "load_adapter", around.adapter_load, "takes the adapter as it was saved"
    yield adapter, "save_pretrained", around.adapter_save, "writes the branch beside the adapter"
    yield DistributedDataParallel, "__init__", around.parallel, "unfreezes the branch first, so that DDP sees it"
    yield torch.optim.Optimizer, "__init__", around.optimizer, "puts the branch into the parameter groups"
    yield torch, "save", around.save_state, "adds the branch to a host's state dictionary that lacks it"
    yield safetensors.torch, "save_file", around.save_state, "adds the branch to a host's tensors that lack it"
    yield torch, "load", around.load_state, "restores the branch that lies beside a host's state dictionary"
    yield safetensors.torch, "load_file", around.load_state, "restores the branch that lies beside a host's tensors"
    trainer = _trainer(transformers)
    if inspect.isclass(trainer) and "train" in vars(trainer):
        yield trainer, "__init__", around.trainer, "unfreezes the branch before parameters are counted"
        yield trainer, "train", around.train, "unfreezes the branch before the optimiser is made"
        if "_load_from_checkpoint" in vars(trainer):
            yield trainer, "_load_from_checkpoint", around.resume, "restores the branch, and what it missed of the host"
        if "_load_best_model" in vars(trainer):
            yield trainer, "_load_best_model", around.best, "restores the branch of the best checkpoint"
    if (found := find_spec("ray")) is not None and found.origin is not None:  # a folder of that name is not Ray
        import ray

        yield ray, "init", around.ray_init, "starts no workers; where the script asks for an actor, Ray does"
        yield ray, "remote", ray_tasks.remote, "runs functions here, where their models get the branch, one by one"
        yield ray, "get", ray_tasks.get, "gives what they returned"


def _trainer(transformers: Any) -> Any:
    """HF's Trainer; None where it cannot be imported, as beside a TensorFlow that transformers does not know."""
    try:
        return getattr(transformers, "Trainer", None)
    except (ImportError, RuntimeError):
        return None


def explain(session: Session) -> list[tuple[str, str]]:
    """Name and purpose of everything that is wrapped."""
    return [
        *((wrap.name, wrap.why) for wrap in session.wraps.wraps),
        ("torch.optim.Optimizer.step (a hook)", "checks before the first step that the branch will train"),
    ]


class Around:
    """The functions, one per wrapped place; each calls the original once."""

    def __init__(self, session: Session) -> None:
        self.session = session

    # transformers

    def build(self, original: Original, cls: Any, *args: Any, **kwargs: Any) -> Any:
        """``PreTrainedModel.from_pretrained``."""
        with self.session.outermost("build") as outermost:
            # Before, because it takes some of them out, at two levels.
            options = {**kwargs, "adapter_kwargs": dict(kwargs.get("adapter_kwargs") or {})}
            built = original(cls, *args, **kwargs)
            if outermost:
                source = args[0] if args else options.get("pretrained_model_name_or_path")
                # With output_loading_info=True there is a report behind the model.
                self.session.built(built[0] if isinstance(built, tuple) else built, source, options)
        return built

    def save(self, original: Original, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """``PreTrainedModel.save_pretrained``."""
        with self.session.outermost("save") as outermost:
            given = inspect.signature(original).bind(model, *args, **kwargs).arguments
            mine = outermost and given.get("is_main_process", True)
            if mine:
                self.session.check_whole(model, given["save_directory"], given.get("state_dict"))
            result = original(model, *args, **kwargs)
            if mine:
                self.session.write(model, given["save_directory"])
        return result

    def trainer(self, original: Original, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        """``Trainer.__init__``."""
        model = kwargs.get("model", args[0] if args else None)
        if isinstance(model, nn.Module):
            self.session.keep_trainable(model)
        return original(trainer, *args, **kwargs)

    def train(self, original: Original, trainer: Any, *args: Any, **kwargs: Any) -> Any:
        """``Trainer.train``."""
        self.session.keep_trainable(trainer.model)
        return original(trainer, *args, **kwargs)

    def resume(self, original: Original, trainer: Any, folder: Any, *args: Any, **kwargs: Any) -> Any:
        """``Trainer._load_from_checkpoint``."""
        with self.session.outermost("load"):
            result = original(trainer, folder, *args, **kwargs)
            self.session.resumed(kwargs.get("model", args[0] if args else None) or trainer.model, Path(folder))
        return result

    def best(self, original: Original, trainer: Any) -> Any:
        """``Trainer._load_best_model``."""
        with self.session.outermost("load"):
            result = original(trainer)
            self.session.resumed(trainer.model, Path(trainer.state.best_model_checkpoint))
        return result

    # PEFT

    def adapter_init(self, original: Original, model: Any, base: nn.Module, config: Any, *args: Any, **kw: Any) -> Any:
        """``PeftModel.__init__``, where ``get_peft_model`` and ``PeftModel.from_pretrained`` both end."""
        self.session.complete(base)
        self._keep(base, config)
        return original(model, base, config, *args, **kw)

    def add_adapter(self, original: Original, model: Any, name: str, config: Any, *args: Any, **kwargs: Any) -> Any:
        """``PeftModel.add_adapter``."""
        self._keep(model, config)
        return original(model, name, config, *args, **kwargs)

    def adapter_build(self, original: Original, cls: Any, base: nn.Module, source: Any, *args: Any, **kw: Any) -> Any:
        """``PeftModel.from_pretrained``."""
        self.session.complete(base)
        known = bool(self.session.hosts_in(base))
        with self.session.outermost("adapter"):
            here = known or self.session.hosts_in(base, self.session.waiting)
            folder = folder_with_branch(source, kw) if here else None
            if folder is not None:
                # First, so that another recipe's branch is told as such, and one beside the adapter is found.
                self.session.restore(base, folder)
            model = original(cls, base, source, *args, **kw)
        if known and (kw.get("is_trainable") or (len(args) > 1 and args[1])):
            _make_part_of_adapter(model)
        return model

    def adapter_load(self, original: Original, model: Any, *args: Any, **kwargs: Any) -> Any:
        """``PeftModel.load_adapter``."""
        with self.session.outermost("adapter"):
            return original(model, *args, **kwargs)

    def adapter_save(self, original: Original, model: Any, *args: Any, **kwargs: Any) -> Any:
        """``PeftModel.save_pretrained``."""
        given = inspect.signature(original).bind(model, *args, **kwargs)
        state, folder = given.arguments.get("kwargs", {}).get("state_dict"), given.arguments["save_directory"]
        with self.session.outermost("save") as outermost:
            mine = outermost and given.arguments.get("is_main_process", True)
            if mine:
                self.session.check_whole(model, folder, state)
            if state is not None and self.session.hosts_in(model):
                # Scripts that pick the LoRA weights out by name leave out what PEFT then looks for.
                given.arguments["kwargs"] = {**given.arguments["kwargs"], "state_dict": complete(state, model)}
            result = original(*given.args, **given.kwargs)
            if mine:
                self.session.write(model, folder)
        return result

    def _keep(self, model: nn.Module, config: Any) -> None:
        # An adapter that is read from disk comes as it was saved.
        if self.session.inside("adapter") or not self.session.hosts_in(model) or not hasattr(config, "modules_to_save"):
            return
        named = [name for name in config.modules_to_save or [] if name != CHILD]
        hosts = [host.ref() for host in self.session.hosts_in(model)]
        paths = [get_handle(host).seam.path for host in hosts if host is not None]
        # With the projector, the branch in it is copied and saved; a second copy would not run.
        inside = bool(paths) and all(copied_around(path, named) for path in paths)
        config.modules_to_save = named if inside else [*named, CHILD]

    # torch

    def parallel(self, original: Original, wrapper: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """``DistributedDataParallel.__init__``."""
        self.session.keep_trainable(module)
        return original(wrapper, module, *args, **kwargs)

    def optimizer(self, original: Original, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """``Optimizer.__init__``, which every optimiser's own calls."""
        result = original(optimizer, *args, **kwargs)
        own_groups(self.session, optimizer)
        return result

    def save_state(self, original: Original, state: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        """``torch.save`` and ``safetensors.torch.save_file``."""
        with self.session.outermost("save") as outermost:
            model = self._owner(state) if outermost else None
            if model is None:
                return original(state, target, *args, **kwargs)
            self.session.check_whole(model, target, state)
            result = original(complete(state, model), target, *args, **kwargs)
            if isinstance(target, str | Path):
                self.session.write(model, Path(target).parent)
        return result

    def load_state(self, original: Original, source: Any, *args: Any, **kwargs: Any) -> Any:
        """``torch.load`` and ``safetensors.torch.load_file``."""
        with self.session.outermost("load") as outermost:
            state = original(source, *args, **kwargs)
            # Libraries read their files here too, and are seen to where they are called.
            if outermost and not (self.session.inside("build") or self.session.inside("adapter")):
                self.session.loaded(state, source)
        return state

    # ray

    def ray_init(self, original: Original, *args: Any, **kwargs: Any) -> None:
        """``ray.init``."""
        self.session.tell("Ray's tasks run here, one after the other: in its workers models would have no branch")

    def _owner(self, state: Any) -> nn.Module | None:
        """The host that a state dictionary, or a part of one, was taken from."""
        if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
            return None
        return next((model for _, model, _ in self.session.branches() if is_state_of(state, model)), None)


def _make_part_of_adapter(model: Any) -> None:
    """An adapter without a branch, loaded to go on training: from now on it has one."""
    if not is_peft_model(model):
        return
    for module in list(model.get_base_model().modules()):
        child = module._modules.get(CHILD)
        if child is not None and not hasattr(child, "original_module"):
            save_with_adapter(model, module, CHILD)
