"""HF Trainer, unchanged: what it writes plus the base model gives the trained model back, in two lines."""

from __future__ import annotations

import warnings
from pathlib import Path

import hosts
import pytest
import torch
from hosts import logits, patch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

import vega3d

QWEN = hosts.named("qwen2_5_vl")


class Rows(torch.utils.data.Dataset):
    """Batches with pictures and batches of text alone, in turn."""

    def __init__(self) -> None:
        self.rows = [{**b, "labels": b["input_ids"].clone()} for b in (QWEN.batch(), QWEN.text_batch())]

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        return self.rows[index % 2]


def run_trainer(model: nn.Module, folder: Path, steps: int = 4, **options: object) -> Path:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=steps,
        save_steps=steps,
        learning_rate=1e-2,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        Trainer(model=model, args=arguments, train_dataset=Rows(), data_collator=lambda rows: dict(rows[0])).train()
    model.eval()
    return folder / f"checkpoint-{steps}"


def test_lora(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["vega3d"])
    model = get_peft_model(patch(QWEN.build()), config)
    checkpoint = run_trainer(model, tmp_path)
    expected = logits(model, QWEN.batch())
    again = vega3d.load_pretrained(QWEN.build(), checkpoint)
    again = PeftModel.from_pretrained(again, checkpoint)
    assert torch.equal(logits(again.eval(), QWEN.batch()), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_full(tmp_path: Path, checkpointing: bool) -> None:
    model = patch(QWEN.build())
    before = torch.cat([p.detach().flatten() for p in vega3d.get_handle(model).parameters()])
    checkpoint = run_trainer(model, tmp_path, gradient_checkpointing=checkpointing)
    after = torch.cat([p.detach().flatten() for p in vega3d.get_handle(model).parameters()])
    assert not torch.equal(before, after)
    expected = logits(model, QWEN.batch())
    again = type(model).from_pretrained(checkpoint).eval()
    again = vega3d.load_pretrained(again, checkpoint)
    assert torch.equal(logits(again, QWEN.batch()), expected)


def test_resume_continues_as_if_never_stopped(tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return get_peft_model(
            patch(QWEN.build()), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["vega3d"])
        )

    whole = fresh()
    run_trainer(whole, tmp_path / "whole", lr_scheduler_type="constant")
    half = fresh()
    checkpoint = run_trainer(half, tmp_path / "half", steps=2, lr_scheduler_type="constant")
    resumed = fresh()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "resumed"), per_device_train_batch_size=1, max_steps=4, learning_rate=1e-2,
        report_to=[], remove_unused_columns=False, use_cpu=True, disable_tqdm=True, save_strategy="no",
        lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = Trainer(model=resumed, args=arguments, train_dataset=Rows(), data_collator=lambda rows: dict(rows[0]))
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(logits(resumed.eval(), QWEN.batch()), logits(whole, QWEN.batch()))


def test_parameter_groups_train_the_branch_at_its_own_rate() -> None:
    model = patch(QWEN.build(), init="released")
    handle = vega3d.get_handle(model)
    branch = {id(p) for p in handle.parameters()}
    rest = [p for p in model.parameters() if id(p) not in branch]
    optimiser = torch.optim.SGD([*handle.parameter_groups(lr=0.1), {"params": rest, "lr": 0.0}])
    before = [p.detach().clone() for p in rest]
    moved = [p.detach().clone() for p in handle.parameters()]
    batch = QWEN.batch()
    model.train()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, rest, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(moved, handle.parameters(), strict=True))
