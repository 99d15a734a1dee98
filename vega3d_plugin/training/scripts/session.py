"""One ``vega3d run``: which hosts were built, and what was done with their branches."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...branch.blocks import block
from ...branch.branch import GenerativeBranch
from ...branch.calls import BranchKey
from ...branch.handle import get_handle, is_patched
from ...checkpoints.reading import folder_with_branch, holds_branch
from ...checkpoints.saving import load_pretrained, save_pretrained
from ...contracts.errors import HostError, PatchError, SavedBranchError
from ...contracts.priors import Prior
from ...contracts.settings import BranchSettings
from ...features.store import FeatureStore
from ...hosts.loading import host_processor
from ...hosts.peft import is_peft_model
from ...patching import patch
from ...plugins import plugin_manager
from ...storage.record import CONFIG_FILE
from ..model.restoring import reload_renamed
from .cards import write_adapter_card
from .initialisers import own_initialisers
from .recording import EpisodeVideos
from .state_dicts import is_branchs, is_state_of
from .waiting import before_first_call
from .wraps import Wraps


@dataclass(eq=False)
class Host:
    """A host that was built while the session ran.

    Attributes:
        ref: the model.
        name: its class.
        source: where it came from.
        saved: folder that holds its branch, or None.
        processor: that of its folder, or None.
        restored: where its branch came from; empty when it is new.
        error: why it has no branch yet.
        release: takes back what waits for the first call.
        start: sums of the tensors of a new branch.
        reached: whether a gradient has come to the branch.
    """

    ref: weakref.ref[nn.Module]
    name: str
    source: str
    saved: Path | None = None
    processor: Any = None
    restored: str = ""
    error: str = ""
    release: Callable[[], None] = lambda: None
    start: tuple[float, ...] = ()
    reached: bool = False


@dataclass
class Session:
    """What holds for one run of a script.

    Attributes:
        adapter: hosts of this adapter get the branch; others are left alone.
        settings: of the branch.
        store: features already computed.
        branch_lr: learning rate of the branch, in parameter groups of its own; None: that of the groups the script
            puts it in.
        frozen: the branch stays as it is: for the host's training with a branch that is done.
        master_float32: a branch that trains is held in float32, whatever the host is held in.
        seed: of a new branch's weights.
        say: takes one line for the user.
        record: folder for videos of what the hosts saw; None: none are written.
    """

    adapter: str
    settings: BranchSettings
    store: FeatureStore | str | Path | None = None
    branch_lr: float | None = None
    frozen: bool = False
    master_float32: bool = True
    seed: int = 0
    say: Callable[[str], None] = print
    record: Path | None = None
    hosts: list[Host] = field(default_factory=list)
    #: Hosts that could not be patched as they were built.
    waiting: list[Host] = field(default_factory=list)
    #: Classes built by ``from_pretrained`` that got no branch, and the adapters that match them, for messages.
    others: dict[str, str | None] = field(default_factory=dict)
    #: Folders that a branch was written to.
    written: dict[str, None] = field(default_factory=dict)
    #: Optimisers that have begun to step.
    begun: int = 0
    #: Loaded once; every host of the run shares it.
    prior: Prior | None = None

    def __post_init__(self) -> None:
        self.wraps = Wraps()
        self.optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self.checked: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        #: Hosts that an optimiser was made for; DeepSpeed then gives it copies of their parameters.
        self.made_for: weakref.WeakKeyDictionary[torch.optim.Optimizer, list[Host]] = weakref.WeakKeyDictionary()
        #: Take back hooks of this run on optimisers and gradients.
        self.hooks: list[RemovableHandle] = []
        #: Where simulators have begun episodes.
        self.starts: set[str] = set()
        mark = f"_rank{rank()}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        self.videos = None if self.record is None else EpisodeVideos(self.record, mark)
        #: Ends with the run: blocks that record.
        self.until_the_end = ExitStack()
        self.recorded: weakref.WeakSet[BranchKey] = weakref.WeakSet()
        self._depth = threading.local()

    @contextmanager
    def outermost(self, what: str) -> Iterator[bool]:
        """True for the outermost of nested calls: a ``from_pretrained`` inside another builds only a part."""
        depth = getattr(self._depth, what, 0)
        setattr(self._depth, what, depth + 1)
        try:
            yield depth == 0
        finally:
            setattr(self._depth, what, depth)

    def inside(self, what: str) -> bool:
        """True while a call that :meth:`outermost` counts is running in this thread."""
        return getattr(self._depth, what, 0) > 0

    # Hosts.

    def built(self, model: nn.Module, source: Any, options: Mapping[str, Any]) -> None:
        """Give a model that ``from_pretrained`` has built its branch: that of its folder, or a new one."""
        adapter = plugin_manager().hook.vega3d_match_host(model=model)
        if adapter != self.adapter:
            self.others[type(model).__name__] = adapter
            return
        saved = next(filter(None, (folder_with_branch(place, options) for place in _places(source, options))), None)
        host = Host(weakref.ref(model), type(model).__name__, str(source), saved, host_processor(model, source))
        try:
            self._add(host, model)
        except HostError as error:
            # LLaVA's scripts load the vision tower later.
            host.error = str(error)
            self.waiting.append(host)
            host.release = before_first_call(model, lambda: self.complete(model, must=True))
            self.tell(f"{host.name} from {source} is not complete yet and waits for its branch: {error}")

    def complete(self, module: nn.Module | None, *, must: bool = False) -> None:
        """Try again with hosts in ``module`` that could not be given their branch when they were built.

        Args:
            module: a host, or what wraps one.
            must: it is about to run, so an incomplete host is an error.

        Raises:
            HostError: ``must``, and it is still incomplete.
        """
        for host in self.hosts_in(module, self.waiting):
            try:
                self._add(host, module if is_peft_model(module) else host.ref())  # type: ignore[arg-type]
            except HostError as error:
                host.error = str(error)
                if must:
                    raise HostError(f"{host.name} from {host.source} is run without its branch: {error}") from error
            else:
                self.waiting.remove(host)
                host.release()

    def _add(self, host: Host, model: nn.Module) -> None:
        """Patch a model, the host itself or a ``PeftModel`` of it, and load the branch it was saved with."""
        prior = [] if self.prior is None else [self.prior]
        with torch.random.fork_rng(devices=[]), own_initialisers():
            # Equal on all ranks and in every run, and the script's own random numbers stay what they were: a branch is
            # made on the CPU, and torch.manual_seed would set the GPUs' generators too.
            torch.default_generator.manual_seed(self.seed)
            patch(
                model, *prior, config=self.settings, processor=host.processor, store=self.store, host=self.adapter
            )  # fmt: skip
        handle = get_handle(model)
        self.prior, self.store = handle.prior, handle.branch.store
        if self.frozen:
            handle.freeze()
        self.hosts.append(host)
        self.record_active()
        if host.saved is not None:
            self.restore(model, host.saved)
        else:
            host.start = _sums(handle.branch)
            self.tell(f"{host.name} from {host.source} has a new branch: {handle}")

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Load the branch of a folder into a host that has one with the recipe's settings, or will have.

        Raises:
            SavedBranchError, PatchError: it is another recipe's.
        """
        for host in self.hosts_in(model, self.waiting):
            host.saved = folder
        if not self.hosts_in(model):
            return
        try:
            with self.outermost("load"), own_initialisers():
                load_pretrained(model, folder, prior=get_handle(model).prior, host=self.adapter)
        except PatchError as error:
            raise SavedBranchError(
                f"{folder} holds a branch of another recipe. {error} Run with the recipe it was trained with."
            ) from error
        for host in self.hosts_in(model):
            if host.restored != str(folder):
                self.tell(f"{host.name} from {host.source} has the branch of {folder}")
            host.restored = str(folder)

    def loaded(self, state: Any, source: Any) -> None:
        """After a script has read a host's state dictionary, or a part of one, that a branch was written beside.

        LLaVA's stages hand ``mm_projector.bin`` on like this, and pick the projector's weights out of it by name. A
        host that trains, or that was given its branch already, is left alone.
        """
        folder = Path(source).parent if isinstance(source, str | Path) else None
        if self.begun or folder is None or not (folder / CONFIG_FILE).is_file() or not isinstance(state, Mapping):
            return
        others = {name: value for name, value in state.items() if not is_branchs(name)}
        if len(others) == len(state):
            return
        for host in [*self.hosts, *self.waiting]:
            model = host.ref()
            if model is not None and not host.restored and is_state_of(others, model):
                self.restore(model, folder)

    def resumed(self, model: nn.Module, folder: Path) -> None:
        """After a trainer has read a checkpoint back: see to it that the branch is that of the checkpoint."""
        for host in self.hosts_in(model):
            inner = host.ref()
            if inner is None or not holds_branch(folder):
                continue
            if not is_peft_model(model) and reload_renamed(inner, folder, lambda: self.outermost("build")):
                self.tell(f"{host.name}: its weights have other names in {folder}, and were read by these")
            self.restore(model, folder)

    def hosts_in(self, module: nn.Module | None, among: Sequence[Host] | None = None) -> list[Host]:
        """The hosts of this session that are in a module: itself, or inside PEFT, DDP and other wrappers.

        Args:
            module: where to look.
            among: default: those that have their branch.
        """
        among = self.hosts if among is None else among
        inside = set() if module is None or not among else {id(part) for part in module.modules()}
        return [host for host in among if id(host.ref()) in inside]

    def branches(self) -> Iterator[tuple[Host, nn.Module, GenerativeBranch]]:
        """Hosts that are alive, with the branch that is active."""
        for host in self.hosts:
            model = host.ref()
            if model is not None and is_patched(model):
                yield host, model, get_handle(model).branch

    # Episodes.

    def record_active(self) -> None:
        """Record what the active branches do; PEFT may have made copies, which are branches of their own."""
        if self.videos is None:
            return
        for _, _, branch in self.branches():
            if branch.key not in self.recorded:
                self.recorded.add(branch.key)
                record = partial(self.videos.record, branch)
                self.until_the_end.enter_context(block(branch.key, "shares", record, all_threads=True))

    def begin_episode(self, start: object) -> None:
        """A simulator begins an episode of this thread: forget what was seen in the one before.

        Args:
            start: where, for the message.
        """
        self.record_active()
        remembers = False
        for _, _, branch in self.branches():
            branch.history.reset()
            remembers = remembers or branch.history.length > 1
        if self.videos is not None:
            self.videos.begin()
        if str(start) not in self.starts and (remembers or self.videos is not None):
            self.starts.add(str(start))
            self.tell(f"an episode begins at each call of {start}: the branch then forgets earlier observations")

    # Training.

    def keep_trainable(self, module: nn.Module | None) -> None:
        """Undo what froze the branches in ``module``, unless ``handle.freeze()`` did it."""
        self.complete(module)
        for host in self.hosts_in(module):
            model = host.ref()
            if model is not None and is_patched(model):
                branch = get_handle(model).branch
                unfreeze(branch)
                self.raise_precision(host, branch)

    def raise_precision(self, host: Host, branch: GenerativeBranch) -> None:
        """Have a branch that is about to train hold its weights in float32, and tell."""
        if self.master_float32 and hold_in_float32(branch):
            host.start = _sums(branch) if host.start else ()
            model = host.ref()
            if host.restored and model is not None:
                # It was rounded to the host's dtype when it was read.
                self.restore(model, Path(host.restored))
            self.tell(f"the branch of {host.name} is held in float32 while it trains; the host keeps its own dtype")

    # Saving.

    def check_whole(self, model: nn.Module, folder: Any, state: Mapping[str, Any] | None) -> None:
        """Before the script saves: can its branch be saved, too?

        Args:
            model: a host, or a ``PeftModel`` of one.
            folder: for the message.
            state: what the script saves of it; None: all that ``model`` has.

        Raises:
            SavedBranchError: the branch is sharded, and not whole in ``state``.
        """
        if not is_patched(model) or rank() != 0 or not _is_sharded(get_handle(model).branch):
            return
        # To gather takes all processes, and they may not all be here; trainers gather for their own files.
        mine = [value for name, value in (state or {}).items() if is_branchs(name)]
        # ZeRO-3 leaves nothing in a parameter that is not gathered.
        if not mine or any(value.numel() == 0 for value in mine):
            raise SavedBranchError(
                f"The branch is sharded over processes, and not whole in what the script saves in {folder}. Have the "
                "trainer save the model (it gathers the whole state dictionary), or use ZeRO-2."
            )

    def write(self, model: nn.Module, folder: str | Path) -> None:
        """Write the branch of ``model`` beside what the script saved in ``folder``, from the first process alone."""
        if not is_patched(model) or rank() != 0:
            return
        branch = get_handle(model).branch
        # A sharded one is in the script's own file, see check_whole().
        sharded = _is_sharded(branch)
        if not sharded:
            save_pretrained(model, folder, card=False)
            write_adapter_card(model, Path(folder))
        if str(folder) not in self.written:
            self.tell(f"the branch is in {folder}, {'among the weights' if sharded else 'too'}")
        self.written[str(folder)] = None
        if sharded or self.frozen or not self.begun:
            return
        if any(host.start == _sums(branch) for host in self.hosts_in(model)):
            self.tell(f"note: that branch is as it was when the run began: none of {self.begun} optimisers moved it")

    def tell(self, line: str) -> None:
        """One line for the user, from the first process alone."""
        if rank() == 0:
            self.say(line)


