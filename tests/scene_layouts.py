"""Writers of invented scenes in the public layouts, so that readers can be tried without any data set."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vega3d_plugin.scenes.export import export_folder, pixels
from vega3d_plugin.scenes.scene import Scene

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def kept(scene: Scene) -> Scene:
    """The same scene with its pictures in memory: rendering anew takes most of a test's time."""

    def view(each):
        frame, depth = each.frame(), each.depth()
        instances = each.instances()
        return replace(
            each,
            read_frame=frame.clone,
            read_depth=None if depth is None else depth.clone,
            read_instances=None if instances is None else instances.clone,
        )

    return replace(scene, views=tuple(view(each) for each in scene.views))


def save_png(path: Path, view) -> None:
    """Pictures without loss, so that what is read back can be compared bit by bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(view.frame())).save(path)


def save_depth(path: Path, view, units: float = 1000.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, view.depth().numpy())
    else:
        Image.fromarray((view.depth() * units).round().numpy().astype(np.uint16)).save(path)


def quaternion(rotation) -> list[float]:
    """(w, x, y, z) of a rotation, by the axis that serves best."""
    r = np.asarray(rotation)
    four = [
        1 + r[0, 0] + r[1, 1] + r[2, 2],
        1 + r[0, 0] - r[1, 1] - r[2, 2],
        1 - r[0, 0] + r[1, 1] - r[2, 2],
        1 - r[0, 0] - r[1, 1] + r[2, 2],
    ]
    rows = [
        [four[0], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], four[1], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
        [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], four[2], r[1, 2] + r[2, 1]],
        [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], four[3]],
    ]
    best = np.array(rows[int(np.argmax(four))])
    return (best / np.linalg.norm(best)).tolist()


def write_posed_images(scene: Scene, folder: Path) -> Path:
    export_folder(scene, folder)
    return folder


def write_sens_reader(scene: Scene, folder: Path) -> Path:
    """ScanNet's own export: color, depth, pose and intrinsic apart."""
    for name in ("color", "depth", "pose", "intrinsic"):
        (folder / name).mkdir(parents=True)
    for i, view in enumerate(scene.views):
        Image.fromarray(pixels(view.frame())).save(folder / "color" / f"{i}.jpg", quality=95, subsampling=0)
        save_depth(folder / "depth" / f"{i}.png", view)
        np.savetxt(folder / "pose" / f"{i}.txt", view.pose.numpy())
    square = np.eye(4)
    square[:3, :3] = scene.views[0].intrinsics.numpy()
    for kind in ("color", "depth"):
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", square)
    return folder


def write_transforms(scene: Scene, folder: Path, depth: str = ".png", extra: dict | None = None) -> Path:
    """nerfstudio: OpenGL's axes, and pixels counted from the corner of the picture."""
    first = scene.views[0]
    k = first.intrinsics.numpy()
    frames = []
    for i, view in enumerate(scene.views):
        save_png(folder / "images" / f"frame_{i:05d}.png", view)
        frame = {
            "file_path": f"images/frame_{i:05d}.png",
            "transform_matrix": (view.pose.numpy() @ FLIP).tolist(),
        }
        if depth:
            save_depth(folder / "depths" / f"frame_{i:05d}{depth}", view)
            frame["depth_file_path"] = f"depths/frame_{i:05d}{depth}"
        frames.append(frame)
    meta = {
        "camera_model": "OPENCV",
        "fl_x": k[0, 0],
        "fl_y": k[1, 1],
        "cx": k[0, 2] + 0.5,
        "cy": k[1, 2] + 0.5,
        "w": first.size[1],
        "h": first.size[0],
        # A list of frames need not be in time order.
        "frames": frames[::-1],
        **(extra or {}),
    }
    (folder / "transforms.json").write_text(json.dumps(meta))
    return folder


def write_tum(scene: Scene, folder: Path, calibration: bool = True) -> Path:
    lists = {"rgb": ["# color images"], "depth": ["# depth maps"], "groundtruth": ["# ground truth trajectory"]}
    for i, view in enumerate(scene.views):
        time = 1305031102.1 + i / 30
        save_png(folder / "rgb" / f"{time:.6f}.png", view)
        save_depth(folder / "depth" / f"{time + 0.007:.6f}.png", view, 5000)
        lists["rgb"].append(f"{time:.6f} rgb/{time:.6f}.png")
        lists["depth"].append(f"{time + 0.007:.6f} depth/{time + 0.007:.6f}.png")
        w, x, y, z = quaternion(view.pose[:3, :3])
        place = " ".join(repr(float(v)) for v in view.pose[:3, 3])
        lists["groundtruth"].append(f"{time - 0.004:.4f} {place} {x!r} {y!r} {z!r} {w!r}")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    if calibration:
        k = scene.views[0].intrinsics
        (folder / "calibration.txt").write_text(
            " ".join(repr(float(v)) for v in (k[0, 0], k[1, 1], k[0, 2], k[1, 2])) + "\n"
        )
    return folder


