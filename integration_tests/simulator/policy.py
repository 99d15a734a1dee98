"""A tiny OpenVLA-OFT checkpoint with a branch, as OFT's training leaves one, and OFT's evaluation of it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from host_sources import host_source
from processes import run_whole
from rows.openvla import HALF, IMAGENET, SIDE, oft_module, real_model, real_module, seeded

import vega3d
from vega3d_plugin.priors.wan.tiny import RandomWeightsWarning

HERE = Path(__file__).parents[1]
STATISTICS = "libero_spatial_no_noops"


def write_recipe(path: Path, **others: Any) -> Path:
    """The recipe that the checkpoint's branch was made with."""
    blocks = {
        "host": {"adapter": "openvla", "model": "tiny", "dtype": "bfloat16"},
        "prior": {"name": "tiny-wan", "context": "views", "tap": 2, "size": [96, 96], "resize": "stretch"},
        "projector": {"name": "mlp2x_gelu", "hidden_dim": 64},
        "images": "scene",
        **others,
    }
    path.write_text("# A recipe for tests\n" + yaml.safe_dump(blocks))
    return path


def write_base(folder: Path, tokenizer: Any) -> Path:
    """A tiny random OpenVLA of OFT's own class."""
    real_model("openvla-oft").to(torch.bfloat16).save_pretrained(folder)
    images = real_module("openvla-oft", "processing_prismatic").PrismaticImageProcessor(
        use_fused_vision_backbone=True, image_resize_strategy="resize-naive", input_sizes=[[3, SIDE, SIDE]] * 2,
        interpolations=["bicubic"] * 2, means=[IMAGENET.mean, HALF.mean], stds=[IMAGENET.std, HALF.std],
    )  # fmt: skip
    real_module("openvla-oft", "processing_prismatic").PrismaticProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def write_checkpoint(folder: Path, recipe: Path, tokenizer: Any) -> Path:
    """What OFT's training leaves: the merged model, heads, statistics, and the branch beside them."""
    write_base(folder, tokenizer)
    model = real_model("openvla-oft").to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        vega3d.patch(model, config=vega3d_settings(recipe), processor=None)
    branch = vega3d.get_handle(model).branch
    with torch.no_grad():
        # As after some training: a fresh one changes nothing.
        branch.fuser.residual_scale.fill_(0.6)
    vega3d.save_pretrained(model, folder)
    heads, projectors = oft_module("models.action_heads"), oft_module("models.projectors")
    torch.save(seeded(heads.L1RegressionActionHead, 32, 32, 7).state_dict(), folder / "action_head--4_checkpoint.pt")
    torch.save(seeded(projectors.ProprioProjector, 32, 8).state_dict(), folder / "proprio_projector--4_checkpoint.pt")
    (folder / "dataset_statistics.json").write_text(
        json.dumps({STATISTICS: {"action": limits(7), "proprio": limits(8)}})
    )
    return folder


def vega3d_settings(recipe: Path) -> Any:
    """The branch's settings of a recipe."""
    from vega3d_plugin.recipes.library import branch_settings

    return branch_settings(recipe)


def limits(count: int) -> dict[str, Any]:
    """Of actions or of the robot's state, as the training computes them from a data set."""
    low, high = [-1.0] * count, [1.0] * count
    return {"min": low, "q01": low, "max": high, "q99": high, "mask": [True] * count}


def evaluate(
    recipe: Path, checkpoint: Path, logs: Path, *options: object, run: tuple[object, ...] = ()
) -> tuple[str, str]:
    """Run OFT's evaluation through ``vega3d run``; its own log, and all that was said.

    Args:
        recipe: of the branch.
        checkpoint: what is evaluated.
        logs: where the script writes.
        options: of the script, after those of ``libero_short.py``.
        run: options of ``vega3d run``.
    """
    said = run_in_checkout(
        "-m", "vega3d_plugin.run", "--recipe", recipe, *run, "--",
        HERE / "host_scripts" / "libero_short.py", *options[:2], "--pretrained_checkpoint", checkpoint,
        "--task_suite_name", "libero_spatial", "--center_crop", False, "--local_log_dir", logs, *options[2:],
    )  # fmt: skip
    (log,) = logs.glob("EVAL-*.txt")
    return log.read_text(), said


def finetune(recipe: Path, base: Path, data: Path, runs: Path, steps: int = 4) -> str:
    """Train through ``vega3d run`` with OFT's script and its own data pipeline; all that was said.

    The last checkpoint, merged, is ``runs/tiny--STEPS_chkpt``.
    """
    values = {
        "vla_path": base, "data_root_dir": data, "dataset_name": STATISTICS, "run_root_dir": runs,
        "use_l1_regression": True, "num_images_in_input": 2, "use_proprio": True, "batch_size": 1,
        "learning_rate": 1e-2, "max_steps": steps, "save_freq": steps, "image_aug": False, "lora_rank": 4,
        "run_id_override": "tiny", "grad_accumulation_steps": 1, "merge_lora_during_training": True,
        # It is filled before the first step.
        "shuffle_buffer_size": 100,
    }  # fmt: skip
    flags = [word for name, value in values.items() for word in (f"--{name}", value)]
    return run_in_checkout(
        "-m", "torch.distributed.run", "--nproc-per-node", 1, "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "localhost:0", "-m", "vega3d_plugin.run", "--recipe", recipe, "--",
        HERE / "host_scripts" / "libero_finetune.py", *flags,
    )  # fmt: skip


def run_in_checkout(*words: object) -> str:
    """Run python in a checkout of OFT, as its scripts are run; all that was said."""
    source = host_source("openvla-oft")
    assert source is not None
    environment = {
        **os.environ,
        # The checkout's packages must be imported as its script does it.
        "VEGA3D_HOST_SOURCES": "",
        # dlimp, which OFT reads its data with, is in no package index: a checkout beside it.
        "PYTHONPATH": os.pathsep.join(
            map(str, [HERE / "host_scripts", HERE, HERE.parent / "tests", source, source.parent / "dlimp_openvla"])
        ),
        "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Else transformers looks into TensorFlow first, whose Keras it does not know.
        "USE_TF": "0",
        "PYTHONFAULTHANDLER": "1",
        "WANDB_MODE": "disabled",
    }
    with tempfile.TemporaryDirectory(prefix="vega3d-libero-") as here:
        # The script finds its files from where it is run, and writes there.
        for entry in source.iterdir():
            if entry.name == "experiments":
                # OFT's replay writes in there, and the checkout stays as it is.
                shutil.copytree(entry, Path(here, entry.name))
            else:
                Path(here, entry.name).symlink_to(entry)
        modules = {"HF_MODULES_CACHE": f"{here}/modules"}
        ended = run_whole([sys.executable, *words], 1500, {**environment, **modules}, here)
    said = ended.stdout[-5000:] + ended.stderr[-6000:]
    assert ended.returncode == 0, f"exit code {ended.returncode}\n{said}"
    return ended.stdout + ended.stderr
