"""Furnished rooms rendered by Blender, as scenes of posed RGB-D pictures: path-traced light, exact depth and cameras.

In an environment of its own (1 GB):

    python3.11 -m venv ENV && ENV/bin/pip install bpy==4.5.15 pillow
    apt-get download sweethome3d-furniture && dpkg-deb -x sweethome3d-furniture_*.deb FURNITURE

    ENV/bin/python benchmarks/evidence/blender_rooms.py FURNITURE OUT        10 s of CPU a picture, 36 pictures; resumes

Each room becomes ``OUT/blender_NUMBER`` in the layout that the library's scenes read (``posed_images``). Furniture is
of Sweet Home 3D's catalogue "BlendSwap-CC-0" (public domain). Nothing that it renders is kept in the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector
from mathutils.bvhtree import BVHTree
from PIL import Image

CATALOGUE = "usr/share/sweethome3d/furniture/BlendSwap-CC-0.sh3f"
ROOMS = {"Living room", "Bedroom", "Office", "Kitchen"}
ROOM = (5.0, 4.4, 2.6)  # metres
WIDEST, LOWEST = 2.2, 0.3  # metres, of a piece of furniture
PIECES = 9
TRIES = 200
EYE = 1.45  # metres above the floor
FIELD = 75.0  # degrees, horizontal
#: From OpenCV's camera (x right, y down, z forward) to Blender's (x right, y up, z backward).
AXES = np.diag([1.0, -1.0, -1.0, 1.0])
Floats = Any


@dataclass(frozen=True)
class Piece:
    """A model of the catalogue. Attributes: ``model``: its file; ``size``: (x, y, z) metres."""

    model: str
    size: tuple[float, float, float]


def catalogue(archive: zipfile.ZipFile) -> list[Piece]:
    """What stands on the floor of a room and is neither tiny nor huge, in the catalogue's order."""
    values: dict[int, dict[str, str]] = {}
    for line in archive.read("PluginFurnitureCatalog.properties").decode("latin-1").splitlines():
        if found := re.fullmatch(r"(\w+)#(\d+)=(.*)", line):
            values.setdefault(int(found[2]), {})[found[1]] = found[3].strip()
    pieces = []
    for each in values.values():
        size = tuple(float(each[side]) / 100 for side in ("width", "depth", "height"))
        fits = max(size[:2]) <= WIDEST and size[2] >= LOWEST and size[2] < ROOM[2] - 0.2
        if each.get("category") in ROOMS and fits and not {"elevation", "modelRotation"} & {*each}:
            pieces.append(Piece(each["model"].lstrip("/"), size))
    return pieces


def build(pieces: list[Piece], folder: Path, rng: np.random.Generator) -> None:
    """A room of its own: walls, light, and furniture that does not overlap."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    walls(rng)
    lights(rng)
    # The camera walks along one wall, so nothing stands there.
    taken: list[tuple[float, float, float, float]] = []
    placed = 0
    for index in rng.permutation(len(pieces)).tolist():
        piece, turned = pieces[index], int(rng.integers(4))
        width, depth = piece.size[:2] if turned % 2 == 0 else piece.size[1::-1]
        for _ in range(TRIES // PIECES):
            x = rng.uniform(width / 2 + 0.05, ROOM[0] - width / 2 - 0.05)
            y = rng.uniform(1.5 + depth / 2, ROOM[1] - depth / 2 - 0.05)
            box = (x - width / 2, x + width / 2, y - depth / 2, y + depth / 2)
            if not any(_overlap(box, other) for other in taken):
                put(piece, folder, (x, y), turned * math.pi / 2)
                taken.append(box)
                placed += 1
                break
        if placed == PIECES:
            return


def _overlap(one: tuple[float, ...], two: tuple[float, ...], gap: float = 0.05) -> bool:
    return all(one[i] < two[i + 1] + gap and two[i] < one[i + 1] + gap for i in (0, 2))


def put(piece: Piece, folder: Path, place: tuple[float, float], angle: float) -> None:
    """Import a model, scale it to the catalogue's size, and stand it on the floor."""
    before = {*bpy.data.objects}
    with quiet():
        bpy.ops.wm.obj_import(filepath=str(folder / piece.model), use_split_objects=False, use_split_groups=False)
    new = [thing for thing in bpy.data.objects if thing not in before and thing.type == "MESH"]
    corners = np.array([thing.matrix_world @ Vector(corner) for thing in new for corner in thing.bound_box])
    low, high = corners.min(axis=0), corners.max(axis=0)
    middle = Vector(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]))
    scale = [size / max(extent, 1e-6) for size, extent in zip(piece.size, high - low, strict=True)]
    stand = Matrix.Translation((*place, 0.0)) @ Matrix.Rotation(angle, 4, "Z") @ Matrix.Diagonal((*scale, 1.0))
    for picture in (one for one in bpy.data.images if one.source == "FILE"):
        # A few models name textures that the catalogue lacks; Blender would show them in magenta.
        if not Path(bpy.path.abspath(picture.filepath)).is_file():
            picture.source, picture.generated_color = "GENERATED", (0.6, 0.6, 0.6, 1.0)
    for thing in new:
        thing.matrix_world = stand @ Matrix.Translation(-middle) @ thing.matrix_world


