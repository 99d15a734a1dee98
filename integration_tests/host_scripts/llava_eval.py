"""Loads a checkpoint, or base and adapter as llava's builder does, and writes what is called vega3d."""

import sys

import torch
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from safetensors.torch import save_file

path, target, *adapter = sys.argv[1:]
model = LlavaQwenForCausalLM.from_pretrained(path, torch_dtype=torch.bfloat16, attn_implementation="sdpa")
if adapter:
    from peft import PeftModel

    # As the builder goes about it: first what trained beside the LoRA weights, then these.
    rest = torch.load(f"{adapter[0]}/non_lora_trainables.bin", map_location="cpu")
    rest = {name.removeprefix("base_model.").removeprefix("model."): tensor for name, tensor in rest.items()}
    model.load_state_dict(rest, strict=False)
    model = PeftModel.from_pretrained(model, adapter[0]).merge_and_unload()
state = model.state_dict()
mine = {name.partition("vega3d.")[2]: t.clone() for name, t in state.items() if "vega3d." in name}
save_file({name: t for name, t in mine.items() if name != "record"}, target)
