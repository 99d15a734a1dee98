"""A training script in the order in which LLaVA-NeXT's goes about it; knows nothing of vega3d.

LoRA first, then everything frozen and the tunable parts unfrozen by name; HF Trainer; and saves that pick tensors out
by name: the LoRA weights and the rest that trained, or the host's own projector alone.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tiny_rows import batch
from transformers import AutoProcessor, HfArgumentParser, Trainer


@dataclass
class ModelArguments:
    model_name_or_path: str = ""
    mm_tunable_parts: str = "mm_language_model"
    lora_enable: bool = False


def picked(model, wanted):
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if wanted(name, p)}


def train():
    arguments, training = HfArgumentParser(
        (ModelArguments, transformers.TrainingArguments)
    ).parse_args_into_dataclasses()
    processor = AutoProcessor.from_pretrained(arguments.model_name_or_path)
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(arguments.model_name_or_path)
    if arguments.lora_enable:
        from peft import LoraConfig, get_peft_model

        linear = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        targets = sorted(name for name in linear if name.endswith("_proj"))
        config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, bias="none", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    model.requires_grad_(False)
    for name, p in model.named_parameters():
        tower, projector = "visual" in name, ".merger." in name
        wanted = "lora_" in name if arguments.lora_enable else not tower
        if ("mm_language_model" in arguments.mm_tunable_parts and wanted) or (
            "mm_mlp_adapter" in arguments.mm_tunable_parts and projector
        ):
            p.requires_grad_(True)
    rows = [{**batch(processor, seed), "labels": batch(processor, seed)["input_ids"]} for seed in range(2)]
    trainer = Trainer(model=model, args=training, train_dataset=rows, data_collator=lambda some: dict(some[0]))
    trainer.train()
    folder = Path(training.output_dir)
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    if arguments.lora_enable:
        model.save_pretrained(folder, state_dict=picked(model, lambda name, p: "lora_" in name))
        rest = picked(model, lambda name, p: "lora_" not in name and p.requires_grad)
        torch.save(rest, folder / "non_lora_trainables.bin")
    else:
        torch.save(picked(model, lambda name, p: ".merger." in name), folder / "mm_projector.bin")
    with torch.no_grad():
        torch.save(model.eval()(**batch(processor)).logits, folder / "logits.pt")


if __name__ == "__main__":
    train()
