"""Any bytes in any file of a scene end in the right result or in an error of this library that names the file."""

from __future__ import annotations

import json
import random
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from support import scene_layouts as layouts

from vega3d_plugin.contracts.errors import RowError, SceneError, Vega3dError, Vega3dWarning, VideoError
from vega3d_plugin.scenes.images import read_image
from vega3d_plugin.scenes.opening import open_scene
from vega3d_plugin.scenes.pixel_limits import too_large
from vega3d_plugin.scenes.pixels import PictureFile, read_plane
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.worlds import rendered_scene
from vega3d_plugin.training.rows.conversation import Medium
from vega3d_plugin.training.rows.media import load_image

SIZE = (24, 32)
MUTATIONS = 60


@pytest.fixture(scope="module")
def room() -> Scene:
    return layouts.kept(rendered_scene(2, 3, (48, 64)))


def middlebury(scene: Scene, folder: Path) -> Path:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    return layouts.write_middlebury(folder, generator.uniform(1, 9, SIZE), pictures)


WRITERS: dict[str, Callable[[Scene, Path], Path]] = {
    "posed_images": layouts.write_posed_images,
    "transforms": lambda scene, folder: layouts.write_transforms(scene, folder, ".npy"),
    "tum": layouts.write_tum,
    "colmap_text": lambda scene, folder: layouts.write_colmap(scene, folder, False),
    "colmap_binary": lambda scene, folder: layouts.write_colmap(scene, folder, True),
    "embodiedscan": layouts.write_embodiedscan,
    "stereo": middlebury,
}