def _is_sharded(branch: GenerativeBranch) -> bool:
    """True for FSDP2 and ZeRO-3, which leave a part of each parameter in each process."""
    return any(hasattr(p, "full_tensor") or hasattr(p, "ds_numel") for p in branch.parameters())


def _sums(branch: GenerativeBranch) -> tuple[float, ...]:
    """What tells whether a branch has moved; empty when it is sharded."""
    if _is_sharded(branch):
        return ()
    return tuple(float(p.detach().double().sum()) for p in branch.parameters())


def unfreeze(branch: GenerativeBranch) -> None:
    """Let the branch train, unless its handle was told to freeze it."""
    if branch.trainable:
        branch.requires_grad_(True)


def hold_in_float32(branch: GenerativeBranch) -> bool:
    """Hold a branch that is about to train in float32; True where it was not.

    In bfloat16 a step that is smaller than about a 500th of a weight is lost by rounding: at a rate of 1e-5 most are.
    DeepSpeed keeps float32 copies of its own, and FSDP takes one dtype alone.
    """
    sharding = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("DEEPSPEED", "FSDP"))
    if not branch.trainable or sharding or _is_sharded(branch):
        return False
    half = [p for p in branch.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    for parameter in half:
        # The same object, because optimisers and the script may hold it.
        parameter.data = parameter.data.float()
    return bool(half)


def rank() -> int:
    """This process among those of the run; 0 when there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))


def _places(source: Any, options: Mapping[str, Any]) -> list[Any]:
    """Where a model's trained branch may be: its PEFT adapter first, which may be given instead of the model."""
    adapter = options.get("adapter_kwargs", {}).get("_adapter_model_path")
    return [place for place in (adapter, source) if place is not None]


__all__ = ["Host", "Session", "rank", "unfreeze"]
