"""However a model is trained: a checkpoint plus the base gives it back exactly, and a stopped run goes on as if it had
not been stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts
import processes
import pytest
import torch
import torch.distributed as dist
import vega3d_recipes
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

import vega3d
from vega3d_plugin.training.data import ConversationData, read_data
from vega3d_qwen_vl import tiny

STEPS, HALF = 4, 2
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1, "modules_to_save": ["vega3d"]}
LOGITS, LOSSES = "logits.pt", "losses.json"


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        run: trains a new model, or goes on from a checkpoint. Writes ``checkpoint-2`` and ``checkpoint-4`` into a
            folder, and the losses of its steps and the logits at its end beside them.
        rebuild: the model from a checkpoint and the base.
        processes: how many take part.
        needs: a package that not every environment has.
    """

    run: Callable[[Path, Path | None], None]
    rebuild: Callable[[Path], nn.Module]
    processes: int = 1
    needs: str | None = None


# Data and models


def data() -> ConversationData:
    rows = Path(vega3d_recipes.__file__).parent / "smoke_data" / "rows.json"
    return read_data(tiny.tiny_processor(), rows, frames=4)


def batch() -> dict[str, Tensor]:
    rows = data()
    return rows.collator([rows[i] for i in range(3)])


def whole_model() -> nn.Module:
    return hosts.patch(tiny.tiny_model())


def lora_model() -> nn.Module:
    return get_peft_model(whole_model(), LoraConfig(**LORA))


def rebuilt_whole(checkpoint: Path) -> nn.Module:
    """As docs/training.md has it."""
    model = type(tiny.tiny_model()).from_pretrained(checkpoint)
    return vega3d.load_pretrained(model, checkpoint)


def rebuilt_lora(checkpoint: Path, **options: Any) -> nn.Module:
    """As docs/training.md has it."""
    model = vega3d.load_pretrained(tiny.tiny_model(), checkpoint)
    return PeftModel.from_pretrained(model, checkpoint, **options)


def write_results(folder: Path, model: nn.Module, losses: list[float]) -> None:
    torch.save(hosts.logits(model.eval(), batch()), folder / LOGITS)
    (folder / LOSSES).write_text(json.dumps(losses))


# Trainers


def arguments(config_class: Any, folder: Path, **more: Any) -> Any:
    return config_class(
        output_dir=str(folder), per_device_train_batch_size=1, max_steps=STEPS, save_steps=HALF, logging_steps=1,
        learning_rate=1e-2, report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True, bf16=False,
        **more,
    )  # fmt: skip


