"""An invented ScanNet: rendered rooms in the layout of Video-3D LLM's ``data`` folder, and public annotation files.

Keys and places are those of the public files; pictures, boxes and sentences are invented.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np

from vega3d_plugin.scenes.export import export_folder
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.scene import Scene

VIEWS = 3
#: The scene of the validation split, and those that are trained on.
HELD_OUT, TRAINED = "scene9002_00", ("scene9000_00", "scene9001_00")


#: Of ScanQA, one a thing: CIDEr counts no word that every answer has.
ANSWERS = ("by the door", "under a window", "left of two shelves", "on my desk")
#: The benchmarks' own files of one split, by benchmark.
Annotations = dict[str, tuple[Path, ...]]


def write_scannet(root: Path) -> Path:
    """``data``: pictures, depth, poses and intrinsics, info files, boxes of objects and detected boxes."""
    scenes = {
        name: open_scene(f"room:{seed}?views={VIEWS}&size=96x128") for seed, name in enumerate([*TRAINED, HELD_OUT])
    }
    entries = {name: _entry(scene, name, root) for name, scene in scenes.items()}
    folder = root / "embodiedscan"
    folder.mkdir()
    for split, names in {"train": TRAINED, "val": (HELD_OUT,), "test": ()}.items():
        payload = {"metainfo": {"categories": {}}, "data_list": [entries[name] for name in names]}
        (folder / f"embodiedscan_infos_{split}.pkl").write_bytes(pickle.dumps(payload))
    boxes = {f"scannet/{name}": [[*o.centre, *o.size] for o in scene.objects] for name, scene in scenes.items()}
    metadata = root / "metadata"
    metadata.mkdir()
    (metadata / "scannet_train_gt_box.json").write_text(
        json.dumps({key: value for key, value in boxes.items() if key.endswith(TRAINED)})
    )
    # Detected boxes: those of the objects, moved a little and in another order.
    found = [[x + 0.05, y - 0.05, z, *size] for x, y, z, *size in reversed(boxes[f"scannet/{HELD_OUT}"])]
    (metadata / "scannet_val_pred_box.json").write_text(json.dumps({f"scannet/{HELD_OUT}": found}))
    (metadata / "scannet_val_gt_box.json").write_text(json.dumps({f"scannet/{HELD_OUT}": boxes[f"scannet/{HELD_OUT}"]}))
    return root


def write_annotations(root: Path, data: Path) -> dict[str, Annotations]:
    """The benchmarks' own files for both splits."""
    boxes = {**_read(data / "metadata/scannet_train_gt_box.json"), **_read(data / "metadata/scannet_val_gt_box.json")}
    made: dict[str, Annotations] = {}
    for split, names in {"train": TRAINED, "val": (HELD_OUT,)}.items():
        things = [(name, index) for name in names for index in range(min(4, len(boxes[f"scannet/{name}"])))]
        refer = [
            {
                "scene_id": name, "object_id": str(index), "object_name": "chair", "ann_id": "0",
                "description": f"this is thing number {index} in the room.", "token": [],
            }
            for name, index in things
        ]  # fmt: skip
        multi = [
            {
                "scene_id": name, "object_ids": ids, "object_name": "chair", "ann_id": number,
                "description": "the things at the wall.", "eval_type": kind,
            }
            for name in names
            for number, (ids, kind) in enumerate([([0, 1], "mt"), ([2], "st_wo_d"), ([], "zt_w_d")])
        ]  # fmt: skip
        questions = [
            {
                "question_id": f"{split}-{name[:9]}-{index}", "scene_id": name, "question": "Where is the chair?",
                "answers": [ANSWERS[index], "next to it"], "object_ids": [index], "object_names": ["chair"],
            }
            for name, index in things
        ]  # fmt: skip
        situations = [
            {
                "question_id": 220000000000 + index, "scene_id": name, "situation": f"I stand at thing {index}.",
                "alternative_situation": [f"I face thing {index}."], "question": "What is on my left?",
            }
            for name, index in things
        ]  # fmt: skip
        answers = [
            {
                "question_id": row["question_id"], "scene_id": row["scene_id"], "answers": [{"answer": "the chair"}],
                "position": {}, "rotation": {},
            }
            for row in situations
        ]  # fmt: skip
        contents = {
            "scanrefer": {f"ScanRefer_filtered_{split}.json": refer},
            "multi3drefer": {f"multi3drefer_{split}.json": multi},
            "scan2cap": {f"ScanRefer_filtered_{split}.json": refer},
            "scanqa": {f"ScanQA_v1.0_{split}.json": questions},
            "sqa3d": {
                f"v1_balanced_questions_{split}_scannetv2.json": {"questions": situations},
                f"v1_balanced_sqa_annotations_{split}_scannetv2.json": {"annotations": answers},
            },
        }
        for files in contents.values():
            for name, rows in files.items():
                (root / name).write_text(json.dumps(rows))
        made[split] = {benchmark: tuple(root / name for name in files) for benchmark, files in contents.items()}
    return made


def _entry(scene: Scene, name: str, root: Path) -> dict[str, object]:
    place = f"scannet/posed_images/{name}"
    export_folder(scene, root / place)
    camera = np.eye(4)
    intrinsics = scene.views[0].intrinsics
    assert intrinsics is not None
    camera[:3, :3] = intrinsics.numpy()
    images = [
        {"img_path": f"{place}/{i:05d}.jpg", "cam2global": view.pose.numpy(), "visible_instance_ids": [0]}
        for i, view in enumerate(scene.views)
        if view.pose is not None
    ]
    aligned = np.eye(4) if scene.alignment is None else scene.alignment.numpy()
    return {
        "sample_idx": f"scannet/{name}", "axis_align_matrix": aligned, "cam2img": camera, "depth_cam2img": camera,
        "images": images, "instances": [],
    }  # fmt: skip


def _read(path: Path) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = json.loads(path.read_text())
    return found
