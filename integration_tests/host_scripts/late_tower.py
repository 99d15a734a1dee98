"""Evaluates as llava's builder does: the vision tower is loaded after the model, and ``generate`` encodes by itself."""

import json
import sys

import torch
from doubles.llava import LlavaQwenForCausalLM
from hosts import logits
from rows.llava_package import mixed_batch

path, target, *how = sys.argv[1:]
model = LlavaQwenForCausalLM.from_pretrained(path)
assert "forward" in vars(model)
if "never" not in how:
    torch.manual_seed(0)
    model.get_vision_tower().load_model()
batch = mixed_batch()
if "generate" in how:
    model.generate(batch["input_ids"], images=batch["images"], modalities=batch["modalities"], max_new_tokens=1)
    assert "forward" not in vars(model)
    assert "generate" not in vars(model)
torch.save(logits(model, batch), target)
print(json.dumps(sorted(name for name in model.state_dict() if "vega3d" in name)))
