"""A training script in the order in which OpenVLA-OFT's goes about it; knows nothing of vega3d.

Auto class with code from the checkpoint, LoRA on all linears, DDP, an optimiser over whatever requires gradients, and
at each save: the adapter, then the base read again, merged with it and saved whole.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_rows import batch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import MultiStepLR
from transformers import AutoModelForImageTextToText, AutoProcessor


def load(path):
    return AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, low_cpu_mem_usage=True)


def save(arguments, step, model, processor, main):
    folder = Path(f"{arguments.run_dir}--{step}_chkpt")
    adapter = folder / "lora_adapter"
    if main:
        os.makedirs(adapter, exist_ok=True)
    dist.barrier()
    if main:
        processor.save_pretrained(folder)
        model.module.save_pretrained(adapter)
        torch.save(model.state_dict(), folder / f"all--{step}_checkpoint.pt")
    dist.barrier()
    merged = PeftModel.from_pretrained(load(arguments.vla_path), adapter).merge_and_unload()
    if main:
        merged.save_pretrained(folder)
        with torch.no_grad():
            torch.save(merged.eval()(**batch(processor)).logits, folder / "logits.pt")
    dist.barrier()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vla_path")
    parser.add_argument("--run_dir")
    parser.add_argument("--max_steps", type=int, default=2)
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    main_process = dist.get_rank() == 0
    processor = AutoProcessor.from_pretrained(arguments.vla_path)
    torch.manual_seed(dist.get_rank())
    model = load(arguments.vla_path)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules="all-linear"))
    model = DistributedDataParallel(model, find_unused_parameters=True, gradient_as_bucket_view=True)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scheduler = MultiStepLR(optimizer, milestones=[100], gamma=0.1)
    model.train()
    for _ in range(arguments.max_steps):
        # Each rank sees pictures of its own.
        rows = batch(processor, seed=dist.get_rank())
        model(**rows, labels=rows["input_ids"]).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    save(arguments, arguments.max_steps, model, processor, main_process)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
