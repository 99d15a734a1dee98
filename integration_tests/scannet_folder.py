"""An invented ScanNet: rendered rooms in the layout of Video-3D LLM's ``data`` folder, and public annotation files.

Keys and places are those of the public files; pictures, boxes and sentences are invented.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vega3d_plugin.scenes.export import export_folder
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.scene import Scene

VIEWS = 3
#: The scene of the validation split, and those that are trained on.
HELD_OUT, TRAINED = "scene9002_00", ("scene9000_00", "scene9001_00")


@dataclass(frozen=True)
class Annotations:
    """Public files of one split, by benchmark."""

    scanrefer: Path
    multi3drefer: Path
    scanqa: Path


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
    made = {}
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
                "answers": ["by the door", "next to door"], "object_ids": [index], "object_names": ["chair"],
            }
            for name, index in things
        ]  # fmt: skip
        files = Annotations(
            root / f"ScanRefer_filtered_{split}.json",
            root / f"multi3drefer_{split}.json",
            root / f"ScanQA_v1.0_{split}.json",
        )
        for path, rows in zip(
            (files.scanrefer, files.multi3drefer, files.scanqa), (refer, multi, questions), strict=True
        ):
            path.write_text(json.dumps(rows))
        made[split] = files
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
