"""LoRA on the language model plus the branch, with HF Trainer and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .samples import Batch, Encoded, only

#: Attention of the language model, in both layouts of transformers; the vision tower has no such layers.
LANGUAGE_MODEL = r".*(language_model|model)\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"


def with_lora(model: nn.Module, rank: int = 8) -> Any:
    """Put LoRA on a patched host. ``modules_to_save`` keeps the branch in training and in the adapter's file."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=LANGUAGE_MODEL, modules_to_save=["vega3d"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def train(model: Any, batches: list[Batch], steps: int, folder: Path, *, lr: float, seed: int) -> Path:
    """Train for some steps of one sample each; returns the checkpoint that Trainer wrote."""
    from transformers import Trainer, TrainingArguments

    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        logging_strategy="no",
        save_strategy="steps",
        save_steps=steps,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not cuda,
        bf16=cuda,
        seed=seed,
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=arguments, train_dataset=Encoded(batches), data_collator=only).train()
    return folder / f"checkpoint-{steps}"
