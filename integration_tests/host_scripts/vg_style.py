"""A training script in the order in which VG-LLM's goes about it; knows nothing of vega3d.

from_pretrained, freezing by part, optional LoRA, HF Trainer with parameter groups by name, resume when a checkpoint is
there, save of the whole state dictionary.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoProcessor, HfArgumentParser, Trainer, set_seed


@dataclass
class ModelArguments:
    model_name_or_path: str = ""
    tune_mm_llm: bool = False
    tune_mm_mlp: bool = False
    tune_mm_vision: bool = False
    lora_enable: bool = False


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    vision_tower_lr: float | None = field(default=None)


def set_model(arguments, model):
    """Freeze by part, as the names of the parts tell."""
    body = model.model
    visual = body.visual if hasattr(body, "visual") else model.visual
    language = body.language_model if hasattr(body, "language_model") else body
    for _, p in visual.named_parameters():
        p.requires_grad = arguments.tune_mm_vision
    for _, p in visual.merger.named_parameters():
        p.requires_grad = arguments.tune_mm_mlp
    for _, p in language.named_parameters():
        p.requires_grad = arguments.tune_mm_llm
    model.lm_head.requires_grad_(arguments.tune_mm_llm)


def create_optimizer(self):
    """Groups by name: the vision tower's rate for what lies in it."""
    if self.optimizer is None:
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        groups = [{"params": [p for n, p in named if "visual" not in n]}]
        rate = self.args.vision_tower_lr
        tower = {"params": [p for n, p in named if "visual" in n]}
        groups.append(tower if rate is None else {**tower, "lr": rate})
        cls, options = Trainer.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = cls([group for group in groups if group["params"]], **options)
    return self.optimizer


Trainer.create_optimizer = create_optimizer


class Rows(torch.utils.data.Dataset):
    def __init__(self, processor):
        rng = np.random.default_rng(0)
        self.rows = []
        for _ in range(2):
            pictures = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(2)]
            content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Left or right? left"}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
            row = dict(processor(text=[text], images=pictures, return_tensors="pt"))
            self.rows.append({**row, "labels": row["input_ids"].clone()})

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.rows[index % 2]


def safe_save(trainer, output_dir):
    """The whole state dictionary, on the CPU, through the trainer; with DeepSpeed, which gathers it, its own way."""
    if trainer.is_deepspeed_enabled:
        trainer.save_model(output_dir)
        return
    state = trainer.model.state_dict()
    if trainer.args.should_save:
        trainer._save(output_dir, state_dict={name: value.cpu() for name, value in state.items()})


def train():
    arguments, training = HfArgumentParser((ModelArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training.seed)
    options = {"torch_dtype": torch.bfloat16} if training.bf16 else {}
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(arguments.model_name_or_path, **options)
    processor = AutoProcessor.from_pretrained(arguments.model_name_or_path)
    model.config.use_cache = False
    if training.gradient_checkpointing:
        model.enable_input_require_grads()
    set_model(arguments, model)
    if arguments.lora_enable:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    rows = Rows(processor)
    trainer = Trainer(model=model, args=training, train_dataset=rows, data_collator=lambda batch: dict(batch[0]))
    resume = bool(list(Path(training.output_dir).glob("checkpoint-*")))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_state()
    processor.save_pretrained(training.output_dir)
    if arguments.lora_enable:
        trainer.model.save_pretrained(training.output_dir)
    else:
        safe_save(trainer, training.output_dir)
    model.eval()
    with torch.no_grad():
        torch.save(model(**rows[0]).logits, Path(training.output_dir) / f"logits-{training.process_index}.pt")


if __name__ == "__main__":
    train()
