"""Videos must come back as written, and every bad file must be named for what it is."""

from __future__ import annotations

import multiprocessing
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vega3d_plugin.contracts.clips import uniform_indices
from vega3d_plugin.contracts.errors import FramesError, Vega3dWarning, VideoError
from vega3d_plugin.recipes.blocks import DataSettings
from vega3d_plugin.scenes import video
from vega3d_plugin.scenes.images import read_frames
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.rendered import render_room
from vega3d_plugin.scenes.upright import ShownFrame
from vega3d_plugin.scenes.video import decoded, read_video, sample_video, write_video
from vega3d_plugin.training.rows.conversation import Medium
from vega3d_plugin.training.rows.media import load_video


def numbered(count: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Frames whose brightness tells their index."""
    return np.broadcast_to((20 + np.arange(count) * 200 // count)[:, None, None, None], (count, *size, 3)).astype(
        "uint8"
    )


def brightness(frames: np.ndarray) -> np.ndarray:
    return frames.reshape(len(frames), -1).mean(axis=1)


@pytest.fixture
def sixteen(tmp_path):
    path = tmp_path / "numbers.mp4"
    write_video(path, numbered(16))
    return path


def test_round_trip(tmp_path):
    frames = render_room(6, (96, 128), 0).frames
    path = tmp_path / "new" / "room.mp4"
    write_video(path, frames, fps=5)
    back = read_video(path)
    assert back.shape == frames.shape
    assert back.dtype == np.uint8
    error = ((back.astype(float) - frames) ** 2).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error) > 30).all()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 5


@pytest.mark.parametrize("count", [1, 4, 15, 16, 23])
def test_uniform_sampling(sixteen, count):
    frames = read_video(sixteen, count)
    expected = numbered(16)[uniform_indices(16, count)]
    assert frames.shape == expected.shape
    np.testing.assert_allclose(brightness(frames), brightness(expected), atol=4)


def test_only_the_chosen_frames_are_converted(sixteen, monkeypatch):
    converted = []
    real = ShownFrame.pixels
    monkeypatch.setattr(ShownFrame, "pixels", lambda frame: converted.append(1) or real(frame))
    read_video(sixteen, 3)
    assert len(converted) == 3


def test_a_long_video_shows_a_bar_and_a_short_one_does_not(tmp_path, sixteen, capsys):
    read_video(sixteen)
    assert capsys.readouterr().err == ""
    write_video(tmp_path / "long.mp4", numbered(video.QUIET_FRAMES + 10, (16, 16)))
    assert len(read_video(tmp_path / "long.mp4", 2)) == 2
    shown = capsys.readouterr().err
    assert "Reading long.mp4" in shown
    assert "210/210" in shown


def test_missing_file_names_near_misses(sixteen):
    with pytest.raises(VideoError, match=r"number\.mp4 does not exist. Did you mean 'numbers\.mp4'\?"):
        read_video(sixteen.with_name("number.mp4"))


def test_missing_folder(tmp_path):
    with pytest.raises(VideoError, match="nor does the folder"):
        read_video(tmp_path / "nowhere" / "a.mp4")


def test_folder_is_no_video(tmp_path):
    with pytest.raises(VideoError, match="is a folder, not a video"):
        read_video(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("noise.mp4", b"\x00junk" * 1000, "it is not a video, or damaged"),
        ("empty.mp4", b"", "it is not a video, or damaged"),
        ("notes.txt", b"left of the red box\n" * 100, "is a text file, not a video"),
    ],
)
def test_not_a_video(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=message):
        read_video(tmp_path / name)


def test_damaged_in_the_middle(tmp_path):
    path = tmp_path / "damaged.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3)).astype("uint8"))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 8] = bytes(len(content) // 8)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"it broke off after \d+ frames"):
        read_video(path)


def test_cut_short(tmp_path):
    path = tmp_path / "cut.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3)).astype("uint8")
    # With the index in front, a half copied file still opens.
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert len(read_video(path)) == 12
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    # On one core x264 writes other frames, and the cut falls into one of them.
    with pytest.raises(VideoError, match=r"is cut short|it broke off"):
        read_video(path)


def test_sound_only(tmp_path):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(4000))
    with pytest.raises(VideoError, match=r"no video stream \(streams found: audio\)"):
        read_video(tmp_path / "sound.wav")


@pytest.mark.parametrize("count", [None, 3])
def test_no_frames(tmp_path, count):
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="holds no frames"):
        read_video(path, count)


def test_count_below_one(sixteen):
    with pytest.raises(FramesError, match="ask for at least 1"):
        read_video(sixteen, 0)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 32, 31, 3), "uint8"), "even height and width, found 32 x 31"),
        (np.zeros((2, 3, 32, 32), "uint8"), r"found uint8 \[2, 3, 32, 32\]"),
        (np.zeros((0, 32, 32, 3), "uint8"), r"found uint8 \[0, 32, 32, 3\]"),
        (np.zeros((2, 32, 32, 3), "float32"), "found float32"),
    ],
)
def test_frames_that_cannot_be_written(tmp_path, frames, message):
    with pytest.raises(FramesError, match=message):
        write_video(tmp_path / "a.mp4", frames)
    assert not (tmp_path / "a.mp4").exists()


def test_wrong_rate_and_places(tmp_path, sixteen):
    with pytest.raises(FramesError, match="fps is 0"):
        write_video(tmp_path / "a.mp4", numbered(2), fps=0)
    with pytest.raises(VideoError, match=r"must end in \.mp4"):
        write_video(tmp_path / "a.gif", numbered(2))
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(sixteen / "a.mp4", numbered(2))


# Videos that lie on their side

TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def on_its_side(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into an mp4's track header, as a phone does."""
    data = bytearray(path.read_bytes())
    # 44 bytes after the type: version and flags, times, id, duration, layer, group, volume, reserved.
    place = data.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("degrees", sorted(TURNS))
def test_a_video_from_a_phone_is_upright(tmp_path: Path, degrees: int) -> None:
    """Turned clockwise by the matrix's angle, as ffmpeg, decord and players show it."""
    frame = np.zeros((48, 80, 3), dtype=np.uint8)
    frame[:24, :40] = 255  # white in the upper left corner, as it is stored
    path = tmp_path / "phone.mp4"
    write_video(path, np.stack([frame] * 3))
    on_its_side(path, TURNS[degrees])
    (shown, *_) = read_video(path)
    expected = np.rot90(frame, k=-degrees // 90)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 12
    again, _ = sample_video(path, 2)
    assert np.array_equal(again[0], shown)


def test_a_video_at_an_odd_angle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tilted.mp4"
    write_video(path, np.zeros((3, 32, 32, 3), dtype=np.uint8))
    on_its_side(path, (1, 1, -1, 1))
    with pytest.raises(VideoError, match=r"tilted\.mp4 is shown turned by another angle than a quarter"):
        read_video(path)


# Every kind of video, through every reader


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, *TURNS])
def test_a_mirrored_video_is_shown_as_players_do(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    """A selfie: turned, and left and right exchanged after that."""
    frame = np.zeros((48, 80, 3), dtype=np.uint8)
    frame[:24, :40] = 255
    path = tmp_path / "selfie.mp4"
    write_video(path, np.stack([frame] * 3))
    a, b, c, d = TURNS.get(degrees, (1, 0, 0, 1))
    on_its_side(path, (-a, b, -c, d) if mirrored else (a, b, c, d))
    expected = np.rot90(frame, k=-degrees // 90)
    expected = expected[:, ::-1] if mirrored else expected
    for shown in by_every_reader(path):
        assert shown[0].shape == expected.shape
        assert np.abs(shown[0].astype(int) - expected).mean() < 12


def by_every_reader(path: Path) -> list[np.ndarray]:
    """All frames by each way in: in one go, some of them, as a scene, and as a row."""
    whole = read_video(path)
    settings = DataSettings(files=["rows.json"], frames=len(whole))
    scene = open_scene(path)
    views = np.stack([(view.frame() * 255).round().byte().permute(1, 2, 0).numpy() for view in scene.views])
    assert {view.size for view in scene.views} == {whole.shape[1:3]}
    row = np.stack(load_video(Medium("video", path), settings).frames)
    found = [whole, sample_video(path, len(whole))[0], np.stack(read_frames(path, len(whole)).pictures), views, row]
    assert all(np.array_equal(each, whole) for each in found)
    return found


def encoded(
    path: Path, codec: str = "libx264", form: str = "yuv420p", times: list[int] | None = None, count: int = 6,
    size: tuple[int, int] = (32, 48),
) -> np.ndarray:  # fmt: skip
    """A video of numbered frames, shown at these times (in frames) or one after the other."""
    frames = numbered(count, size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, form
        stream.codec_context.time_base = Fraction(1, 10)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times or range(count))[number], Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return frames


KINDS = {
    "variable rate": ("a.mkv", {"times": [0, 1, 2, 30, 31, 95]}),
    "one frame": ("a.mp4", {"count": 1}),
    "odd sizes": ("a.mkv", {"codec": "ffv1", "size": (31, 47)}),
    "odd sizes, 4:4:4": ("a.mp4", {"form": "yuv444p", "size": (33, 49)}),
    "10 bits": ("a.mkv", {"codec": "ffv1", "form": "yuv420p10le"}),
    "alpha": ("a.mov", {"codec": "qtrle", "form": "argb"}),
    "begins before zero": ("a.mkv", {"times": [-3, -2, -1, 0, 1, 2]}),
    "begins late": ("a.mp4", {"times": [50, 51, 52, 53, 54, 55]}),
    "a picture that moves": ("a.gif", {"codec": "gif", "form": "rgb8"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_reader_gives_the_same_frames(tmp_path: Path, kind: str) -> None:
    name, how = KINDS[kind]
    expected = encoded(tmp_path / name, **how)
    found = by_every_reader(tmp_path / name)[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(brightness(found), brightness(expected), atol=20 if name.endswith("gif") else 6)


def test_frames_of_one_time_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    encoded(tmp_path / "whole.mkv", "ffv1")
    with av.open(str(tmp_path / "whole.mkv")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet, time in zip(source.demux(video=0), (0, 100, 100, 200, 200, 200), strict=False):
            packet.pts = packet.dts = time
            packet.stream = stream
            target.mux(packet)
    found = by_every_reader(path)[0]
    assert np.array_equal(found, read_video(tmp_path / "whole.mkv"))


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    write_video(path, numbered(1))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.disposition = av.stream.Disposition.attached_pic
        with pytest.raises(VideoError, match=r"no video stream \(streams found: cover picture\)"):
            video._stream(container, path)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.mkv", "ffv1"), ("a.mp4", "libx264")])
def test_no_reader_takes_half_a_file_for_a_whole_one(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    encoded(path, codec, count=60)
    data = path.read_bytes()
    for share in (0.3, 0.6, 0.8):
        path.write_bytes(data[: int(len(data) * share)])
        for read in (read_video, lambda p: sample_video(p, 4), open_scene):
            with pytest.raises(VideoError):
                read(path)


def test_a_frame_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    encoded(path, "ffv1", "gray", count=1, size=(6000, 8000))
    assert path.stat().st_size < 500_000
    with pytest.raises(VideoError, match=r"a\.mkv is 8000x6000 in [\d,]+ bytes, more than 33,554,432 pixels"):
        read_video(path)


def test_a_forked_process_reads_what_its_parent_has_read(tmp_path: Path) -> None:
    """A frame that stays in memory with its decoder's locks would be waited for there."""
    path = tmp_path / "phone.mp4"
    write_video(path, numbered(8))
    on_its_side(path, TURNS[90])
    expected = read_video(path)
    frames = decoded(path, "Reading")
    next(frames)
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    process = context.Process(target=lambda: told.put(read_video(path).tobytes()))
    process.start()
    try:
        assert told.get(timeout=60) == expected.tobytes()
    finally:
        process.kill()
        process.join()


def at_times(path: Path, times: list[float]) -> Path:
    """A video of frames that are shown at these seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, pixels in zip(times, numbered(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_the_rate_of_a_video_is_that_of_its_frames(tmp_path: Path) -> None:
    """Matroska tells 30 frames a second here, so that one frame of ten seconds was shown."""
    settings = DataSettings.parse({"files": ("rows.json",), "sampling": "fps", "fps": 1.0, "frames": 32})
    even = at_times(tmp_path / "even.mkv", [0.5 * place for place in range(20)])
    assert video.measure(even) == (20, pytest.approx(2.0, rel=0.01))
    assert len(load_video(Medium("video", even), settings).indices) == 10
    uneven = at_times(tmp_path / "uneven.mkv", [0.1 * place for place in range(10)] + list(range(1, 11)))
    with pytest.warns(Vega3dWarning, match=r"its frame rate varies.*up to 4\.\d seconds"):
        load_video(Medium("video", uneven), settings)
