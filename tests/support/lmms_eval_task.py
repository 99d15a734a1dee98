"""A host, branches and a small task of lmms-eval's kind, all local."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

import vega3d
from vega3d_plugin.evaluation.harness_host import limit_pixels
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning
from vega3d_plugin.scenes.video import write_video
from vega3d_qwen_vl.tiny import tiny_model, tiny_processor

DOCS = [
    {"image": "a.png", "video": "", "question": "Is it red?", "answer": "yes"},
    {"image": "", "video": "room.mp4", "question": "How many chairs?", "answer": "4"},
    {"image": "b.png", "video": "", "question": "Where?", "answer": "left"},
]
#: The kinds of question in VSI-Bench: with options, and with a number.
VSIBENCH = (
    "object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard", "object_rel_distance",
    "route_planning", "obj_appearance_order", "object_abs_distance", "object_counting", "object_size_estimation",
    "room_size_estimation",
)  # fmt: skip
UTILS = """
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).parents[2]


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


def build(root: Path) -> Path:
    """A host and what was trained from it, the task and the pictures.

    Folders: ``host``; ``branch``; ``adapter``, PEFT with the branch; ``plain``, PEFT without; ``full``, a checkpoint of
    the whole patched host, trained with videos as small images; ``tasks``.
    """
    # A module's fixture is made before the one that keeps the tiny prior quiet.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        _write_trained(root)
    _write_plain(root)
    return _write_task(root)


def write_host_and_branch(root: Path) -> Qwen2_5_VLForConditionalGeneration:
    """The folders ``host`` and ``branch``; returns the patched model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        model = tiny_model()
        model.save_pretrained(root / "host")
        tiny_processor().save_pretrained(root / "host")
        torch.manual_seed(0)
        vega3d.patch(model, "tiny-wan", projector={"name": "mlp", "hidden_dim": 64})
        with torch.no_grad():
            vega3d.get_handle(model).branch.fuser.residual_scale.fill_(5.0)
        vega3d.save_pretrained(model, root / "branch")
    return model


def _write_trained(root: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = write_host_and_branch(root)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(6)]
    for name, picture in zip(("a", "b"), pictures, strict=False):
        Image.fromarray(picture).save(root / f"{name}.png")
    write_video(root / "room.mp4", np.stack(pictures))
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["vega3d"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tuned.save_pretrained(root / "adapter")
    _write_full(root)


def _write_task(root: Path) -> Path:
    tasks = root / "tasks"
    tasks.mkdir()
    (tasks / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tasks / "utils.py").write_text(UTILS)
    (tasks / "rooms.yaml").write_text(TASK.format(docs=tasks / "docs.jsonl"))
    return root


def build_vsibench(root: Path, cwd: Path) -> None:
    """What lmms-eval finds, when run in ``cwd`` with ``HF_HOME`` at ``cwd / "hf"``, in place of VSI-Bench."""
    folder, videos = cwd / "nyu-visionx" / "VSI-Bench", cwd / "hf" / "vsibench" / "rooms"
    folder.mkdir(parents=True)
    videos.mkdir(parents=True)
    shutil.copy(root / "room.mp4", videos / "room.mp4")
    card = "---\nconfigs:\n- config_name: full\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"
    (folder / "README.md").write_text(card)
    rows = []
    for index, kind in enumerate(VSIBENCH):
        options, answer = (["A. left", "B. right"], "A") if index < 6 else (None, "4")
        rows.append(
            {
                "id": index, "dataset": "rooms", "scene_name": "room", "question_type": kind, "question": "Which?",
                "options": options, "ground_truth": answer,
            }
        )  # fmt: skip
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_plain(root: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tuned.save_pretrained(root / "plain")


def _write_full(root: Path) -> None:
    model = vega3d.load_pretrained(tiny_model(), root / "branch")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(root / "full")
    processor = tiny_processor()
    limit_pixels(processor, 28 * 28, 56 * 56)
    processor.save_pretrained(root / "full")
    (root / "full" / "vega3d_run.json").write_text(json.dumps({"settings": {"data": {"video_as": "images"}}}))
