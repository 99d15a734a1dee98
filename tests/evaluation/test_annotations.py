"""Annotation files to rows: keys and prompts as the released files have them, and every annotation that is left out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vega3d_plugin.cli.app import app
from vega3d_plugin.contracts.errors import SceneError
from vega3d_plugin.evaluation.annotations import READERS, AnnotationRows, Sources, annotation_rows, read_boxes
from vega3d_plugin.evaluation.metrics.errors import ScoreError
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.training.rows.conversation import read_conversation

SCENE = "scene9001_00"
BOX, OTHER = [0.5, 1.0, 0.3, 0.4, 0.4, 0.6], [3.0, 1.0, 0.3, 0.4, 0.4, 0.6]
QA = {
    "scene_id": SCENE,
    "question_id": "val-scene9001-3",
    "question": "Where is the stool?",
    "answers": ["by the door", "next to door"],
    "object_ids": [1],
    "object_names": ["stool"],
}
REFERRED = {
    "scene_id": SCENE,
    "object_id": "1",
    "object_name": "stool",
    "ann_id": "0",
    "description": "the Red stool by the Door.",
    "token": [],
}
LABELS = "id\traw_category\tnyu40id\n1\tstool\t5\n2\tbar_chair\t5\n3\tdesk\t14\n"


def save(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def made(tmp_path: Path, benchmark: str, annotations: Any, split: str = "val", **given: Any) -> AnnotationRows:
    file = save(tmp_path / "annotations.json", annotations)
    boxes = save(tmp_path / "boxes.json", {f"scannet/{SCENE}": [OTHER, BOX]})
    return annotation_rows(benchmark, [file], Sources(split, boxes=boxes, **given))


def test_scanqa(tmp_path: Path) -> None:
    found = made(tmp_path, "scanqa", [QA])
    assert found.rows == [
        {
            "id": "scanqa_val-scene9001-3_0",
            "video": f"scannet/{SCENE}",
            "conversations": [
                {"value": "<image> Where is the stool? Answer the question simply.", "from": "human"},
                {"value": "by the door", "from": "gpt"},
            ],
            "metadata": {"dataset": "scanQA", "question_type": "unknow", "answers": ["by the door", "next to door"]},
        }
    ]
    trained = made(tmp_path, "scanqa", [QA], "train").rows
    assert [row["id"][-2:] for row in trained] == ["_0", "_1"]
    assert [row["conversations"][1]["value"] for row in trained] == QA["answers"]
    assert "answers" not in trained[0]["metadata"]


def sqa3d(tmp_path: Path, split: str = "test", **annotation: Any) -> AnnotationRows:
    question = {
        "question_id": 990000000001,
        "scene_id": SCENE,
        "situation": "I stand at the door.",
        "alternative_situation": ["I am at the door.", "The door is near."],
        "question": "What is on my left?",
    }
    answered = {"question_id": 990000000001, "scene_id": SCENE, "answers": [{"answer": "stool"}], **annotation}
    files = [
        save(tmp_path / "questions.json", {"questions": [question]}),
        save(tmp_path / "annotated.json", {"annotations": [answered]}),
    ]
    return annotation_rows("sqa3d", files, Sources(split))


def test_sqa3d(tmp_path: Path) -> None:
    (row,) = sqa3d(tmp_path).rows
    assert row["id"] == 990000000001
    assert row["conversations"][0]["value"] == (
        "<image> I stand at the door. What is on my left? Answer the question using a single word or phrase."
    )
    assert row["metadata"] == {"dataset": "sqa3d", "question_type": "what"}
    trained = sqa3d(tmp_path, "train").rows
    assert [row["conversations"][0]["value"].split(". ")[0] for row in trained] == [
        "<image> I am at the door",
        "<image> The door is near",
        "<image> I stand at the door",
    ]


def test_questions_and_annotations_that_lack_each_other_are_told(tmp_path: Path) -> None:
    found = sqa3d(tmp_path, question_id=7)
    assert found.rows == []
    assert "there is no question 7 among the 1 questions given" in found.left_out[0]
    assert "the question 990000000001 has no annotation" in found.left_out[1]
    with pytest.raises(ScoreError, match="takes two files"):
        annotation_rows("sqa3d", [tmp_path / "questions.json"], Sources("test"))


def test_scanrefer(tmp_path: Path) -> None:
    labels = save(tmp_path / "labels.tsv", LABELS)
    found = made(tmp_path, "scanrefer", [REFERRED, {**REFERRED, "ann_id": "1"}], labels=labels)
    assert found.rows[0] == {
        "id": 0,
        "video": f"scannet/{SCENE}",
        "conversations": [
            {
                "value": "<image>Identify the object according to the following description.\n"
                "The red stool by the door.",
                "from": "human",
            },
            {"value": "<ground>", "from": "gpt"},
        ],
        "box": BOX,
        "metadata": {"dataset": "scanrefer", "question_type": "unique", "ann_id": "0", "object_id": "1"},
    }
    second = {**REFERRED, "object_id": "0", "object_name": "bar chair"}
    save(labels, LABELS.replace("bar_chair", "bar chair"))
    both = made(tmp_path, "scanrefer", [REFERRED, second], labels=labels).rows
    assert [row["metadata"]["question_type"] for row in both] == ["multiple", "multiple"]


def test_multi3drefer(tmp_path: Path) -> None:
    row = {"scene_id": SCENE, "ann_id": 3, "description": "chairs.", "eval_type": "mt", "object_ids": [0, 1]}
    found = made(tmp_path, "multi3drefer", [row, {**row, "ann_id": 4, "object_ids": [], "eval_type": "zt_w_d"}])
    assert [made["box"] for made in found.rows] == [[OTHER, BOX], []]
    assert found.rows[0]["metadata"]["object_id"] == [0, 1]
    assert found.rows[0]["conversations"][0]["value"].splitlines() == [
        "<image>Identify the object according to the following description.",
        "Chairs.",
        "There may be no corresponding object, or there may be one or more objects.",
    ]


def test_scan2cap(tmp_path: Path) -> None:
    rows = [
        {**REFERRED, "eval_type": "unique"},
        {**REFERRED, "eval_type": "unique", "ann_id": "1", "description": "it."},
    ]
    near = [0.55, *BOX[1:]]
    proposals = save(tmp_path / "proposals.json", {SCENE: [OTHER, near]})
    (row,) = made(tmp_path, "scan2cap", rows, proposals=proposals).rows
    assert (row["box_input"], row["gt_box"]) == (near, BOX)
    assert row["annotations"] == [REFERRED["description"], "it."]
    far = save(tmp_path / "proposals.json", {SCENE: [OTHER]})
    assert made(tmp_path, "scan2cap", rows, proposals=far).rows[0]["box_input"] is None
    trained = made(tmp_path, "scan2cap", rows, "train").rows
    assert [row["box_input"] for row in trained] == [BOX, BOX]
    with pytest.raises(ScoreError, match="--proposals FILE"):
        made(tmp_path, "scan2cap", rows)


def test_every_annotation_left_out_is_told(tmp_path: Path) -> None:
    rows = [
        {**REFERRED, "eval_type": "unique"},
        {**REFERRED, "eval_type": "unique"},
        {**REFERRED, "eval_type": "unique", "object_id": "7"},
        {**REFERRED, "eval_type": "unique", "scene_id": "scene1"},
        {**REFERRED, "eval_type": "unique", "ann_id": "4", "description": 3},
        "text",
    ]
    found = made(tmp_path, "scanrefer", rows)
    assert (found.read, len(found.rows), found.scenes) == (6, 1, 1)
    reasons = ("a str in place", "twice", "no object 7 of", "no scene scene1", "a text is expected")
    assert [reason for reason, text in zip(reasons, found.left_out, strict=True) if reason not in text] == []
    assert "annotations.json, row 2" in found.left_out[1]


@pytest.mark.parametrize("benchmark", ["scanrefer", "scan2cap"])
def test_a_bad_row_leaves_the_others_in(benchmark: str, tmp_path: Path) -> None:
    labels = save(tmp_path / "labels.tsv", LABELS)
    nameless = {key: value for key, value in REFERRED.items() if key != "object_name"} | {"ann_id": "1"}
    renamed = {**REFERRED, "ann_id": "2", "object_name": "desk"}
    found = made(tmp_path, benchmark, [REFERRED, nameless, renamed], "train", labels=labels)
    assert [row["metadata"]["question_type"] for row in found.rows] == ["unique"]
    assert found.read == 3
    assert len(found.left_out) == 2
    told = " ".join(found.left_out)
    assert "row 2: no key 'object_name'" in told
    assert f"row 3: object 1 of {SCENE} is called 'desk' here, but a thing of another class before" in told


def test_a_row_without_its_type_leaves_the_others_in(tmp_path: Path) -> None:
    found = made(tmp_path, "scanrefer", [{**REFERRED, "eval_type": "multiple"}, {**REFERRED, "ann_id": "1"}])
    assert [row["metadata"]["question_type"] for row in found.rows] == ["multiple"]
    assert "row 2: no key 'eval_type'" in found.left_out[0]


def info_file(tmp_path: Path, **entry: Any) -> Path:
    listed = [{"sample_idx": f"scannet/{SCENE}", "images": [{"img_path": "posed/00000.jpg"}], **entry}]
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps({"metainfo": {}, "data_list": listed}))
    return path


def test_scenes_of_an_info_file_are_looked_up_in_it(tmp_path: Path) -> None:
    path = info_file(tmp_path)
    given = {"scenes": f"{path}#scannet/{{scene}}"}
    missing = made(tmp_path, "scanqa", [QA], **given).left_out
    assert "its first picture posed/00000.jpg lies in none of the folders" in missing[0]
    (tmp_path / "posed").mkdir()
    (tmp_path / "posed" / "00000.jpg").touch()
    other = {**QA, "scene_id": "scene9001_01", "question_id": "val-scene9001-4"}
    found = made(tmp_path, "scanqa", [QA, other], **given)
    assert [row["scene"] for row in found.rows] == [f"{path}#scannet/{SCENE}"]
    assert len(found.left_out) == 1
    assert f"has no scene 'scannet/scene9001_01'. Did you mean 'scannet/{SCENE}'" in found.left_out[0]
    info_file(tmp_path, images=[])
    assert "`images` must be a list" in made(tmp_path, "scanqa", [QA], **given).left_out[0]


def test_an_info_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for contents in (pickle.dumps([1]), b"no pickle"):
        path = tmp_path / "infos.pkl"
        path.write_bytes(contents)
        with pytest.raises(SceneError, match=r"infos\.pkl"):
            made(tmp_path, "scanqa", [QA], scenes=f"{path}#scannet/{{scene}}")


def test_an_empty_folder_is_no_scene(tmp_path: Path) -> None:
    (tmp_path / SCENE).mkdir()
    assert "is empty" in made(tmp_path, "scanqa", [QA], scenes=str(tmp_path)).left_out[0]


def test_what_is_needed_is_asked_for(tmp_path: Path) -> None:
    file = save(tmp_path / "a.json", [REFERRED])
    with pytest.raises(ScoreError, match=r"hold boxes: name their file, --boxes FILE"):
        annotation_rows("scanrefer", [file], Sources("val"))
    with pytest.raises(ScoreError, match=r"scannetv2-labels\.combined\.tsv, --labels FILE"):
        made(tmp_path, "scanrefer", [REFERRED])
    with pytest.raises(ScoreError, match="Did you mean 'scanrefer'"):
        annotation_rows("scanref", [file], Sources("val"))
    with pytest.raises(ScoreError, match="split 'dev' is unknown"):
        annotation_rows("scanqa", [file], Sources("dev"))
    with pytest.raises(ScoreError, match=r"None of the 1 entries of .* is a box; the first: .* has 5 numbers"):
        read_boxes(save(tmp_path / "b.json", {SCENE: [[1, 2, 3, 4, 5]]}))
    with pytest.raises(ScoreError, match="found str"):
        read_boxes(save(tmp_path / "b.json", {SCENE: "x"}))


@pytest.mark.parametrize("benchmark", ["scanrefer", "multi3drefer", "scan2cap"])
def test_a_bad_box_is_left_out_with_what_needs_it(benchmark: str, tmp_path: Path) -> None:
    boxes = save(tmp_path / "gt.json", {SCENE: [OTHER, BOX, [1, 2, 3], [0, 0, 0, 1, -1, 1]], "scene9009_00": "x"})
    asked = [
        {**REFERRED, "object_id": str(i), "object_ids": [i], "ann_id": str(i), "eval_type": "unique"} for i in (1, 2)
    ]
    file = save(tmp_path / "annotations.json", asked)
    found = annotation_rows(benchmark, [file], Sources("train", boxes=boxes))
    assert len(found.rows) == 1
    for message, words in zip(
        found.left_out,
        (f"gt.json, {SCENE}: key '2' has 3 numbers", "a size below 0", "gt.json, scene9009_00: a list or an object",
         f"the box of its object 2 of {SCENE} was left out"),
        strict=True,
    ):  # fmt: skip
        assert words in message


def test_a_bad_proposal_is_left_out(tmp_path: Path) -> None:
    proposals = save(tmp_path / "pred.json", {SCENE: [[1, 2], BOX]})
    rows = [{**REFERRED, "eval_type": "unique"}]
    found = made(tmp_path, "scan2cap", rows, proposals=proposals)
    assert found.rows[0]["box_input"] == BOX
    assert ["pred.json" in message and "has 2 numbers" in message for message in found.left_out] == [True]


def test_rows_with_scenes_can_be_trained_on(tmp_path: Path) -> None:
    found = made(tmp_path, "scanqa", [QA, {**QA, "question_id": "2", "scene_id": "elsewhere"}], scenes=str(tmp_path))
    assert found.rows == []
    assert f"there is no {tmp_path / SCENE}" in found.left_out[0]
    from PIL import Image

    (tmp_path / SCENE).mkdir()
    for i in range(3):
        Image.new("RGB", (32, 24), (i, 0, 0)).save(tmp_path / SCENE / f"{i}.png")
    (row,) = made(tmp_path, "scanqa", [QA], scenes=str(tmp_path)).rows
    assert "video" not in row
    (medium,) = read_conversation(row, DataSettings(files=("x",))).media
    assert len(medium.source) == 3
    pattern = f"{tmp_path}/{{scene}}?layout=images"
    assert made(tmp_path, "scanqa", [QA], scenes=pattern).rows[0]["scene"] == f"{tmp_path}/{SCENE}?layout=images"


def test_the_command(tmp_path: Path) -> None:
    file = save(tmp_path / "ScanQA_v1.0_val.json", [QA, {**QA, "question_id": 2, "answers": []}])
    to, rest = tmp_path / "rows.jsonl", tmp_path / "rest.txt"
    run = CliRunner().invoke(app, ["data", "scanqa", str(file), "--out", str(to), "--left-out", str(rest)])
    assert run.exit_code == 0, run.output
    assert "1 row about 1 scene from 2 annotations" in " ".join(run.output.split())
    assert "1 left out" in run.output
    assert "a list of at least one text is expected" in rest.read_text()
    assert json.loads(to.read_text())["id"] == "scanqa_val-scene9001-3_0"
    again = CliRunner().invoke(app, ["data", "scanqa", str(file), "--out", str(to)])
    assert again.exit_code != 0
    unnamed = CliRunner().invoke(app, ["data", "scanqa", str(rest), "--out", str(tmp_path / "b.jsonl")])
    assert unnamed.exit_code == 2
    as_json = CliRunner().invoke(app, ["data", "scanqa", str(file), "--out", str(to), "--force", "--json"])
    assert json.loads(as_json.stdout)["rows"] == 1


def test_readers_are_named_as_benchmarks_are() -> None:
    from vega3d_plugin.evaluation.metrics import list_benchmarks

    assert {*READERS} <= {*list_benchmarks()}
