"""As LLaVA's second stage begins: the base again, with the projector that the first one has trained."""

import sys

import torch
from tiny_rows import batch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

base, projector, target = sys.argv[1:]
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base)
weights = torch.load(projector, map_location="cpu")
model.load_state_dict({n: w for n, w in weights.items() if ".merger." in n and "vega3d" not in n}, strict=False)
with torch.no_grad():
    torch.save(model.eval()(**batch(AutoProcessor.from_pretrained(base))).logits, target)
