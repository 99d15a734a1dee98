"""Evaluates a checkpoint of LLaVA-NeXT: writes its logits on images and a video, and its branch.

``python llava_eval.py MODEL TARGET [ADAPTER]``. A whole model is read by llava's own builder, which reads an adapter of
a Llama alone; so base and adapter are read here in its order. With ``plain`` in front, the branch is added in Python.
"""

import sys

import torch
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from rows.llava_package import mixed_batch
from safetensors.torch import save_file

words = sys.argv[1:]
plain = words[0] == "plain"
path, target, *adapter = words[plain:]


def add_branch(model):
    if plain:
        import vega3d

        vega3d.load_pretrained(model, adapter[0] if adapter else path)


if adapter:
    from peft import PeftModel

    model = LlavaQwenForCausalLM.from_pretrained(path, torch_dtype=torch.bfloat16, attn_implementation="sdpa")
    add_branch(model)
    # First what trained beside the LoRA weights, then these.
    rest = torch.load(f"{adapter[0]}/non_lora_trainables.bin", map_location="cpu")
    rest = {name.removeprefix("base_model.").removeprefix("model."): tensor for name, tensor in rest.items()}
    model.load_state_dict(rest, strict=False)
    model = PeftModel.from_pretrained(model, adapter[0]).merge_and_unload()
else:
    options = {"torch_dtype": "bfloat16", "attn_implementation": "sdpa"}
    _, model, _, _ = load_pretrained_model(path, None, "llava_qwen", **options)
    add_branch(model)

batch = mixed_batch()
batch["images"] = [image.to(torch.bfloat16) for image in batch["images"]]
with torch.no_grad():
    logits = model.eval()(**batch).logits
state = model.state_dict()
mine = {name.partition("vega3d.")[2]: t.clone() for name, t in state.items() if "vega3d." in name}
save_file({"logits": logits, **{name: t for name, t in mine.items() if name != "record"}}, target)
