"""A host, branches and a small task of lmms-eval's kind, all local; and where the real lmms-eval is, if anywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vega3d
from vega3d_plugin.demo.video import write_video
from vega3d_plugin.priors.tiny_wan import RandomWeightsWarning
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

DOCS = [
    {"image": "a.png", "video": "", "question": "Is it red?", "answer": "yes"},
    {"image": "", "video": "room.mp4", "question": "How many chairs?", "answer": "4"},
    {"image": "b.png", "video": "", "question": "Where?", "answer": "left"},
]
UTILS = """
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).parents[1]


def visual(doc):
    return [Image.open(ROOT / doc["image"]).convert("RGB")] if doc["image"] else [str(ROOT / doc["video"])]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process(doc, results):
    return {"exact": float(results[0].strip().lower() == doc["answer"])}
"""
TASK = """
task: rooms
dataset_path: json
dataset_kwargs:
  data_files:
    test: {docs}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 6
  temperature: 0
  do_sample: false
process_results: !function utils.process
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
"""


def real_python() -> str | None:
    """An interpreter that has lmms-eval: this one, or the one that ``VEGA3D_LMMS_EVAL_PYTHON`` names."""
    if importlib.util.find_spec("lmms_eval") is not None:
        return sys.executable
    return os.environ.get("VEGA3D_LMMS_EVAL_PYTHON") or None


def build(root: Path) -> Path:
    """Folders ``host``, ``branch`` (trained), ``adapter`` (PEFT with a branch) and ``tasks``, and the pictures."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    model.save_pretrained(root / "host")
    tiny_processor().save_pretrained(root / "host")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(6)]
    for name, picture in zip(("a", "b"), pictures, strict=False):
        Image.fromarray(picture).save(root / f"{name}.png")
    write_video(root / "room.mp4", np.stack(pictures))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        vega3d.patch(model, "tiny-wan", projector={"name": "mlp", "hidden_dim": 64})
    with torch.no_grad():
        vega3d.get_handle(model).branch.fuser.residual_scale.fill_(5.0)
    vega3d.save_pretrained(model, root / "branch")
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["vega3d"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tuned.save_pretrained(root / "adapter")
    tasks = root / "tasks"
    tasks.mkdir()
    (tasks / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tasks / "utils.py").write_text(UTILS)
    (tasks / "rooms.yaml").write_text(TASK.format(docs=tasks / "docs.jsonl"))
    return root
