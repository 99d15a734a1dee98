"""A row of data as a conversation: turns of text and pictures, whichever way the row was written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...contracts.errors import FramesError, RowError, Vega3dError, VideoError
from ...recipes.blocks import DataSettings
from ...scenes.images import IMAGES, find_images, in_order
from ...scenes.rows import ScenePoints, scene_frames
from ...scenes.video_parts import KEYS, Timeline, VideoPart, read_part, timeline
from .marks import Mark, read_marks
from .paths import find_path
from .released import released_row

Kind = Literal["image", "video"]
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Medium:
    """An image, or a video in any form.

    Attributes:
        kind: what the host is to take it for.
        source: a path; for a video also a list of paths, its frames or the views of a scene. In rows that do not come
            from files: a picture of PIL, or a list of such.
        fps: frames per second of a list of frames, where the row says so.
        marks: what is drawn on an image when it is read.
        points: where the pixels of a scene's views lie; None for what is no view of a scene.
        view: place of an image among the scene's views.
        part: what of a video file is meant; None: all of it.
    """

    kind: Kind
    source: Any
    fps: float | None = None
    marks: tuple[Mark, ...] = ()
    points: ScenePoints | None = None
    view: int = 0
    part: VideoPart | None = None


#: What ``video`` may be as an object: a path and a part of it.
_PATHS = ("path", "video", "url")
#: What qwen-vl-utils calls the bounds of a part, in seconds.
_QWEN = {"video_start": "start", "video_end": "end"}
_BOUNDS = tuple(name for pair in KEYS.values() for name in pair)


class _Views(list[Any]):
    """The views of a scene, in place of a list of frames."""

    def __init__(self, frames: Sequence[Any], points: ScenePoints) -> None:
        super().__init__(frames)
        self.points = points


@dataclass(frozen=True)
class Turn:
    """Attributes: ``role``: ``system``, ``user`` or ``assistant``; ``parts``: text and media, in order."""

    role: str
    parts: tuple[str | Medium, ...]

    @property
    def text(self) -> str:
        """The text alone."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Conversation:
    """Attributes: ``turns``, the last of which is an answer."""

    turns: tuple[Turn, ...]

    @property
    def media(self) -> list[Medium]:
        """All media, in order."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, Medium)]


def read_conversation(row: Mapping[str, Any], settings: DataSettings, root: Path | None = None) -> Conversation:
    """Turn a row into a conversation, and check all that can be checked without opening a picture.

    Args:
        row: LLaVA-style (``conversations``, with placeholders in the text, and ``image``, ``images``, ``video`` or
            ``videos``), or chat-style (``messages``, or TRL's ``prompt`` and ``completion``; pictures in the parts or
            in ``images`` and ``videos``). A video may be an object, ``path`` with ``start`` and ``end`` in seconds,
            or ``start_frame`` and ``end_frame``: that part of it. ``scene`` names a scene, whose chosen views are a
            video; ``spar_info`` what is drawn on the images.
        settings: format, placeholders and the system text.
        root: folder that relative paths start from.

    Raises:
        RowError: not such a row, an empty answer, a medium that does not exist, more or fewer media than
            placeholders, or marks that cannot be drawn.
    """
    style = _style(row)
    if settings.format not in ("auto", style):
        raise RowError(f"a row of the format {style}, but data.format is {settings.format}; `auto` takes both")
    if settings.preset == "released" and style == "llava":
        row = released_row(row, settings, root)
    turns = _llava_turns(row) if style == "llava" else _chat_turns(row)
    media = _Media(row, settings, root)
    read = [Turn(role, tuple(media.parts(role, content))) for role, content in turns]
    media.check_all_used()
    if settings.system is not None and read[0].role != "system":
        read.insert(0, Turn("system", (settings.system,)))
    _check(read)
    return _marked(Conversation(tuple(read)), row.get("spar_info"))


class _Media:
    """Hands the row's media out to the placeholders."""

    def __init__(self, row: Mapping[str, Any], settings: DataSettings, root: Path | None) -> None:
        self.settings, self.root = settings, root
        self.left = {"image": _images(row), "video": [*_videos(row), *_scenes(row, settings, root)]}
        self.given = {kind: len(values) for kind, values in self.left.items()}
        self.asked = {"image": 0, "video": 0}
        self.tokens = {settings.image_token: "image", settings.video_token: "video"}
        self.pattern = re.compile("(" + "|".join(map(re.escape, self.tokens)) + ")")

    def parts(self, role: str, content: Any) -> Iterator[str | Medium]:
        if isinstance(content, str):
            for piece in self.pattern.split(content):
                if piece in self.tokens:
                    yield self._next(self.tokens[piece])
                elif piece:
                    yield piece
            return
        if not isinstance(content, Sequence):
            raise RowError(f"the content of a turn must be text or a list, found {type(content).__name__}")
        for part in content:
            yield from self._part(part)

    def _part(self, part: Any) -> Iterator[str | Medium]:
        if isinstance(part, str):
            yield part
            return
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            yield str(part.get("text", ""))
        elif kind in ("image", "image_url", "video"):
            kind = "video" if kind == "video" else "image"
            keys = (kind, "path", "url", f"{kind}_url")
            source = next((part[key] for key in keys if part.get(key) is not None), None)
            if kind == "video" and (isinstance(source, str | Path) or source is None):
                bounds = {key: part[key] for key in (*_QWEN, *_BOUNDS) if part.get(key) is not None}
                if bounds and source is None:
                    raise RowError(
                        f"{', '.join(bounds)} beside no path: write them in `videos`, with each video's path"
                    )
                source = {"path": source, **bounds} if bounds else source
            elif kind == "image" and isinstance(source, Mapping):
                source = source.get("url")
            yield self._next(kind) if source is None else self._medium(kind, source, part.get("fps"))
        else:
            raise RowError(f"a part must have the type text, image or video, found {kind!r}")

    def _next(self, kind: str) -> Medium:
        # LLaVA-Video and its kin write <image> for a video too.
        if kind == "image" and not self.given["image"] and self.given["video"]:
            kind = "video"
        self.asked[kind] += 1
        if not self.left[kind]:
            raise RowError(
                f"placeholder {self.asked[kind]} for {_some(kind)} has none: the row names {self.given[kind]}"
            )
        return self._medium(kind, self.left[kind].pop(0), None)

    def check_all_used(self) -> None:
        """Raise unless every medium has found its placeholder."""
        for kind, left in self.left.items():
            if left:
                raise RowError(
                    f"{self.given[kind]} {kind}s but {self.given[kind] - len(left)} placeholders for them; the first "
                    f"without one is {_brief(left[0])}"
                )

    def _medium(self, kind: str, source: Any, fps: Any) -> Medium:
        if kind == "video":
            part = None
            if isinstance(source, Mapping):
                source, part = _part_of(source)
            if isinstance(source, str | Path):
                path = self._path(source)
                if not path.is_dir():
                    _check_part(path, part)
                    return Medium("video", path, fps, part=part)
                if not find_images(path):
                    raise RowError(f"the folder {path} has no images")
                fps = self.settings.folder_fps if fps is None else fps
                return Medium("video", _within(path, in_order(find_images(path)), fps, part), fps)
            if not isinstance(source, Sequence) or not source:
                raise RowError(f"a video must be a path or a list of frames, found {_brief(source)}")
            frames = [self._picture(frame) for frame in source]
            points = source.points if isinstance(source, _Views) else None
            return Medium("video", frames, None if fps is None else float(fps), points=points)
        return Medium("image", self._picture(source))

    def _picture(self, source: Any) -> Any:
        """A path in full; other forms of a picture as they are. What is none is told before the run, not in its midst.

        Raises:
            RowError: no path, and nothing that could be a picture.
        """
        if isinstance(source, str | Path):
            return self._path(source)
        if source is None or isinstance(source, Mapping | bool | int | float | list | tuple | bytes):
            part = "; a part of a video is written under `video`" if isinstance(source, Mapping) else ""
            raise RowError(f"an image must be a path or a picture of PIL, found {_brief(source)}{part}")
        return source

    def _path(self, source: str | Path) -> Path:
        return find_path(source, self.root)


