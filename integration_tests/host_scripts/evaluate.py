"""An evaluation script: loads a checkpoint, with an adapter if one is given, and writes its logits."""

import sys

import torch
from tiny_rows import batch
from transformers import AutoModelForImageTextToText, AutoProcessor

path, target, *adapter = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True)
if adapter:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, adapter[0])
with torch.no_grad():
    torch.save(model.eval()(**batch(AutoProcessor.from_pretrained(path))).logits, target)
sys.exit(0)
