"""Evaluates with the builder of the published ``llava-torch``, which loads the vision tower after the model."""

import sys

import torch
from hosts import logits
from llava.model.builder import load_pretrained_model
from rows.llava_package import images_batch

path, target = sys.argv[1:]
_, model, _, _ = load_pretrained_model(path, None, "llava", device="cpu")
batch = images_batch()
# The builder reads half precision.
batch["images"] = [image.half() for image in batch["images"]]
torch.save(logits(model, batch), target)