def walls(rng: np.random.Generator) -> None:
    """Six planes that face inwards: a boarded floor, plaster, a wall with a pattern."""
    x, y, z = ROOM
    faces = {
        "floor": [(0, 0, 0), (x, 0, 0), (x, y, 0), (0, y, 0)],
        "ceiling": [(0, 0, z), (0, y, z), (x, y, z), (x, 0, z)],
        "south": [(0, 0, 0), (0, 0, z), (x, 0, z), (x, 0, 0)],
        "north": [(0, y, 0), (x, y, 0), (x, y, z), (0, y, z)],
        "west": [(0, 0, 0), (0, y, 0), (0, y, z), (0, 0, z)],
        "east": [(x, 0, 0), (x, 0, z), (x, y, z), (x, y, 0)],
    }
    for name, points in faces.items():
        mesh = bpy.data.meshes.new(name)
        mesh.from_pydata(points, [], [(0, 1, 2, 3)])
        mesh.materials.append(material(name, rng))
        bpy.context.collection.objects.link(bpy.data.objects.new(name, mesh))


def material(name: str, rng: np.random.Generator) -> Any:
    """Boards for the floor, white for the ceiling, speckled or patterned paint for walls."""
    found = bpy.data.materials.new(name)
    found.use_nodes = True
    nodes, links = found.node_tree.nodes, found.node_tree.links
    surface = nodes["Principled BSDF"]
    surface.inputs["Roughness"].default_value = 0.4 if name == "floor" else 0.9
    if name == "ceiling":
        surface.inputs["Base Color"].default_value = (0.85, 0.85, 0.85, 1)
        return found
    place = nodes.new("ShaderNodeTexCoord")
    if name == "floor":
        pattern = nodes.new("ShaderNodeTexBrick")
        pattern.inputs["Scale"].default_value = 1.0
        pattern.inputs["Brick Width"].default_value = float(rng.uniform(0.8, 1.4))
        pattern.inputs["Row Height"].default_value = float(rng.uniform(0.12, 0.2))
        pattern.inputs["Mortar Size"].default_value = 0.004
        wood = np.array([0.42, 0.25, 0.12]) * rng.uniform(0.6, 1.3)
        shades = {"Color1": wood, "Color2": wood * rng.uniform(0.6, 0.9), "Mortar": wood * 0.3}
    else:
        pattern = nodes.new("ShaderNodeTexNoise")
        pattern.inputs["Scale"].default_value = float(rng.uniform(3, 12))
        pattern.inputs["Detail"].default_value = 6.0
        paint = rng.uniform(0.45, 0.85, 3)
        shades = {}
        ramp = nodes.new("ShaderNodeValToRGB")
        ramp.color_ramp.elements[0].position, ramp.color_ramp.elements[1].position = 0.42, 0.58
        ramp.color_ramp.elements[0].color = (*paint, 1)
        ramp.color_ramp.elements[1].color = (*(paint * rng.uniform(0.75, 0.95)), 1)
        links.new(pattern.outputs["Fac"], ramp.inputs["Fac"])
        links.new(ramp.outputs["Color"], surface.inputs["Base Color"])
    for key, shade in shades.items():
        pattern.inputs[key].default_value = (*shade.tolist(), 1)
    links.new(place.outputs["Object"], pattern.inputs["Vector"])
    if shades:
        links.new(pattern.outputs["Color"], surface.inputs["Base Color"])
    return found


def lights(rng: np.random.Generator) -> None:
    """A lamp below the ceiling, and daylight from one side."""
    for place, size, power, turn in (
        ((rng.uniform(1.5, 3.5), rng.uniform(1.5, 3.0), ROOM[2] - 0.05), 1.0, 60.0, (0.0, 0.0, 0.0)),
        ((0.05, rng.uniform(1.5, 3.0), 1.5), 1.4, 45.0, (0.0, -math.pi / 2, 0.0)),
    ):
        lamp = bpy.data.lights.new("light", "AREA")
        lamp.energy, lamp.size = power, size
        thing = bpy.data.objects.new("light", lamp)
        thing.location, thing.rotation_euler = place, turn
        bpy.context.collection.objects.link(thing)


def way(views: int, rng: np.random.Generator) -> list[Floats]:
    """Camera-to-world ``[4, 4]`` in OpenCV's convention: along the free wall, looking into the room."""
    poses = []
    backward = bool(rng.integers(2))
    for s in np.linspace(0, 1, views):
        s = 1 - s if backward else s
        eye = np.array([0.5 + (ROOM[0] - 1.0) * s, 0.45 + 0.5 * math.sin(math.pi * s), EYE + 0.1 * math.sin(6 * s)])
        target = np.array([ROOM[0] * (0.62 - 0.24 * s), 3.0, 0.75])
        forward = (target - eye) / np.linalg.norm(target - eye)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = eye
        poses.append(pose)
    return poses


