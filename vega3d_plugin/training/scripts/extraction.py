"""The clips of a host's own training script: it prepares its model and its rows, and is stopped where it would train.

The models that it builds have no weights. Everything else is the script's own: its arguments, its data set, its
collator, and what its trainer does to a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...contracts.clips import Clip
from ...contracts.errors import RowError, TrainError
from ...contracts.settings import BranchSettings
from ...features.store import FeatureStore
from ...hosts.hollow import build_hollow, shapes_only
from ...hosts.peft import base_model
from ...recipes.library import Recipe, read_recipe
from ..data import BadRow
from ..extraction import OpenedClips, Request, chosen_store
from .script import Command, RunError, run_command
from .wraps import Wraps

#: Arguments of ``from_pretrained`` that say where a config is.
_WHERE = ("cache_dir", "revision", "subfolder", "token", "trust_remote_code", "local_files_only", "code_revision")


class _TrainsNow(BaseException):  # not an error, and no script's `except Exception` may stop it
    """Ends a script where it would train."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer


class ScriptUnits:
    """The rows of a script's training data. See :class:`~vega3d_plugin.features.extraction.shard.Units`.

    Args:
        request: host, branch and store.
        trainer: of the script, before it trains.

    Attributes:
        rows: their numbers.
        bad, text: as of :class:`~vega3d_plugin.training.extraction.RecipeUnits`; found while rows are read alone.

    Raises:
        RunError: the data have no length, so there is no list of clips.
    """

    def __init__(self, request: Request, trainer: Any) -> None:
        self.request, self.trainer = request, trainer
        self.bad: list[BadRow] = []
        self.text = 0
        self._opened: OpenedScript | None = None
        data = trainer.train_dataset
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise RunError(
                f"The script trains on {type(data).__name__}, a stream without a length or numbered rows: there is no "
                "list of clips. Fill the store as you train: vega3d run --recipe RECIPE --store URL -- SCRIPT ARGS."
            )
        self.rows = range(len(data))

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, unit: int) -> str:
        """Empty: which files a row depends on is the script's business."""
        return ""

    def label(self, unit: int) -> str:
        """See the protocol."""
        return f"row {unit + 1}"

    def store(self) -> FeatureStore:
        """See the protocol."""
        said = self.request.store
        return FeatureStore(said.url, memory_bytes=0, form=said.form, cache_bytes=said.cache_gb * 10**9)

    def open(self) -> OpenedScript:
        """See the protocol. The script's model is taken once, and shared by all who open."""
        if self._opened is None:
            self._opened = OpenedScript(self)
        return self._opened


class OpenedScript(OpenedClips):
    """Rows of a script in a worker."""

    def __init__(self, units: ScriptUnits) -> None:
        self.trainer = units.trainer
        # Its vision tower's own image processor, as when the script's model is patched.
        super().__init__(units.request, units.store(), (base_model(self.trainer.model), None))

    def clips(self, unit: int) -> list[Clip]:
        """See the protocol."""
        try:
            batch = self.trainer.data_collator([self.trainer.train_dataset[unit]])
        except Exception as error:
            raise RowError(f"the script cannot read it: {type(error).__name__}: {error}") from error
        # To the device, and with DeepSpeed in another dtype.
        return self.host.clips(self.trainer._prepare_inputs(batch), self.request.place)


def script_request(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    store: str | None = None,
    form: str | None = None,
    device: str | None = None,
) -> Request:
    """What a recipe asks for, whose host its own script builds; arguments as for ``make_request``.

    Raises:
        TrainError: the recipe has no branch.
        RecipeError, StoreError: as ``make_request``.
    """
    settings = read_recipe(recipe, overrides, blocks={*BranchSettings.model_fields, "host", "store"})
    if settings.prior is None:
        raise TrainError("This recipe has `prior: null`: there is no prior whose features could be extracted.")
    return Request(settings, chosen_store(settings, store, form), device)


def units_of_script(request: Request, command: Command) -> ScriptUnits:
    """Run a training script up to its training, with models that have no weights.

    Args:
        request: see :func:`script_request`.
        command: the script, with the arguments of the training.

    Raises:
        RunError: it ended without training with the Trainer of transformers, or its data are a stream.
        SystemExit and whatever else the script raises.
    """
    try:
        with _without_weights():
            run_command(command)
    except _TrainsNow as stopped:
        return ScriptUnits(request, stopped.trainer)
    raise RunError(
        f"{command} ended without a call of transformers' Trainer.train, where its rows would have been taken. Scripts "
        "with a loop of their own fill a store as they train: vega3d run --recipe RECIPE --store URL -- SCRIPT ARGS."
    )


@contextmanager
def _without_weights() -> Iterator[None]:
    """Models are built from their configs, on the meta device; a trainer that would train ends the script."""
    import transformers

    wraps = Wraps()
    wraps.add(transformers.PreTrainedModel, "from_pretrained", _build, "builds a model without its weights")
    wraps.add(transformers.Trainer, "train", _stop, "ends the script")
    try:
        with shapes_only():
            yield
    finally:
        wraps.undo()


def _build(original: Any, cls: Any, source: Any, *args: Any, config: Any = None, **options: Any) -> nn.Module:
    """``PreTrainedModel.from_pretrained``, without the weights."""
    if not hasattr(config, "to_dict"):
        where = {key: value for key, value in options.items() if key in _WHERE}
        config = cls.config_class.from_pretrained(source if config is None else config, **where)
    # Whether a kernel is installed does not matter: nothing is computed.
    config._attn_implementation = "eager"
    dtype = options.get("torch_dtype", options.get("dtype"))
    dtype = dtype if isinstance(dtype, torch.dtype) else getattr(config, "torch_dtype", None) or torch.float32
    return build_hollow(cls, config, str(dtype).removeprefix("torch.")).eval()


def _stop(original: Any, trainer: Any, *args: Any, **options: Any) -> None:
    raise _TrainsNow(trainer)


__all__ = ["ScriptUnits", "script_request", "units_of_script"]
