"""HF Trainer and TRL's SFTTrainer with what a branch needs: own groups, shares in the log, whole checkpoints."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import os
import pickle
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..branch.handle import is_patched
from ..checkpoints.branch_files import CARD_FILE
from ..checkpoints.checkpoint_card import CheckpointParts, checkpoint_card
from ..contracts.errors import TrainError
from ..hosts.peft import base_model
from ..recipes.blocks import PartSettings, TrainSettings
from ..recipes.schema import TINY, RecipeSettings
from ..storage.claims import FolderClaim
from ..storage.writing import write_text
from .data import Collator, ConversationData
from .finite import check_logged, finite_gradients
from .manifest import WRITING, checkpoints, clear_unfinished, seal_checkpoint, world_size
from .model.building import Prepared, uses_bf16
from .model.parts import optimiser_groups
from .model.restoring import restore_weights
from .model.shares import ShareMonitor, share_logs
from .run_log import RunLog
from .validation import LOSS, best_checkpoint, evaluate_with_every_save

#: DeepSpeed's option that has whole weights written.
GATHER = "stage3_gather_16bit_weights_on_model_save"


def make_arguments(recipe: RecipeSettings, train: TrainSettings, output: Path, *, fresh: bool = True) -> Any:
    """``TrainingArguments``, or TRL's ``SFTConfig``.

    Args:
        recipe, train: settings.
        output: folder for checkpoints.
        fresh: the run begins; the validation loss is then measured before the first step too.

    Make them before the model is loaded: DeepSpeed's ZeRO-3 takes effect from here on.

    Raises:
        TrainError: the batch cannot be made with this number of processes, TRL or a tracker is not installed, one
            process sees several GPUs, or a setting is refused or would leave checkpoints without weights.
    """
    config_class = _trl().SFTConfig if train.trainer == "trl" else _transformers().TrainingArguments
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    values = _argument_values(recipe, train, output, fields) | _validation(recipe, train, fresh)
    # The recipe's word, as the plan and the manifest have it: transformers would take the launcher's where there is no
    # autocast, and transformers 4.50 leaves that of one run to the next in the same process.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if values["bf16"] else "no"
    try:
        arguments = config_class(**values)
    except (ValueError, TypeError, ImportError) as error:
        raise TrainError(f"{config_class.__name__} refuses the block `train`: {error}") from error
    if arguments.n_gpu > 1:
        raise TrainError(
            f"One process sees {arguments.n_gpu} GPUs; Trainer would copy the model to each and multiply the batch. "
            f"Start one process for each: torchrun --nproc-per-node {arguments.n_gpu} -m vega3d_plugin.train ..., or "
            "show it one: CUDA_VISIBLE_DEVICES=0."
        )
    check_gathered(arguments)
    _check_trackers(train)
    return arguments


def _argument_values(
    recipe: RecipeSettings, train: TrainSettings, output: Path, fields: Mapping[str, dataclasses.Field[Any]]
) -> dict[str, Any]:
    """What the recipe says, under the names that this version of the class has."""
    import torch

    cuda = torch.cuda.is_available()
    steps = {"max_steps": train.max_steps} if train.max_steps is not None else {"num_train_epochs": train.epochs}
    values: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": train.per_device_batch_size,
        "gradient_accumulation_steps": accumulation(train),
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if train.schedule in ("constant", "step") else train.schedule,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optimiser,
        "bf16": uses_bf16(recipe, train),
        "save_strategy": "steps",
        "save_steps": train.save_steps,
        "logging_strategy": "steps",
        "logging_steps": train.logging_steps,
        "seed": train.seed,
        "data_seed": train.seed,
        "report_to": list(train.report_to) or "none",
        "remove_unused_columns": False,
        # By default a loss that is not a number is left out of the log, and the run reads as if it had gone well.
        "logging_nan_inf_filter": False,
        "label_names": ["labels"],
        "dataloader_num_workers": recipe.data.workers if recipe.data else 0,
        "dataloader_pin_memory": cuda,
        "use_cpu": not cuda,
        **steps,
        **_sharding(train),
    }
    if train.gradient_checkpointing:
        # It is being renamed; the reentrant kind loses gradients where a model's inputs need none.
        name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in fields)
        values |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    # Where steps may be a fraction, the ratio has no name of its own any more.
    fraction = "float" in str(fields["warmup_steps"].type)
    values["warmup_steps" if fraction else "warmup_ratio"] = train.warmup_ratio
    if not cuda and world_size() > 1:
        values["ddp_backend"] = "gloo"
    if train.trainer == "trl":
        # Rows are encoded by our own data set, videos too; TRL is to leave them as they are.
        length = "max_length" if "max_length" in fields else "max_seq_length"
        values |= {"dataset_kwargs": {"skip_prepare_dataset": True}, length: None}
    return values


def _validation(recipe: RecipeSettings, train: TrainSettings, fresh: bool) -> dict[str, Any]:
    """When the validation loss is measured.

    Raises:
        TrainError: there are no rows to measure it on.
    """
    if recipe.data is None or not recipe.data.eval_files:
        if train.eval_steps is not None:
            raise TrainError("train.eval_steps needs rows that are held out: set data.eval_files.")
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": train.eval_steps or train.save_steps,
        "eval_on_start": fresh,
        "per_device_eval_batch_size": train.per_device_batch_size,
        # Logits of all rows would not fit anywhere.
        "prediction_loss_only": True,
    }


def _check_trackers(train: TrainSettings) -> None:
    """Find out now, and not once the model is loaded, whether each tracker is there."""
    from transformers.integrations import get_reporting_integration_callbacks

    for name in train.report_to:
        try:
            # Made only to see whether its package is installed; a tracker begins with the training.
            (tracker,) = get_reporting_integration_callbacks([name])
            tracker()
        except (ValueError, RuntimeError, ImportError) as error:
            raise TrainError(f"train.report_to: {name} cannot be used. {error}") from error


def check_gathered(arguments: Any) -> None:
    """Refuse a ZeRO-3 that leaves each checkpoint in pieces, of which nothing but DeepSpeed makes a model again.

    Raises:
        TrainError: names the option.
    """
    plugin = getattr(arguments, "deepspeed_plugin", None)
    config = getattr(plugin, "hf_ds_config", None)
    if config is not None and config.is_zero3() and not config.is_true(f"zero_optimization.{GATHER}"):
        raise TrainError(
            f"DeepSpeed's ZeRO-3 writes checkpoints without a model file. Set zero_optimization: {{{GATHER}: true}} "
            "in train.deepspeed (or in the configuration that accelerate launch was given)."
        )


def accumulation(train: TrainSettings) -> int:
    """Forward passes per optimiser step on each process.

    Raises:
        TrainError: the batch cannot be divided.
    """
    together = train.per_device_batch_size * world_size()
    if train.batch_size % together:
        raise TrainError(
            f"train.batch_size {train.batch_size} is not a multiple of per_device_batch_size "
            f"{train.per_device_batch_size} on {world_size()} processes: {together} is not a divisor."
        )
    return train.batch_size // together


def total_steps(arguments: Any, samples: int) -> int:
    """Optimiser steps of the whole run, as Trainer itself counts them: versions differ in an epoch's last, short step.

    Args:
        arguments: of the trainer.
        samples: rows that are used.
    """
    batches = math.ceil(samples / (arguments.per_device_train_batch_size * world_size()))
    # Counting takes no more of a trainer than these; a real one would move the model.
    asked = SimpleNamespace(
        num_examples=lambda _: samples, get_total_train_batch_size=lambda _: 1, get_sp_size=lambda: 1
    )
    count = _transformers().Trainer.set_initial_training_values
    more = {name: 1 for name in inspect.signature(count).parameters if name == "total_train_batch_size"}
    *_, steps = count(asked, arguments, range(batches), **more)
    return int(steps)


def make_trainer(
    prepared: Prepared,
    arguments: Any,
    train: TrainSettings,
    data: ConversationData,
    manifest: Mapping[str, Any],
    claim: FolderClaim | None = None,
    held_out: ConversationData | None = None,
    log: RunLog | None = None,
) -> Any:
    """The trainer; ``trainer.train()`` runs it. Checkpoints are written while the claim on their folder is held.

    Args:
        prepared, arguments, train, data, manifest: of the run.
        claim: on the output folder, in the first process.
        held_out: rows for the validation loss.
        log: receives every line of the log, in the first process.
    """
    base = _trl().SFTTrainer if train.trainer == "trl" else _transformers().Trainer
    trainer_class = type(f"Vega3d{base.__name__}", (RunMixin, base), {})
    trainer = trainer_class(
        model=prepared.model,
        args=arguments,
        train_dataset=_rows(train, data),
        eval_dataset=None if held_out is None else _rows(train, held_out),
        data_collator=Collator(data.encoder),
        processing_class=prepared.processor,
        callbacks=[
            finite_gradients(arguments.output_dir),
            *([] if held_out is None else [evaluate_with_every_save()]),
        ],
    )
    trainer.vega3d = RunParts(train, prepared.parts, manifest, ShareMonitor(prepared.model), claim, log)
    return trainer


def _rows(train: TrainSettings, data: ConversationData) -> Any:
    return data.for_trl() if train.trainer == "trl" else data


@dataclass
class RunParts:
    """What :class:`RunMixin` knows of the run.

    Attributes:
        train, parts, manifest: as the recipe has them, and what is written beside a checkpoint.
        shares: watches the branch.
        claim: on the output folder, in the first process.
        log: receives every line of the log, in the first process.
        redirect: where the checkpoint that is being written goes, else None.
        writing: name of this run's own folder for checkpoints that are being written; the same in all its processes,
            empty until the first save.
    """

    train: TrainSettings
    parts: Mapping[str, PartSettings]
    manifest: Mapping[str, Any]
    shares: ShareMonitor
    claim: FolderClaim | None = None
    log: RunLog | None = None
    redirect: Path | None = None
    writing: str = ""


class RunMixin:
    """What a run adds to a trainer; stands before it among the bases."""

    vega3d: RunParts
    args: Any
    model: Any
    state: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, with the shares of the branch watched."""
        with self.vega3d.shares:
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self, model: Any = None) -> Any:
        """Each part of the model at its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        trainer: Any = self
        optimiser_class, options = trainer.get_optimizer_cls_and_kwargs(self.args, model)
        odd = {"params", "model", "optimizer_dict"} & set(options)
        if odd or not isinstance(optimiser_class, type):
            raise TrainError(
                f"train.optimiser: {self.vega3d.train.optimiser} picks its parameters itself, which leaves no place "
                "for the parts' own learning rates. Take another, such as adamw_torch."
            )
        train = self.vega3d.train
        groups = optimiser_groups(
            model,
            self.vega3d.parts,
            train.learning_rate,
            train.weight_decay,
            trainer.get_decay_parameter_names(model),
        )
        self.optimizer = optimiser_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedules of transformers, and ``step``."""
        train = self.vega3d.train
        if train.schedule != "step" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        from torch.optim.lr_scheduler import LambdaLR

        warmup = math.ceil(num_training_steps * train.warmup_ratio)

        def factor(step: int) -> float:
            if step < warmup:
                return step / warmup
            return train.decay_factor if step >= (train.decay_steps or 0) else 1.0

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the shares of all processes, and the learning rate of each part."""
        if "loss" in logs:
            # Those of validation are no shares in training.
            totals = self.vega3d.shares.take(self.args.device)
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, "sum")
            logs |= share_logs(totals)
        check_logged(logs, self.state.global_step, self.args.output_dir)
        if "learning_rate" in logs and self.optimizer is not None:
            # One schedule for all: by the share of the first group, whose rate this is.
            groups = [group for group in self.optimizer.param_groups if "part" in group]
            for group in groups:
                share = group["initial_lr"] / groups[0]["initial_lr"]
                logs[f"learning_rate/{group['part']}"] = float(logs["learning_rate"]) * share
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
        if self.vega3d.log is not None:
            self.vega3d.log.add(self.state.global_step, logs)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        """Go on with a checkpoint's weights, whatever names they are written under."""
        target = self.model if model is None else model
        trainer: Any = self
        if trainer.is_fsdp_enabled or not isinstance(target, _transformers().PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            restore_weights(target, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        with _explained(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: Any) -> None:
        with _explained(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _get_output_dir(self, trial: Any) -> Any:
        redirect = self.vega3d.redirect
        return super()._get_output_dir(trial) if redirect is None else str(redirect)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint elsewhere and rename it when it is whole, so that none is ever incomplete."""
        folder = Path(self.args.output_dir)
        alone = bool(self.args.should_save)
        self._check_claim()
        writing = self._writing()
        if alone:
            clear_unfinished(folder, writing)
        self.accelerator.wait_for_everyone()
        self.vega3d.redirect = folder / writing
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self.accelerator.wait_for_everyone()
            if alone:
                name = f"checkpoint-{self.state.global_step}"
                write_text(folder / writing / name / CARD_FILE, self._card(folder / name))
                seal_checkpoint(folder / writing / name, self.vega3d.manifest, self.state.global_step)
                _put_in_place(folder / writing / name, folder / name)
        finally:
            self.vega3d.redirect = None
            if alone:
                clear_unfinished(folder, writing)
        if alone and self.vega3d.train.save_total_limit is not None:
            best = best_checkpoint(folder)
            for old in checkpoints(folder)[: -self.vega3d.train.save_total_limit]:
                if best is None or old != best.checkpoint:
                    _remove(old, folder / writing)
        self.accelerator.wait_for_everyone()

    def _card(self, checkpoint: Path) -> str:
        """How the checkpoint is loaded, in place of PEFT's empty card."""
        host: Any = base_model(self.model)
        parts = CheckpointParts(
            type(host).__name__,
            adapter=hasattr(self.model, "peft_config"),
            branch=is_patched(self.model),
            dtype="dtype" if hasattr(host.config, "dtype") else "torch_dtype",
            tiny=self.vega3d.manifest["revisions"]["host"]["model"] == TINY,
        )
        step = self.state.global_step
        losses = [line[LOSS] for line in self.state.log_history if LOSS in line and line["step"] == step]
        return checkpoint_card(self.vega3d.manifest, parts, checkpoint, step, losses[-1] if losses else None)

    def _writing(self) -> str:
        """The name of this run's folder for unfinished checkpoints, the same in all processes."""
        if not self.vega3d.writing:
            names = [f"{WRITING}-{secrets.token_hex(4)}"]
            if self.args.world_size > 1:
                from accelerate.utils import broadcast_object_list

                broadcast_object_list(names)
            self.vega3d.writing = names[0]
        return self.vega3d.writing

    def _check_claim(self) -> None:
        claim = self.vega3d.claim
        if claim is not None and not claim.is_mine():
            raise TrainError(
                f"{claim.folder} has been taken over by another run: this one did not renew its claim in time, or "
                "its claim was deleted. Nothing more is written there. Resume from its last checkpoint with "
                "--resume-from, in another train.output_dir."
            )


@contextmanager
def _explained(checkpoint: Any) -> Iterator[None]:
    """Have files that turn out damaged only as they are read named as such."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise TrainError(
            f"{checkpoint} cannot be resumed from: its optimiser, its schedule or its random numbers cannot be read "
            f"({type(error).__name__}: {str(error)[:300]}). Resume from an earlier checkpoint with --resume-from."
        ) from error


def _put_in_place(written: Path, target: Path) -> None:
    if target.exists():
        # A run that goes on from an earlier checkpoint comes by the later ones again.
        target.rename(written.parent / "replaced")
    written.rename(target)


def _remove(checkpoint: Path, aside: Path) -> None:
    """Remove a checkpoint, out of sight first: one of which half is gone must not be taken for whole."""
    with suppress(OSError):
        aside.mkdir(exist_ok=True)
        checkpoint.rename(aside / f"old-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)


def _sharding(train: TrainSettings) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if train.deepspeed is not None:
        values["deepspeed"] = train.deepspeed
    if isinstance(train.fsdp, str):
        values["fsdp"] = train.fsdp
    elif train.fsdp is not None:
        values |= {"fsdp": "full_shard", "fsdp_config": dict(train.fsdp)}
    return values


def _transformers() -> Any:
    import transformers

    return transformers


def _trl() -> Any:
    try:
        # Its parts are imported when they are asked for, and then may find that a package is missing.
        trl: Any = importlib.import_module("trl")
        return trl.SFTConfig and trl.SFTTrainer and trl
    except (ImportError, RuntimeError) as error:
        raise TrainError(
            "train.trainer: trl needs TRL, which is not installed or does not fit the other packages: pip install "
            f"'vega3d-plugin[train]', or take train.trainer=hf. ({str(error).strip().splitlines()[-1]})"
        ) from error
