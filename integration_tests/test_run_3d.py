"""3D scene understanding on the real code: an invented ScanNet, trained, saved, evaluated and scored.

Rows are made by ``vega3d data``; training and evaluation are the checkouts' own scripts, with depth, poses, position
embedding, proposals and grounding head, under ``vega3d run``; figures are theirs and those of ``vega3d score``.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
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
NEEDED = ("cv2", "ray", "fasteners", "shortuuid", "pycocoevalcap")
#: What VEGA-3D's branch main calls the tower, and where it looks for it.
TOWER, PLACE = "google/siglip-so400m-patch14-384", "models/siglip-so400m-patch14-384"


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
    boxes, metadata = {"train": "scannet_train_gt_box.json", "val": "scannet_val_gt_box.json"}, made / "metadata"
    for split, files in write_annotations(root, made).items():
        for benchmark, sources in files.items():
            out = made / "processed" / f"{benchmark}_{split}_llava_style.json"
            words = ["data", benchmark, *map(str, sources), "--out", str(out), "--split", split]
            if benchmark in ("scanrefer", "multi3drefer", "scan2cap"):
                words += ["--boxes", str(metadata / boxes[split])]
            if benchmark in ("scanrefer", "scan2cap"):
                words += ["--labels", str(labels)]
            if benchmark == "scan2cap" and split == "val":
                words += ["--proposals", str(metadata / "scannet_val_pred_box.json")]
            ended = CliRunner().invoke(app, words)
            assert ended.exit_code == 0, ended.output
    return made


def test_rows_are_a_list_with_each_answer(data: Path) -> None:
    rows = json.loads((data / "processed" / "scanrefer_val_llava_style.json").read_text())
    assert {row["video"] for row in rows} == {f"scannet/{HELD_OUT}"}
    assert all(len(row["box"]) == 6 for row in rows)


@dataclass(frozen=True)
class Trained:
    """What ``train_3d.py`` of a checkout left.

    Attributes:
        name: of the checkout.
        recipe: it was run with.
        folder: of the checkpoint.
        data: the invented ScanNet.
        lines: that ``vega3d run`` said.
    """

    name: str
    recipe: Path
    folder: Path
    data: Path
    lines: list[str]

    def answer(self, benchmark: str, answers: Path) -> Path:
        """Let ``model_BENCHMARK.py`` write answers; the rows that it asked."""
        rows = self.data / "processed" / f"{benchmark}_val_llava_style.json"
        words = flags(
            model_path=self.folder, video_folder=self.data, embodiedscan_folder=self.data / "embodiedscan", n_gpu=1,
            question_file=rows, conv_mode="qwen_1_5", answer_file=answers,
        )  # fmt: skip
        words = [word.replace("_", "-") if word[:2] == "--" and word != "--n_gpu" else word for word in words]
        words += flags(frame_sampling_strategy="uniform", max_frame_num=2)
        told = self.run(self.recipe, f"llava/eval/model_{benchmark}.py", *words)
        assert any(f"has the branch of {self.folder}" in line for line in said(told)), told[-3000:]
        assert answers.is_file(), told[-3000:]
        return rows

    def printed(self, benchmark: str, answers: Path) -> str:
        """What their script prints about answers."""
        return self.run(None, f"llava/eval/eval_{benchmark}.py", "--input-file", answers, out=True)

    def run(self, recipe: Path | None, *words: object, out: bool = False) -> str:
        return run("llava3d", self.name, recipe, *words, beside={"data": self.data}, out=out)


@pytest.fixture(scope="module", params=["Video-3D-LLM", "VEGA-3D-main"])
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name: str = request.param
    if host_source(name) is None or not can_run():
        pytest.skip(f"no checkout of {name} that this environment runs (transformers 4.50; {', '.join(NEEDED)})")
    folder = tmp_path_factory.mktemp(name)
    base, out, tower = folder / "llava-qwen-tiny", folder / "llava-qwen-out", data / PLACE
    called = TOWER if name == "VEGA-3D-main" else tower
    run("llava3d", name, None, HERE / "host_scripts" / "llava3d_base.py", base, tower, called, beside={"data": data})
    recipe = write_recipe(
        folder / "r.yaml", "llava_video", fusion={"name": "token_gated", "init": "released"},
        prior={"name": "tiny-wan", "context": "frame", "tap": 2, "size": [96, 160], "resize": "stretch"},
    )  # fmt: skip
    files = sorted((data / "processed").glob("*_train_llava_style.json"))
    assert len(files) == 5
    listed = folder / "rows.yaml"
    listed.write_text("datasets:\n" + "".join(f"  - {{json_path: {f}, sampling_strategy: all}}\n" for f in files))
    words = flags(
        model_name_or_path=base, version="qwen_1_5", data_path=listed, image_folder=data, video_folder=data,
        embodiedscan_folder=data / "embodiedscan", mm_tunable_parts="mm_vision_tower,mm_mlp_adapter,mm_language_model",
        mm_vision_tower_lr=2e-6, vision_tower=called, mm_projector_type="mlp2x_gelu", mm_vision_select_layer=-2,
        mm_use_im_start_end=False, mm_use_im_patch_token=False, image_aspect_ratio="anyres_max_9",
        image_grid_pinpoints="(1x1),...,(6x6)", mm_patch_merge_type="spatial_unpad", mm_newline_position="grid",
        add_spatial_instruction=True, force_sample=True, mm_spatial_pool_stride=2,
        world_position_embedding_type="avg-discrete-sin3d", object_feature_type="patch14-pe",
        ground_head_type="infonce", group_by_task_length=True, frame_sampling_strategy="uniform", frames_upbound=2,
        bf16=True, use_cpu=True, output_dir=out, max_steps=8, save_steps=4, per_device_train_batch_size=1,
        learning_rate=1e-3, lazy_preprocess=True, model_max_length=4096, gradient_checkpointing=True,
        dataloader_num_workers=0, report_to="none", attn_implementation="sdpa", disable_tqdm=True,
    )  # fmt: skip
    told = run("llava3d", name, recipe, "llava/train/train_3d.py", *words, beside={"data": data})
    # The script prints what stopped it, and ends well.
    assert (out / "config.json").is_file(), told[-4000:]
    return Trained(name, recipe, out, data, said(told))


@pytest.mark.slow
def test_trains_and_saves(trained: Trained) -> None:
    assert any("has a new branch" in line for line in trained.lines)
    assert not same(branch_of(trained.folder / "checkpoint-4"), branch_of(trained.folder))
    names = {key for file in trained.folder.glob("*.safetensors") for key in load_file(file)}
    assert {"ground_head_zero_target", "model.mm_projector.0.weight"} <= names


@pytest.mark.slow
def test_boxes_score_the_same(trained: Trained, tmp_path: Path) -> None:
    answers = tmp_path / "scanrefer.jsonl"
    trained.answer("scanrefer", answers)
    printed = dict(re.findall(r"(all|unique|multiple) iou@0.25: ([\d.]+)", trained.printed("scanrefer", answers)))
    found = score("scanrefer", answers, None, "vega3d")
    assert float(printed["all"]) == pytest.approx(found.figure("Acc@0.25").value)

    answers = tmp_path / "multi3drefer.jsonl"
    trained.answer("multi3drefer", answers)
    printed = dict(re.findall(r"all IoU(25|50): ([\d.]+)", trained.printed("multi3drefer", answers)))
    found = score("multi3drefer", answers, None, "vega3d")
    for part, figure in printed.items():
        assert float(figure) == pytest.approx(found.figure(f"F1@0.{part.rstrip('0')}").value)


#: What their script prints, and the column it is here: by benchmark.
PRINTED = {
    "scanqa": {
        "CIDEr": r"CIDER: (\S+)", "BLEU-1": r"BLEU: (\S+),", "BLEU-4": r"BLEU: .* (\S+)", "METEOR": r"METEOR: (\S+)",
        "ROUGE-L": r"Rouge: (\S+)", "EM": r"EM: (\S+)",
    },
    "sqa3d": {"EM": r"all: (\S+)"},
    "scan2cap": {
        "CIDEr": r"CIDER: (\S+)", "BLEU-4": r"BLEU: (\S+)", "METEOR": r"METEOR: (\S+)", "ROUGE-L": r"Rouge: (\S+)",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", PRINTED)
def test_texts_score_the_same(benchmark: str, trained: Trained, tmp_path: Path) -> None:
    answers = tmp_path / f"{benchmark}.jsonl"
    rows = trained.answer(benchmark, answers)
    given = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(given) == len(json.loads(rows.read_text()))
    # Those of a tiny model score nothing, so two are replaced: one by a true answer, one by a part of it.
    for place, change in enumerate((str, lambda text: text.partition(" ")[0] + ".")):
        true = given[place]["gt_response"]
        given[place]["pred_response"] = change(true if isinstance(true, str) else true[0])
    for name, texts in (("as answered", None), ("two replaced", given)):
        if texts is not None:
            answers.write_text("".join(f"{json.dumps(row)}\n" for row in texts))
        printed = trained.printed(benchmark, answers)
        references = rows if benchmark == "scanqa" else None
        found = score(benchmark, answers, references, "vega3d")
        for column, pattern in PRINTED[benchmark].items():
            theirs = re.search(pattern, printed)
            assert theirs is not None, printed
            ours = found.figure(column).value
            assert ours == pytest.approx(float(theirs[1])), (name, column)
            assert texts is None or ours > 0, (name, column)