def _part_of(source: Mapping[str, Any]) -> tuple[str | Path, VideoPart | None]:
    """The path and the part of a video that is written as an object."""
    path = next((source[key] for key in _PATHS if source.get(key) is not None), None)
    odd = [key for key, value in source.items() if value is not None and key not in (*_PATHS, *_QWEN, *_BOUNDS)]
    if not isinstance(path, str | Path) or odd:
        what = f"unknown {', '.join(map(repr, odd))}" if odd else f"its path is {_brief(path)}"
        raise RowError(f"a video as an object has `path` and, for a part of it, {', '.join(_BOUNDS)}; {what}")
    try:
        return path, read_part(source, _QWEN)
    except FramesError as error:
        raise RowError(f"{path}: {error}") from error


def _check_part(path: Path, part: VideoPart | None) -> None:
    """Raise unless the part is one of the video, which costs a look through each file's packets, once."""
    if part is None:
        return
    try:
        timeline(path).frames(part)
    except (FramesError, VideoError) as error:
        raise RowError(str(error).rstrip(".")) from error


def _within(folder: Path, frames: list[Path], fps: float | None, part: VideoPart | None) -> list[Path]:
    """The frames of a folder that a part means."""
    if part is None:
        return frames
    try:
        chosen = Timeline(str(folder), None, len(frames), fps).frames(part)
    except FramesError as error:
        raise RowError(str(error).rstrip(".")) from error
    return [frames[i] for i in chosen]


