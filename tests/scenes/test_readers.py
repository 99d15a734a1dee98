"""Every public layout: an invented scene is written, and comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scene_layouts as layouts
import torch
from PIL import Image

from vega3d_plugin.errors import SceneError, SettingsError, UnknownNameError
from vega3d_plugin.scenes.consistency import check_geometry
from vega3d_plugin.scenes.opening import LAYOUTS, expand, open_scene, open_scenes
from vega3d_plugin.scenes.readers.lens import DistortionWarning
from vega3d_plugin.scenes.readers.posing import ViewsLeftOutWarning
from vega3d_plugin.scenes.scene import Scene
from vega3d_plugin.scenes.worlds import rendered_scene

SIZE = (48, 64)


@pytest.fixture(scope="module")
def room() -> Scene:
    return layouts.kept(rendered_scene(2, 5, SIZE))


def same(found: Scene, made: Scene, *, depth: float = 6e-4, picture: float = 0.0, order: bool = True) -> None:
    """The same views, in the same order, with the same geometry."""
    assert len(found) == len(made)
    for one, two in zip(found.views, made.views, strict=True):
        error = (one.frame() - two.frame()).abs()
        assert (float(error.max()) <= 1e-6) if not picture else (float(error.mean()) < picture)
        if depth:
            assert (one.depth() - two.depth()).abs().max() < depth
        assert torch.allclose(one.intrinsics, two.intrinsics, atol=1e-9)
        assert torch.allclose(one.pose, two.pose, atol=1e-9)


WRITERS = {
    "posed_images": (layouts.write_posed_images, {"picture": 0.02}),
    "sens_reader": (layouts.write_sens_reader, {"picture": 0.02}),
    "transforms": (layouts.write_transforms, {}),
    "tum": (layouts.write_tum, {"depth": 2e-4}),
    "colmap_text": (lambda scene, folder: layouts.write_colmap(scene, folder, False), {"depth": 0}),
    "colmap_binary": (lambda scene, folder: layouts.write_colmap(scene, folder, True), {"depth": 0}),
    "embodiedscan": (
        lambda scene, folder: f"{layouts.write_embodiedscan(scene, folder)}#scannet/room_0002",
        {"picture": 0.02},
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(room: Scene, tmp_path: Path, name: str) -> None:
    write, tolerance = WRITERS[name]
    address = write(room, tmp_path / "scene")
    found = open_scene(address)
    same(found, room, **tolerance)
    assert found.source.startswith(str(tmp_path))
    assert (found.metric is False) == name.startswith("colmap")
    # Nothing but the content decides over the fingerprint.
    again = open_scene(write(room, tmp_path / "elsewhere" / "other"))
    assert again.fingerprint == found.fingerprint
    assert again.select([1, 0]).fingerprint != found.select([0, 1]).fingerprint


def test_every_layout_is_among_them() -> None:
    tried = {name.partition("_")[0] for name in WRITERS} | {"posed_images", "images", "video", "stereo"}
    assert set(LAYOUTS) <= tried


def test_alignment_and_objects_are_kept(room: Scene, tmp_path: Path) -> None:
    turn = torch.tensor([[0.0, -1, 0, 3], [1, 0, 0, 2], [0, 0, 1, -0.5], [0, 0, 0, 1]], dtype=torch.float64)
    turned = Scene(room.name, room.source, room.views, turn, room.objects)
    found = open_scene(layouts.write_posed_images(turned, tmp_path / "a"))
    assert torch.equal(found.alignment, turn)
    assert found.objects == room.objects
    info = layouts.write_embodiedscan(turned, tmp_path / "b")
    found = open_scene(f"{info}#room_0002")
    assert torch.equal(found.alignment, turn)
    (thing,) = found.objects
    assert (thing.name, thing.centre, thing.size) == ("chair", (1.0, 2.0, 0.5), (0.4, 0.6, 1.0))
    assert thing.angles == (0.3, 0.0, 0.0)


@pytest.mark.parametrize("arrays", [True, False])
@pytest.mark.parametrize("protocol", range(6))
def test_info_files_of_every_pickle_protocol(room: Scene, tmp_path: Path, protocol: int, arrays: bool) -> None:
    info = layouts.write_embodiedscan(room.select([0, 3]), tmp_path, protocol, arrays)
    same(open_scene(f"{info}#scannet/room_0002"), room.select([0, 3]), picture=0.02)


def test_an_info_file_lists_its_scenes(room: Scene, tmp_path: Path) -> None:
    info = layouts.write_embodiedscan(room.select([0]), tmp_path)
    assert expand(info) == [f"{info}#scannet/room_0002", f"{info}#scannet/other"]
    with pytest.raises(
        SceneError, match=r"many scenes\. Name one: .*infos_train\.pkl#NAME\. It has 2: scannet/room_0002"
    ):
        open_scene(info)
    with pytest.raises(SceneError, match=r"no scene 'scannet/room_002'\. Did you mean 'scannet/room_0002'"):
        open_scene(f"{info}#scannet/room_002")
    moved = info.rename(tmp_path.parent / f"{tmp_path.name}.pkl")
    with pytest.raises(SceneError, match=r"lies in none of the folders above .* `root`"):
        open_scene(f"{moved}#room_0002")
    assert len(open_scene(f"{moved}#room_0002", root=tmp_path)) == 1


def test_scannets_own_meta_file_tells_the_alignment(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_posed_images(Scene("s", "", room.views), tmp_path / "posed_images" / "scene0000_00")
    meta = tmp_path / "scans" / "scene0000_00" / "scene0000_00.txt"
    meta.parent.mkdir(parents=True)
    numbers = "0.0 -1.0 0 1 1.0 0 0 2 0 0 1 3 0 0 0 1"
    meta.write_text(f"appVersionId = 3\naxisAlignment = {numbers} \ncolorHeight = 968\n")
    assert open_scene(folder).alignment[:3, 3].tolist() == [1, 2, 3]
    meta.write_text("axisAlignment = 1 2 3\n")
    with pytest.raises(SceneError, match="axisAlignment: expected 16 numbers, found 3"):
        open_scene(folder)


def test_depth_of_another_size_has_its_own_intrinsics(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_posed_images(room, tmp_path / "s")
    for path in folder.glob("*.jpg"):
        Image.open(path).resize((128, 96)).save(path)
    large = np.loadtxt(folder / "intrinsic.txt")
    large[:2] *= 2
    large[:2, 2] += 0.5
    np.savetxt(folder / "intrinsic.txt", large)
    found = open_scene(folder)
    assert found.views[0].size == (96, 128)
    assert torch.allclose(found.views[0].intrinsics_of_depth(SIZE), room.views[0].intrinsics)
    (folder / "intrinsic.txt").unlink()
    assert torch.allclose(open_scene(folder).views[0].intrinsics, torch.from_numpy(large[:3, :3]), atol=1e-6)


def test_a_lost_camera_is_left_out_and_told(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_posed_images(room, tmp_path / "s")
    np.savetxt(folder / "00001.txt", np.full((4, 4), -np.inf))
    with pytest.warns(ViewsLeftOutWarning, match=r"1 of 5 views are left out.*minus infinity.*00001\.txt"):
        found = open_scene(folder)
    assert [view.name for view in found.views] == ["00000.jpg", "00002.jpg", "00003.jpg", "00004.jpg"]


@pytest.mark.parametrize("depth", [".npy", ".png"])
def test_transforms_with_depth_of_either_kind(room: Scene, tmp_path: Path, depth: str) -> None:
    same(open_scene(layouts.write_transforms(room, tmp_path, depth)), room)


def test_transforms_as_scannetpp_keeps_them(room: Scene, tmp_path: Path) -> None:
    layouts.write_transforms(room, tmp_path / "dslr" / "nerfstudio", "")
    nerfstudio = tmp_path / "dslr" / "nerfstudio"
    (nerfstudio / "images").rename(tmp_path / "dslr" / "resized_undistorted_images")
    meta = json.loads((nerfstudio / "transforms.json").read_text())
    for number, frame in enumerate(meta["frames"]):
        frame["file_path"] = Path(frame["file_path"]).name
        frame["is_bad"] = number == 0
    meta["camera_model"] = "PINHOLE"
    (nerfstudio / "transforms.json").unlink()
    (nerfstudio / "transforms_undistorted.json").write_text(json.dumps(meta))
    with pytest.warns(ViewsLeftOutWarning, match="1 of 5 frames .* `is_bad`"):
        found = open_scene(tmp_path)
    # The list was written backwards: its first frame is the last view.
    same(found, room.select([0, 1, 2, 3]), depth=0)
    assert found.name == tmp_path.name


def test_transforms_of_synthetic_scenes(room: Scene, tmp_path: Path) -> None:
    layouts.write_transforms(room, tmp_path, "")
    meta = json.loads((tmp_path / "transforms.json").read_text())
    frames = [{**frame, "file_path": f"./{frame['file_path'].removesuffix('.png')}"} for frame in meta["frames"]]
    focal = float(room.views[0].intrinsics[0, 0])
    (tmp_path / "transforms.json").rename(tmp_path / "transforms_train.json")
    (tmp_path / "transforms_train.json").write_text(
        json.dumps({"camera_angle_x": 2 * np.arctan(SIZE[1] / 2 / focal), "frames": frames})
    )
    same(open_scene(tmp_path), room, depth=0)


def test_smaller_copies_of_the_pictures_get_their_intrinsics(room: Scene, tmp_path: Path) -> None:
    layouts.write_transforms(room, tmp_path, "")
    for path in (tmp_path / "images").iterdir():
        Image.open(path).resize((32, 24)).save(path)
    matrix = open_scene(tmp_path).views[0].intrinsics
    assert float(matrix[0, 2]) == pytest.approx((32 - 1) / 2)
    assert float(matrix[0, 0]) == pytest.approx(float(room.views[0].intrinsics[0, 0]) / 2)
    for path in (tmp_path / "images").iterdir():
        Image.open(path).crop((0, 0, 20, 24)).save(path)
    with pytest.raises(SceneError, match="intrinsics are those of a picture of 64x48, the picture is 20x24"):
        open_scene(tmp_path)


def test_the_file_tells_the_unit_of_depth(room: Scene, tmp_path: Path) -> None:
    layouts.write_transforms(room, tmp_path, ".png", {"depth_unit_scale_factor": 0.001})
    same(open_scene(tmp_path), room)
    layouts.write_transforms(room, tmp_path / "b", ".png", {"depth_unit_scale_factor": 0.1})
    with pytest.raises(SceneError, match=r"another unit than its poses: times 0\.01 it agrees"):
        open_scene(tmp_path / "b")
    same(open_scene(tmp_path / "b", depth_units=1000), room)


BENT = {"k1": -0.2, "k2": 0.05, "p1": 0.001, "p2": 0.0}


def test_a_lens_that_bends_lines_is_refused_or_told(room: Scene, tmp_path: Path) -> None:
    layouts.write_transforms(room, tmp_path / "a", "", BENT)
    with pytest.raises(SceneError, match=r"the lens bends lines \(k1 -0\.2.*\), by up to \d+\.\d pixels .*ignore_dist"):
        open_scene(tmp_path / "a")
    with pytest.warns(DistortionWarning, match="It is ignored, as asked"):
        same(open_scene(tmp_path / "a", ignore_distortion=True), room, depth=0)
    layouts.write_transforms(room, tmp_path / "b", "", {"k1": 1e-6})
    same(open_scene(tmp_path / "b"), room, depth=0)
    layouts.write_transforms(room, tmp_path / "c", "", {"camera_model": "OPENCV_FISHEYE"})
    with pytest.raises(SceneError, match="'OPENCV_FISHEYE' is no pinhole camera"):
        open_scene(tmp_path / "c")


@pytest.mark.parametrize("binary", [False, True])
def test_cameras_of_colmap(room: Scene, tmp_path: Path, binary: bool) -> None:
    k = room.views[0].intrinsics
    focal, cx, cy = float(k[0, 0]), float(k[0, 2]) + 0.5, float(k[1, 2]) + 0.5
    for name, parameters in {
        "SIMPLE_PINHOLE": [focal, cx, cy],
        "SIMPLE_RADIAL": [focal, cx, cy, 0.0],
        "OPENCV": [focal, focal, cx, cy, 0.0, 0.0, 0.0, 0.0],
    }.items():
        same(open_scene(layouts.write_colmap(room, tmp_path / name, binary, (name, parameters))), room, depth=0)
    bent = layouts.write_colmap(room, tmp_path / "bent", binary, ("SIMPLE_RADIAL", [focal, cx, cy, 0.1]))
    with pytest.raises(SceneError, match=r"camera 1: the lens bends lines \(k1 0\.1\)"):
        open_scene(bent)
    fish = layouts.write_colmap(room, tmp_path / "fish", binary, ("OPENCV_FISHEYE", [focal, focal, cx, cy, 0, 0, 0, 0]))
    with pytest.raises(SceneError, match="OPENCV_FISHEYE is no pinhole camera"):
        open_scene(fish)


@pytest.mark.parametrize("binary", [False, True])
def test_sparse_points_are_depth_where_asked(room: Scene, tmp_path: Path, binary: bool) -> None:
    folder = layouts.write_colmap(room, tmp_path / "s", binary)
    assert not open_scene(folder).has_depth
    found = open_scene(folder, sparse_depth=True)
    for one, two in zip(found.views[:-1], room.views, strict=False):
        depth = one.depth()
        assert sorted(map(tuple, depth.nonzero().tolist())) == [(7, 5), (11, 20), (30, 41)]
        for v, u in depth.nonzero().tolist():
            assert float(depth[v, u]) == pytest.approx(float(two.depth()[v, u]), abs=1e-4)
    assert float(found.views[-1].depth().max()) == 0


def test_depth_of_a_dense_workspace(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_colmap(room, tmp_path / "s", True)
    (folder / "sparse" / "0").rename(folder / "model")
    (folder / "sparse").rmdir()
    (folder / "model").rename(folder / "sparse")
    for i, view in enumerate(room.views):
        path = folder / "stereo" / "depth_maps" / "cam" / f"view {i}.png.geometric.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"64&48&1&" + view.depth().numpy().astype("<f4").tobytes())
    found = open_scene(folder)
    same(found, room, depth=1e-6)
    assert check_geometry(found).share > 0.8
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SceneError, match=r"view 4\.png\.geometric\.bin: its header tells 64x48 floats"):
        open_scene(folder).views[4].depth()


def test_times_of_tum_are_matched_nearest_first(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_tum(room, tmp_path / "s")
    lines = (folder / "depth.txt").read_text().splitlines()
    # A map that is nearer to the second picture than to the first, and one that is near to none.
    (folder / "depth.txt").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    with pytest.warns(ViewsLeftOutWarning, match=r"1 of 5 pictures are left out.* within 0\.02 s"):
        found = open_scene(folder)
    same(found, room.select([1, 2, 3, 4]), depth=2e-4)


def test_the_camera_of_tum(room: Scene, tmp_path: Path) -> None:
    plain = layouts.write_tum(room, tmp_path / "plain", calibration=False)
    with pytest.raises(SceneError, match=r"nothing says what its camera is\. Pass `intrinsics`"):
        open_scene(plain)
    k = room.views[0].intrinsics
    given = ",".join(repr(float(value)) for value in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
    same(open_scene(plain, intrinsics=given), room, depth=2e-4)
    same(open_scene(f"{plain}?intrinsics={given}"), room, depth=2e-4)
    known = plain.rename(tmp_path / "rgbd_dataset_freiburg3_x")
    assert float(open_scene(known, check=False).views[0].intrinsics[0, 0]) == 535.4
    with pytest.warns(DistortionWarning, match="freiburg1 bend lines"):
        open_scene(known.rename(tmp_path / "rgbd_dataset_freiburg1_y"), check=False)


def test_pictures_and_videos_are_scenes_without_geometry(room: Scene, tmp_path: Path) -> None:
    for i, view in enumerate(room.views):
        layouts.save_png(tmp_path / "pictures" / f"frame {i + 8}.png", view)
    found = open_scene(tmp_path / "pictures")
    assert [view.name for view in found.views] == [f"frame {i}.png" for i in range(8, 13)]
    assert torch.allclose(found.frames(), room.frames(), atol=1e-6)
    assert not found.has_poses
    one = open_scene(tmp_path / "pictures" / "frame 9.png")
    assert torch.allclose(one.frames()[0], room.views[1].frame(), atol=1e-6)


def test_a_picture_is_turned_only_where_nothing_depends_on_its_pixels(room: Scene, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    folder = layouts.write_posed_images(room, tmp_path / "posed")
    for path in folder.glob("*.jpg"):
        Image.open(path).save(path, exif=exif)
    assert open_scene(folder).views[0].frame().shape == (3, *SIZE)
    (tmp_path / "free").mkdir()
    Image.open(folder / "00000.jpg").save(tmp_path / "free" / "a.jpg", exif=exif)
    found = open_scene(tmp_path / "free")
    assert found.views[0].size == SIZE[::-1]
    assert found.views[0].frame().shape == (3, *SIZE[::-1])


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("posed_images", "world-to-camera"),
        ("transforms", "world-to-camera"),
        ("tum", "world-to-camera"),
        ("embodiedscan", "world-to-camera"),
    ],
)
def test_world_to_camera_poses_on_disk_are_detected(tmp_path: Path, name: str, mistake: str) -> None:
    right = rendered_scene(2, 8, SIZE)
    views = tuple(
        type(view)(
            view.name, view.size, view.read_frame, view.read_depth, view.intrinsics, pose=torch.linalg.inv(view.pose)
        )
        for view in right.views
    )
    address = WRITERS[name][0](Scene(right.name, right.source, views), tmp_path / "s")
    with pytest.raises(SceneError, match=mistake) as error:
        open_scene(address)
    assert str(tmp_path) in str(error.value)
    assert len(open_scene(address, check=False)) == 8


def test_depth_in_another_unit_on_disk_is_detected(room: Scene, tmp_path: Path) -> None:
    folder = layouts.write_posed_images(room, tmp_path / "s")
    with pytest.raises(SceneError, match=r"times 5 it agrees.*`depth_units`.*5 times as small"):
        open_scene(folder, depth_units=5000)


def test_addresses(room: Scene, tmp_path: Path) -> None:
    assert len(open_scene("room:3?views=2&size=24x32")) == 2
    assert open_scene("room:3", views=2, size=(24, 32)).views[0].size == (24, 32)
    scenes = open_scenes(["room:3..5?views=1&size=24x32"])
    assert [scene.name for scene in scenes] == ["room_0003", "room_0004", "room_0005"]
    for name in ("b", "a"):
        layouts.write_posed_images(Scene(room.name, "", room.views), tmp_path / "posed_images" / name)
    assert [scene.name for scene in open_scenes([tmp_path / "posed_images"])] == ["a", "b"]
    odd = tmp_path / "who? #1"
    layouts.write_posed_images(Scene(room.name, "", room.views), odd)
    assert open_scene(odd).name == "who? #1"


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("room:x", SceneError, "room:SEED, with a number"),
        ("room:-1", SceneError, "room:SEED"),
        ("room:3?view=2", SettingsError, r"no option 'view'\. Did you mean 'views'"),
        ("room:3?views=two", SettingsError, "'two' is not a whole number"),
        ("room:3?size=24", SettingsError, "'24' is not HEIGHTxWIDTH"),
        ("room:3?seed=4", SettingsError, "no option 'seed'"),
        ("room:3?views", SceneError, r"\?name=value"),
        ("room:5..3", SceneError, "counted upwards"),
        ("stereo:motorbike", UnknownNameError, "Did you mean 'motorcycle'"),
        ("stereo:motorcycle?size=3x3", SettingsError, "has no option 'size'"),
        ("nowhere/at/all", SceneError, r"does not exist, nor does the folder nowhere/at"),
        ("a\0b", SceneError, "does not exist"),
        ("x" * 5000, SceneError, "is no usable path"),
        ("~nosuchuser/scene", SceneError, "is no usable path"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_scenes([address])


def test_folders_that_are_no_scene(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(SceneError, match=r"is no scene that is known\. It holds notes\.md"):
        open_scene(tmp_path)
    with pytest.raises(UnknownNameError, match="Did you mean 'colmap'"):
        open_scene(tmp_path, layout="collmap")
    with pytest.raises(SceneError, match="does not exist"):
        open_scene(tmp_path, layout="colmap")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(SceneError, match="only info files of EmbodiedScan hold many scenes"):
        open_scene(f"{tmp_path}#scene")