def use(address: str) -> None:
    """Open a scene and read everything in it."""
    options = {"sparse_depth": True} if "colmap" in address else {}
    scene = open_scene(address, **options)
    for view in scene.views:
        view.frame()
        view.depth()
    assert len(scene.fingerprint) == 32


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Damage of the usual kinds: bytes changed, cut off, repeated, numbers made huge or none."""
    kind = chance.randrange(7)
    at = chance.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9))) + data[at:]
    if kind == 2:
        return (
            data[:at]
            + chance.choice([b"nan", b"-inf", b"1e999", b"9" * 400, b"[" * 3000, b"\xff\xff\xff\x7f"])
            + data[at:]
        )
    if kind == 3:
        return data[:at] + data[at:][:200] + data[at:]
    if kind == 4:
        return b""
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_end_in_our_errors(room: Scene, tmp_path: Path, name: str) -> None:
    made = WRITERS[name](room, tmp_path / name)
    address = f"{made}#room_0002" if name == "embodiedscan" else str(made)
    use(address)
    files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
    chance = random.Random(name)
    refused = 0
    for _ in range(MUTATIONS):
        path = chance.choice(files)
        whole = path.read_bytes()
        path.write_bytes(mutated(whole, chance))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Vega3dWarning)
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                use(address)
        except Vega3dError:
            refused += 1
        finally:
            path.write_bytes(whole)
    assert refused > MUTATIONS // 4
    use(address)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_is_named(room: Scene, tmp_path: Path, name: str) -> None:
    made = WRITERS[name](room, tmp_path / name)
    address = f"{made}#room_0002" if name == "embodiedscan" else str(made)
    # Without its lists a sequence is a folder like any other, and one matrix stands for the other's.
    optional = {"axis_align_matrix.txt", "objects.json", "points3D.txt", "points3D.bin", "calib.txt", "im0.png"}
    optional |= {"rgb.txt", "depth.txt", "groundtruth.txt", "transforms.json", "images.txt", "images.bin"}
    optional |= {"intrinsic.txt", "depth_intrinsic.txt", "embodiedscan_infos_train.pkl"}
    files = [path for path in (tmp_path / name).rglob("*") if path.is_file() and path.name not in optional]
    if name == "embodiedscan":  # its poses are in the info file
        files = [path for path in files if path.suffix != ".txt"]
    assert files
    for path in files:
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(Vega3dError) as error:
            use(address)
        assert path.stem in str(error.value) or "depth maps" in str(error.value) or "poses" in str(error.value), path
        path.write_bytes(whole)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


TRANSFORMS = {
    "frames: expected a list of frames, found None": lambda m: m.pop("frames"),
    r"frames: expected a list of frames, found a list of 0": lambda m: m.update(frames=[]),
    r"frames\[1\]: expected an object, found 5": lambda m: m["frames"].__setitem__(1, 5),
    r"frames\[0\], transform_matrix: expected 4x4 or 3x4": lambda m: m["frames"][0].update(
        transform_matrix=[[1, 2], [3]]
    ),
    "transform_matrix: expected 4x4": lambda m: m["frames"][0].update(transform_matrix=[["a"] * 4] * 4),
    "transform_matrix: expected": lambda m: m["frames"][0].update(transform_matrix=[[True] * 4] * 4),
    "NaN or infinity in a pose": lambda m: m["frames"][0]["transform_matrix"][0].__setitem__(0, float("nan")),
    "file_path: expected the name of a file, found None": lambda m: m["frames"][0].pop("file_path"),
    "file_path.*leads out of": lambda m: m["frames"][0].update(file_path="../../../../etc/passwd"),
    r"frame_00009\.png does not exist\. Did you mean": lambda m: m["frames"][0].update(
        file_path="images/frame_00009.png"
    ),
    "depth_file_path.*leads out of": lambda m: m["frames"][0].update(depth_file_path="/etc/passwd"),
    "3 pictures, but 2 depth maps: the first picture without one is": lambda m: m["frames"][0].pop("depth_file_path"),
    "fl_x: expected a number, found 'wide'": lambda m: m.update(fl_x="wide"),
    "fl_x: inf is no finite number": lambda m: m.update(fl_x=float("inf")),
    "focal lengths must be positive": lambda m: m.update(fl_x=-5),
    "cx: expected a number": lambda m: m.update(cx=[1]),
    "sizes in pixels": lambda m: m.update(w=0),
    "depth scale: expected a number": lambda m: m.update(depth_unit_scale_factor="mm"),
    "camera_model: 'SONAR' is no pinhole": lambda m: m.update(camera_model="SONAR"),
    "two views with the name": lambda m: m["frames"].append(m["frames"][0]),
}


@pytest.mark.parametrize("message", TRANSFORMS)
def test_transforms_that_cannot_be(room: Scene, tmp_path: Path, message: str) -> None:
    folder = layouts.write_transforms(room, tmp_path / "scene")
    edit(folder / "transforms.json", TRANSFORMS[message])
    with pytest.raises(SceneError, match=message) as error:
        open_scene(folder)
    assert "transforms.json" in str(error.value)


def test_json_of_a_hostile_shape(room: Scene, tmp_path: Path) -> None:
    file = layouts.write_transforms(room, tmp_path) / "transforms.json"
    for text, message in {
        "[" * 200_000: "nested too deep",
        '{"frames": ' + "9" * 10_000 + "}": "transforms.json",
        '{"frames": [': "line 1, column 13: no JSON",
        "[]": "must hold a JSON object, found list",
        "\ud800": "not UTF-8",
    }.items():
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(SceneError, match=message):
            open_scene(tmp_path)


def cut(path: Path, name: str) -> None:
    path.write_text("\n".join(line for line in path.read_text().splitlines() if name not in line) + "\n")


TUM = {
    r"rgb\.txt, line 2: 'yesterday' is no number": (
        "rgb.txt",
        lambda t: t.replace(t.split("\n")[1][:17], "yesterday", 1),
    ),
    r"line 2: '9{8}.* is no time": ("depth.txt", lambda t: t.replace(t.split("\n")[1][:17], "9" * 60, 1)),
    r"groundtruth\.txt, line 3: a pose has 8 numbers .*, found 9": ("groundtruth.txt", lambda t: add(t, 2, " 5")),
    "line 2: a rotation is a quaternion of length 1": ("groundtruth.txt", lambda t: add(t, 1, "e3")),
    r"rgb\.txt, line 2.*leads out of": ("rgb.txt", lambda t: t.replace("rgb/", "../../../x/", 1)),
    r"rgb\.txt, line 2: .*does not exist": ("rgb.txt", lambda t: t.replace("rgb/", "rgb/x", 1)),
    "one clock": ("groundtruth.txt", lambda t: t.replace("1305031102", "1405031102")),
    r"calibration\.txt, line 1: expected fx, fy, cx, cy .*found 5": ("calibration.txt", lambda t: add(t, 0, " 0.1")),
    r"calibration\.txt: expected fx, fy, cx, cy .*found 0": ("calibration.txt", lambda t: "# none\n"),
    r"rgb\.txt names no files": ("rgb.txt", lambda t: "# none\n"),
}


def add(text: str, line: int, more: str) -> str:
    lines = text.split("\n")
    lines[line] += more
    return "\n".join(lines)


@pytest.mark.parametrize("message", TUM)
def test_sequences_that_cannot_be(room: Scene, tmp_path: Path, message: str) -> None:
    folder = layouts.write_tum(room, tmp_path / "scene")
    name, change = TUM[message]
    text = (folder / name).read_text()
    (folder / name).write_text(change(text))
    assert (folder / name).read_text() != text
    with pytest.raises(SceneError, match=message):
        open_scene(folder)


POSED = {
    r"3 pictures, but 2 depth maps: the first without one is 00001": lambda f: (f / "00001.png").unlink(),
    r"3 pictures, but 2 poses: the first without one is 00002": lambda f: (f / "00002.txt").unlink(),
    r"2 pictures, but 3 depth maps: 00000 has no picture": lambda f: (f / "00000.jpg").unlink(),
    r"00001\.txt: expected 4x4 numbers, found 12": lambda f: np.savetxt(f / "00001.txt", np.eye(4)[:3]),
    r"00001\.txt: NaN or infinity in a pose": lambda f: np.savetxt(f / "00001.txt", np.full((4, 4), np.nan)),
    r"00001\.txt: 'x' is no number": lambda f: (f / "00001.txt").write_text("x " * 16),
    r"00001\.txt has .* over 65,536": lambda f: (f / "00001.txt").write_text("1 " * 10**5),
    r"00001\.jpg.*not rigid": lambda f: np.savetxt(f / "00001.txt", np.diag([3.0, 3, 3, 1])),
    r"00001\.jpg.*left-handed": lambda f: np.savetxt(f / "00001.txt", np.diag([1.0, 1, -1, 1])),
    r"neither intrinsic\.txt nor depth_intrinsic\.txt": lambda f: [p.unlink() for p in f.glob("*intrinsic.txt")],
    r"intrinsic\.txt: expected 4x4 numbers, found 9": lambda f: np.savetxt(f / "intrinsic.txt", np.eye(3)),
    "focal lengths must be positive": lambda f: np.savetxt(f / "intrinsic.txt", np.diag([0.0, 1, 1, 1])),
    r"lies outside the picture of 64x48": lambda f: np.savetxt(
        f / "intrinsic.txt", [[5, 0, 648, 0], [0, 5, 484, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    ),
    "the camera was lost in all 3 views": lambda f: [
        np.savetxt(f / f"0000{i}.txt", np.full((4, 4), -np.inf)) for i in range(3)
    ],
    r"objects\.json, entry 0, size: expected 3 numbers": lambda f: (f / "objects.json").write_text(
        '[{"name": "a", "centre": [1, 2, 3], "size": [1]}]'
    ),
    r"00001\.jpg cannot be read: it is not an image": lambda f: (f / "00001.jpg").write_bytes(b"GIF89a"),
}


@pytest.mark.parametrize("message", POSED)
def test_exports_that_cannot_be(room: Scene, tmp_path: Path, message: str) -> None:
    folder = layouts.write_posed_images(room, tmp_path / "scene")
    POSED[message](folder)
    with pytest.raises(SceneError, match=message):
        open_scene(folder)


COLMAP = {
    r"images\.bin is cut short|images\.bin, byte": ("images.bin", lambda d: d[:-10]),
    r"images\.bin: 3 bytes after its end": ("images.bin", lambda d: d + b"abc"),
    r"images\.bin, byte 0: .* entries do not fit": ("images.bin", lambda d: b"\xff" * 8 + d[8:]),
    r"cameras\.bin, byte 8: unknown camera model 77": (
        "cameras.bin",
        lambda d: d[:12] + struct.pack("<i", 77) + d[16:],
    ),
    r"cameras\.bin, byte 8: a picture of": ("cameras.bin", lambda d: d[:16] + b"\xff" * 8 + d[24:]),
    r"has the camera 1, which .*cameras\.bin lacks": ("cameras.bin", lambda d: d[:8] + struct.pack("<i", 9) + d[12:]),
    r"points3D\.bin, byte \d+: .* entries do not fit": ("points3D.bin", lambda d: d[:51] + b"\xff" * 4 + d[55:]),
    "a quaternion of length 1, found length nan": (
        "images.bin",
        lambda d: d[:12] + struct.pack("<d", float("nan")) + d[20:],
    ),
    r"NaN or infinity in a pose|over 1e\+06": ("images.bin", lambda d: d[:44] + struct.pack("<d", 1e300) + d[52:]),
}


@pytest.mark.parametrize("message", COLMAP)
def test_reconstructions_that_cannot_be(room: Scene, tmp_path: Path, message: str) -> None:
    folder = layouts.write_colmap(room, tmp_path / "scene", True)
    name, change = COLMAP[message]
    path = folder / "sparse" / "0" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SceneError, match=message):
        open_scene(folder)


def test_lines_of_colmap_are_named(room: Scene, tmp_path: Path) -> None:
    for name, change, message in (
        (
            "images.txt",
            lambda t: t.replace(" 1 cam/view 1.png", " one cam/view 1.png"),
            r"images\.txt, line 4: 'one' is no whole",
        ),
        ("images.txt", lambda t: t.replace("view 1.png\n", "view 1.png\n7 "), r"images\.txt, line 5: three numbers"),
        ("images.txt", lambda t: t.replace("cam/view 1.png", "../../../../../etc/passwd"), "leads out of"),
        (
            "cameras.txt",
            lambda t: t.replace("PINHOLE", "PINHOLES"),
            r"cameras\.txt, line 2: unknown camera model 'PINHOLES'",
        ),
        ("cameras.txt", lambda t: t.replace("64 48", "64"), r"cameras\.txt, line 2"),
        ("points3D.txt", lambda t: t.replace("\n1 ", "\none ", 1), r"points3D\.txt, line 2: 'one' is no whole number"),
    ):
        folder = layouts.write_colmap(room, tmp_path / "scene", False)
        path = folder / "sparse" / "0" / name
        text = path.read_text()
        path.write_text(change(text))
        assert path.read_text() != text
        with pytest.raises(SceneError, match=message):
            open_scene(folder)
        shutil.rmtree(folder)


DEPTHS = {
    "the mode L .8 bits.": lambda p: Image.new("L", (4, 4)).save(p),
    "the mode RGB": lambda p: Image.new("RGB", (4, 4)).save(p),
    "it is not an image, or damaged": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"),
    "does not exist": lambda p: None,
}


@pytest.mark.parametrize("message", DEPTHS)
def test_depth_maps_that_are_none(tmp_path: Path, message: str) -> None:
    path = tmp_path / "depth.png"
    DEPTHS[message](path)
    with pytest.raises(SceneError, match=message):
        read_plane(path)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


ARRAYS = {
    "it holds pickled objects, which are never read": lambda: header(
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    ),
    "takes 8,000,000,000,000,000,000 bytes, the file has": lambda: header(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n"
    ),
    "its header is none of a plain array": lambda: header(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n"
    ),
    "is damaged or no plain array .EOF": lambda: b"PK\x03\x04",
    "none of a plain array": lambda: header("{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 3000 + "}\n"),
    r"found float64 \[2, 2, 2\]": lambda: (
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2, 2), }\n") + bytes(64)
    ),
    r"found <U1": lambda: header("{'descr': '<U1', 'fortran_order': False, 'shape': (2, 2), }\n") + bytes(16),
    r"found float64 \[0, 4\]": lambda: header("{'descr': '<f8', 'fortran_order': False, 'shape': (0, 4), }\n"),
}


@pytest.mark.parametrize("message", ARRAYS)
def test_arrays_that_are_none(tmp_path: Path, message: str) -> None:
    path = tmp_path / "depth.npy"
    path.write_bytes(ARRAYS[message]())
    with pytest.raises(SceneError, match=message):
        read_plane(path)


def test_arrays_that_are_some(tmp_path: Path) -> None:
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    for array in (expected, np.asfortranarray(expected), expected[None], expected[..., None], expected.astype(">f8")):
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(read_plane(tmp_path / "a.npy"), expected)


def test_a_picture_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("1", (20_000, 6_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(SceneError, match="is 20000x6000, more than 100,000,000 pixels"):
            open_scene(tmp_path)


def test_a_small_file_is_no_large_picture(tmp_path: Path) -> None:
    """A photograph of 48 million pixels is read, a file of some kilobytes that claims as many is not."""
    Image.new("1", (8000, 6000)).save(tmp_path / "a.png")
    with pytest.raises(SceneError, match=r"a\.png is 8000x6000 in [\d,]+ bytes, more than 33,554,432 pixels or 64 for"):
        open_scene(tmp_path)
    assert too_large(8000, 6000, 2_000_000) == ""
    assert too_large(7680, 4320, 1000) == ""
    assert "on a side" in too_large(100_000, 2, 10**9)


def test_no_picture_is_given_to_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever a file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    with pytest.raises(VideoError, match="it is not an image"):
        read_image(path)


def test_a_depth_map_is_no_picture(tmp_path: Path) -> None:
    """Pillow would show everything beyond 255 mm as white, and metres as black."""
    for name, values in {"d.png": np.full((8, 8), 2000, np.uint16), "d.tiff": np.full((8, 8), 2, np.float32)}.items():
        depth = Image.fromarray(values)
        depth.save(tmp_path / name)
        with pytest.raises(VideoError, match="one channel of more than 8 bits"):
            read_image(tmp_path / name)
        with pytest.raises(SceneError, match="one channel of more than 8 bits"):
            PictureFile(tmp_path / name)()
        with pytest.raises(RowError, match="one channel of more than 8 bits"):
            load_image(Medium("image", depth))
