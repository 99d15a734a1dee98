"""Short videos to and from numpy arrays."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vega3d_plugin.contracts.clips import uniform_indices
from vega3d_plugin.contracts.errors import FramesError, VideoError, near_misses
from vega3d_plugin.scenes.pixel_limits import too_large
from vega3d_plugin.scenes.upright import ShownFrame, showing_of
from vega3d_plugin.storage.writing import written_whole

# Videos longer than this get a progress bar.
QUIET_FRAMES = 200
# By how much the rate that a file tells may differ from that of its packets; how long the last frame is shown is open.
_TOLERATED = 0.1


def write_video(path: str | Path, frames: NDArray[np.uint8], fps: int = 8) -> None:
    """Write an mp4 (H.264, 4:2:0, nearly lossless); missing folders are made and an existing file is replaced.

    Args:
        path: where to write, ending in ``.mp4``.
        frames: uint8 [T, H, W, 3] RGB, T at least 1, H and W even.
        fps: frames per second, at least 1.

    Raises:
        FramesError: wrong shape, dtype, sizes or ``fps``.
        VideoError: the file cannot be written.
    """
    path = Path(path)
    if frames.ndim != 4 or frames.shape[3] != 3 or min(frames.shape) < 1 or frames.dtype != np.uint8:
        raise FramesError(
            f"{path} cannot be written: expected uint8 frames [T, H, W, 3], found {frames.dtype} {list(frames.shape)}."
        )
    with VideoWriter(path, (frames.shape[1], frames.shape[2]), fps) as video:
        for frame in frames:
            video.add(frame)


class VideoWriter:
    """An mp4 (H.264, 4:2:0, nearly lossless) that is written frame by frame: ``with VideoWriter(...) as video``.

    The file is there, whole, once the block has ended; after an error in it there is none.

    Args:
        path: where to write, ending in ``.mp4``; missing folders are made and an existing file is replaced.
        size: (height, width) of the frames, both even.
        fps: frames per second, at least 1.

    Raises:
        FramesError: ``size`` or ``fps`` cannot be.
        VideoError: the file cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: int = 8) -> None:
        self.path, self.size, self.fps = path, size, fps
        if size[0] % 2 or size[1] % 2:
            raise FramesError(
                f"{path} cannot be written: H.264 with 4:2:0 colour needs an even height and width, found {size[0]} x "
                f"{size[1]}. Crop or pad the frames by one pixel."
            )
        if fps < 1:
            raise FramesError(f"{path} cannot be written: fps is {fps}, give a whole number of at least 1.")
        if path.suffix.lower() != ".mp4":
            raise VideoError(f"{path} cannot be written: the name of the file must end in .mp4.")
        self._open = ExitStack()

    def __enter__(self) -> VideoWriter:
        with self._told(), ExitStack() as opening:
            place = opening.enter_context(written_whole(self.path, durable=False))
            container = opening.enter_context(av.open(str(place), "w"))
            stream = container.add_stream("libx264", rate=self.fps, options={"crf": "12"})
            (stream.height, stream.width), stream.pix_fmt = self.size, "yuv420p"
            self._container, self._stream = container, stream
            self._open = opening.pop_all()
        return self

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame, uint8 ``[H, W, 3]`` RGB of :attr:`size`."""
        with self._told():
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def __exit__(self, *raised: Any) -> None:
        with self._told():
            if raised[0] is None:
                self._container.mux(self._stream.encode(None))
            self._open.__exit__(*raised)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        # An FFmpeg without the encoder raises a ValueError of its own.
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{self.path} cannot be written: {error}. Check the folder, and that FFmpeg has libx264."
            ) from error


def read_video(path: str | Path, count: int | None = None) -> NDArray[np.uint8]:
    """Read a video as uint8 [T, H, W, 3] RGB, at the size of its first frame, upright as players show it.

    Args:
        path: any video that FFmpeg can decode.
        count: None for every frame; else the number of frames T, spread evenly over the whole video (both ends
            included, repeated when the video is shorter). Frames are counted as they are decoded, because the number
            in the file's header may be wrong; only the chosen frames are held in memory.

    Raises:
        VideoError: no such file, not a video, a broken file, no video stream or no frames.
        FramesError: ``count`` is below 1.
    """
    return sample_video(path, count)[0]


def sample_video(
    path: str | Path, count: int | None = None, spread: Callable[[int, int], list[int]] = uniform_indices
) -> tuple[NDArray[np.uint8], list[int]]:
    """As :func:`read_video`, with the places of the frames in the video, from 0.

    Args:
        path: of the video.
        count: frames; None: all.
        spread: which of the video's frames are those ``count``.
    """
    path = Path(path)
    if count is not None and count < 1:
        raise FramesError(f"{count} frames of {path} were asked for: ask for at least 1, or for None to get all.")
    _check_file(path)
    total = 0 if count is None else measure(path)[0]
    while True:
        indices = spread(total, count) if count is not None and total else []
        wanted, kept, found = set(indices), {}, 0
        for shown in decoded(path, f"Reading {path.name}"):
            if count is None or found in wanted:
                kept[found] = shown.pixels()
            found += 1
        if count is None or found == total:
            break
        # What is decoded counts, not how many packets there are.
        total = found
    if count is None:
        indices = list(kept)
    if not kept:
        raise VideoError(f"{path} holds no frames: its video stream is empty. Record or export it again.")
    return np.stack([kept[i] for i in indices]), indices


def measure(path: Path) -> tuple[int, float | None]:
    """Frames of a video and how many there are in a second, without decoding: (0, None) of what is no video.

    Frames are counted as they lie in the file, which is all but always what is decoded. Where their rate varies it is
    the average.
    """
    try:
        with av.open(str(path)) as container:
            stream = _stream(container, path)
            found = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
            return len(found), _rate(stream, found)
    except (av.FFmpegError, OSError, VideoError):
        # Whoever decodes it says what is wrong.
        return 0, None


def _rate(stream: Any, found: Sequence[int | None]) -> float | None:
    """Frames in a second: what the file says, unless the times of its packets say something else.

    A file whose rate varies may tell that of its shortest frames (Matroska), by which ten seconds became one.
    """
    told = float(stream.average_rate) if stream.average_rate else None
    times = [pts for pts in found if pts is not None]
    if len(times) < max(2, len(found)) or not stream.time_base:
        return told
    seconds = (max(times) - min(times)) * float(stream.time_base)
    if seconds <= 0:
        return told
    real = (len(times) - 1) / seconds
    return told if told and abs(told - real) <= _TOLERATED * real else real


@dataclass(frozen=True)
class FramePts:
    """Where the frames of a video lie in time, as its packets say.

    Attributes:
        pts: of each frame in the order in which they are shown, in the stream's ticks; None where one has none.
        keys: those of ``pts`` from which decoding can begin.
        second: how long a tick is, in seconds.
        total: frames.
        fps: on average; None where it is not known.
    """

    pts: NDArray[np.int64] | None
    keys: NDArray[np.int64]
    second: float
    total: int
    fps: float | None


def frame_pts(path: Path) -> FramePts:
    """Look through the packets of a video, without decoding; once for each file.

    Raises:
        VideoError: it is no video, or has no frames.
    """
    _check_file(path)
    about = path.stat()
    return _frame_pts(path, about.st_size, about.st_mtime_ns)


# Half an hour of a video is half a megabyte.
@lru_cache(maxsize=256)
def _frame_pts(path: Path, *version: int) -> FramePts:
    try:
        with av.open(str(path)) as container:
            stream = _stream(container, path)
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
            rate = _rate(stream, [pts for pts, _ in packets])
            second = float(stream.time_base or 0)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path} cannot be read: it is not a video, or damaged ({error}). Check that it plays, or export it again."
        ) from error
    if not packets:
        raise VideoError(f"{path} holds no frames: its video stream is empty. Record or export it again.")
    known = all(pts is not None for pts, _ in packets)
    pts = np.array(sorted(pts for pts, _ in packets), np.int64) if known else None
    keys = np.array(sorted(pts for pts, key in packets if key) if known else [], np.int64)
    return FramePts(pts, keys, second, len(packets), rate)


def read_range(path: Path, chosen: Sequence[int]) -> NDArray[np.uint8]:
    """Some frames of a video by number, uint8 [len(chosen), H, W, 3] RGB; those before their key frame stay undecoded.

    Args:
        path: of the video.
        chosen: numbers of frames, ascending, from 0.

    Raises:
        VideoError: it is no video, or one of them cannot be decoded.
    """
    found = frame_pts(path)
    kept = {}
    if found.pts is not None and chosen[-1] < found.total:
        before = found.keys[found.keys <= found.pts[chosen[0]]]
        # A file whose key frames are marked wrongly is read again from its beginning.
        for since in (int(before[-1]) if len(before) else None, None):
            kept = _numbered(path, chosen, found.pts, since)
            if len(kept) == len(set(chosen)):
                break
    else:
        kept = _numbered(path, chosen, None, None)
    lacking = next((number for number in chosen if number not in kept), None)
    if lacking is not None:
        raise VideoError(f"{path} has no frame {lacking} that can be decoded. Check that it plays, or export it again.")
    return np.stack([kept[number] for number in chosen])


def _numbered(
    path: Path, chosen: Sequence[int], pts: NDArray[np.int64] | None, since: int | None
) -> dict[int, NDArray[np.uint8]]:
    """The pixels of those of the chosen frames that decoding from ``since`` shows, by number."""
    wanted, kept = set(chosen), {}
    for counted, shown in enumerate(decoded(path, f"Reading {path.name}", since)):
        number = counted if pts is None else int(np.searchsorted(pts, shown.frame.pts))
        if number in wanted and (pts is None or pts[number] == shown.frame.pts):
            kept[number] = shown.pixels()
        if number >= chosen[-1]:
            break
    return kept


def decoded(path: Path, doing: str, since: int | None = None) -> Iterator[ShownFrame]:
    """Yield the frames of a video one by one, all of the first one's size.

    Args:
        path: of the video.
        doing: what the progress bar of a long video says.
        since: begin at the last key frame up to this time, in the stream's ticks; None: at the first frame.

    Raises:
        VideoError: it is no video, or breaks off.
    """
    _check_file(path)
    done = 0
    try:
        with ExitStack() as stack:
            container = stack.enter_context(av.open(str(path)))
            # FFmpeg also "plays" text files, as a terminal would show them.
            if container.format.name == "tty":
                raise VideoError(f"{path} is a text file, not a video. Give the path of a video file.")
            stream = _stream(container, path)
            stream.thread_type = "AUTO"
            bar = size = None
            showing = showing_of(path, stream.index)
            if since is not None:
                container.seek(since, stream=stream)
            room = path.stat().st_size
            cut, last = False, 0.0
            for packet in container.demux(stream):
                # FFmpeg decodes a file that was cut short without complaint; only its last packet is marked.
                cut = packet.is_corrupt if packet.size else cut
                for frame in packet.decode():
                    last = max(last, _end(frame))
                    if size is None:
                        size = frame.width, frame.height
                    if (frame.width, frame.height) != size:
                        _check_size(frame, path, room)
                        frame = frame.reformat(*size)
                    yield ShownFrame(frame, showing)
                    done += 1
                    if bar is not None:
                        bar.update()
                    elif done == QUIET_FRAMES:
                        known = stream.frames if stream.frames >= done else None
                        bar = stack.enter_context(tqdm(total=known, initial=done, desc=doing, unit="frame"))
            if cut or (since is None and _lacks(container, stream, done, last)):
                raise VideoError(
                    f"{path} is cut short: it ends in the middle of frame {done}. Copy or export it again."
                )
    except (av.FFmpegError, OSError) as error:
        where = f"it broke off after {done} frames" if done else "it is not a video, or damaged"
        raise VideoError(
            f"{path} cannot be read: {where} ({error}). Check that it plays, or export it again."
        ) from error


def _stream(container: Any, path: Path) -> Any:
    """The video of a file: its first stream of pictures that is no cover of an album."""
    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        kinds = sorted({"cover picture" if s.type == "video" else s.type for s in container.streams})
        found = ", ".join(kinds) or "none"
        raise VideoError(f"{path} has no video stream (streams found: {found}). Give a file with pictures.")
    if videos[0].codec_context is None:
        raise VideoError(
            f"{path} cannot be decoded: FFmpeg does not know its codec, or it is damaged. Export it again."
        )
    # Before a frame of that size is made.
    _check_size(videos[0].codec_context, path, path.stat().st_size)
    return videos[0]


def _check_size(pictures: Any, path: Path, size: int) -> None:
    problem = too_large(pictures.width, pictures.height, size)
    if problem:
        raise VideoError(f"{path} {problem}. Export it smaller.")


def _lacks(container: Any, stream: Any, frames: int, last: float) -> bool:
    """Whether a file is cut short without a mark: its header tells of far more than there is.

    Files of QuickTime are left out, whose edits hide frames on purpose, and whose damage is told by other means.
    """
    if "mov" in container.format.name:
        return False
    if stream.frames:
        return bool(frames < 0.9 * stream.frames)
    told = stream.metadata.get("DURATION", "")
    parts = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", told)
    if parts is None:
        return False
    seconds = 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3])
    # How long the last frame is shown need not be known.
    return frames > 1 and seconds - last - seconds / frames > max(0.1 * seconds, 0.5)


def _end(frame: Any) -> float:
    """Until when a frame is shown, in seconds."""
    return 0.0 if frame.time is None else float(frame.time + (frame.duration or 0) * frame.time_base)


def _check_file(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise VideoError(f"{path} is a folder, not a video. Give the path of a video file.")
    if not path.parent.is_dir():
        raise VideoError(f"{path} does not exist, nor does the folder {path.parent}. Check the path.")
    siblings = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    hint = near_misses(path.name, siblings) or " Check the path."
    raise VideoError(f"{path} does not exist.{hint}")
