"""What a run would do: what trains, what memory it takes, and what the first batch looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..branch.handle import get_handle, is_patched
from ..hosts.lora_targets import prior_parts
from ..recipes.blocks import TrainSettings
from ..recipes.schema import RecipeSettings
from .data import BadRow, Collator, ConversationData
from .manifest import world_size
from .model.building import Prepared, uses_bf16
from .model.parts import by_part
from .rows.encoding import IGNORED

#: Bytes of an optimiser's states for a parameter: two float32 moments for the AdamW family.
ADAMW_BYTES = 8


@dataclass(frozen=True)
class PartPlan:
    """One part of the model.

    Attributes:
        name, mode: of the part.
        total, trains: numbers of parameters; LoRA's own count as both.
        dtypes: of the parameters that train.
        learning_rate: None where nothing trains.
    """

    name: str
    mode: str
    total: int
    trains: int
    dtypes: tuple[str, ...]
    learning_rate: float | None


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        parts: of the model.
        memory: bytes on one device by what they are for. Weights, gradients and states are counted, and divided where
            ZeRO or FSDP divides them; activations are a rough estimate.
        batch: shape and dtype of each tensor of the first batch.
        lengths: tokens of each of its samples.
        learned: tokens of each sample that are learned.
        answer: the learned text of the first sample.
        steps: optimiser steps of the whole run.
        facts: the rest, by name.
    """

    parts: list[PartPlan]
    memory: Mapping[str, int]
    batch: Mapping[str, tuple[tuple[int, ...], str]]
    lengths: list[int]
    learned: list[int]
    answer: str
    steps: int
    facts: Mapping[str, str]


class Planned(Protocol):
    """What a plan is made of: a :class:`~vega3d_plugin.training.job.Job`."""

    name: str
    recipe: RecipeSettings
    train: TrainSettings
    output: Path
    arguments: Any
    prepared: Prepared
    data: ConversationData
    held_out: ConversationData | None
    bad: list[BadRow]
    checkpoint: Path | None

    @property
    def accumulation(self) -> int:
        """Forward passes per optimiser step on each process."""

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""


def make_plan(job: Planned) -> Plan:
    """Look at a job that is ready to start; encodes the first batch and trains nothing."""
    size = min(job.train.per_device_batch_size, len(job.data))
    batch = Collator(job.data.encoder)([job.data[index] for index in range(size)])
    learned = batch["labels"] != IGNORED
    tokenizer = job.prepared.processor.tokenizer
    parts = [
        PartPlan(
            part,
            job.prepared.parts[part].mode,
            # PEFT keeps what a trained copy was made from.
            sum(_count(p) for name, p in parameters if ".original_module." not in name),
            sum(_count(p) for _, p in parameters if p.requires_grad),
            tuple(sorted({str(p.dtype).removeprefix("torch.") for _, p in parameters if p.requires_grad})),
            _rate(job, part) if any(p.requires_grad for _, p in parameters) else None,
        )
        for part, parameters in by_part(job.prepared.model).items()
    ]
    return Plan(
        parts,
        memory_of(job, batch),
        {key: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in batch.items()},
        batch["attention_mask"].sum(dim=1).tolist(),
        learned.sum(dim=1).tolist(),
        tokenizer.decode(batch["labels"][0][learned[0]]),
        job.steps,
        _facts(job),
    )


def _rate(job: Planned, part: str) -> float:
    own = job.prepared.parts[part].learning_rate
    return job.train.learning_rate if own is None else own


def _facts(job: Planned) -> dict[str, str]:
    train = job.train
    rows = f"{len(job.data):,} rows" + (f", {len(job.bad):,} bad ones left out" if job.bad else "")
    together = f"{train.per_device_batch_size} a pass x {job.accumulation} passes a step x {world_size()} process"
    together += "es" if world_size() > 1 else ""
    held = "" if job.held_out is None else f", {len(job.held_out):,} held out"
    return {
        "recipe": job.name,
        "host": job.recipe.host.model,
        "prior": "none" if job.recipe.prior is None else job.recipe.prior.name,
        "trainer": "Trainer" if train.trainer == "hf" else "SFTTrainer of TRL",
        "data": rows + held,
        "batch": f"{train.batch_size} = {together}",
        "precision": ("bfloat16 autocast" if uses_bf16(job.recipe, train) else job.recipe.host.dtype)
        + (", checkpointed" if train.gradient_checkpointing else ""),
        "output": str(job.output) + (f", from {job.checkpoint.name}" if job.checkpoint else ""),
    }


def memory_of(job: Planned, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes on one device by what they are for, see :class:`Plan`.

    Args:
        job: of which the recipe, the settings of the trainer and the model are looked at.
        batch: the first, of which the tokens are counted.
    """
    model = job.prepared.model
    trains = [p for p in model.parameters() if p.requires_grad]
    stage, world = zero_stage(job.arguments, job.train), world_size()
    memory = {
        "weights": sum(_count(p) * p.element_size() for p in model.parameters()) // (world if stage > 2 else 1),
        "gradients": sum(_count(p) * p.element_size() for p in trains) // (world if stage > 1 else 1),
        "optimiser": _states(job.train, trains) // (world if stage else 1),
        "prior": _prior(model),
        "activations (rough)": _activations(job, batch),
    }
    return {name: size for name, size in memory.items() if size or name != "prior"}


def zero_stage(arguments: Any, train: TrainSettings) -> int:
    """What is divided among the processes, as ZeRO counts: 0 nothing, 1 the optimiser's states, 2 gradients, 3 all."""
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is not None:
        return int(plugin.hf_ds_config.get_value("zero_optimization.stage", 0))
    if isinstance(train.fsdp, str):
        return 2 if "shard_grad_op" in train.fsdp else 3
    return 0 if train.fsdp is None else 3


def _count(parameter: nn.Parameter) -> int:
    """Numbers in a parameter; where ZeRO-3 has partitioned it, those of all processes."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _states(train: TrainSettings, trains: Sequence[nn.Parameter]) -> int:
    """Bytes of the optimiser's states."""
    return ADAMW_BYTES * sum(map(_count, trains)) if "adam" in train.optimiser else 0


def _prior(model: Any) -> int:
    """Bytes of the prior's weights."""
    if not is_patched(model):
        return 0
    seen = {
        id(tensor): tensor.numel() * tensor.element_size()
        for module in prior_parts(get_handle(model).prior)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(seen.values())


def _activations(job: Planned, batch: Mapping[str, Tensor]) -> int:
    """What the language model keeps for backward: about 34 numbers a token, layer and channel, or 2 if checkpointed.

    The logits come on top, in float32 and with their gradient.
    """
    config = job.prepared.model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    tokens = batch["input_ids"].numel()
    half = 2 if uses_bf16(job.recipe, job.train) or job.recipe.host.dtype != "float32" else 4
    factor = 2 if job.train.gradient_checkpointing else 34
    layers = tokens * int(text.hidden_size) * int(text.num_hidden_layers) * factor * half // 2
    return layers + tokens * int(text.vocab_size) * 4 * 2
