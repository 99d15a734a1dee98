"""Episodes of a data set in lerobot's layout, 2.x or 3.0, to rows: the cameras' videos, and the task as the answer.

Read as ``lerobot/datasets`` of github.com/huggingface/lerobot does: 2.x has a video for each episode and camera, and
``meta/episodes.jsonl``; 3.0 has many episodes in one video, and says in ``meta/episodes/*/*.parquet`` where each lies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ..contracts.documents import DocumentError, parse_json
from ..contracts.errors import FramesError, VideoError, near_misses
from ..contracts.printable import brief, first_line
from ..scenes.video_parts import VideoPart, timeline
from ..storage.reading import JsonObject, read_json
from .annotations import AnnotationRows, Made
from .metrics.errors import ScoreError

INFO, EPISODES_2, EPISODES_3 = "meta/info.json", "meta/episodes.jsonl", "meta/episodes"
QUESTION = "What task does the robot do?"
#: Where 2.x and 3.0 keep their videos unless the data set says otherwise.
VIDEOS = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
#: Episodes of a chunk in 2.x.
CHUNK = 1000
_PLACE = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")


@dataclass(frozen=True)
class Episode:
    """One episode, as a data set tells of it.

    Attributes:
        index: its number.
        tasks: what was to be done, in words.
        length: frames.
        places: by camera what its video's path is made of, and where in it the episode lies (None: it is all of it).
    """

    index: int
    tasks: tuple[str, ...]
    length: int
    places: Mapping[str, tuple[Mapping[str, int | str], VideoPart | None]]


class _UnfitError(Exception):
    """Why an episode becomes no row."""


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is laid out as lerobot's data sets are."""
    return (folder / INFO).is_file()


def lerobot_rows(
    folder: Path,
    cameras: Sequence[str] = (),
    split: str | None = None,
    progress: Callable[[Sequence[Any]], Any] = iter,
) -> AnnotationRows:
    """Rows of a data set's episodes: its cameras' videos, or the parts of them, and the task as the answer.

    Args:
        folder: of the data set, with ``meta/info.json``.
        cameras: keys of videos, such as ``observation.images.image``, or their ends; empty: all.
        split: of those that the data set names; None: all episodes.
        progress: wraps the episodes.

    Returns:
        Rows, and a message for each episode that became none: its video is not there, or has not the frames of it.

    Raises:
        ScoreError: no such data set, another version, or an unknown camera or split.
    """
    info = _info(folder)
    version = _version(folder, info)
    chosen = _cameras(folder, info, cameras)
    wanted = _wanted(folder, info, split)
    template = info.get("video_path") or VIDEOS[version]
    read = _episodes_2 if version == 2 else _episodes_3
    made = AnnotationRows()
    episodes: list[Any] = list(read(folder, info, chosen))
    for number, episode in enumerate(progress(episodes)):
        if isinstance(episode, Episode) and episode.index not in wanted:
            continue
        made.read += 1
        try:
            if not isinstance(episode, Episode):
                raise episode
            made.rows.append(_row(folder, template, episode, chosen))
        except _UnfitError as problem:
            name = f"episode {episode.index}" if isinstance(episode, Episode) else f"entry {number + 1} of the episodes"
            made.left_out.append(f"{folder}, {name}: {problem}")
    return made


def _info(folder: Path) -> JsonObject:
    if not is_lerobot(folder):
        raise ScoreError(f"{folder} is no data set in lerobot's layout: it has no {INFO}. Name the folder that has it.")
    return read_json(folder / INFO, ScoreError)


def _version(folder: Path, info: JsonObject) -> int:
    text = info["codebase_version"]
    found = re.fullmatch(r"v?(\d)\.\d+", str(text))
    if found is None or int(found[1]) not in VIDEOS:
        raise ScoreError(f"{folder / INFO}: codebase_version is {brief(text)}; 2.0, 2.1 and 3.0 are read.")
    return int(found[1])


def _cameras(folder: Path, info: JsonObject, named: Sequence[str]) -> list[str]:
    features = info.mapping("features")
    kinds = {key: value.get("dtype") for key, value in features.items() if isinstance(value, Mapping)}
    there = [key for key, kind in kinds.items() if kind == "video"]
    if not there:
        images = [key for key, kind in kinds.items() if kind == "image"]
        what = (
            f"it keeps {', '.join(images)} as images in its tables; encode them as videos" if images else "it has none"
        )
        raise ScoreError(f"{folder}: no camera of this data set is a video: {what}.")
    chosen = []
    for name in named:
        fitting = [key for key in there if key == name] or [key for key in there if key.split(".")[-1] == name]
        if len(fitting) != 1:
            raise ScoreError(f"{folder}: no camera {name!r}.{near_misses(name, there)} There are: {', '.join(there)}.")
        chosen += fitting
    return chosen or there


def _wanted(folder: Path, info: JsonObject, split: str | None) -> range:
    if split is None:
        return range(1 << 62)
    splits = info.get("splits") or {}
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", str(splits.get(split))) if isinstance(splits, Mapping) else None
    if found is None:
        raise ScoreError(f"{folder}: no split {split!r}. It has: {', '.join(map(brief, splits)) or 'none'}.")
    return range(int(found[1]), int(found[2]))