def intrinsics(size: tuple[int, int]) -> Floats:
    """``[3, 3]`` for pictures of (height, width); the centre of the top left pixel is (0, 0)."""
    height, width = size
    focal = width / 2 / math.tan(math.radians(FIELD) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def prepare(size: tuple[int, int], samples: int) -> Any:
    """Cycles on one thread, with its denoiser. Returns the camera."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples, scene.cycles.use_denoising = samples, True
    scene.render.threads_mode, scene.render.threads = "FIXED", 1
    scene.render.resolution_y, scene.render.resolution_x = size
    scene.render.resolution_percentage = 100
    scene.render.image_settings.file_format = "PNG"
    scene.render.use_persistent_data = True
    scene.view_settings.view_transform = "Standard"
    lens = bpy.data.cameras.new("camera")
    lens.sensor_fit, lens.angle, lens.clip_start = "HORIZONTAL", math.radians(FIELD), 0.01
    camera = bpy.data.objects.new("camera", lens)
    bpy.context.collection.objects.link(camera)
    scene.camera = camera
    return camera


def geometry() -> BVHTree:
    """Every surface of the room in the world."""
    graph = bpy.context.evaluated_depsgraph_get()
    points: list[Any] = []
    faces: list[Any] = []
    for thing in (one for one in bpy.data.objects if one.type == "MESH"):
        mesh = thing.evaluated_get(graph).data
        first = len(points)
        points += [thing.matrix_world @ vertex.co for vertex in mesh.vertices]
        faces += [[first + index for index in face.vertices] for face in mesh.polygons]
    return BVHTree.FromPolygons(points, faces)


def depth(tree: BVHTree, pose: Floats, size: tuple[int, int]) -> Floats:
    """``[H, W]`` metres along the camera's z axis, by a ray through each pixel's centre; 0 where nothing is hit."""
    y, x = np.mgrid[: size[0], : size[1]]
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics(size)).T @ pose[:3, :3].T
    found = np.zeros(size)
    eye = Vector(pose[:3, 3])
    for place in np.ndindex(*size):
        ray = Vector(rays[place])
        distance = tree.ray_cast(eye, ray)[3]
        # The ray's part along z is 1.
        found[place] = 0 if distance is None else distance / ray.length
    return found


def render(camera: Any, pose: Floats, file: Path) -> None:
    """One picture."""
    camera.matrix_world = Matrix((pose @ AXES).tolist())
    with tempfile.TemporaryDirectory() as folder, quiet():
        bpy.context.scene.render.filepath = f"{folder}/picture.png"
        bpy.ops.render.render(write_still=True)
        Image.open(f"{folder}/picture.png").convert("RGB").save(file, quality=95)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What Blender tells of each import and each tile goes nowhere."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def write_room(folder: Path, pieces: list[Piece], models: Path, seed: int, views: int, size: Any, samples: int) -> None:
    """Build, render and write one room; the folder appears whole."""
    rng = np.random.default_rng(seed)
    build(pieces, models, rng)
    camera, tree = prepare(size, samples), geometry()
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    matrix = np.eye(4)
    matrix[:3, :3] = intrinsics(size)
    for name in ("intrinsic.txt", "depth_intrinsic.txt"):
        np.savetxt(unfinished / name, matrix)
    for number, pose in enumerate(way(views, rng)):
        stem = unfinished / f"{number:05d}"
        np.savetxt(stem.with_suffix(".txt"), pose, fmt="%.9f")
        millimetres = np.round(1000 * depth(tree, pose, size)).astype(np.uint16)
        Image.fromarray(millimetres).save(stem.with_suffix(".png"))
        render(camera, pose, stem.with_suffix(".jpg"))
        print(f"{folder.name}, view {number}", flush=True)
    unfinished.rename(folder)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("furniture", type=Path, help="folder that sweethome3d-furniture was unpacked in")
    parser.add_argument("out", type=Path, help="folder of the scenes")
    parser.add_argument("--rooms", type=int, default=6)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--samples", type=int, default=16, help="paths of light for each pixel")
    chosen = parser.parse_args()
    with zipfile.ZipFile(chosen.furniture / CATALOGUE) as archive, tempfile.TemporaryDirectory() as models:
        pieces = catalogue(archive)
        archive.extractall(models)
        for seed in range(chosen.rooms):
            folder = chosen.out / f"blender_{seed:02d}"
            if not folder.exists():
                size = (chosen.height, chosen.width)
                write_room(folder, pieces, Path(models), seed, chosen.views, size, chosen.samples)


if __name__ == "__main__":
    main()