def finish(trainer: Any, folder: Path, checkpoint: Path | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    write_results(folder, trainer.model, losses)


def by_trainer(model: nn.Module, folder: Path, checkpoint: Path | None) -> None:
    from transformers import Trainer, TrainingArguments

    rows = data()
    trainer = Trainer(
        model=model, args=arguments(TrainingArguments, folder), train_dataset=rows, data_collator=rows.collator
    )
    finish(trainer, folder, checkpoint)


def trainer_full(folder: Path, checkpoint: Path | None) -> None:
    # Going on, one begins with the checkpoint's model: see docs/training.md.
    by_trainer(whole_model() if checkpoint is None else rebuilt_whole(checkpoint), folder, checkpoint)


def trainer_lora(folder: Path, checkpoint: Path | None) -> None:
    by_trainer(lora_model(), folder, checkpoint)


def trl_lora(folder: Path, checkpoint: Path | None) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = data()
    trainer = SFTTrainer(
        model=whole_model(),
        args=arguments(SFTConfig, folder, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=rows.for_trl(),
        data_collator=rows.collator,
        processing_class=tiny.tiny_processor(),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    finish(trainer, folder, checkpoint)


# Loops of one's own


def loop(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    folder: Path,
    done: int,
    save: Callable[[Path], None],
) -> None:
    """Every process takes rows of its own."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    rows, losses = data(), []
    model.train()
    for step in range(done, STEPS):
        torch.manual_seed(100 * rank + step)
        loss = model(**rows.collator([rows[(step * world + rank) % len(rows)]])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
        if step + 1 in (HALF, STEPS):
            save(folder / f"checkpoint-{step + 1}")
    model.eval()
    # All take part in a sharded forward pass; one writes.
    logits = hosts.logits(model, batch())
    if rank == 0:
        torch.save(logits, folder / LOGITS)
        (folder / LOSSES).write_text(json.dumps(losses))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def own_loop_lora(folder: Path, checkpoint: Path | None) -> None:
    """One process, or DDP."""
    folder.mkdir(parents=True, exist_ok=True)
    model = lora_model() if checkpoint is None else rebuilt_lora(checkpoint, is_trainable=True)
    optimiser = adamw(model)
    if checkpoint is not None:
        optimiser.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))

    def save(into: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            model.save_pretrained(into)
            torch.save(optimiser.state_dict(), into / "optimizer.pt")

    wrapped = torch.nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    loop(wrapped, optimiser, folder, HALF if checkpoint else 0, save)


def fsdp2(model: nn.Module, folder: Path, checkpoint: Path | None) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_state_dict,
        set_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    folder.mkdir(parents=True, exist_ok=True)
    layers = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]
    assert layers
    for module in (*layers, vega3d.get_handle(model).branch, model):
        fully_shard(module)
    optimiser = adamw(model)

    def state() -> dict[str, Any]:
        weights, moments = get_state_dict(model, optimiser)
        return {"model": weights, "optimiser": moments}

    if checkpoint is not None:
        found = state()
        dcp.load(found, checkpoint_id=checkpoint / "sharded")
        set_state_dict(model, optimiser, model_state_dict=found["model"], optim_state_dict=found["optimiser"])

    def save(into: Path) -> None:
        dcp.save(state(), checkpoint_id=into / "sharded")
        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if dist.get_rank() == 0:
            model.save_pretrained(into, state_dict=weights)
        dist.barrier()

    loop(model, optimiser, folder, HALF if checkpoint else 0, save)


def fsdp2_full(folder: Path, checkpoint: Path | None) -> None:
    fsdp2(whole_model(), folder, checkpoint)


def fsdp2_lora(folder: Path, checkpoint: Path | None) -> None:
    fsdp2(lora_model(), folder, checkpoint)


WAYS: Mapping[str, Way] = {
    "Trainer, full": Way(trainer_full, rebuilt_whole),
    "Trainer, LoRA": Way(trainer_lora, rebuilt_lora),
    "TRL, LoRA": Way(trl_lora, rebuilt_lora, needs="trl"),
    "own loop, LoRA, save_pretrained": Way(own_loop_lora, rebuilt_lora),
    "DDP, LoRA": Way(own_loop_lora, rebuilt_lora, processes=2),
    "FSDP2, full": Way(fsdp2_full, rebuilt_whole, processes=2),
    "FSDP2, LoRA": Way(fsdp2_lora, rebuilt_lora, processes=2),
}


# Runs: each way once from the beginning to the end, and once from the first checkpoint on


def both(way: Way, folder: Path) -> None:
    way.run(folder / "whole", None)
    way.run(folder / "resumed", folder / "whole" / f"checkpoint-{HALF}")


def sharded_worker(rank: int, folder: str) -> None:
    processes.start(rank, folder)
    for name, way in WAYS.items():
        if way.processes > 1:
            both(way, Path(folder) / name)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One start of two processes for all ways that take them."""
    folder = tmp_path_factory.mktemp("sharded")
    processes.spawn(sharded_worker, folder)
    return folder


@pytest.fixture(params=WAYS)
def done(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Way, Path]:
    way = WAYS[request.param]
    if way.needs and importlib.util.find_spec(way.needs) is None:
        pytest.skip(f"{way.needs} is not installed")
    if way.processes > 1:
        return way, request.getfixturevalue("sharded") / request.param
    both(way, tmp_path)
    return way, tmp_path


def test_nothing_is_lost(done: tuple[Way, Path]) -> None:
    way, folder = done
    whole, resumed = folder / "whole", folder / "resumed"
    last = f"checkpoint-{STEPS}"
    expected = torch.load(whole / LOGITS)
    # A checkpoint plus the base is the trained model, and the branch has a part in it.
    model = way.rebuild(whole / last).eval()
    assert torch.equal(hosts.logits(model, batch()), expected)
    with vega3d.disabled(model):
        assert not torch.equal(hosts.logits(model, batch()), expected)
    untrained = way.rebuild(whole / f"checkpoint-{HALF}").eval()
    assert not torch.equal(hosts.logits(untrained, batch()), expected)
    # A run that was stopped goes on as if it had not been.
    losses = json.loads((whole / LOSSES).read_text())
    assert len(losses) == STEPS
    assert json.loads((resumed / LOSSES).read_text())[-(STEPS - HALF) :] == losses[HALF:]
    assert torch.equal(torch.load(resumed / LOGITS), expected)
    assert torch.equal(hosts.logits(way.rebuild(resumed / last).eval(), batch()), expected)


# ZeRO-3, on the CPU with two processes, by `vega3d train`: its launcher and its configuration belong to it


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("mode", [(), ("lora=null", "tune={vision: full, projector: full}")], ids=["lora", "full"])
def test_zero3(mode: tuple[str, ...], tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny.tiny_model().save_pretrained(base)
    tiny.tiny_processor().save_pretrained(base)
    deepspeed = (
        "train.deepspeed={train_micro_batch_size_per_gpu: auto, gradient_accumulation_steps: auto, "
        "gradient_clipping: auto, zero_optimization: {stage: 3, stage3_param_persistence_threshold: 0, "
        "stage3_gather_16bit_weights_on_model_save: true}}"
    )

    def run(output: str, *more: str, count: int = 2) -> Path:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
            "-m", "vega3d_plugin.train", "qwen_vl/smoke", f"host.model={base}", f"train.output_dir={output}",
            *mode, *more,
        ]  # fmt: skip
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        done = processes.run_whole(command, 300, environment, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / output / f"checkpoint-{STEPS}"

    whole = run("whole", deepspeed)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / f"checkpoint-{STEPS}")
    rebuild = rebuilt_whole if mode else rebuilt_lora
    logits = [
        hosts.logits(rebuild(checkpoint).eval(), batch())
        for checkpoint in (whole, run("resumed", deepspeed, "--resume"), run("alone", count=1))
    ]
    assert torch.equal(logits[0], logits[1])
    # Another process cannot be asked for its logits; one process without DeepSpeed comes to the same.
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-3, atol=1e-4)