def _episodes_2(folder: Path, info: JsonObject, cameras: Sequence[str]) -> Iterator[Episode | _UnfitError]:
    chunk = info.integer("chunks_size", CHUNK)
    path = folder / EPISODES_2
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path} cannot be read: {error}.") from error
    for line in filter(str.strip, lines):
        try:
            values = parse_json(line)
        except DocumentError as error:
            yield _UnfitError(f"not JSON: {error}")
            continue
        yield _episode(values, lambda index, key: (_named(key, index, episode_chunk=index // chunk), None), cameras)


def _episodes_3(folder: Path, info: JsonObject, cameras: Sequence[str]) -> Iterator[Episode | _UnfitError]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ScoreError(
            "Episodes of lerobot 3.0 lie in parquet files, which need pyarrow: pip install 'vega3d-plugin[lerobot]'."
        ) from error
    files = sorted((folder / EPISODES_3).glob("*/*.parquet"))
    if not files:
        raise ScoreError(
            f"{folder / EPISODES_3} has no parquet files (chunk-000/file-000.parquet): download meta whole."
        )
    own = [f"videos/{key}/{name}" for key in cameras for name in _BOUNDS]
    for file in files:
        try:
            table = pyarrow.parquet.read_table(file, columns=["episode_index", "tasks", "length", *own])
            rows = table.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ScoreError(f"{file} cannot be read: {first_line(error)}.") from error
        for values in rows:
            yield _episode(values, partial(_bounds, values), cameras)


_BOUNDS = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


def _bounds(values: Mapping[str, Any], index: int, key: str) -> tuple[Mapping[str, int | str], VideoPart]:
    told: list[Any] = [values.get(f"videos/{key}/{name}") for name in _BOUNDS]
    chunk, file, start, end = told
    whole = all(isinstance(number, int) for number in (chunk, file))
    if not whole or not all(isinstance(t, int | float) for t in (start, end)) or not 0 <= start < end:
        raise _UnfitError(f"where it lies in the videos of {key} is not told: {brief(told)}")
    return _named(key, index, chunk_index=chunk, file_index=file), VideoPart(float(start), float(end))


def _named(key: str, index: int, **more: int) -> Mapping[str, int | str]:
    return {"video_key": key, "episode_index": index, **more}


def _episode(values: Any, place: Callable[[int, str], Any], cameras: Sequence[str]) -> Episode | _UnfitError:
    """One episode out of its values; the reason where they tell of none."""
    if not isinstance(values, Mapping):
        return _UnfitError(f"an object is expected, found {brief(values)}")
    told: list[Any] = [values.get(name) for name in ("episode_index", "length", "tasks")]
    index, length, tasks = told
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (index, length)):
        return _UnfitError(f"episode_index and length must be whole numbers, found {brief(index)} and {brief(length)}")
    texts = [tasks] if isinstance(tasks, str) else tasks
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts) or not texts:
        return _UnfitError(f"it names no task: {brief(tasks)}")
    try:
        return Episode(index, tuple(texts), length, {key: place(index, key) for key in cameras})
    except _UnfitError as problem:
        return problem


def _row(folder: Path, template: str, episode: Episode, cameras: Sequence[str]) -> Made:
    videos: list[Any] = []
    for key in cameras:
        names, part = episode.places[key]
        path = folder.resolve() / _path(template, names)
        _check(path, part, episode.length)
        bounds = {} if part is None else {"start": part.start, "end": part.end}
        videos.append({"path": str(path), **bounds} if bounds else str(path))
    return {
        "id": f"{folder.resolve().name}_{episode.index:06d}",
        **({"video": videos[0]} if len(videos) == 1 else {"videos": videos}),
        "conversations": [
            {"from": "human", "value": "<video>\n" * len(videos) + QUESTION},
            {"from": "gpt", "value": "; ".join(episode.tasks)},
        ],
        "metadata": {
            "dataset": "lerobot",
            "episode_index": episode.index,
            "length": episode.length,
            "cameras": list(cameras),
        },
    }


def _path(template: Any, names: Mapping[str, int | str]) -> PurePosixPath:
    """A path as the data set writes it, with ``{name}`` and ``{name:03d}``; nothing else that Python's format does."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in names:
            raise ScoreError(f"{INFO}: video_path has the unknown {found[0]}; known: {', '.join(names)}.")
        return str(names[found[1]]).zfill(int(found[2] or 0))

    path = PurePosixPath(_PLACE.sub(value, str(template)))
    if "{" in str(path) or ".." in path.parts or path.is_absolute():
        raise ScoreError(f"{INFO}: video_path {brief(template)} names no file inside the data set.")
    return path


def _check(path: Path, part: VideoPart | None, length: int) -> None:
    """Raise unless the video is there and has the episode's frames, told by its packets."""
    if not path.is_file():
        raise _UnfitError(f"its video {path} is not there")
    try:
        found = timeline(path)
        count = found.total if part is None else len(found.frames(part))
    except (VideoError, FramesError) as error:
        raise _UnfitError(str(error).rstrip(".")) from error
    if count != length:
        where = path if part is None else f"{part} of {path}"
        raise _UnfitError(f"it has {length} frames, and {where} {count}")
