"""3D scene understanding on the real code: an invented ScanNet, trained, saved, evaluated and scored.

Rows are made by ``vega3d data``; training and evaluation are the checkouts' own scripts, with depth, poses, position
embedding, proposals and grounding head, under ``vega3d run``; figures are theirs and those of ``vega3d score``.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from host_runs import branch_of, flags, run, same, write_recipe
from host_sources import host_source
from safetensors.torch import load_file
from scannet_folder import HELD_OUT, write_annotations, write_scannet
from scripts import said
from typer.testing import CliRunner

from vega3d_plugin.cli.app import app
from vega3d_plugin.evaluation.metrics import score

HERE = Path(__file__).parent
#: What the scripts import besides their models' libraries, and compute with.
NEEDED = ("cv2", "ray", "fasteners", "shortuuid")


def can_run() -> bool:
    import transformers

    old = int(transformers.__version__.partition(".")[0]) < 5
    return old and all(importlib.util.find_spec(name) is not None for name in NEEDED)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` with rows of each benchmark in ``processed``, made by ``vega3d data``."""
    root = tmp_path_factory.mktemp("scannet")
    made = root / "data"
    made.mkdir()
    write_scannet(made)
    labels = root / "scannetv2-labels.combined.tsv"
    labels.write_text("id\traw_category\tnyu40id\tnyu40class\n1\tchair\t5\tchair\n")
    boxes = {"train": "scannet_train_gt_box.json", "val": "scannet_val_gt_box.json"}
    for split, files in write_annotations(root, made).items():
        for benchmark, source in vars(files).items():
            out = made / "processed" / f"{benchmark}_{split}.json"
            words = ["data", benchmark, str(source), "--out", str(out), "--split", split]
            if benchmark != "scanqa":
                words += ["--boxes", str(made / "metadata" / boxes[split])]
            if benchmark == "scanrefer":
                words += ["--labels", str(labels)]
            ended = CliRunner().invoke(app, words)
            assert ended.exit_code == 0, ended.output
    return made


def test_rows_are_a_list_with_each_answer(data: Path) -> None:
    rows = json.loads((data / "processed" / "scanrefer_val.json").read_text())
    assert {row["video"] for row in rows} == {f"scannet/{HELD_OUT}"}
    assert all(len(row["box"]) == 6 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Video-3D-LLM", "VEGA-3D-main"])
def test_trains_saves_evaluates_and_scores(name: str, data: Path, tmp_path: Path) -> None:
    if host_source(name) is None or not can_run():
        pytest.skip(f"no checkout of {name} that this environment runs (transformers 4.50; {', '.join(NEEDED)})")
    base, tower, out = tmp_path / "llava-qwen-tiny", tmp_path / "siglip-tiny", tmp_path / "llava-qwen-out"
    run("llava3d", name, None, HERE / "host_scripts" / "llava3d_base.py", base, tower)
    recipe = write_recipe(
        tmp_path / "r.yaml", "llava_video", fusion={"name": "token_gated", "init": "released"},
        prior={"name": "tiny-wan", "context": "frame", "tap": 2, "size": [96, 160], "resize": "stretch"},
    )  # fmt: skip
    files = [data / "processed" / f"{benchmark}_train.json" for benchmark in ("scanrefer", "multi3drefer", "scanqa")]
    listed = tmp_path / "rows.yaml"
    listed.write_text("datasets:\n" + "".join(f"  - {{json_path: {f}, sampling_strategy: all}}\n" for f in files))
    words = flags(
        model_name_or_path=base, version="qwen_1_5", data_path=listed, image_folder=data, video_folder=data,
        embodiedscan_folder=data / "embodiedscan", mm_tunable_parts="mm_vision_tower,mm_mlp_adapter,mm_language_model",
        mm_vision_tower_lr=2e-6, vision_tower=tower, mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2,
        mm_use_im_start_end=False, mm_use_im_patch_token=False, image_aspect_ratio="anyres_max_9",
        image_grid_pinpoints="(1x1),...,(6x6)", mm_patch_merge_type="spatial_unpad", mm_newline_position="grid",
        add_spatial_instruction=True, force_sample=True, mm_spatial_pool_stride=2,
        world_position_embedding_type="avg-discrete-sin3d", object_feature_type="patch14-pe",
        ground_head_type="infonce", group_by_task_length=True, frame_sampling_strategy="uniform", frames_upbound=2,
        bf16=True, use_cpu=True, output_dir=out, max_steps=4, save_steps=2, per_device_train_batch_size=1,
        learning_rate=1e-3, lazy_preprocess=True, model_max_length=4096, gradient_checkpointing=True,
        dataloader_num_workers=0, report_to="none", attn_implementation="sdpa", disable_tqdm=True,
    )  # fmt: skip
    told = run("llava3d", name, recipe, "llava/train/train_3d.py", *words, beside={"data": data})
    # The script prints what stopped it, and ends well.
    assert (out / "config.json").is_file(), told[-4000:]
    lines = said(told)
    assert any("has a new branch" in line for line in lines)
    trained = branch_of(out)
    assert not same(branch_of(out / "checkpoint-2"), trained)
    names = {key for file in out.glob("*.safetensors") for key in load_file(file)}
    assert {"ground_head_zero_target", "model.mm_projector.0.weight"} <= names

    answers = tmp_path / "scanrefer.jsonl"
    words = flags(
        model_path=out, video_folder=data, embodiedscan_folder=data / "embodiedscan", n_gpu=1,
        question_file=data / "processed" / "scanrefer_val.json", conv_mode="qwen_1_5", answer_file=answers,
        frame_sampling_strategy="uniform", max_frame_num=2,
    )  # fmt: skip
    words = [
        word.replace("model_path", "model-path").replace("_folder", "-folder").replace("_file", "-file")
        if word[:2] == "--"
        else word
        for word in words
    ]
    words = [word.replace("conv_mode", "conv-mode") for word in words]
    lines = said(run("llava3d", name, recipe, "llava/eval/model_scanrefer.py", *words, beside={"data": data}))
    assert any(f"has the branch of {out}" in line for line in lines), lines
    theirs = run(
        "llava3d", name, None, "llava/eval/eval_scanrefer.py", "--input-file", answers, beside={"data": data}, out=True
    )
    printed = dict(re.findall(r"(all|unique|multiple) iou@0.25: ([\d.]+)", theirs))
    found = score("scanrefer", answers, None, "vega3d")
    assert float(printed["all"]) == pytest.approx(found.figure("Acc@0.25").value)
