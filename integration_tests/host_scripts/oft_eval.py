"""Loads a policy with OFT's own functions, as its LIBERO evaluation does, and acts once."""

import sys
from types import SimpleNamespace

import numpy as np
from experiments.robot import openvla_utils
from experiments.robot.robot_utils import get_model
from safetensors.torch import save_file

path, target, *_ = sys.argv[1:]
cfg = SimpleNamespace(
    model_family="openvla", pretrained_checkpoint=path, load_in_8bit=False, load_in_4bit=False, use_film=False,
    num_images_in_input=2, use_l1_regression=True, use_diffusion=False, use_proprio=True, center_crop=False,
    unnorm_key="bridge", lora_rank=4,
)  # fmt: skip
model = get_model(cfg)
processor = openvla_utils.get_processor(cfg)
head = openvla_utils.get_action_head(cfg, model.llm_dim)
proprio = openvla_utils.get_proprio_projector(cfg, model.llm_dim, 8)
print(type(model), type(head), type(proprio), type(processor), np.__version__)
state = model.state_dict()
mine = {name.partition("vega3d.")[2]: t.clone() for name, t in state.items() if "vega3d." in name}
save_file({name: t for name, t in mine.items() if name != "record"}, target)