def write_colmap(scene: Scene, folder: Path, binary: bool, model: tuple[str, list[float]] | None = None) -> Path:
    """A model with one camera; every picture sees the same few points, which lie on its depth."""
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    view = scene.views[0]
    k = view.intrinsics.numpy()
    name, parameters = model or ("PINHOLE", [k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5])
    number = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4, "OPENCV_FISHEYE": 5}[name]
    height, width = view.size
    points, images = colmap_content(scene, folder)
    if binary:
        (sparse / "cameras.bin").write_bytes(
            struct.pack("<Qiiqq", 1, 1, number, width, height) + struct.pack(f"<{len(parameters)}d", *parameters)
        )
        data = struct.pack("<Q", len(images))
        for i, (rotation, translation, file, seen) in enumerate(images):
            data += struct.pack("<i7di", i + 1, *rotation, *translation, 1) + file.encode() + b"\0"
            data += struct.pack("<Q", len(seen)) + b"".join(struct.pack("<2dq", *each) for each in seen)
        (sparse / "images.bin").write_bytes(data)
        data = struct.pack("<Q", len(points))
        for i, place in enumerate(points):
            data += struct.pack("<Q3d3Bd", i + 1, *place, 200, 100, 50, 0.5) + struct.pack("<Qii", 1, 1, i)
        (sparse / "points3D.bin").write_bytes(data)
        return folder
    camera = " ".join(repr(float(p)) for p in parameters)
    (sparse / "cameras.txt").write_text(f"# Camera list\n1 {name} {width} {height} {camera}\n")
    lines = ["# Image list with two lines of data per image:"]
    for i, (rotation, translation, file, seen) in enumerate(images):
        numbers = " ".join(repr(float(v)) for v in (*rotation, *translation))
        lines += [f"{i + 1} {numbers} 1 {file}", " ".join(f"{u!r} {v!r} {p}" for u, v, p in seen)]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{i + 1} {' '.join(repr(float(v)) for v in p)} 200 100 50 0.5 1 {i}" for i, p in enumerate(points)]
    (sparse / "points3D.txt").write_text("# points\n" + "\n".join(lines) + "\n")
    return folder


def colmap_content(scene: Scene, folder: Path):
    """Points (places in the world) and pictures (rotation, translation, file, what they see)."""
    points: list[np.ndarray] = []
    images = []
    for i, view in enumerate(scene.views):
        file = f"cam/view {i}.png"
        save_png(folder / "images" / file, view)
        seen = []
        # The last picture sees nothing: its line in the text form is empty.
        for u, v in [] if i == len(scene.views) - 1 else [(5, 7), (20, 11), (41, 30)]:
            z = float(view.depth()[v, u])
            ray = torch.linalg.inv(view.intrinsics) @ torch.tensor([u, v, 1.0], dtype=torch.float64)
            points.append((view.pose[:3, :3] @ (ray * z) + view.pose[:3, 3]).numpy())
            seen.append((u + 0.5, v + 0.5, len(points)))
        to_camera = torch.linalg.inv(view.pose)
        images.append((quaternion(to_camera[:3, :3]), to_camera[:3, 3].tolist(), file, seen))
    return points, images


def write_embodiedscan(scene: Scene, folder: Path, protocol: int = 4, arrays: bool = True) -> Path:
    """An info file beside ``scannet/posed_images``, as the public ones lie."""
    export_folder(scene, folder / "scannet" / "posed_images" / scene.name)
    square = np.eye(4)
    square[:3, :3] = scene.views[0].intrinsics.numpy()

    def matrix(value) -> object:
        value = np.asarray(value)
        return value if arrays else value.tolist()

    entry = {
        "sample_idx": f"scannet/{scene.name}",
        "axis_align_matrix": matrix(np.eye(4) if scene.alignment is None else scene.alignment.numpy()),
        "cam2img": matrix(square),
        "depth_cam2img": matrix(square),
        "images": [
            {
                "img_path": f"scannet/posed_images/{scene.name}/{i:05d}.jpg",
                "cam2global": matrix(view.pose.numpy()),
                "visible_instance_ids": [0],
            }
            for i, view in enumerate(scene.views)
        ],
        "instances": [
            {"bbox_3d": [1.0, 2.0, 0.5, 0.4, 0.6, 1.0, 0.3, 0.0, 0.0], "bbox_label_3d": 3, "bbox_id": np.int64(0)}
        ],
    }
    payload = {"metainfo": {"categories": {"chair": 3}}, "data_list": [entry, {**entry, "sample_idx": "scannet/other"}]}
    path = folder / "embodiedscan" / "embodiedscan_infos_train.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(payload, protocol=protocol))
    return path


def write_middlebury(
    folder: Path, disparity: np.ndarray, pictures: np.ndarray, right: np.ndarray | None = None
) -> Path:
    folder.mkdir(parents=True)
    for i in range(2):
        Image.fromarray(pictures[i]).save(folder / f"im{i}.png")
    for i, plane in enumerate((disparity, right)):
        if plane is not None:
            data = b"Pf\n%d %d\n-1.0\n" % (plane.shape[1], plane.shape[0])
            (folder / f"disp{i}.pfm").write_bytes(data + plane[::-1].astype("<f4").tobytes())
    (folder / "calib.txt").write_text(
        "cam0=[50 0 15.5; 0 50 11.5; 0 0 1]\ncam1=[50 0 18.5; 0 50 11.5; 0 0 1]\ndoffs=3\nbaseline=200\n"
        f"width={disparity.shape[1]}\nheight={disparity.shape[0]}\nndisp=64\n"
    )
    return folder
