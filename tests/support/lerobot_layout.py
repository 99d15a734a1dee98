"""Invented episodes in lerobot's layout, versions 2.1 and 3.0, as ``lerobot/datasets`` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vega3d_plugin.scenes.video import VideoWriter

FPS = 10
#: Of the robot's state and its actions.
NUMBERS = 7


@dataclass(frozen=True)
class Demonstration:
    """An episode. Attributes: ``task``; ``cameras``: frames uint8 ``[T, H, W, 3]`` by name."""

    task: str
    cameras: Mapping[str, NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(next(iter(self.cameras.values())))


def grey(task: str, start: int, count: int, cameras: Sequence[str] = ("image", "wrist")) -> Demonstration:
    """Frames whose brightness tells their number, from ``start``; the second camera's are darker by 10."""
    levels = np.arange(start, start + count) * 3 + 30
    frames = {
        f"observation.images.{name}": np.broadcast_to((levels - 10 * i)[:, None, None, None], (count, 32, 48, 3))
        for i, name in enumerate(cameras)
    }
    return Demonstration(task, {name: value.astype(np.uint8) for name, value in frames.items()})


def write_lerobot(folder: Path, episodes: Sequence[Demonstration], version: str, per_video: int = 2) -> Path:
    """Write a data set.

    Args:
        folder: is made.
        episodes: all with the same cameras.
        version: ``v2.1`` or ``v3.0``.
        per_video: episodes in one video, of 3.0.
    """
    old = version.startswith("v2")
    tasks = list(dict.fromkeys(episode.task for episode in episodes))
    _write_info(folder, episodes, tasks, version)
    _write_stats(folder, episodes, old)
    write = _write_2 if old else _write_3
    write(folder, episodes, tasks, per_video)
    return folder


def _write_info(folder: Path, episodes: Sequence[Demonstration], tasks: Sequence[str], version: str) -> None:
    old = version.startswith("v2")
    place = "chunk-{episode_chunk:03d}/", "episode_{episode_index:06d}"
    features: dict[str, Any] = {
        key: {
            "dtype": "video",
            "shape": list(frames.shape[1:]),
            "names": ["height", "width", "channels"],
            "info": {"video.fps": FPS, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False},
        }
        for key, frames in episodes[0].cameras.items()
    }
    features |= {
        name: {"dtype": "float32", "shape": [NUMBERS], "names": None} for name in ("observation.state", "action")
    }
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    files = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    _write_json(
        folder / "meta" / "info.json",
        {
            "codebase_version": version,
            "robot_type": "panda",
            "total_episodes": len(episodes),
            "total_frames": sum(map(len, episodes)),
            "total_tasks": len(tasks),
            "chunks_size": 1000,
            "fps": FPS,
            "splits": {"train": f"0:{len(episodes)}"},
            "data_path": f"data/{place[0]}{place[1]}.parquet" if old else f"data/{files}.parquet",
            "video_path": f"videos/{place[0]}{{video_key}}/{place[1]}.mp4"
            if old
            else f"videos/{{video_key}}/{files}.mp4",
            "features": features,
            **(
                {"total_videos": len(episodes) * len(episodes[0].cameras), "total_chunks": 1}
                if old
                else {"data_files_size_in_mb": 100, "video_files_size_in_mb": 500}
            ),
        },
    )


def _write_2(folder: Path, episodes: Sequence[Demonstration], tasks: Sequence[str], per_video: int) -> None:
    first = 0
    for number, episode in enumerate(episodes):
        for key, frames in episode.cameras.items():
            _write_video(folder / "videos" / "chunk-000" / key / f"episode_{number:06d}.mp4", [frames])
        _write_table(
            folder / "data" / "chunk-000" / f"episode_{number:06d}.parquet", [_steps(number, episode, tasks, first)]
        )
        first += len(episode)
    lines = [{"episode_index": n, "tasks": [e.task], "length": len(e)} for n, e in enumerate(episodes)]
    _write_lines(folder / "meta" / "episodes.jsonl", lines)
    _write_lines(folder / "meta" / "tasks.jsonl", [{"task_index": n, "task": task} for n, task in enumerate(tasks)])


def _write_3(folder: Path, episodes: Sequence[Demonstration], tasks: Sequence[str], per_video: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, first = [], 0
    for number, episode in enumerate(episodes):
        before = episodes[number - number % per_video : number]
        start = sum(map(len, before)) / FPS
        row: dict[str, Any] = {
            "episode_index": number, "tasks": [episode.task], "length": len(episode), "data/chunk_index": 0,
            "data/file_index": 0, "dataset_from_index": first, "dataset_to_index": first + len(episode),
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
        }  # fmt: skip
        for key in episode.cameras:
            row |= {
                f"videos/{key}/chunk_index": 0,
                f"videos/{key}/file_index": number // per_video,
                f"videos/{key}/from_timestamp": start,
                f"videos/{key}/to_timestamp": start + len(episode) / FPS,
            }
        rows.append(row)
        first += len(episode)
    for key in episodes[0].cameras:
        for file in range(0, len(episodes), per_video):
            place = folder / "videos" / key / "chunk-000" / f"file-{file // per_video:03d}.mp4"
            _write_video(place, [episode.cameras[key] for episode in episodes[file : file + per_video]])
    starts = np.cumsum([0, *map(len, episodes)])
    steps = [_steps(n, e, tasks, int(starts[n])) for n, e in enumerate(episodes)]
    _write_table(folder / "data" / "chunk-000" / "file-000.parquet", steps)
    _write_table(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet", [pa.Table.from_pylist(rows)])
    # As pandas writes a table whose index are the tasks' words.
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
        for name, kind, stored in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    told = {"index_columns": ["task"], "columns": columns, "column_indexes": [], "pandas_version": "2.3.0"}
    table = pa.table({"task_index": list(range(len(tasks))), "task": list(tasks)})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(told)}), folder / "meta" / "tasks.parquet")


def _steps(number: int, episode: Demonstration, tasks: Sequence[str], first: int) -> Any:
    import pyarrow as pa

    count = len(episode)
    values = np.random.default_rng(number).normal(size=(2, count, NUMBERS)).astype(np.float32)
    vectors = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(value.ravel()), NUMBERS)
        for name, value in zip(("observation.state", "action"), values, strict=True)
    }
    return pa.table(
        {
            **vectors,
            "timestamp": (np.arange(count) / FPS).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, number),
            "index": np.arange(first, first + count),
            "task_index": np.full(count, tasks.index(episode.task)),
        }
    )


def _write_stats(folder: Path, episodes: Sequence[Demonstration], old: bool) -> None:
    names = ("observation.state", "action")
    one = {"min": [-3.0] * NUMBERS, "max": [3.0] * NUMBERS, "mean": [0.0] * NUMBERS, "std": [1.0] * NUMBERS}
    stats = {name: {**one, "count": [len(episodes[0])]} for name in names}
    if old:
        lines = [{"episode_index": number, "stats": stats} for number in range(len(episodes))]
        _write_lines(folder / "meta" / "episodes_stats.jsonl", lines)
    else:
        _write_json(folder / "meta" / "stats.json", stats)


def _write_video(path: Path, parts: Sequence[NDArray[np.uint8]]) -> None:
    with VideoWriter(path, parts[0].shape[1:3], FPS) as video:
        for frames in parts:
            for frame in frames:
                video.add(frame)


def _write_table(path: Path, tables: Sequence[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), path)


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2))


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
