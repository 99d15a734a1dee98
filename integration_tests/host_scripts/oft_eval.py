"""OFT's LIBERO evaluation of base and adapter, put together in Python: no merged checkpoint and no ``vega3d run``."""

import json
import sys
from pathlib import Path

import torch
from experiments.robot.libero import run_libero_eval as evaluation
from peft import PeftModel
from prismatic.extern.hf.modeling_prismatic import OpenVLAForActionPrediction

import vega3d

base = sys.argv.pop(1)
its_own = evaluation.get_model


def rebuilt(cfg):
    folder = Path(cfg.pretrained_checkpoint)
    # Registers OFT's classes, which the processor needs too.
    its_own(cfg)
    model = OpenVLAForActionPrediction.from_pretrained(base, torch_dtype=torch.bfloat16)
    vega3d.load_pretrained(model, folder / "lora_adapter")
    model = PeftModel.from_pretrained(model, folder / "lora_adapter").merge_and_unload()
    model.vision_backbone.set_num_images_in_input(cfg.num_images_in_input)
    model.norm_stats = json.loads((folder / "dataset_statistics.json").read_text())
    return model.eval()


evaluation.get_model = rebuilt
evaluation.eval_libero()