def _style(row: Mapping[str, Any]) -> str:
    if "conversations" in row:
        return "llava"
    if "messages" in row or ("prompt" in row and "completion" in row):
        return "chat"
    raise RowError(f"neither `conversations` nor `messages`; its keys are {', '.join(map(str, row)) or 'none'}")


def _llava_turns(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [_turn(turn, "from", "value") for turn in _list(row, "conversations")]


def _chat_turns(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if "messages" in row:
        return [_turn(turn, "role", "content") for turn in _list(row, "messages")]
    turns: list[tuple[str, Any]] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(key)
        # Both may also be plain text.
        turns += [(role, value)] if isinstance(value, str) else [_turn(t, "role", "content") for t in _list(row, key)]
    return turns


def _list(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    turns = row.get(key)
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise RowError(f"`{key}` must be a list of turns, found {_brief(turns)}")
    return turns


def _turn(turn: Any, who: str, what: str) -> tuple[str, Any]:
    if not isinstance(turn, Mapping) or who not in turn or what not in turn:
        raise RowError(f"a turn must have `{who}` and `{what}`, found {_brief(turn)}")
    role = ROLES.get(str(turn[who]))
    if role is None:
        raise RowError(f"unknown speaker {turn[who]!r}; known: {', '.join(ROLES)}")
    content = turn[what]
    return role, "" if content is None else content


def _images(row: Mapping[str, Any]) -> list[Any]:
    value = row["image"] if row.get("image") is not None else row.get("images")
    if value is None or (isinstance(value, str) and not value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _videos(row: Mapping[str, Any]) -> list[Any]:
    value = row["video"] if row.get("video") is not None else row.get("videos")
    if value is None or (isinstance(value, str) and not value):
        return []
    if not isinstance(value, list | tuple):
        return [value]
    # A flat list under `video`, or one of images, is one video's frames; otherwise each entry is a video.
    flat = all(not isinstance(entry, list | tuple | Mapping) for entry in value)
    frames = flat and all(not isinstance(e, str) or Path(e).suffix.lower() in IMAGES for e in value)
    return [list(value)] if value and frames else list(value)


def _scenes(row: Mapping[str, Any], settings: DataSettings, root: Path | None) -> list[list[Any]]:
    """The views of the scene that a row names, as the frames of one video."""
    if row.get("scene") is None:
        return []
    try:
        frames = scene_frames(row["scene"], root, settings.frames)
    except Vega3dError as error:
        raise RowError(f"scene: {str(error).rstrip('.')}") from error
    if len(frames) > settings.frames:
        raise RowError(f"scene: {len(frames)} views, more than data.frames, which is {settings.frames}")
    return [_Views(frames, ScenePoints(row["scene"], root, settings.frames))]


def _marked(conversation: Conversation, spar_info: Any) -> Conversation:
    """The conversation with the marks of ``spar_info`` on its images."""
    if spar_info is None:
        return conversation
    if any(medium.kind == "video" for medium in conversation.media):
        raise RowError("spar_info marks `images`; the row has a video or a scene, whose frames have no fixed numbers")
    marks = read_marks(spar_info, len(conversation.media))
    place = iter(range(len(conversation.media)))
    turns = tuple(
        replace(
            turn,
            parts=tuple(
                replace(part, marks=marks.get(next(place), ())) if isinstance(part, Medium) else part
                for part in turn.parts
            ),
        )
        for turn in conversation.turns
    )
    return Conversation(turns)


def _check(turns: Sequence[Turn]) -> None:
    for number, turn in enumerate(turns, 1):
        if turn.role != "assistant":
            continue
        if any(isinstance(part, Medium) for part in turn.parts):
            raise RowError(f"turn {number}: an answer cannot hold an image or a video")
        if not turn.text.strip():
            raise RowError(f"turn {number}: the answer is empty")
    if turns[-1].role != "assistant":
        raise RowError(f"the last turn must be an answer, found one of the {turns[-1].role}")
    if turns[0].role == "assistant":
        raise RowError("the first turn is an answer: there is no question")


def _some(kind: str) -> str:
    return "an image" if kind == "image" else "a video"


def _brief(value: Any) -> str:
    text = repr(value) if not isinstance(value, Path) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
